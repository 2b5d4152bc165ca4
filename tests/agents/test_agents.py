"""The family by name: each member trains, and is what its name says."""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import agents, networks
from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.pqn import pqn
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.cli.commands.train import read_training
from purejaxdqn.cli.sweeps import sweep_flags
from purejaxdqn.networks import label_fraction_proposal
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.types import ConfigError
from tiny import TINY, TINY_PQN, bits, compiled

FAMILY = [name for name in agents.names() if name not in ("pqn", "tutorial")]
RAINBOW = agents.get("rainbow").config
SMALL: dict[str, Any] = {
    "total_steps": 240,
    "prefill_steps": 80,
    "replay_capacity": 160,
    "batch_size": 8,
    "hidden_sizes": (8,),
    "num_atoms": 5,
    "num_quantiles": 4,
    "target_period": 5,
    "eval_interval": 240,
}


EXPERIMENTS = pytest.mark.parametrize(
    ("experiment", "config"), [(dqn, TINY), (pqn, TINY_PQN)], ids=["dqn", "pqn"]
)


@EXPERIMENTS
def test_any_chunking_gives_the_same_bits(experiment, config):
    init, chunk = compiled(experiment, config)
    most = config.num_iterations
    whole, outputs = chunk(init(jax.random.key(3)), jnp.int32(most), most)
    state, returns = init(jax.random.key(3)), []
    for length in (1, 5, 2, most - 8):
        state, part = chunk(state, jnp.int32(length), most)
        assert np.isnan(np.asarray(part.metrics["loss"])[length:]).all()
        returns.append(np.asarray(part.episode_return)[:length])
    assert bits(state) == bits(whole)
    assert np.concatenate(returns).tobytes() == np.asarray(outputs.episode_return).tobytes()


@EXPERIMENTS
def test_two_calls_give_the_same_bits_and_two_seeds_do_not(experiment, config):
    init, chunk = compiled(experiment, config)
    most = config.num_iterations
    runs = [chunk(init(jax.random.key(seed)), jnp.int32(6), most)[0] for seed in (1, 1, 2)]
    assert bits(runs[0]) == bits(runs[1])
    assert bits(runs[0].learner.params) != bits(runs[2].learner.params)


@EXPERIMENTS
def test_the_whole_training_uses_no_key_twice(experiment, config):
    with jax.debug_key_reuse(True):
        train = experiment(config)
        state = jax.jit(train.init)(jax.random.key(0))
        state, _ = jax.jit(train.chunk, static_argnums=2)(state, jnp.int32(2), 2)
        jax.block_until_ready(state)


@pytest.mark.parametrize("name", FAMILY)
def test_each_agent_trains(name):
    config = dataclasses.replace(agents.get(name).config, **SMALL)
    config.validate()
    train = dqn(config)
    before = jax.jit(train.init)(jax.random.key(0))
    after, outputs = jax.jit(train.chunk, static_argnums=2)(before, jnp.int32(40), 40)
    assert np.isfinite(outputs.metrics["loss"]).all()
    assert after.learner.num_updates == 40
    for x in jax.tree.leaves(after.learner.params):
        assert np.isfinite(x).all()
    action = train.policy(after.learner.params)(jax.random.key(1), after.obs[0])
    assert action in (0, 1)


def test_every_agent_is_one_component_beside_the_plain_one():
    plain = agents.get("dqn").config
    for name, field in (("double", "td_error"), ("dueling", "dueling"), ("noisy", "noisy")):
        assert getattr(agents.get(name).config, field) != getattr(plain, field)
    rainbow = agents.get("rainbow").config
    assert rainbow.dueling
    assert rainbow.noisy
    assert rainbow.prioritised
    assert rainbow.representation == "categorical"
    assert rainbow.td_error == "double_q_learning"
    assert rainbow.n_step > 1


def test_settings_know_their_experiment():
    assert agents.get("pqn").config == PQNConfig()
    assert agents.get(agents.DEFAULT).config == DQNConfig()
    assert agents.experiment_of(agents.get("pqn").config) is pqn
    assert agents.experiment_of(agents.get("rainbow").config) is dqn


def parsed(*flags):
    """Returns the settings that `purejaxdqn train` makes of a command line."""
    return read_training(flags, "purejaxdqn train", "", sweep_flags("out"))[0]


@pytest.mark.parametrize("name", FAMILY)
def test_each_name_is_a_flag_and_flags_by_hand_go_before_its_settings(name):
    base = agents.get(name).config
    assert parsed("--agent", name) == base
    noisy = "--no-noisy" if base.noisy else "--noisy"
    flags = [noisy, "--n-step=7", "--discount", "0.9"]
    expected = dataclasses.replace(base, noisy=not base.noisy, n_step=7, discount=0.9)
    assert parsed(f"--agent={name}", *flags) == expected
    assert parsed(*flags, "--agent", name) == expected


