"""PQN: what it learns from by hand, its counts, its bits, and that it learns."""

import dataclasses
import functools

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn.agents.pqn.pqn import deal_minibatches, pqn
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.engine import rounds
from purejaxdqn.environments import Environment
from purejaxdqn.losses import bellman_loss, return_error
from purejaxdqn.sweep.run import run_sweep
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.learner import make_learner
from purejaxdqn.types import Array, LossOutput, Network, TimeStep, Transition
from tiny import TINY_PQN, bits, compiled

SMALL = dataclasses.replace(TINY_PQN, eval_interval=120)


# -------------------------------------------------------------------------------------- by hand


@flax.struct.dataclass
class Corridor:
    position: Array


def corridor(terminates: bool) -> Environment:
    """Three steps from 0 to 3, rewarded by where they lead; then a death, or the time limit."""

    def reset(key):
        return Corridor(jnp.zeros(())), jnp.zeros(1)

    def step(key, state, action):
        position = state.position + 1
        over = position >= 3
        timestep = TimeStep(position[None], position, over & terminates, over & (not terminates))
        return Corridor(position), timestep

    space = gymnasium.spaces.Box(0, 3, (1,))
    return Environment("corridor", reset, step, 2, space, None, 3)


# Values 10 x and -x at position x: the greedy action is always the first.
PROPORTIONAL = Network(
    lambda key, obs: jnp.array([10.0, -1.0]),
    lambda params, obs, key=None: params * obs,
    lambda q: q,
)
CORRIDOR = dataclasses.replace(
    SMALL,
    total_steps=70,
    num_envs=1,
    num_steps=7,
    num_epochs=1,
    num_minibatches=1,
    discount=0.5,
    q_lambda=0.5,
    learning_rate=0.7,
    learning_rate_end_fraction=1.0,
    max_grad_norm=float("inf"),
    epsilon_start=0.0,
    epsilon_end=0.0,
    eval_interval=70,
)


@pytest.mark.parametrize(
    ("terminates", "last", "middle", "first"),
    [
        # From the last observation, 3, whose value is 30, and not from the next episode's first.
        (False, 3 + 0.5 * 30, 2 + 0.5 * (0.5 * 20 + 0.5 * 18), 1 + 0.5 * (0.5 * 10 + 0.5 * 11.5)),
        (True, 3, 2 + 0.5 * (0.5 * 20 + 0.5 * 3), 1 + 0.5 * (0.5 * 10 + 0.5 * 7.75)),
    ],
)
def test_the_learner_is_given_the_returns_by_hand(terminates, last, middle, first):
    def loss_fn(network, params, target_params, transition, key):
        # One number for each position: what the returns there are on average, and how many.
        at = [transition.obs_tm1[0] == position for position in (0, 1, 2)]
        metrics = {f"at_{i}": jnp.where(here, transition.r_t, 0.0) for i, here in enumerate(at)}
        metrics |= {"left": transition.discount_t, "next": transition.obs_t[0]}
        return LossOutput(params.sum(), jnp.zeros(()), metrics)

    train = pqn(CORRIDOR, env=corridor(terminates), network=PROPORTIONAL, loss_fn=loss_fn)
    state, outputs = jax.jit(train.chunk, static_argnums=2)(
        train.init(jax.random.key(0)), jnp.int32(1), 1
    )
    cut = 1 + 0.5 * 10  # by the end of the rollout
    expected = {"at_0": 2 * first + cut, "at_1": 2 * middle, "at_2": 2 * last}
    expected |= {"left": 0, "next": 2 * (1 + 2 + 3) + 1}
    for name, value in expected.items():
        assert float(outputs.metrics[name][0]) * 7 == pytest.approx(value), name
    episode_return = np.asarray(outputs.episode_return).ravel()
    np.testing.assert_array_equal(episode_return, [np.nan, np.nan, 6, np.nan, np.nan, 6, np.nan])
    assert state.num_steps == 7
    assert state.obs[0, 0] == 1  # the next rollout goes on where this one ended


