"""The exact counts of a run of DQN, and what its bits do not depend on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn import agents, environments, networks
from purejaxdqn.agents.dqn.dqn import (
    DQNConfig,
    choose_epsilon,
    choose_optimizer,
    dqn,
    importance_weights,
)
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.learner import make_learner, periodic_target_update
from purejaxdqn.types import ConfigError, LossOutput, Transition
from tiny import TINY, bits, compiled

SMALL = dataclasses.replace(TINY, total_steps=400, eval_interval=100)


@pytest.mark.parametrize(
    ("num_envs", "steps_per_update", "updates", "period"),
    [(1, 1, 1, 1), (3, 6, 2, 3), (5, 5, 4, 7), (2, 12, 1, 4)],
)
def test_acting_learning_and_target_copies_happen_exactly_as_often_as_asked(
    num_envs, steps_per_update, updates, period
):
    config = DQNConfig(
        total_steps=240,
        num_envs=num_envs,
        steps_per_update=steps_per_update,
        updates_per_iteration=updates,
        prefill_steps=60,
        replay_capacity=240,
        batch_size=8,
        hidden_sizes=(4,),
        target_period=period,
        target_step_size=1.0,
        eval_interval=120,
    )
    config.validate()
    init, chunk = compiled(dqn, config)
    state = init(jax.random.key(0))
    assert state.num_steps == 60
    assert state.replay.num_rows * num_envs == 60
    assert state.learner.num_updates == 0
    copies, target = 0, state.learner.target_params
    for i in range(config.num_iterations):
        state, outputs = chunk(state, jnp.int32(1), 1)
        copies += bits(state.learner.target_params) != bits(target)
        target = state.learner.target_params
        assert state.num_steps == 60 + (i + 1) * steps_per_update
        assert state.learner.num_updates == (i + 1) * updates
        if (i + 1) * updates % period == 0:
            assert bits(target) == bits(state.learner.params)
    assert outputs.episode_return.shape == (1, steps_per_update // num_envs, num_envs)
    assert state.num_steps == 240
    assert state.replay.num_rows * num_envs == 240
    assert state.learner.num_updates == 180 // steps_per_update * updates == config.num_updates
    # A chunk of one iteration shows whether any copy fell into it, not how many.
    seen = {(update - 1) // updates for update in range(period, config.num_updates + 1, period)}
    assert copies == len(seen)


def test_a_hundred_seeds_share_neither_weights_nor_resets_nor_exploration_nor_replay_draws():
    config = dataclasses.replace(SMALL, epsilon_end=1.0)
    train = dqn(config)
    keys = jax.vmap(jax.random.key)(jnp.arange(100))

    def run(key):
        state = train.init(key)
        first_obs = state.replay.obs[:4]
        actions = state.replay.action[:80]
        later, _ = train.chunk(state, jnp.int32(1), 1)
        _, sample_key, _ = jax.random.split(later.key, 3)
        return state.learner.params, first_obs, actions, later.learner.params, sample_key

    weights, resets, actions, learned, sample_keys = jax.jit(jax.vmap(run))(keys)
    kernels = np.concatenate(
        [np.asarray(x).reshape(100, -1) for x in jax.tree.leaves(weights) if x.ndim == 3], axis=1
    )
    draws = jax.vmap(lambda key: jax.random.bits(key, (8,)))(sample_keys)
    for values in (kernels, resets.reshape(100, -1), actions, draws):
        assert len(np.unique(np.asarray(values), axis=0)) == 100
    # Also no single number of the continuous ones is shared, which a partly shared stream would.
    for column in (*kernels.T, *np.asarray(resets).reshape(100, -1).T):
        assert len(np.unique(column)) == 100
    learned_kernels = np.asarray(jax.tree.leaves(learned)[-1]).reshape(100, -1)
    assert len(np.unique(learned_kernels, axis=0)) == 100


def test_replay_draws_differ_between_seeds_with_equal_buffers():
    train_state = compiled(dqn, SMALL)[0](jax.random.key(0))
    from purejaxdqn.replay import uniform_replay

    replay = uniform_replay(SMALL.replay_capacity, SMALL.batch_size, 500)
    keys = jax.vmap(jax.random.key)(jnp.arange(100))
    indices = jax.vmap(lambda key: replay.sample(train_state.replay, key).indices)(keys)
    assert len(np.unique(np.asarray(indices), axis=0)) == 100


def test_the_prefill_is_uniformly_random_and_learns_nothing():
    config = dataclasses.replace(
        SMALL, prefill_steps=4000, replay_capacity=4000, total_steps=4400, epsilon_start=0.0
    )
    train = dqn(config)
    state = jax.jit(train.init)(jax.random.key(5))
    share = float(state.replay.action.mean())
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert bits(state.learner.params) == bits(state.learner.target_params)


def test_returns_are_reported_when_an_episode_ends_and_are_its_length():
    init, chunk = compiled(dqn, SMALL)
    state = init(jax.random.key(7))
    before = np.asarray(state.episode_return)
    state, outputs = chunk(state, jnp.int32(60), 60)
    returns = np.asarray(outputs.episode_return).reshape(60, 4)
    assert np.isfinite(returns).any()
    assert np.isnan(returns).any()
    for env in range(4):
        running = before[env]
        for row in returns[:, env]:
            running += 1
            if np.isfinite(row):
                assert row == running
                running = 0
        assert running == state.episode_return[env]


# Settings, and the floats that each of them uses beside those that all of them use.
ONLY_WITH: dict[str, tuple[dict[str, Any], set[str]]] = {
    "linear": ({}, {"epsilon_fraction", "huber_threshold"}),
    "multiplicative": (
        {"epsilon_schedule": "multiplicative", "prioritised": True, "munchausen": True},
        {"epsilon_decay", "huber_threshold", "priority_exponent", "importance_exponent"}
        | {"munchausen_coefficient", "temperature"},
    ),
    "categorical": (
        {"representation": "categorical"},
        {"epsilon_fraction", "value_min", "value_max"},
    ),
    "gaussian": (
        {"representation": "categorical", "label": "gaussian"},
        {"epsilon_fraction", "value_min", "value_max", "label_width"},
    ),
    "proposed_quantile": (
        {"representation": "proposed_quantile", "num_quantiles": 4},
        {"epsilon_fraction", "huber_threshold", "fraction_learning_rate"},
    ),
    "persistent": (
        {"td_error": "persistent_advantage_learning", "penalty": "squared"},
        {"epsilon_fraction", "advantage_coefficient"},
    ),
}


@pytest.mark.parametrize("kind", ONLY_WITH)
def test_every_float_of_the_config_reaches_the_training(kind):
    settings, floats_of_its_own = ONLY_WITH[kind]
    base_settings: dict[str, Any] = {
        "penalty": "huber",
        "max_grad_norm": 1.0,
        "epsilon_fraction": 0.5,
        "epsilon_decay": 0.95,
    }
    config = dataclasses.replace(SMALL, **(base_settings | settings))
    unused = set().union(*(own for _, own in ONLY_WITH.values())) - floats_of_its_own
    names = [
        name for name, one in settings_of(DQNConfig).items() if one.is_traced and name not in unused
    ]

    @jax.jit
    def final_params(floats):
        train = dqn(dataclasses.replace(config, **floats))
        state, _ = train.chunk(train.init(jax.random.key(0)), jnp.int32(config.num_iterations), 100)
        return state.learner.params

    base = {name: jnp.float32(getattr(config, name)) for name in (*names, *unused)}
    trained = bits(final_params(base))
    for name in names:
        changed = bits(final_params(base | {name: base[name] * 0.5 + 0.05}))
        assert changed != trained, name


def test_importance_weights_by_hand():
    probabilities = jnp.array([0.5, 0.1, 0.2])
    np.testing.assert_allclose(importance_weights(probabilities, 1.0), [0.2, 1.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(importance_weights(probabilities, 0.5) ** 2, [0.2, 1.0, 0.5], 1e-6)
    np.testing.assert_array_equal(importance_weights(probabilities, 0.0), [1, 1, 1])


def test_weights_weigh_the_loss():
    def loss_fn(network, params, target_params, transition, key):
        value = network.apply(params, transition.obs_tm1)[0]
        return LossOutput(value, jnp.abs(value), {})

    network = networks.make_network(networks.MLP((), 2))
    optimizer = optax.sgd(0.1)
    learner = make_learner(network, loss_fn, optimizer, periodic_target_update(1))
    state = learner.init(jax.random.key(0), jnp.ones(4))
    obs = jax.random.normal(jax.random.key(1), (3, 4))
    batch = Transition(obs, jnp.zeros(3, jnp.int32), jnp.ones(3), jnp.ones(3), obs)
    key = jax.random.key(2)
    weights = jnp.array([0.0, 0.0, 3.0])
    weighted, _, metrics = learner.update(state, batch, key, weights)
    last = jax.tree.map(lambda x: x[2:], batch)
    alone, _, alone_metrics = learner.update(state, last, jax.random.clone(key))
    np.testing.assert_allclose(metrics["loss"], alone_metrics["loss"], rtol=1e-5)
    for x, y in zip(*map(jax.tree.leaves, (weighted.params, alone.params)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_a_target_copied_at_every_step_is_no_target_network():
    """The bootstrap then uses the weights as they are before each update."""

    def loss_fn(network, params, target_params, transition, key):
        same = [
            jnp.all(x == y)
            for x, y in zip(*map(jax.tree.leaves, (params, target_params)), strict=True)
        ]
        value = network.apply(params, transition.obs_tm1)[0]
        return LossOutput(value, value, {"same": jnp.all(jnp.stack(same)).astype(jnp.float32)})

    for period, expected in ((1, 1.0), (2, 0.5)):
        train = dqn(dataclasses.replace(SMALL, target_period=period), loss_fn=loss_fn)
        state = jax.jit(train.init)(jax.random.key(0))
        outputs = jax.jit(train.chunk, static_argnums=2)(state, jnp.int32(10), 10)[1]
        assert outputs.metrics["same"].mean() == expected


def test_rmsprop_has_kerass_constants():
    """Keras 3: velocity = 0.9 velocity + 0.1 g^2; variable -= rate * g / sqrt(velocity + 1e-7)."""
    optimizer = choose_optimizer(DQNConfig(optimizer="rmsprop"))(optax.constant_schedule(0.01))
    variable, velocity = np.array([1.0, -2.0, 3e-4]), np.zeros(3)
    params = jnp.array(variable)
    state = optimizer.init(params)
    for _ in range(5):
        updates, state = optimizer.update(params, state, params)  # the gradient of half the square
        params = params + updates
        velocity = 0.9 * velocity + 0.1 * variable**2
        variable = variable - 0.01 * variable / np.sqrt(velocity + 1e-7)
        np.testing.assert_allclose(params, variable, rtol=1e-5, atol=1e-9)


def test_epsilon_by_a_factor_starts_when_the_prefill_is_over():
    config = DQNConfig(
        prefill_steps=1_000, epsilon_decay=0.9, epsilon_end=0.1, epsilon_schedule="multiplicative"
    )
    epsilon = choose_epsilon(config)
    steps = jnp.array([0, 999, 1_000, 1_001, 1_002, 2_000])
    np.testing.assert_allclose(epsilon(steps), [1, 1, 1, 0.9, 0.81, 0.1], rtol=1e-6)


def test_batches_without_replacement_reach_the_training():
    """A batch as large as the memory is then the whole memory."""
    config = dataclasses.replace(SMALL, batch_size=80, n_step=1, sample_with_replacement=False)

    def loss_fn(network, params, target_params, transition, key):
        value = network.apply(params, transition.obs_tm1)[0]
        return LossOutput(value, value, {"action": transition.a_tm1.astype(jnp.float32)})

    train = dqn(dataclasses.replace(config, prefill_steps=76, total_steps=396), loss_fn=loss_fn)
    state = jax.jit(train.init)(jax.random.key(0))
    state, outputs = jax.jit(train.chunk, static_argnums=2)(state, jnp.int32(1), 1)
    held = np.asarray(state.replay.action)[: 80 // 4]
    assert outputs.metrics["action"][0] == pytest.approx(held.mean())


@pytest.mark.parametrize("change", [{}, {"td_error": "double_q_learning"}, {"n_step": 3}])
def test_the_tutorials_agent_is_a_setting_that_combines(change):
    config = dataclasses.replace(
        agents.get("tutorial").config,
        total_steps=132,
        target_period=10,
        hidden_sizes=(8,),
        eval_interval=100,
        **change,
    )
    config.validate()
    train = dqn(config)
    state = jax.jit(train.init)(jax.random.key(0))
    state, outputs = jax.jit(train.chunk, static_argnums=2)(state, jnp.int32(100), 100)
    assert state.num_steps == 132
    assert state.learner.num_updates == 100  # one per step, none before there is a batch
    assert np.isfinite(outputs.metrics["loss"]).all()


@pytest.mark.parametrize("n_step", [1, 4])
def test_transitions_span_as_many_steps_as_asked(n_step):
    def loss_fn(network, params, target_params, transition, key):
        value = network.apply(params, transition.obs_tm1)[0]
        return LossOutput(value, value, {"r_t": transition.r_t})

    train = dqn(dataclasses.replace(SMALL, n_step=n_step, discount=0.5), loss_fn=loss_fn)
    state = jax.jit(train.init)(jax.random.key(0))
    outputs = jax.jit(train.chunk, static_argnums=2)(state, jnp.int32(1), 1)[1]
    # Nearly all windows of CartPole's random play are whole; every reward is 1.
    whole = sum(0.5**k for k in range(n_step))
    assert 0.9 * whole <= outputs.metrics["r_t"][0] <= whole


def test_a_metric_with_a_name_that_is_taken_is_refused():
    def loss_fn(*args):
        zero = jnp.zeros(())
        return LossOutput(zero, zero, {"step": zero})

    train = dqn(SMALL, loss_fn=loss_fn)
    state = jax.eval_shape(train.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="a metric named step, which names something else"):
        jax.eval_shape(lambda state: train.chunk(state, jnp.int32(1), 1), state)


def test_parts_can_be_replaced_by_argument():
    env = environments.make("CartPole-v0")
    assert dqn(SMALL, env=env).env is env
