"""Where an environment says which actions are legal, nothing takes or learns from another one."""

import dataclasses
import functools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import dqn, losses, networks, pqn
from purejaxdqn.environments import Environment
from purejaxdqn.testing import check_environment
from purejaxdqn.training.diagnostics import diagnose
from purejaxdqn.training.evaluation import evaluate
from purejaxdqn.types import ILLEGAL, ConfigError, Quantiles, TimeStep, Transition
from tiny import TINY, TINY_PQN

NUM_ACTIONS, MAX_STEPS = 3, 8


def legal_actions(obs):
    """Only the action below the place is not: in place 0 it is the last one."""
    return jnp.arange(NUM_ACTIONS) != (obs[0].astype(jnp.int32) - 1) % NUM_ACTIONS


def observe(place):
    return jnp.stack([place, 1]).astype(jnp.float32)


def reset(key):
    place = jax.random.randint(key, (), 0, NUM_ACTIONS, jnp.int32)
    return (place, jnp.int32(0)), observe(place)


def step(key, state, action):
    """What is not legal costs a million."""
    place, count = state
    reward = jnp.where(legal_actions(observe(place))[action], 1.0, -1e6)
    state = (action.astype(jnp.int32), count + 1)
    ends = count + 1 >= MAX_STEPS
    return state, TimeStep(observe(action), reward, jnp.bool(False), ends)


SPACE = gymnasium.spaces.Box(0, NUM_ACTIONS, (2,), np.float32)
ENV = Environment("legal", reset, step, NUM_ACTIONS, SPACE, None, MAX_STEPS, legal_actions)

KINDS: dict[str, Any] = {
    "values": {"td_error": "expected_sarsa", "epsilon_end": 0.5},
    "categorical": {"representation": "categorical", "num_atoms": 5},
    "soft quantiles": {"representation": "quantile", "num_quantiles": 3, "munchausen": True},
    "proposed": {"representation": "proposed_quantile", "num_quantiles": 3, "num_cosines": 4},
}


def prefer_illegal(network):
    """A network that values each illegal action a million more than it would."""

    def apply(params, obs, key=None):
        return network.apply(params, obs, key) + 1e6 * ~legal_actions(obs)

    return network._replace(apply=apply)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("soft quantiles", "proposed")]


@pytest.mark.parametrize("kind", ["values", "categorical", "pqn", *SLOW])
def test_no_run_takes_or_bootstraps_from_an_illegal_action(kind):
    experiment: Any = pqn if kind == "pqn" else dqn
    config: Any = TINY_PQN
    if kind != "pqn":
        config = dataclasses.replace(TINY, temperature=1.0, n_step=1, **KINDS[kind])
    parts: dict[str, Any] = {"env": ENV}
    if kind in ("values", "pqn"):
        parts["network"] = prefer_illegal(networks.value_network(NUM_ACTIONS, (8,)))
    train = functools.partial(experiment, **parts)(config)
    state = jax.jit(train.init)(jax.random.key(0))
    state, outputs = jax.jit(train.chunk, static_argnums=2)(state, 5, 5)
    returns = np.asarray(outputs.episode_return)
    assert (returns[~np.isnan(returns)] == MAX_STEPS).all()
    assert np.isfinite(np.asarray(outputs.metrics["loss"])).all()
    assert (np.abs(np.asarray(outputs.metrics["loss"])) < 1e4).all()
    params = state.learner.params
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    stats = jax.jit(lambda params: evaluate(train.policy(params), ENV, jax.random.key(1), 4))
    assert (stats(params).episode_return == MAX_STEPS).all()
    assert train.probe is not None
    found = jax.jit(functools.partial(diagnose, train.probe, ENV))(state, params, jax.random.key(2))
    assert abs(float(found["value_bias"])) < 1e4
    assert float(found["policy_churn"]) == 0


OBS = jnp.array([1.0, 1.0])  # where action 0 is not legal


def table(output, action_values=lambda q: q):
    network = networks.value_network(NUM_ACTIONS, (4,))
    network = network._replace(apply=lambda *_: output, action_values=action_values)
    return networks.mask_illegal(network, legal_actions)


