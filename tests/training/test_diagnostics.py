"""Diagnostics: hand-made networks whose values are known, and what they leave untouched."""

import dataclasses
import functools
import operator
import re

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.agents.pqn.pqn import pqn
from purejaxdqn.engine import programs
from purejaxdqn.environments import Environment, tabular
from purejaxdqn.environments.grids.frozen_lake import frozen_lake
from purejaxdqn.environments.tabular import TabularMDP, optimal_values
from purejaxdqn.losses import bellman_loss, q_learning
from purejaxdqn.networks import value_network
from purejaxdqn.runtime.devices import make_plan
from purejaxdqn.storage import results
from purejaxdqn.sweep.run import run_sweep
from purejaxdqn.training import schedules
from purejaxdqn.training.diagnostics import (
    DIAGNOSTICS,
    NUM_STATES,
    TABULAR_DIAGNOSTICS,
    compare_with_optimal,
    diagnose,
    dormant_units,
    effective_rank,
    gradient_norm,
    known_values,
    policy_churn,
    value_bias,
)
from purejaxdqn.training.learner import make_learner
from purejaxdqn.types import Array, ConfigError, Network, TimeStep, Transition
from tiny import TINY, TINY_PQN

quiet = functools.partial(run_sweep, progress=False)
GENERAL = {name: x for name, x in DIAGNOSTICS.items() if name not in TABULAR_DIAGNOSTICS}


def with_layers(*layers):
    """An MLP of given `(kernel, bias)`s: its network and its weights."""
    *hidden, (kernel, _) = layers
    network = value_network(kernel.shape[1], [k.shape[1] for k, _ in hidden])
    weights = {
        f"Dense_{i}": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        for i, (kernel, bias) in enumerate(layers)
    }
    return network, {"params": weights}


def seen(network, params, obs):
    return jax.vmap(network.activations, in_axes=(None, 0))(params, obs)


# --------------------------------------------------------------------------------- dormant units


def test_half_of_the_units_are_dead():
    rng = np.random.default_rng(0)
    bias = np.where(np.arange(8) % 2, -100.0, 100.0)  # behind the ReLU: dead, alive, dead, ...
    network, params = with_layers(
        (rng.normal(size=(4, 8)), bias),
        (rng.normal(size=(8, 2)), np.zeros(2)),
    )
    activations = seen(network, params, rng.normal(size=(32, 4)))
    assert [x.shape for x in activations.hidden] == [(32, 1, 8)]
    assert dormant_units(activations.hidden) == 0.5


def test_units_count_over_all_layers_and_a_silent_layer_is_dormant_as_a_whole():
    alive, silent = jnp.ones((16, 6)), jnp.zeros((16, 2))
    assert dormant_units((alive,)) == 0
    assert dormant_units((silent,)) == 1
    assert dormant_units((alive, silent)) == 2 / 8


def test_a_unit_is_dormant_at_the_threshold_and_not_above_it():
    # The layer's mean is 1 in each case; what is lost goes to the other unit.
    for score, expected in ((0.25, 0.5), (0.26, 0.0)):
        assert dormant_units((jnp.array([[score, 2 - score]]),), threshold=0.25) == expected
    assert dormant_units((jnp.array([[0.024, 1.976]]),)) == 0.5
    assert dormant_units((jnp.array([[0.026, 1.974]]),)) == 0


def test_a_unit_that_is_active_in_one_state_or_place_alone_is_not_dormant():
    one_state = jnp.zeros((10, 2)).at[:, 0].set(1.0).at[3, 1].set(-10.0)  # its size counts
    assert dormant_units((one_state,)) == 0
    one_pixel = jnp.zeros((1, 3, 3, 2)).at[..., 0].set(1.0).at[0, 1, 1, 1].set(5.0)
    assert dormant_units((one_pixel,)) == 0
    assert dormant_units((one_pixel.at[..., 1].set(0.0),)) == 0.5  # a channel is one unit


# -------------------------------------------------------------------------------- effective rank