def test_an_unknown_name_is_refused_with_the_nearest_ones():
    with pytest.raises(ConfigError, match=r"agent \('ranbow'\) must be one of rainbow"):
        agents.get("ranbow")
    with pytest.raises(ConfigError, match="double_n_step, dqn, double, dueling"):
        agents.get("xxxxxxxx")


@pytest.mark.parametrize(
    "change",
    [
        {"dueling": True, "representation": "quantile"},
        {"noisy": True, "layer_norm": True, "munchausen": True},
        {"prioritised": True, "n_step": 3, "num_envs": 2, "steps_per_update": 8},
        {"td_error": "expected_sarsa", "optimizer": "rmsprop"},
        pytest.param({"td_error": "soft_q_learning", "penalty": "huber"}, marks=pytest.mark.slow),
        {"td_error": "persistent_advantage_learning", "penalty": "huber"},
        {"ensemble": "mean", "num_members": 3, "noisy": True, "dueling": True, "munchausen": True},
        {"representation": "categorical", "label": "gaussian", "td_error": "soft_q_learning"},
        {"representation": "proposed_quantile", "dueling": True, "noisy": True, "munchausen": True},
    ],
)
def test_components_combine(change):
    config = dataclasses.replace(agents.get("dqn").config, **SMALL, **change)
    config.validate()
    train = dqn(config)
    state = jax.jit(train.init)(jax.random.key(0))
    _, outputs = jax.jit(train.chunk, static_argnums=2)(state, jnp.int32(10), 10)
    assert np.isfinite(outputs.metrics["loss"]).all()


def test_heads_may_have_hidden_layers_of_their_own():
    """As Wang et al. have them in each stream, and IQN behind its embedding; none by default."""

    def outputs(**changes):
        train = dqn(
            dataclasses.replace(agents.get("rainbow").config, **SMALL, noisy=False, **changes)
        )
        params = jax.eval_shape(train.init, jax.random.key(0)).learner.params["params"]["outputs"]
        return jax.tree.map(lambda x: x.shape, params)

    for representation in ("categorical", "implicit_quantile"):
        plain = outputs(representation=representation)
        assert {name: list(stream) for name, stream in plain.items()} == {
            "value": ["Dense_0"],
            "advantages": ["Dense_0"],
        }
        for stream in outputs(representation=representation, head_sizes=(6, 4)).values():
            assert [stream[f"Dense_{i}"]["kernel"] for i in (0, 1)] == [(8, 6), (6, 4)]
            assert stream["Dense_2"]["kernel"][0] == 4


@pytest.mark.parametrize(
    ("still", "moving"),
    [("learning_rate", "fraction_proposal"), ("fraction_learning_rate", "value")],
)
def test_the_proposal_of_fractions_has_an_optimiser_of_its_own(still, moving):
    changes = {**SMALL, still: 1e-30}
    config = dataclasses.replace(agents.get("fqf").config, **changes)
    train = dqn(config)
    before = jax.jit(train.init)(jax.random.key(0))
    after, _ = jax.jit(train.chunk, static_argnums=2)(before, jnp.int32(10), 10)
    moved = jax.tree.map(
        lambda a, b: bool(np.abs(a - b).max() > 1e-12), before.learner.params, after.learner.params
    )
    labels = label_fraction_proposal(before.learner.params)
    by_label: dict[str, set[bool]] = {"value": set(), "fraction_proposal": set()}
    for label, has_moved in zip(jax.tree.leaves(labels), jax.tree.leaves(moved), strict=True):
        by_label[label].add(has_moved)
    assert by_label == {label: {label == moving} for label in by_label}


def test_persistent_advantage_learning_has_its_coefficient():
    """At 0 it is Q-learning, at 0.9 it is not."""

    def train_params(**changes):
        train = dqn(dataclasses.replace(agents.get("dqn").config, **SMALL, **changes))
        state = jax.jit(train.init)(jax.random.key(0))
        state, _ = jax.jit(train.chunk, static_argnums=2)(state, jnp.int32(10), 10)
        return jax.tree.leaves(state.learner.params)

    def distance(a, b):
        return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))

    plain = train_params()
    persistent = "persistent_advantage_learning"
    assert distance(plain, train_params(td_error=persistent, advantage_coefficient=0.0)) < 1e-6
    assert distance(plain, train_params(td_error=persistent, advantage_coefficient=0.9)) > 1e-5


def test_the_choices_that_settings_name_are_those_that_networks_have():
    declared = settings_of(DQNConfig)
    assert get_args(declared["representation"].type) == get_args(networks.Representation)
    assert get_args(declared["noise"].type) == get_args(networks.Noise)