def test_gradient_steps_by_hand_and_the_returns_stay_what_they_are():
    """The value 10 x becomes 9.5 x, at which the first epoch's returns leave no gradient."""
    for num_epochs in (1, 2):
        config = dataclasses.replace(CORRIDOR, num_epochs=num_epochs)
        train = pqn(config, env=corridor(False), network=PROPORTIONAL, optimizer=optax.sgd)
        state, outputs = train.chunk(train.init(jax.random.key(0)), jnp.int32(1), 1)
        # Errors 11.5 - 10 at 1 and 18 - 20 at 2, twice each in a batch of 7.
        gradient = -2 * (1.5 * 1 - 2 * 2) / 7
        np.testing.assert_allclose(state.learner.params, [10 - 0.7 * gradient, -1], rtol=1e-6)
        assert state.learner.num_updates == num_epochs
        losses = [0.5 * (6.375**2 * 2 + 36 + 2 * 1.5**2 + 2 * 2**2) / 7]
        losses += [0.5 * (6.375**2 * 2 + 36 + 2 * 2.0**2 + 2 * 1**2) / 7]
        expected = np.mean(losses[:num_epochs])
        assert float(outputs.metrics["loss"][0]) == pytest.approx(expected)


def test_a_time_limit_is_no_death_and_a_constant_reward_is_worth_its_sum():
    def reset(key):
        return Corridor(jnp.zeros(())), jnp.ones(1)

    def step(key, state, action):
        state = Corridor(state.position + 1)
        over = state.position >= 5
        return state, TimeStep(jnp.ones(1), jnp.ones(()), jnp.zeros((), bool), over)

    env = Environment("endless", reset, step, 2, gymnasium.spaces.Box(0, 1, (1,)), None, 5)
    config = dataclasses.replace(SMALL, discount=0.8, q_lambda=0.9, epsilon_end=1.0, total_steps=40)
    zeros = PROPORTIONAL._replace(init=lambda key, obs: jnp.zeros(2))
    train = pqn(config, env=env, network=zeros, optimizer=lambda _: optax.sgd(0.5))
    state, _ = jax.jit(train.chunk, static_argnums=2)(
        train.init(jax.random.key(0)), jnp.int32(100), 100
    )
    np.testing.assert_allclose(state.learner.params, [5, 5], rtol=1e-4)


def test_without_a_target_network_the_loss_is_given_the_weights_themselves():
    def loss_fn(network, params, target_params, transition, key):
        difference = jnp.sum(jnp.abs(params - target_params))
        return LossOutput(params.sum(), jnp.zeros(()), {"difference": difference})

    learner = make_learner(PROPORTIONAL, loss_fn, optax.sgd(0.1))
    state = learner.init(jax.random.key(0), jnp.ones(1))
    assert state.target_params is None
    numbers = jnp.ones(3)
    batch = Transition(
        numbers[:, None], jnp.zeros(3, jnp.int32), numbers, numbers, numbers[:, None]
    )
    for _ in range(2):
        state, _, metrics = learner.update(state, batch, jax.random.key(1))
        assert metrics["difference"] == 0
    assert state.target_params is None
    np.testing.assert_allclose(state.params, [9.8, -1.2], rtol=1e-6)


def test_a_minibatch_holds_whole_transitions_and_an_epoch_all_of_them_once():
    number = jnp.arange(12)
    batch = Transition(number[:, None] + 0.5, number, 2.0 * number, 3.0 * number, -number[:, None])
    first, second = (deal_minibatches(jax.random.key(seed), batch, 3) for seed in (0, 1))
    for dealt in (first, second):
        assert dealt.a_tm1.shape == (3, 4)
        np.testing.assert_array_equal(np.sort(dealt.a_tm1.ravel()), number)
        np.testing.assert_array_equal(dealt.obs_tm1[..., 0], dealt.a_tm1 + 0.5)
        np.testing.assert_array_equal(dealt.r_t, 2 * dealt.a_tm1)
        np.testing.assert_array_equal(dealt.discount_t, 3 * dealt.a_tm1)
        np.testing.assert_array_equal(dealt.obs_t[..., 0], -dealt.a_tm1)
        assert not np.array_equal(dealt.a_tm1.ravel(), number)
    assert not np.array_equal(first.a_tm1, second.a_tm1)


