"""The recipes that edit or replace the learner: their arithmetic, and that they train."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import agents, networks, run_sweep
from purejaxdqn.types import ConfigError, Network, Transition

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHORT: dict[str, Any] = {"total_steps": 400, "eval_interval": 200, "eval_episodes": 2}


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    from recipes import redo, stream_q  # type: ignore[import-not-found]

    return {"redo": redo, "stream_q": stream_q}


# ------------------------------------------------------------------------------ Stream Q(lambda)

# Two action values that are weights, the same in every state.
TABLE: Network[Any] = Network(
    lambda key, obs: jnp.array([0.5, 0.25]), lambda params, obs, key=None: params, lambda q: q
)


def one(action, reward, discount, is_greedy, is_truncated=False):
    extras = {"is_greedy": jnp.array([is_greedy])}
    obs = jnp.zeros((1, 1))
    numbers = (jnp.array([action]), jnp.array([reward]), jnp.array([discount]))
    return Transition(obs, *numbers, obs, jnp.array([is_truncated]), extras)


def test_traces_pass_errors_on_and_end_with_episodes_and_at_other_actions(recipes):
    config = recipes["stream_q"].StreamQConfig(learning_rate=0.1, discount=0.5, trace_decay=0.5)
    learner = recipes["stream_q"].stream_learner(TABLE, config)
    state, key = learner.init(jax.random.key(0), jnp.zeros(1)), jax.random.key(1)
    update = jax.jit(lambda state, batch: learner.update(state, batch, key)[0])

    # q = (0.5, 0.25): delta = 1 + 0.5 * 0.5 - 0.5 = 0.75, and 1 / (2 * 1 * 1) is no limit.
    state = update(state, one(0, 1.0, 0.5, is_greedy=True))
    np.testing.assert_allclose(state.params, [0.575, 0.25])
    np.testing.assert_allclose(state.opt_state, [1, 0])
    # A second greedy step: the trace is 0.25 + 1, and delta = 10 + 0.2875 - 0.575.
    before = state
    state = update(before, one(0, 10.0, 0.5, is_greedy=True))
    delta = 10 + 0.2875 - 0.575
    limit = 1 / (2.0 * delta * 1.25)  # which is below 0.1
    np.testing.assert_allclose(state.params, [0.575 + limit * delta * 1.25, 0.25], rtol=1e-6)
    # The other action cuts what was before it.
    other = update(before, one(1, 0.0, 0.5, is_greedy=False))
    np.testing.assert_allclose(other.opt_state, [0, 1])
    assert other.params[0] == before.params[0]
    # Both kinds of end clear the traces, after what they teach.
    for end in (
        one(0, 1.0, 0.0, is_greedy=True),
        one(0, 1.0, 0.5, is_greedy=True, is_truncated=True),
    ):
        ended = update(before, end)
        assert (ended.opt_state == 0).all()
        assert ended.params[0] != before.params[0]


def test_stream_q_learns_from_each_step_once(recipes):
    module = recipes["stream_q"]
    config = module.StreamQConfig(hidden_sizes=(8,), **SHORT)
    train = module.stream_q(config)
    state = jax.jit(train.init)(jax.random.key(0))
    chunk = jax.jit(train.chunk, static_argnums=2)
    for _ in range(3):
        before = state
        state, _ = chunk(before, 1, 1)
        assert (state.replay.obs == before.obs).all()
    assert int(state.learner.num_updates) == 3


def test_two_environments_are_one_too_many(recipes):
    config = recipes["stream_q"].StreamQConfig(num_envs=2, steps_per_update=2, prefill_steps=2)
    with pytest.raises(ConfigError, match=r"num_envs \(2\) must be 1"):
        recipes["stream_q"].stream_q(config)


# ------------------------------------------------------------------------------------------ ReDo


def test_dormant_units_begin_anew_and_others_stay(recipes):
    module = recipes["redo"]
    network = networks.value_network(2, (3, 4))
    params, fresh = (network.init(jax.random.key(n), jnp.zeros(2)) for n in range(2))
    quiet = [jnp.array([1.0, 0.0, 2.0]), jnp.array([1.0, 1.0, 0.1, 1.0])]
    hidden = [jnp.stack([x, -x])[:, jnp.newaxis] for x in quiet]
    dormant = module.find_dormant(hidden, 0.13)
    assert [x.tolist() for x in dormant] == [[False, True, False], [False, False, True, False]]
    anew = module.begin_anew(params, fresh, dormant)["params"]
    old, new = params["params"], fresh["params"]
    assert (anew["Dense_0"]["kernel"][:, 1] == new["Dense_0"]["kernel"][:, 1]).all()
    assert (anew["Dense_0"]["kernel"][:, ::2] == old["Dense_0"]["kernel"][:, ::2]).all()
    assert (anew["Dense_1"]["kernel"][1] == 0).all()
    assert (anew["Dense_1"]["kernel"][0, :2] == old["Dense_1"]["kernel"][0, :2]).all()
    assert (anew["Dense_2"]["kernel"][2] == 0).all()
    assert (anew["Dense_2"]["kernel"][3] == old["Dense_2"]["kernel"][3]).all()
    assert (anew["Dense_2"]["bias"] == old["Dense_2"]["bias"]).all()


REDO = {"prefill_steps": 80, "replay_capacity": 120, "batch_size": 16, "redo_period": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [("redo", REDO), ("stream_q", {})])
def test_it_trains_over_seeds_like_a_named_agent(name, settings, recipes, tmp_path):
    agent = agents.get(recipes[name].__name__.rpartition(".")[2])
    config = dataclasses.replace(agent.config, hidden_sizes=(8,), **SHORT, **settings)
    sweep = functools.partial(run_sweep, agent.experiment, config, progress=False)
    dataset = sweep(range(2), output=tmp_path).dataset
    assert np.isfinite(dataset.final_return).all()
    assert not dataset.diverged.any()
