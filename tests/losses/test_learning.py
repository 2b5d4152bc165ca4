"""Target updates, and what a learner converges to, against numbers by hand."""

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax

from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.environments import Environment
from purejaxdqn.training.learner import periodic_target_update
from purejaxdqn.types import Array, TimeStep


class TestPeriodicTargetUpdate:
    def targets(self, target_update, num):
        """The online network is `[n, 10 n]` after gradient step n; the target starts at -1."""
        target, seen = {"w": jnp.full(2, -1.0)}, []
        for n in range(1, num + 1):
            params = {"w": jnp.array([1.0, 10.0]) * n}
            target = jax.jit(target_update)(params, target, jnp.int32(n))
            seen.append(target["w"].tolist())
        return seen

    def test_hard_copies_at_each_period(self):
        assert self.targets(periodic_target_update(3), 7) == [
            *[[-1, -1]] * 2,
            *[[3, 30]] * 3,
            *[[6, 60]] * 2,
        ]
        assert self.targets(periodic_target_update(1), 3) == [[1, 10], [2, 20], [3, 30]]

    def test_polyak_averaging(self):
        # 0.75 * -1 + 0.25 * 1 = -0.5, then 0.75 * -0.5 + 0.25 * 2 = 0.125; exact in binary.
        assert self.targets(periodic_target_update(1, 0.25), 2) == [[-0.5, 1.75], [0.125, 6.3125]]

    def test_polyak_averaging_at_a_period(self):
        assert self.targets(periodic_target_update(2, 0.5), 4) == [
            [-1, -1],
            [0.5, 9.5],
            [0.5, 9.5],
            [2.25, 24.75],
        ]

    def test_the_step_size_may_be_traced(self):
        def moved(step_size):
            update = periodic_target_update(1, step_size)
            return update(jnp.float32(8), jnp.float32(0), jnp.int32(1))

        np.testing.assert_array_equal(jax.jit(jax.vmap(moved))(jnp.array([0.5, 1.0])), [4, 8])


@flax.struct.dataclass
class ProbeState:
    """How many steps of the episode were taken."""

    num_steps: Array


def probe(
    num_obs: int, max_steps: int, last_step: int | None = None, period: int = 1
) -> Environment:
    """A reward of 1 at every `period`-th step, from the first one on.

    The observation is the number of steps modulo `num_obs`, one-hot. The episode terminates at
    `last_step`.
    """

    def observe(state):
        return jax.nn.one_hot(state.num_steps % num_obs, num_obs)

    def reset(key):
        del key
        state = ProbeState(jnp.int32(0))
        return state, observe(state)

    def step(key, state, action):
        del key, action
        reward = (state.num_steps % period == 0).astype(jnp.float32)
        state = ProbeState(state.num_steps + 1)
        terminated = state.num_steps == (last_step or -1)
        return state, TimeStep(observe(state), reward, terminated, state.num_steps >= max_steps)

    space = gymnasium.spaces.Box(0, 1, (num_obs,), np.float32)
    return Environment("probe", reset, step, 2, space, None, max_steps)


def learned_values(env: Environment) -> np.ndarray:
    """`[observations, A]` what a table of action values learns, for one-hot observations."""
    config = DQNConfig(
        total_steps=8_040,
        num_envs=4,
        steps_per_update=4,
        updates_per_iteration=1,
        prefill_steps=40,
        replay_capacity=400,
        batch_size=32,
        hidden_sizes=(),
        td_error="q_learning",
        penalty="squared",
        discount=0.9,
        learning_rate=1.0,
        learning_rate_end_fraction=0.5,
        max_grad_norm=np.inf,
        target_period=10,
        target_step_size=1.0,
        epsilon_start=1.0,
        epsilon_end=1.0,
    )
    config.validate()
    train = dqn(config, env=env, optimizer=optax.sgd)
    state = jax.jit(train.init)(jax.random.key(0))
    state, _ = jax.jit(train.chunk, static_argnums=2)(
        state, jnp.int32(config.num_iterations), 2_000
    )
    assert int(state.learner.num_updates) == config.num_updates == 2_000
    dense = state.learner.params["params"]["Dense_0"]
    return np.asarray(dense["kernel"] + dense["bias"][np.newaxis])


class TestTimeLimits:
    """A time limit cuts off what would go on for ever; only the task's own end is an end."""

    def test_constant_reward_is_worth_one_over_one_minus_gamma(self):
        values = learned_values(probe(num_obs=1, max_steps=5))
        np.testing.assert_allclose(values, 1 / (1 - 0.9), rtol=1e-3)

    def test_the_last_observation_is_bootstrapped_and_not_the_next_episodes_first(self):
        # Q(even) = 1 + 0.9 Q(odd), Q(odd) = 0.9 Q(even); episodes start even and break off odd.
        values = learned_values(probe(num_obs=2, max_steps=5, period=2))
        even = 1 / (1 - 0.9**2)
        np.testing.assert_allclose(values, [[even, even], [0.9 * even, 0.9 * even]], rtol=1e-3)

    def test_a_terminated_episode_is_worth_what_is_left_of_it(self):
        values = learned_values(probe(num_obs=6, max_steps=9, last_step=5))
        left = np.array([sum(0.9**i for i in range(5 - step)) for step in range(5)])
        np.testing.assert_allclose(values[:5], np.stack([left, left], axis=1), rtol=1e-3)

    def test_terminated_at_the_time_limit_is_terminated(self):
        values = learned_values(probe(num_obs=1, max_steps=1, last_step=1))
        np.testing.assert_allclose(values, 1.0, rtol=1e-3)