def test_features_of_rank_three():
    # Six one-hot observations reach three groups of units, two observations a group.
    kernel = np.kron(np.eye(3), np.ones((2, 4)))
    network, params = with_layers((kernel, np.zeros(12)), (np.ones((12, 2)), np.zeros(2)))
    activations = seen(network, params, jnp.eye(6))
    assert activations.features.shape == (6, 12)
    assert effective_rank(activations.features) == 3


@pytest.mark.parametrize(
    ("singular_values", "delta", "expected"),
    [
        ([1, 1, 1, 1], 0.01, 4),
        ([98, 1, 1], 0.01, 2),
        ([99, 1, 0], 0.01, 1),  # exactly 1 - delta is enough
        ([98.9, 1.1, 0], 0.01, 2),
        ([6, 3, 1], 0.1, 2),
        ([6, 3, 1], 0.5, 1),
        ([0, 0, 0], 0.01, 0),
    ],
)
def test_effective_rank_of_known_singular_values(singular_values, delta, expected):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (7, len(singular_values)))
    features = left[:, : len(singular_values)] @ np.diag(singular_values) @ right
    assert effective_rank(jnp.asarray(features, jnp.float32), delta) == expected
    assert effective_rank(jnp.asarray(features.T, jnp.float32), delta) == expected


# ------------------------------------------------------------------------------------ value bias


@flax.struct.dataclass
class Corridor:
    at: Array


def corridor(rewards, terminates):
    """One way from 0 on, observed as a number; then a death, or the time limit."""
    rewards = jnp.asarray(rewards, jnp.float32)
    length = len(rewards)

    def reset(key):
        return Corridor(jnp.zeros((), jnp.int32)), jnp.zeros(1)

    def step(key, state, action):
        at, over = state.at + 1, state.at + 1 >= length
        obs = at[None].astype(jnp.float32)
        return Corridor(at), TimeStep(
            obs, rewards[state.at], over & terminates, over & (not terminates)
        )

    space = gymnasium.spaces.Box(0, length, (1,), np.float32)
    limit = length + terminates
    return Environment("corridor", reset, step, 2, space, None, limit)


def table(values):
    """The greedy action of state i has the i-th value; the other one is worth less."""
    values = jnp.asarray(values, jnp.float32)

    def apply(params, obs, key=None):
        best = values[obs[0].astype(jnp.int32)]
        return jnp.stack([best - 1, best])

    return Network(lambda key, obs: None, apply, lambda output: output)


def bias_of(values, rewards, terminates, discount):
    env = corridor(rewards, terminates)
    return float(value_bias(table(values), None, env, discount, jax.random.key(0), 3))


@pytest.mark.parametrize("bias", [-2.0, 0.0, 0.5, 30.0])
@pytest.mark.parametrize("terminates", [True, False])
def test_a_known_bias_is_found_with_and_without_a_time_limit(bias, terminates):
    discount = 0.9
    one_for_ever = [10.0] * 4
    true = [1 + 0.9 * (1 + 0.9), 1 + 0.9, 1.0, 0.0] if terminates else one_for_ever
    found = bias_of(np.array(true) + bias, [1, 1, 1], terminates, discount)
    assert found == pytest.approx(bias, abs=1e-5)


@settings(max_examples=25)
@given(data=st.data())
def test_value_bias_equals_brute_force(data):
    numbers = st.floats(-5, 5, width=16)
    rewards = data.draw(st.lists(numbers, min_size=4, max_size=4))
    values = data.draw(st.lists(numbers, min_size=5, max_size=5))
    terminates, discount = data.draw(st.booleans()), data.draw(st.sampled_from([0.0, 0.5, 0.99]))
    excess = tested = 0.0
    for t in range(4):
        rest = discount ** np.arange(4 - t)
        left = 0.0 if terminates else discount ** (4 - t)  # the share of the last value
        excess += values[t] - (rest @ np.array(rewards[t:]) + left * values[4])
        tested += 1 - left
    assert bias_of(values, rewards, terminates, discount) == pytest.approx(
        excess / tested, abs=2e-3
    )