# ------------------------------------------------------------------------------ counts and bits


def test_playing_and_learning_happen_exactly_as_often_as_asked():
    init, chunk = compiled(pqn, SMALL)
    state = init(jax.random.key(0))
    assert state.num_steps == state.learner.num_updates == 0
    for i in range(1, SMALL.num_iterations + 1):
        state, outputs = chunk(state, jnp.int32(1), 12)
        assert state.num_steps == 40 * i
        assert state.learner.num_updates == 10 * i
    assert state.num_steps == SMALL.total_steps
    assert state.learner.num_updates == SMALL.num_updates == 120
    assert outputs.episode_return.shape == (12, 10, 4)


def test_every_float_of_the_config_reaches_the_training():
    config = dataclasses.replace(SMALL, max_grad_norm=1.0, epsilon_fraction=0.5)

    @jax.jit
    def final_params(floats):
        train = pqn(dataclasses.replace(config, **floats))
        state, _ = train.chunk(train.init(jax.random.key(0)), jnp.int32(12), 12)
        return state.learner.params

    base = {
        name: jnp.float32(getattr(config, name))
        for name, one in settings_of(PQNConfig).items()
        if one.is_traced
    }
    trained = bits(final_params(base))
    for name in base:
        assert bits(final_params(base | {name: base[name] * 0.5 + 0.05})) != trained, name


def test_parts_can_be_passed_in_place_of_the_settings():
    huber = functools.partial(optax.huber_loss, delta=0.1)
    with_huber = pqn(SMALL, loss_fn=bellman_loss(return_error, huber))
    with_adam = pqn(SMALL, optimizer=optax.adam)
    trained = []
    for train in (pqn(SMALL), with_huber, with_adam):
        state, _ = jax.jit(train.chunk, static_argnums=2)(
            jax.jit(train.init)(jax.random.key(0)), jnp.int32(1), 1
        )
        trained.append(bits(state.learner.params))
    assert trained[0] != trained[1] != trained[2] != trained[0]


# ----------------------------------------------------------------------------------- in a sweep

quiet = functools.partial(run_sweep, progress=False)


@pytest.fixture(scope="module")
def swept():
    return quiet(pqn, SMALL, range(3), width=2, q_lambda=[0.0, 0.9])


def test_a_sweep_runs_it_as_it_runs_dqn(swept):
    dataset = swept.dataset
    assert dataset.evaluation_return.dims == ("q_lambda", "seed", "step", "episode")
    assert dataset.step.values.tolist() == [0, 120, 240, 360, 480]
    assert dataset.num_updates.values.tolist() == [0, 30, 60, 90, 120]
    assert np.isfinite(dataset.evaluation_return).all()
    assert np.isfinite(dataset.loss[..., 1:]).all()
    assert np.isnan(dataset.training_return[..., 0]).all()
    assert dataset.attrs["experiment"] == "purejaxdqn.agents.pqn.pqn.pqn"
    first, second = swept.dataset.loss.values[..., -1]
    assert (first != second).all()


def test_neither_chunking_nor_company_changes_a_bit_of_a_run(swept, monkeypatch):
    monkeypatch.setattr(rounds, "_CHUNK_SECONDS", 1e-9)  # one iteration per chunk
    config = dataclasses.replace(SMALL, q_lambda=0.9)
    alone = quiet(pqn, config, [1], width=2)
    beside = swept.dataset.sel(q_lambda=0.9, seed=1)
    for name in ("evaluation_return", "training_return", "loss"):
        one = alone.dataset[name].sel(seed=1).values
        assert one.tobytes() == beside[name].values.tobytes(), name
    for x, y in zip(*map(jax.tree.leaves, (alone.params, swept.params)), strict=True):
        assert x[0].tobytes() == y[1, 1].tobytes()


def test_it_learns():
    """In an eighth of the usual steps, with more gradient steps for each."""
    config = PQNConfig(
        total_steps=60_000, num_minibatches=5, eval_interval=60_000, eval_episodes=20
    )
    returns = quiet(pqn, config, range(4)).dataset.evaluation_return.mean(("seed", "episode"))
    assert returns[0] < 60
    assert returns[-1] > 150
