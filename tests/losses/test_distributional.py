"""Losses of distributions, against numbers by hand and double loops in NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.losses import (
    categorical_loss,
    fraction_loss,
    project,
    quantile_huber,
    quantile_loss,
    quantile_regression,
)
from purejaxdqn.types import Categorical, Network, Quantiles
from tiny_losses import (
    BATCH,
    CATEGORICAL,
    FRACTIONS,
    KEY,
    NUM_ACTIONS,
    PROPOSED,
    QUANTILES,
    SUPPORT,
    WEIGHTS,
    linear_network,
    losses_of,
    make_batch,
    numpy_softmax,
    one_transition,
    proposed_quantiles,
    quantile_means,
    raw_of,
    require_equal,
)


def numpy_project(probabilities, atoms, support):
    """Equation 7 of C51, atom by atom."""
    gap = (support[-1] - support[0]) / (len(support) - 1)
    projected = np.zeros(len(support))
    for i, z in enumerate(support):
        for p, atom in zip(probabilities, atoms, strict=True):
            inside = min(max(atom, support[0]), support[-1])
            projected[i] += min(max(1 - abs(inside - z) / gap, 0), 1) * p
    return projected


SUPPORTS = [
    np.linspace(-2, 3, 6),
    np.linspace(0, 1, 2),
    np.linspace(-10, 10, 51),
    np.linspace(0, 200, 51),
    np.linspace(1000, 1001, 11),
]
compiled_project = jax.jit(project)


@st.composite
def projections(draw):
    """A support, and probabilities of atoms in and around it, some of them on its atoms."""
    support = draw(st.sampled_from(SUPPORTS))
    low, high = support[0], support[-1]
    atom = st.one_of(
        st.sampled_from(support), st.floats(low, high), st.floats(2 * low - high, 2 * high - low)
    )
    size = len(support)
    atoms = draw(st.lists(atom, min_size=size, max_size=size))
    masses = draw(st.lists(st.sampled_from([0, 1, 2, 7]), min_size=size, max_size=size))
    masses = np.array(masses, np.float64) + (sum(masses) == 0)
    return masses / masses.sum(), np.array(atoms), support


class TestProject:
    @pytest.mark.parametrize(
        ("atoms", "expected"),
        [
            ([-1.0, 0.0, 1.0], [0.2, 0.3, 0.5]),  # on the atoms
            ([0.0, 1.0, 2.0], [0.0, 0.2, 0.8]),  # beyond the end
            ([-5.0, -1.0, -0.75], [0.2 + 0.3 + 0.375, 0.125, 0.0]),
            ([0.5, 0.5, 0.5], [0.0, 0.5, 0.5]),  # an end: one atom, the reward
            ([0.25, 0.25, -9.0], [0.5, 0.375, 0.125]),
        ],
    )
    def test_by_hand(self, atoms, expected):
        found = project(jnp.array([0.2, 0.3, 0.5]), jnp.array(atoms), jnp.array([-1.0, 0.0, 1.0]))
        np.testing.assert_allclose(found, expected, atol=1e-7)

    @settings(max_examples=200)
    @given(projections())
    def test_against_a_double_loop(self, case):
        probabilities, atoms, support = (x.astype(np.float32) for x in case)
        found = np.asarray(compiled_project(probabilities, atoms, support), np.float64)
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(1, abs=1e-6)
        # float32 resolves the place of an atom only to what its distance from 0 leaves.
        gap = (support[-1] - support[0]) / (len(support) - 1)
        resolution = 4 * np.spacing(np.abs(support).max()) / gap
        expected = numpy_project(*(x.astype(np.float64) for x in (probabilities, atoms, support)))
        np.testing.assert_allclose(found, expected, atol=1e-6 + resolution)
        inside = np.clip(atoms, support[0], support[-1]).astype(np.float64)
        mean = (found * support).sum()
        scale = float(np.abs(support).max())
        assert mean == pytest.approx((probabilities * inside).sum(), abs=2e-6 * scale + 1e-6)

    def test_from_one_support_to_another(self):
        found = project(jnp.array([0.5, 0.5]), jnp.array([0.0, 1.0]), jnp.linspace(0.0, 1.0, 5))
        np.testing.assert_allclose(found, [0.5, 0, 0, 0, 0.5])

    def test_what_is_refused(self):
        with pytest.raises(AssertionError):
            project(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.arange(3.0))
        with pytest.raises(AssertionError):
            project(jnp.ones(1), jnp.ones(1), jnp.arange(1.0))


class TestCategoricalLoss:
    @pytest.mark.parametrize("double", [False, True])
    def test_against_a_double_loop(self, double):
        batch = make_batch()
        output = losses_of(categorical_loss(double), CATEGORICAL, batch)
        logits_tm1, _, target_logits_t, online_logits_t = raw_of(CATEGORICAL, batch)
        for b in range(BATCH):
            judge = online_logits_t[b] if double else target_logits_t[b]
            action = np.argmax([numpy_softmax(logits) @ SUPPORT for logits in judge])
            atoms = batch.r_t[b] + batch.discount_t[b] * SUPPORT
            target = numpy_project(numpy_softmax(target_logits_t[b, action]), atoms, SUPPORT)
            prediction = numpy_softmax(logits_tm1[b, batch.a_tm1[b]])
            require_equal(output.loss[b], -sum(target * np.log(prediction)))
            divergence = sum(
                p * np.log(p / q) for p, q in zip(target, prediction, strict=True) if p
            )
            require_equal(output.priority[b], divergence)
            require_equal(output.metrics["q_value"][b], prediction @ SUPPORT)

    def test_double_makes_a_difference_while_the_episode_lasts(self):
        batch = make_batch()
        a, b = (losses_of(categorical_loss(double), CATEGORICAL, batch) for double in (True, False))
        differs = ~np.isclose(a.loss, b.loss)
        assert differs.any()
        assert not differs[batch.discount_t == 0].any()

    def test_gradient_by_hand(self):
        """That of the logits is the prediction less the target, for the action taken alone."""
        support = jnp.array([-1.0, 0.0, 1.0])
        network = linear_network(
            (2, 3),
            lambda raw, key: Categorical(raw, support),
            lambda output: jax.nn.softmax(output.logits) @ output.support,
        )
        one = one_transition(a_tm1=1, r_t=0.25, discount_t=0.0)

        def loss(params):
            return categorical_loss()(network, params, jnp.ones((1, 2, 3)), one, KEY).loss

        value, grad = jax.value_and_grad(loss)(jnp.zeros((1, 2, 3)))
        assert float(value) == pytest.approx(math.log(3))
        np.testing.assert_allclose(grad[0, 0], 0)
        np.testing.assert_allclose(grad[0, 1], [1 / 3, 1 / 3 - 0.75, 1 / 3 - 0.25], rtol=1e-5)

    def test_nothing_is_surprising_where_the_prediction_is_right(self):
        logits = jnp.log(jnp.array([[[0.2, 0.5, 0.3]]]))
        network = linear_network(
            (1, 3),
            lambda raw, key: Categorical(raw, jnp.array([-1.0, 0.0, 1.0])),
            lambda output: jax.nn.softmax(output.logits) @ output.support,
        )
        one = one_transition(a_tm1=0, r_t=0.0, discount_t=1.0)._replace(obs_t=jnp.ones(1))
        output = categorical_loss()(network, logits, logits, one, KEY)
        assert 0 <= float(output.priority) < 1e-6
        assert float(output.loss) > 1


def numpy_quantile_huber(error, fraction, threshold):
    weight = abs(fraction - (1 if error < 0 else 0))
    if threshold == 0:
        return weight * abs(error)
    if abs(error) <= threshold:
        return weight * 0.5 * error**2
    return weight * threshold * (abs(error) - 0.5 * threshold)


class TestQuantileHuber:
    @pytest.mark.parametrize(
        ("error", "fraction", "threshold", "expected"),
        [
            (0.5, 0.25, 1.0, 0.25 * 0.125),
            (-0.5, 0.25, 1.0, 0.75 * 0.125),
            (3.0, 0.25, 1.0, 0.25 * 2.5),
            (-3.0, 0.25, 2.0, 0.75 * 4),
            (3.0, 0.25, 0.0, 0.75),
            (-3.0, 0.25, 0.0, 2.25),
            (0.0, 0.9, 0.0, 0.0),
        ],
    )
    def test_by_hand(self, error, fraction, threshold, expected):
        found = quantile_huber(jnp.float32(error), jnp.float32(fraction), threshold)
        assert float(found) == pytest.approx(expected, rel=1e-6)

    @settings(max_examples=100)
    @given(
        errors=st.lists(st.floats(-20, 20, width=32), min_size=8, max_size=8),
        fraction=st.floats(0, 1, width=32),
        threshold=st.one_of(st.just(0.0), st.floats(0.0625, 10, width=32)),
    )
    def test_against_a_loop(self, errors, fraction, threshold):
        found = quantile_huber(jnp.array(errors), jnp.full(8, fraction), threshold)
        expected = [numpy_quantile_huber(error, fraction, threshold) for error in errors]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
    def test_the_plain_loss_is_least_at_the_quantile(self, fraction):
        samples = jnp.arange(101.0)
        predictions = jnp.arange(101.0)
        errors = samples[jnp.newaxis, :] - predictions[:, jnp.newaxis]
        losses = quantile_huber(errors, jnp.full((1, 1), fraction), 0.0).sum(axis=1)
        assert int(losses.argmin()) == round(100 * fraction)

    def test_its_gradient_is_that_of_a_clipped_error(self):
        errors = jnp.array([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0])
        grads = jax.vmap(jax.grad(quantile_huber), (0, None))(errors, 0.25)
        np.testing.assert_allclose(grads, [-0.75, -0.75, -0.375, 0.125, 0.25, 0.25])
        grads = jax.vmap(jax.grad(quantile_huber), (0, None, None))(errors, 0.25, 0.0)
        np.testing.assert_allclose(grads, [-0.75, -0.75, -0.75, 0.25, 0.25, 0.25])


class TestQuantileRegression:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.0, 0.5, 3.0]))
    def test_against_a_table_of_all_pairs(self, seed, threshold):
        rng = np.random.default_rng(seed)
        values, targets = rng.normal(size=5), rng.normal(size=(7,))
        fractions, weights = rng.uniform(size=5), rng.dirichlet(np.ones(7))
        values, targets, fractions, weights = map(
            jnp.float32, (values, targets, fractions, weights)
        )

        def table(values):
            errors = targets[:, np.newaxis] - values[np.newaxis, :]
            losses = quantile_huber(errors, fractions[np.newaxis, :], threshold)
            return weights @ losses

        def in_turn(values):
            return quantile_regression(values, targets, fractions, weights, threshold)

        np.testing.assert_allclose(in_turn(values), table(values), rtol=1e-5, atol=1e-6)
        found, expected = (jax.jacobian(f)(values) for f in (in_turn, table))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class TestQuantileLoss:
    @pytest.mark.parametrize(
        ("double", "threshold", "temperature"),
        [
            (False, 1.0, None),
            (True, 1.0, None),
            (True, 0.0, None),
            (False, 0.3, None),
            (False, 1.0, 0.03),
            (False, 1.0, 0.8),
            (True, 0.5, 0.8),
        ],
    )
    def test_against_a_double_loop(self, double, threshold, temperature):
        batch = make_batch()
        output = losses_of(quantile_loss(double, threshold, temperature), QUANTILES, batch)
        values_tm1, _, target_values_t, online_values_t = raw_of(QUANTILES, batch)
        for b in range(BATCH):
            means = (online_values_t[b] if double else target_values_t[b]) @ WEIGHTS
            if temperature is None:
                following = target_values_t[b, means.argmax()]
            else:
                policy = numpy_softmax(means / temperature)
                following = np.zeros(len(FRACTIONS))
                for j in range(len(FRACTIONS)):
                    for p, values in zip(policy, target_values_t[b], strict=True):
                        if p > 0:
                            following[j] += p * (values[j] - temperature * np.log(p))
            targets = batch.r_t[b] + batch.discount_t[b] * following
            prediction = values_tm1[b, batch.a_tm1[b]]
            loss = 0
            for value, fraction in zip(prediction, FRACTIONS, strict=True):
                for target, weight in zip(targets, WEIGHTS, strict=True):
                    loss += weight * numpy_quantile_huber(target - value, fraction, threshold)
            require_equal(output.loss[b], loss)
            require_equal(output.priority[b], abs(targets @ WEIGHTS - prediction @ WEIGHTS))
            require_equal(output.metrics["q_value"][b], prediction @ WEIGHTS)

    @pytest.mark.parametrize("temperature", [None, 0.5])
    def test_double_makes_a_difference_while_the_episode_lasts(self, temperature):
        batch = make_batch()
        a, b = (
            losses_of(quantile_loss(double, temperature=temperature), QUANTILES, batch)
            for double in (True, False)
        )
        differs = ~np.isclose(a.loss, b.loss)
        assert differs.any()
        assert not differs[batch.discount_t == 0].any()

    def test_a_cold_policy_is_the_greedy_one(self):
        batch = make_batch()
        cold, greedy = (
            losses_of(quantile_loss(temperature=temperature), QUANTILES, batch)
            for temperature in (1e-4, None)
        )
        np.testing.assert_allclose(cold.loss, greedy.loss, rtol=1e-3, atol=1e-3)

    def test_gradient_by_hand(self):
        """One clipped error a pair, weighted; none to the fractions, nor to other actions."""

        def apply(params, obs, key=None):
            weights = jnp.array([0.25, 0.75])
            return Quantiles(obs[0] * params["values"], params["fractions"], weights)

        network = Network(lambda key, obs: None, apply, quantile_means)
        params = {
            "values": jnp.array([[9.0, 9.0], [1.0, 2.0]]),
            "fractions": jnp.array([0.25, 0.75]),
        }
        target_params = {**params, "values": jnp.array([[0.75, 2.5], [-9.0, -9.0]])}
        one = one_transition(a_tm1=1, r_t=-1.0, discount_t=1.0)

        def loss(params, target_params):
            output = quantile_loss(double=False)(network, params, target_params, one, KEY)
            return output.loss, output

        (_, output), (grads, target_grads) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, target_params
        )
        # Targets are 2 * [0.75, 2.5] - 1 = [0.5, 4]; errors [-0.5, 3] of 1, and [-1.5, 2] of 2.
        slopes = [-(0.25 * 0.75 * -0.5 + 0.75 * 0.25 * 1), -(0.25 * 0.25 * -1 + 0.75 * 0.75 * 1)]
        np.testing.assert_allclose(grads["values"], np.array([[0.0, 0.0], slopes]), rtol=1e-6)
        assert not np.any(grads["fractions"])
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(target_grads))
        assert float(output.priority) == pytest.approx(0.125 + 3 - 1.75)


class TestFractionLoss:
    def test_by_hand(self):
        boundaries = jnp.array([0.25, 0.5])
        args = jnp.array([2.0, 5.0]), jnp.array([1.0, 4.0, 5.0])
        loss, grad = jax.value_and_grad(fraction_loss)(boundaries, *args)
        # 2 * 2 - 1 - 4 = -1, and 2 * 5 - 4 - 5 = 1.
        np.testing.assert_allclose(grad, [-1.0, 1.0])
        assert float(loss) == pytest.approx(0.25)
        others = jax.grad(fraction_loss, (1, 2))(boundaries, *args)
        assert not any(np.any(leaf) for leaf in others)

    @pytest.mark.parametrize("num", [2, 3, 6])
    def test_is_the_slope_of_the_wasserstein_error(self, num):
        """Of a quantile function that is known, against differences of the error's integral."""
        rng = np.random.default_rng(num)
        boundaries = np.sort(rng.uniform(0.05, 0.95, num - 1))

        def quantile(fraction):
            return np.exp(2 * fraction) - fraction**2  # increasing

        def error(boundaries):
            edges = np.concatenate([[0], boundaries, [1]])
            total = 0.0
            for low, high in itertools.pairwise(edges):
                middle = (low + high) / 2
                for a, b in ((low, middle), (middle, high)):
                    fractions = a + (b - a) * (np.arange(2000) + 0.5) / 2000
                    total += np.abs(quantile(fractions) - quantile(middle)).mean() * (b - a)
            return total

        edges = np.concatenate([[0], boundaries, [1]])
        grad = jax.grad(fraction_loss)(
            jnp.asarray(boundaries),
            jnp.asarray(quantile(boundaries)),
            jnp.asarray(quantile((edges[1:] + edges[:-1]) / 2)),
        )
        for i in range(num - 1):
            step = np.zeros(num - 1)
            step[i] = 1e-4
            slope = (error(boundaries + step) - error(boundaries - step)) / 2e-4
            assert float(grad[i]) == pytest.approx(slope, rel=1e-3, abs=1e-4)

    def test_is_added_where_fractions_are_proposed(self):
        batch = make_batch()
        values_tm1, *_ = raw_of(PROPOSED, batch)

        def without_proposal(raw, key):
            return Quantiles(*proposed_quantiles(raw, key)[:3])

        fixed = linear_network(
            (NUM_ACTIONS, 2 * len(FRACTIONS) - 1), without_proposal, quantile_means
        )
        a, b = (losses_of(quantile_loss(), network, batch) for network in (PROPOSED, fixed))
        for i in range(BATCH):
            output = proposed_quantiles(jnp.asarray(values_tm1[i], jnp.float32), None)
            action = batch.a_tm1[i]
            added = fraction_loss(
                output.boundaries, output.boundary_values[action], output.values[action]
            )
            require_equal(a.loss[i] - b.loss[i], added)
        require_equal(a.priority, b.priority)