def test_without_discount_a_time_limit_tests_nothing_and_a_death_everything():
    assert np.isnan(bias_of([7.0] * 4, [1, 1, 1], False, 1.0))
    assert bias_of([3.5, 2.5, 1.5, 9.0], [1, 1, 1], True, 1.0) == 0.5


# --------------------------------------------------------------------------------- gradient norm


def test_the_gradient_of_a_known_batch_before_it_is_clipped():
    network, params = with_layers((np.zeros((2, 2)), np.zeros(2)))
    learner = make_learner(network, bellman_loss(q_learning), optax.clip_by_global_norm(0.1))
    state = learner.init(jax.random.key(0), jnp.zeros(2))
    state = dataclasses.replace(state, params=params)
    obs = jnp.array([[3.0, 0.0], [0.0, 3.0]])
    transition = Transition(
        obs, jnp.array([0, 0]), jnp.array([5.0, 5.0]), jnp.zeros(2), jnp.zeros((2, 2))
    )
    # By hand: -5 for the bias, and -5 * 3 / 2 for each of two weights.
    expected = np.sqrt(5**2 + 2 * 7.5**2)
    norm = gradient_norm(learner, state, transition, jax.random.key(1))
    assert norm == pytest.approx(expected, rel=1e-6)
    halved = gradient_norm(learner, state, transition, jax.random.key(1), jnp.full(2, 0.5))
    assert halved == pytest.approx(expected / 2, rel=1e-6)
    without = learner._replace(gradient=None)
    assert np.isnan(gradient_norm(without, state, transition, jax.random.key(1)))


# ----------------------------------------------------------------------------------------- churn


def test_churn_of_one_state_in_four():
    before = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 5.0]])
    after = before.at[2].set(jnp.array([1.0, 2.0]))
    assert policy_churn(before, after) == 0.25
    assert policy_churn(before, 10 * before + 3) == 0
    assert policy_churn(before, -before) == 1


def test_what_has_run_away_is_nan():
    bad = jnp.ones((4, 3)).at[1, 2].set(jnp.nan)
    assert np.isnan(dormant_units((jnp.ones((4, 3)), bad)))
    assert np.isnan(effective_rank(bad))
    assert np.isnan(policy_churn(jnp.ones((4, 3)), bad))
    assert np.isnan(bias_of([np.nan] * 4, [1, 1, 1], True, 0.9))


# -------------------------------------------------------------------------------- optimal values


def test_how_far_values_are_from_the_optimal_ones_by_hand():
    optimal = np.array([[1.0, 3.0, 2.0], [5.0, 5.0 + 1e-14, 4.0], [2.0, 2.0, 2.0]])
    exact = compare_with_optimal(optimal, optimal)
    assert {name: float(value) for name, value in exact.items()} == {
        "value_error": 0,
        "optimal_actions": 1,
        "true_action_gap": pytest.approx((1 + 1 + 0) / 3),
    }
    found = compare_with_optimal(optimal + np.array([[0, 0, 4.5], [0, 0, 0], [-9, 0, 0]]), optimal)
    assert found["value_error"] == pytest.approx(13.5 / 9)
    assert found["optimal_actions"] == np.float32(2 / 3)
    assert found["true_action_gap"] == exact["true_action_gap"]
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    # A tie is as good on either side, and scaling changes no order.
    tie = compare_with_optimal(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]), 1e-6 * optimal)
    assert tie["optimal_actions"] == 1
    assert tie["true_action_gap"] == pytest.approx(2e-6 / 3)


def test_of_an_action_that_may_not_be_taken_nothing_is_asked():
    optimal, q_values = np.array([[1.0, -np.inf, 0.0]]), np.array([[1.5, -1e9, 0.0]])
    found = compare_with_optimal(q_values, optimal)
    by_hand = {"value_error": 0.25, "optimal_actions": 1, "true_action_gap": 1}
    assert found == by_hand
    assert compare_with_optimal(q_values[:, ::-1], optimal[:, ::-1]) == found
    assert compare_with_optimal(q_values[:, [1, 0, 2]], optimal)["optimal_actions"] == 0


