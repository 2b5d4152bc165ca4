"""Every part of dqn and pqn that can be passed is used, and what it writes down arrives."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn import behaviours, dqn, losses, networks, pqn, replay
from purejaxdqn.training.learner import make_learner, over_batch
from purejaxdqn.types import ConfigError, LossOutput
from tiny import TINY, TINY_PQN, bits, compiled

EXPERIMENTS: dict[str, Any] = {"dqn": (dqn, TINY), "pqn": (pqn, TINY_PQN)}
NETWORK = networks.value_network(2, (8,))
PARAMS = NETWORK.init(jax.random.key(7), jnp.zeros(4))


def masked_behaviour():
    """Acts epsilon-greedily, and writes down a mask of three and whether an episode begins."""
    plain = behaviours.epsilon_greedy_behaviour(lambda _: 0.5, write_probability=True)
    return behaviours.write_extras(
        plain,
        lambda key, here, action: {
            "mask": jax.random.bernoulli(key, 0.25, (3,)),
            "begins": here.is_first,
            "prefill": jnp.asarray(here.is_prefill),
        },
    )


def batch_loss(network, params, target_params, batch, key):
    """Q-learning, with what extras say among its metrics."""
    output = over_batch(losses.bellman_loss())(network, params, target_params, batch, key)
    extras = {name: x.astype(jnp.float32) for name, x in batch.extras.items()}
    metrics = {
        **output.metrics,
        "mask": extras["mask"].mean(axis=1),
        "probability": extras["probability"],
        "begins": extras["begins"],
        "truncated": batch.truncated_t.astype(jnp.float32),
    }
    return LossOutput(output.loss, output.priority, metrics)


def count_updates(key, state):
    """Writes the number of updates into the output's bias, which nothing else may then change."""
    params = jax.tree.map(lambda x: x, state.learner.params)
    params["params"]["Dense_1"]["bias"] = jnp.full(2, state.learner.num_updates, jnp.float32)
    learner = dataclasses.replace(state.learner, params=params)
    return dataclasses.replace(state, learner=learner)


def run(experiment, config, num_iterations=3):
    init, chunk = compiled(experiment, config, as_users_have_it=True)
    state = init(jax.random.key(0))
    after, outputs = chunk(state, num_iterations, num_iterations)
    return state, after, outputs


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_parts_at_once(name):
    experiment, config = EXPERIMENTS[name]
    parts: dict[str, Any] = {
        "network": NETWORK,
        "initial_params": PARAMS,
        "behaviour": masked_behaviour(),
        "batch_loss": batch_loss,
        "optimizer": optax.sgd,
        "after_update": count_updates,
    }
    if name == "dqn":
        parts["replay"] = replay.uniform_replay(100, 16, 500)
        parts["target_update"] = lambda params, target, num_updates: jax.tree.map(
            lambda x: jnp.full_like(x, num_updates), target
        )
    before, after, outputs = run(functools.partial(experiment, **parts), config)
    assert bits(before.learner.params) == bits(PARAMS)
    num_updates = int(after.learner.num_updates)
    assert num_updates > 0
    assert after.learner.params["params"]["Dense_1"]["bias"].tolist() == [num_updates] * 2
    metrics = jax.tree.map(np.asarray, outputs.metrics)
    assert 0.05 < metrics["mask"].mean() < 0.5
    assert (metrics["probability"] >= 0.25).all()
    assert 0 <= metrics["begins"].mean() < 0.5
    if name == "dqn":
        assert all((x == num_updates).all() for x in jax.tree.leaves(after.learner.target_params))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_wrapped_loss_is_the_configured_one(name):
    experiment, config = EXPERIMENTS[name]

    def twice(loss_fn):
        def loss(*args):
            output = loss_fn(*args)
            return output._replace(metrics={**output.metrics, "twice": 2 * output.loss})

        return loss

    _, plain, _ = run(experiment, config)
    _, wrapped, outputs = run(functools.partial(experiment, wrap_loss=twice), config)
    assert bits(wrapped.learner.params) == bits(plain.learner.params)
    np.testing.assert_allclose(outputs.metrics["twice"], 2 * outputs.metrics["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_learner_of_ones_own_replaces_the_loss_and_its_optimiser(name):
    experiment, config = EXPERIMENTS[name]
    own = make_learner(NETWORK, losses.bellman_loss(), optax.sgd(0.0))
    parts: dict[str, Any] = {"network": NETWORK, "learner": own}
    before, after, _ = run(functools.partial(experiment, **parts), config)
    assert bits(before.learner.params) == bits(after.learner.params)
    assert int(after.learner.num_updates) > 0
    with pytest.raises(ConfigError, match=r"learner= stands in place of wrap_loss="):
        experiment(config, learner=own, wrap_loss=lambda loss_fn: loss_fn)
    with pytest.raises(ConfigError, match=r"batch_loss= stands in place of loss_fn="):
        experiment(config, batch_loss=batch_loss, loss_fn=losses.bellman_loss())


def test_sequences_are_learned_from():
    parts: dict[str, Any] = {
        "replay": replay.sequence_replay(replay.uniform_replay(100, 16, 500), 4),
        "behaviour": behaviours.epsilon_greedy_behaviour(lambda _: 0.5, write_probability=True),
        "loss_fn": losses.trajectory_loss(losses.retrace(0.9)),
    }
    config = dataclasses.replace(TINY, n_step=1)
    before, after, outputs = run(functools.partial(dqn, **parts), config)
    assert np.isfinite(np.asarray(outputs.metrics["loss"])).all()
    assert bits(before.learner.params) != bits(after.learner.params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (NETWORK.init(jax.random.key(0), jnp.zeros(3)), r"kernel'\] has shape \(3, 8\).*\(4, 8\)"),
        ({"params": {}}, "has shape none at all"),
    ],
)
def test_weights_of_another_network_are_refused(params, message):
    train = dqn(TINY, network=NETWORK, initial_params=params)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(train.init, jax.random.key(0))
