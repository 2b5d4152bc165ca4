"""Evaluation: whole episodes, each once."""

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purejaxdqn import environments
from purejaxdqn.environments import Environment
from purejaxdqn.training.evaluation import evaluate, greedy_policy
from purejaxdqn.types import Array, Network, TimeStep

LONGEST = 10


class CountdownState(NamedTuple):
    """An episode that knows its length."""

    length: Array
    num_steps: Array


def countdown(noise: float = 0.0) -> Environment:
    """Episodes of 1 to 10 steps, each as likely; the reward of a step is the length of its episode.

    The longest are cut off by the time limit. After the end, rewards are wild.
    """

    def observe(state):
        return jnp.stack([state.length, state.num_steps]).astype(jnp.float32)

    def reset(key):
        length = jax.random.randint(key, (), 1, LONGEST + 1, jnp.int32)
        state = CountdownState(length, jnp.int32(0))
        return state, observe(state)

    def step(key, state, action):
        del action
        is_over = state.num_steps >= state.length
        reward = jnp.where(is_over, 1e6, state.length) + noise * jax.random.normal(key)
        state = state._replace(num_steps=state.num_steps + 1)
        # Reported once: an episode that has ended must stay ended.
        terminated = (state.num_steps == state.length) & (state.length < LONGEST)
        return state, TimeStep(observe(state), reward, terminated, state.num_steps >= LONGEST)

    space = gymnasium.spaces.Box(0, 20, (2,), np.float32)
    return Environment("countdown", reset, step, 2, space, None, LONGEST)


def run(env, seed=0, num_episodes=1_000, policy=lambda key, obs: jnp.int32(0)):
    evaluated = jax.jit(lambda key: evaluate(policy, env, key, num_episodes))(jax.random.key(seed))
    return jax.tree.map(np.asarray, evaluated)


class TestEvaluate:
    def test_whole_episodes_each_counted_once(self):
        found = run(countdown())
        assert found.episode_return.shape == found.length.shape == (1_000,)
        assert found.episode_return.dtype == np.float32
        assert found.length.dtype == np.int32
        np.testing.assert_array_equal(found.episode_return, found.length.astype(float) ** 2)

    def test_short_episodes_are_not_favoured(self):
        lengths = np.bincount(run(countdown()).length, minlength=LONGEST + 1)
        assert lengths[0] == 0
        assert stats.chisquare(lengths[1:]).pvalue > 1e-3

    def test_one_episode(self):
        found = run(countdown(), num_episodes=1)
        assert found.episode_return.shape == (1,)

    def test_keys(self):
        a, b, c = (run(countdown(noise=0.1), seed, 100).episode_return for seed in (0, 0, 1))
        np.testing.assert_array_equal(a, b)
        assert len(np.unique(np.concatenate([a, c]))) == 200

    def test_keys_of_policy_and_environment_differ_and_change_with_the_step(self):
        """The action is what the policy draws from its key; the environment draws from its own."""

        def reset(key):
            return jnp.int32(0), jax.random.uniform(key, (1,))

        def step(key, state, action):
            mine, theirs = jax.random.bits(key), action.astype(jnp.uint32)
            seen = jnp.stack([mine >> 9, theirs >> 9])
            jax.debug.callback(lambda values: drawn.extend(values.tolist()), seen)
            reward = jnp.float32(1)
            return state + 1, TimeStep(jnp.zeros(1), reward, jnp.bool(False), state + 1 >= 3)

        drawn: list[int] = []
        space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
        env = Environment("keys", reset, step, 2, space, None, 3)
        run(env, num_episodes=4, policy=lambda key, obs: jax.random.bits(key).astype(jnp.int32))
        jax.effects_barrier()
        assert len(drawn) == 2 * 3 * 4
        assert len(set(drawn)) == len(drawn)

    def test_time_limits_end_episodes(self):
        env = environments.make("CartPole-v0")

        def balance(key, obs):
            del key
            return jnp.int32(obs @ jnp.array([0.1, 0.2, 1.0, 0.5]) > 0)

        found = run(env, num_episodes=20, policy=balance)
        np.testing.assert_array_equal(found.length, 200)
        np.testing.assert_array_equal(found.episode_return, 200)

    def test_vmapped_runs(self):
        keys = jax.random.split(jax.random.key(0), 2)
        env = countdown()
        play = jax.jit(lambda key: evaluate(lambda key, obs: jnp.int32(0), env, key, 50))
        both = jax.jit(jax.vmap(play))(keys)
        for i in range(2):
            alone = play(keys[i])
            np.testing.assert_array_equal(both.episode_return[i], alone.episode_return)
            np.testing.assert_array_equal(both.length[i], alone.length)

    @pytest.mark.parametrize("name", ["Acrobot-v1", "CartPole-v1", "MountainCar-v0"])
    def test_in_64_bits(self, name):
        with jax.enable_x64(True):
            found = run(environments.make(name), num_episodes=5)
        assert found.episode_return.dtype == np.float32
        # Each step counts 1 or -1, but for the one that wins Acrobot.
        np.testing.assert_allclose(np.abs(found.episode_return), found.length, rtol=0, atol=1)


class TestGreedyPolicy:
    def test_greedy_without_noise(self):
        def apply(params, obs, key=None):
            assert key is None
            return params * obs

        network = Network(lambda key, obs: jnp.ones(()), apply, lambda output: output[:3])
        for values, action in (([1, 3, 2, 9], 1), ([-1, -3, -2, 9], 0), ([2, 5, 5, 9], 1)):
            for sign, expected in ((1.0, action), (-1.0, int(np.argmin(values[:3])))):
                policy = greedy_policy(network, jnp.float32(sign))
                found = jax.jit(policy)(jax.random.key(0), jnp.array(values, jnp.float32))
                assert found.dtype == jnp.int32
                assert int(found) == expected