def test_targets_are_those_of_the_legal_actions():
    network = table(jnp.array([9.0, 2.0, 3.0]))
    step = Transition(OBS, jnp.int32(1), jnp.float32(1), jnp.float32(0.5), OBS)
    half = functools.partial(losses.expected_sarsa, epsilon=0.5)
    for td_error, value in (
        (losses.q_learning, 3.0),
        (losses.double_q_learning, 3.0),
        (half, 0.5 * 3.0 + 0.5 * 2.5),
        (losses.soft_q_learning, 3.0),
    ):
        output = losses.bellman_loss(td_error)(network, None, None, step, jax.random.key(0))
        np.testing.assert_allclose(output.priority, abs(1 + 0.5 * value - 2.0), rtol=1e-6)


def test_outputs_of_each_kind_are_masked():
    heads = table(jnp.ones((2, NUM_ACTIONS)), lambda q: q.mean(axis=0))
    output = heads.apply(None, OBS)
    assert output[:, 0].tolist() == [ILLEGAL] * 2
    assert heads.action_values(output).tolist() == [ILLEGAL, 1, 1]
    spread = Quantiles(jnp.ones((NUM_ACTIONS, 2)), jnp.array([0.25, 0.75]), jnp.full(2, 0.5))
    assert table(spread).apply(None, OBS).values[:, 0].tolist() == [ILLEGAL, 1, 1]
    with pytest.raises(ConfigError, match="cannot be kept to the legal actions"):
        table(jnp.ones((NUM_ACTIONS, 2))).apply(None, OBS)
    with pytest.raises(ConfigError, match=r"say how, with network._replace\(mask="):
        table({"q": jnp.ones(NUM_ACTIONS)}).apply(None, OBS)
    network = networks.value_network(NUM_ACTIONS, (4,))
    assert networks.mask_illegal(network, None) is network


def test_an_output_of_ones_own_says_how_it_is_masked():
    """Acting, evaluation and losses see no illegal action, though the network prefers those."""

    def mask(output, is_legal):
        return {**output, "q": jnp.where(is_legal, output["q"], ILLEGAL)}

    liked = prefer_illegal(networks.value_network(NUM_ACTIONS, (8,)))
    network = liked._replace(
        apply=lambda *x: {"q": liked.apply(*x), "other": jnp.ones(2)},
        action_values=lambda output: output["q"],
        mask=mask,
    )
    train = dqn(dataclasses.replace(TINY, n_step=1), env=ENV, network=network)
    state = jax.jit(train.init)(jax.random.key(0))
    state, outputs = jax.jit(train.chunk, static_argnums=2)(state, 5, 5)
    returns = np.asarray(outputs.episode_return)
    assert (returns[~np.isnan(returns)] == MAX_STEPS).all()
    assert (np.abs(np.asarray(outputs.metrics["loss"])) < 1e4).all()
    stats = evaluate(train.policy(state.learner.params), ENV, jax.random.key(1), 2)
    assert (stats.episode_return == MAX_STEPS).all()


def test_the_check_plays_legal_actions_alone():
    check_environment(ENV, jax.random.key(0))


@pytest.mark.parametrize(
    ("legal", "words"),
    [
        (3, "Environment.legal_actions is 3: it must be a function"),
        (lambda obs: jnp.ones(NUM_ACTIONS), "it must return bool"),
        (lambda obs: jnp.ones(2, bool), "it must return bool"),
        (lambda obs: jnp.zeros(NUM_ACTIONS, bool), "no action is legal after env.reset"),
        (lambda obs: legal_actions(obs) & (obs[1] < 1.5), "no action is legal after step 2"),
    ],
)
def test_legal_actions_that_are_none_are_found(legal, words):
    def clocked(key, state, action):
        state, timestep = step(key, state, action)
        clock = jnp.where(state[1] >= 2, 2.0, 1.0)
        return state, timestep._replace(obs=timestep.obs.at[1].set(clock))

    env = ENV._replace(step=clocked, legal_actions=legal)
    with pytest.raises(AssertionError, match=words):
        check_environment(env, jax.random.key(0))