def test_what_is_not_known_of_one_run_is_known_of_the_others():
    optimal = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[np.nan, np.nan]]])
    found = compare_with_optimal(np.array([[[1.0, 0.0]], [[np.nan, 0.0]], [[1.0, 0.0]]]), optimal)
    np.testing.assert_array_equal(found["value_error"], [0, np.nan, np.nan])
    np.testing.assert_array_equal(found["optimal_actions"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(found["true_action_gap"], [1, 1, np.nan])


# ---------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module", params=[(dqn, TINY), (pqn, TINY_PQN)], ids=["dqn", "pqn"])
def both(request):
    """The same sweep without and with."""
    experiment, config = request.param
    return [quiet(experiment, config, range(3), diagnostics=on) for on in (False, True)]


def test_on_or_off_nothing_else_changes_a_bit(both):
    off, on = both
    for name in off.dataset.variables:
        assert off.dataset[name].values.tobytes() == on.dataset[name].values.tobytes(), name
    for a, b in zip(*(jax.tree.leaves(x.params) for x in both), strict=True):
        assert a.tobytes() == b.tobytes()


def test_off_they_are_not_there_and_on_they_are_labelled(both, tmp_path):
    off, on = both
    assert not set(DIAGNOSTICS) & set(off.dataset)
    results.save(on.dataset, tmp_path)
    dataset = results.load(tmp_path)
    assert not set(TABULAR_DIAGNOSTICS) & set(dataset)  # there is no table of CartPole
    for name, attributes in GENERAL.items():
        assert dataset[name].dims == ("seed", "step")
        assert dataset[name].attrs == attributes
        assert {"long_name", "units"} <= set(attributes)
        after = dataset[name].isel(step=slice(1, None))
        assert np.isfinite(after).all(), name
        assert np.isnan(dataset[name].isel(step=0)).all() == (name == "policy_churn")
    assert len(np.unique(dataset.gradient_norm)) == dataset.gradient_norm.size
    shares = dataset[["dormant_units", "policy_churn"]].isel(step=slice(1, None)).to_array()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert (shares.sel(variable="policy_churn") > 0).any()
    assert set(np.unique(dataset.effective_rank)) <= set(range(1, 9))


def without_source_lines(text):
    """A compiled program's text without where it was traced from."""
    start = next(re.finditer("^(%|ENTRY)", text, re.MULTILINE)).start()
    return text.split("\n")[0] + re.sub(r", metadata=\{[^}]*\}", "", text[start:])


def test_off_nothing_is_compiled_and_the_programs_are_the_same(monkeypatch):
    def compiled(diagnostics):
        devices = jax.devices()[:1]
        made = programs.compile_programs(dqn, TINY, make_plan(2, 1), devices, diagnostics)
        texts = [x.as_text() for x in (made.init, made.chunk, made.evaluate)]  # type: ignore[union-attr]
        return made.diagnose, [*map(without_source_lines, texts)]

    diagnose_on, on = compiled(True)
    assert diagnose_on is not None
    monkeypatch.setattr(programs, "diagnose", None)  # whoever calls it fails
    diagnose_off, off = compiled(False)
    assert diagnose_off is None
    assert on == off


def test_over_a_grid_and_rounds():
    config = dataclasses.replace(TINY, total_steps=120)
    grid = quiet(
        dqn, config, range(3), width=1, diagnostics=True, learning_rate=[1e-30, 1e-2]
    ).dataset
    assert grid.policy_churn.dims == ("learning_rate", "seed", "step")
    last = grid.isel(step=-1)
    assert (last.policy_churn.sel(learning_rate=1e-30) == 0).all()  # the weights stand still
    assert np.isfinite(last[[*GENERAL]].to_array()).all()


def test_a_known_network_in_a_run():
    """The states are real ones, the weights made by hand: two of four units are dead, rank 1."""
    network, params = with_layers(
        (np.zeros((4, 4)), np.array([1.0, -1.0, 2.0, -1.0])),
        (np.zeros((4, 2)), np.array([60.0, 50.0])),
    )
    train = dqn(TINY, network=network)
    assert train.probe is not None
    state = jax.jit(train.init)(jax.random.key(0))
    state = dataclasses.replace(
        state, learner=dataclasses.replace(state.learner, params=params, target_params=params)
    )
    obs, _ = jax.eval_shape(train.probe.observe, state, jax.random.key(1))
    assert obs.shape == (NUM_STATES, 4)
    swapped = {
        **params["params"],
        "Dense_1": {"kernel": jnp.zeros((4, 2)), "bias": jnp.arange(2.0)},
    }
    found = jax.jit(functools.partial(diagnose, train.probe, train.env))(
        state, {"params": swapped}, jax.random.key(1)
    )
    assert set(found) == {*GENERAL, "features"} - {"effective_rank"}
    assert found["dormant_units"] == 0.5
    assert effective_rank(found["features"]) == 1
    assert found["policy_churn"] == 1
    # Always to the left, the pole falls within 8 to 10 steps, each worth 1: returns of 3.5 to 5.2.
    assert 54.5 < found["value_bias"] < 56.5


def test_a_network_that_shows_nothing_still_has_its_other_diagnostics():
    plain = value_network(2, (8,))._replace(activations=None)
    experiment = functools.partial(dqn, network=plain)
    config = dataclasses.replace(TINY, total_steps=120)
    last = quiet(experiment, config, [0], diagnostics=True).dataset.isel(step=-1, seed=0)
    for name in GENERAL:
        assert np.isnan(last[name]) == (name in ("dormant_units", "effective_rank")), name


def test_a_small_task_has_its_true_values_in_the_results(tmp_path):
    """Of a discount that is 0.5 before the first gradient step, and 1 after it."""
    lake = frozen_lake("FrozenLake-v1", 5, None)
    assert lake.tabular is not None
    experiment, mdp = functools.partial(dqn, env=lake), lake.tabular()
    config = dataclasses.replace(TINY, total_steps=120, discount=schedules.linear(0.5, 1.0, 1))
    result = quiet(experiment, config, range(2), diagnostics=True)
    results.save(result.dataset, tmp_path)
    dataset, probe = results.load(tmp_path), experiment(config).probe
    assert set(GENERAL) <= set(dataset)
    assert probe is not None
    optimal = [optimal_values(mdp, discount) for discount in (0.5, 1.0)]
    apply = jax.vmap(probe.network.apply, (None, 0))
    params = [jax.tree.map(operator.itemgetter(i), result.params) for i in range(2)]
    last = [apply(of_seed, mdp.observations) for of_seed in params]
    expected = compare_with_optimal(np.stack(last), np.stack(2 * [optimal[1]]))
    for name in TABULAR_DIAGNOSTICS:
        assert dataset[name].dims == ("seed", "step")
        assert dataset[name].attrs == DIAGNOSTICS[name]
        np.testing.assert_allclose(dataset[name][:, -1], expected[name], rtol=1e-5, err_msg=name)
    gap = compare_with_optimal(optimal[0], optimal[0])["true_action_gap"]
    np.testing.assert_array_equal(dataset.true_action_gap[:, 0], gap)
    assert np.isfinite(dataset[[*TABULAR_DIAGNOSTICS]].to_array()).all()


def test_values_that_do_not_exist_are_nan(monkeypatch):
    monkeypatch.setattr(tabular, "_MAX_SWEEPS", 1_000)
    mdp = TabularMDP(np.ones((1, 1, 1)), np.ones((1, 1)), np.ones((1, 1)), np.ones(1))
    values = known_values(mdp)
    assert values(0.5) == pytest.approx(2)
    assert values(0.5) is values(0.5)
    assert np.isnan(values(1.0)).all()
    with pytest.raises(ConfigError, match="transition"):
        known_values(mdp._replace(transition=2 * mdp.transition))


def test_a_training_run_without_a_probe_is_refused():
    def bare(config):
        return dqn(config)._replace(probe=None)

    with pytest.raises(ConfigError, match=r"diagnostics \(True\) need .* probe"):
        quiet(bare, TINY, [0], diagnostics=True)


def test_their_stream_is_their_own():
    keys = [tuple(np.asarray(jax.random.key_data(k))) for k in programs.run_keys(jnp.uint32(7))]
    assert len(set(keys)) == 3
