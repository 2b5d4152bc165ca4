"""Outputs for each action, and heads, against numbers by hand."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from purejaxdqn.networks import (
    MLP,
    cosines,
    expected_value,
    label_fraction_proposal,
    make_network,
    mean_of_quantiles,
    midpoints,
    value_network,
    value_plus_advantages,
)
from purejaxdqn.types import Categorical, ProposedQuantiles, Quantiles
from tiny_networks import OBS, REPRESENTATIONS, dense, random_params, shapes, small

NUMBERS = st.floats(-100, 100, width=32)


class TestDueling:
    def test_by_hand(self):
        """Two actions and three atoms."""
        value = jnp.array([[10.0, 20.0, 30.0]])
        advantages = jnp.array([[1.0, 2.0, 3.0], [3.0, 6.0, -3.0]])
        expected = np.array([[9.0, 18.0, 33.0], [11.0, 22.0, 27.0]])
        np.testing.assert_allclose(value_plus_advantages(value, advantages), expected)
        both = value_plus_advantages(jnp.stack([value, -value]), jnp.stack([advantages] * 2))
        np.testing.assert_allclose(both[0], expected)
        np.testing.assert_allclose(both[1], expected - 2 * np.asarray(value))

    @given(
        arrays(np.float32, (1, 2), elements=NUMBERS),
        arrays(np.float32, (3, 2), elements=NUMBERS),
        NUMBERS,
    )
    def test_mean_over_actions_is_the_value(self, value, advantages, constant):
        found = np.asarray(value_plus_advantages(value, advantages))
        shifted = value_plus_advantages(value, advantages + constant)
        np.testing.assert_allclose(found.mean(axis=0, keepdims=True), value, atol=1e-3)
        np.testing.assert_allclose(found, shifted, atol=1e-3)
        np.testing.assert_allclose(np.diff(found, axis=0), np.diff(advantages, axis=0), atol=1e-3)

    @pytest.mark.parametrize("representation", REPRESENTATIONS)
    def test_a_constant_on_the_advantages_changes_nothing(self, representation):
        network = small(representation, dueling=True)
        params = random_params(network)
        outputs = params["params"]["outputs"]
        size = outputs["value"]["Dense_0"]["bias"].size
        apply = jax.jit(network.apply)
        before = apply(params, OBS)
        if representation in REPRESENTATIONS[:3]:  # in the others each fraction has its own mean
            mean = jax.tree.leaves(before)[0].reshape(3, size).mean(axis=0)
            hidden = np.maximum(dense(params["params"]["torso"]["Dense_0"], np.asarray(OBS)), 0)
            value = dense(outputs["value"]["Dense_0"], hidden)
            np.testing.assert_allclose(mean, value, rtol=1e-4, atol=1e-4)
        bias = outputs["advantages"]["Dense_0"]["bias"]
        constant = np.tile(7.0 + np.arange(size, dtype=np.float32), 3)  # one for each atom
        outputs["advantages"]["Dense_0"]["bias"] = bias + constant
        chex.assert_trees_all_close(apply(params, OBS), before, rtol=1e-4, atol=1e-4)
        outputs["value"]["Dense_0"]["bias"] = outputs["value"]["Dense_0"]["bias"] + 1
        after = jax.tree.leaves(apply(params, OBS))[0]
        np.testing.assert_allclose(after, jax.tree.leaves(before)[0] + 1, rtol=1e-4, atol=1e-4)

    def test_streams_have_hidden_layers_of_their_own(self):
        found = shapes(small("categorical", dueling=True, head_sizes=(8,)))
        for stream, num_outputs in (("value", 5), ("advantages", 15)):
            assert found[f"outputs/{stream}/Dense_0/kernel"] == (6, 8)
            assert found[f"outputs/{stream}/Dense_1/kernel"] == (8, num_outputs)


class TestHeads:
    def test_values_by_hand(self):
        network = small(head_sizes=(5,))
        params = random_params(network)
        hidden = np.maximum(dense(params["params"]["torso"]["Dense_0"], np.asarray(OBS)), 0)
        outputs = params["params"]["outputs"]
        hidden = np.maximum(dense(outputs["Dense_0"], hidden), 0)
        found = network.action_values(network.apply(params, OBS))
        np.testing.assert_allclose(found, dense(outputs["Dense_1"], hidden), rtol=1e-4)

    def test_by_default_the_mlp_to_the_bit(self):
        networks = value_network(2, (7, 3)), make_network(MLP((7, 3), 2))
        params = [jax.jit(network.init)(jax.random.key(0), OBS) for network in networks]
        chex.assert_trees_all_equal(*params)
        assert list(params[0]["params"]) == ["Dense_0", "Dense_1", "Dense_2"]

    def test_categorical(self):
        network = small("categorical", v_min=-2.0, v_max=6.0)
        params = random_params(network)
        output = network.apply(params, OBS)
        assert isinstance(output, Categorical)
        np.testing.assert_array_equal(output.support, [-2.0, 0.0, 2.0, 4.0, 6.0])
        hidden = np.maximum(dense(params["params"]["torso"]["Dense_0"], np.asarray(OBS)), 0)
        logits = dense(params["params"]["outputs"]["Dense_0"], hidden).reshape(3, 5)
        np.testing.assert_allclose(output.logits, logits, rtol=1e-4)
        exp = np.exp(logits)
        expected = (exp / exp.sum(axis=1, keepdims=True) * [-2, 0, 2, 4, 6]).sum(axis=1)
        np.testing.assert_allclose(network.action_values(output), expected, rtol=1e-3, atol=1e-4)

    def test_expected_value_by_hand(self):
        logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + jnp.array([[3.0], [-9]])
        found = expected_value(Categorical(logits, jnp.array([-10.0, 0.0, 20.0])))
        np.testing.assert_allclose(found, [0.0, 15.0], atol=1e-5)

    def test_quantile(self):
        network = small("quantile")
        params = random_params(network)
        output = network.apply(params, OBS)
        assert isinstance(output, Quantiles)
        np.testing.assert_allclose(output.fractions, [0.125, 0.375, 0.625, 0.875])  # midpoints
        np.testing.assert_allclose(output.weights, [0.25] * 4)
        hidden = np.maximum(dense(params["params"]["torso"]["Dense_0"], np.asarray(OBS)), 0)
        values = dense(params["params"]["outputs"]["Dense_0"], hidden).reshape(3, 4)
        np.testing.assert_allclose(output.values, values, rtol=1e-4)
        np.testing.assert_allclose(network.action_values(output), values.mean(axis=1), rtol=1e-3)

    @pytest.mark.parametrize("num_atoms", [2, 3, 5, 8, 51])
    def test_the_largest_logit_becomes_zero_wherever_it_is(self, num_atoms):
        logits = jnp.where(jnp.eye(num_atoms, dtype=bool), 3e4, -3e4)  # a row for each place
        found = Categorical(logits, jnp.arange(float(num_atoms))).shifted()
        np.testing.assert_array_equal(found, jnp.where(jnp.eye(num_atoms, dtype=bool), 0, -6e4))
        means = expected_value(Categorical(logits, jnp.arange(float(num_atoms))))
        np.testing.assert_allclose(means, np.arange(num_atoms), atol=1e-5)

    def test_mean_of_quantiles_by_hand(self):
        values = jnp.array([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
        weights = jnp.array([0.5, 0.25, 0.25])
        found = mean_of_quantiles(Quantiles(values, jnp.array([0.25, 0.6, 0.9]), weights))
        np.testing.assert_allclose(found, [2.0, 2.0])

    def test_cosines_by_hand(self):
        fractions = np.array([0.0, 0.1, 0.5, 1.0], np.float32)
        expected = [[math.cos(math.pi * i * tau) for i in range(5)] for tau in fractions.tolist()]
        np.testing.assert_allclose(cosines(jnp.asarray(fractions), 5), expected, atol=1e-5)

    def test_64_cosines_are_as_near_as_the_text_says(self):
        fractions = np.random.default_rng(0).uniform(size=10_000).astype(np.float32)
        expected = np.cos(np.pi * np.outer(fractions.astype(np.float64), np.arange(64)))
        np.testing.assert_allclose(cosines(jnp.asarray(fractions), 64), expected, atol=1e-5)

    @pytest.mark.parametrize("seed", [None, 0])
    def test_implicit_quantile_by_hand(self, seed):
        network = small("implicit_quantile", head_sizes=(5,))
        params = random_params(network)
        key = None if seed is None else jax.random.key(seed)
        output = network.apply(params, OBS, key)
        assert isinstance(output, Quantiles)
        layers = params["params"]
        features = np.maximum(dense(layers["torso"]["Dense_0"], np.asarray(OBS)), 0)
        for i, fraction in enumerate(np.asarray(output.fractions).tolist()):
            basis = np.cos(np.pi * np.arange(7) * fraction)
            embedding = np.maximum(dense(layers["FractionEmbedding_0"]["Dense_0"], basis), 0)
            hidden = np.maximum(dense(layers["outputs"]["Dense_0"], features * embedding), 0)
            expected = dense(layers["outputs"]["Dense_1"], hidden)
            np.testing.assert_allclose(output.values[:, i], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(output.weights, [0.25] * 4)
        means = np.asarray(output.values).mean(axis=1)
        np.testing.assert_allclose(network.action_values(output), means, rtol=1e-4, atol=1e-5)

    def test_fractions_of_implicit_quantiles(self):
        network = small("implicit_quantile")
        params = random_params(network)
        without = network.apply(params, OBS).fractions
        np.testing.assert_allclose(without, [0.125, 0.375, 0.625, 0.875])
        keys = jax.random.split(jax.random.key(0), 1000)
        apply = jax.jit(jax.vmap(lambda key: network.apply(params, OBS, key).fractions))
        fractions = np.asarray(apply(keys))
        for column in fractions.T:
            assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4
        assert np.abs(np.corrcoef(fractions.T) - np.eye(4)).max() < 0.15

    def test_proposed_quantile_by_hand(self):
        network = small("proposed_quantile", head_sizes=(5,))
        params = random_params(network)
        output = network.apply(params, OBS)
        assert isinstance(output, ProposedQuantiles)
        layers = params["params"]
        features = np.maximum(dense(layers["torso"]["Dense_0"], np.asarray(OBS)), 0)
        logits = dense(layers["fraction_proposal"], features)
        weights = np.exp(logits) / np.exp(logits).sum()
        edges = np.concatenate([[0], np.cumsum(weights)])
        assert weights.std() > 0.01  # or uneven parts would not be tried
        np.testing.assert_allclose(output.weights, weights, rtol=1e-4)
        np.testing.assert_allclose(output.boundaries, edges[1:-1], rtol=1e-4)
        np.testing.assert_allclose(output.fractions, (edges[1:] + edges[:-1]) / 2, rtol=1e-4)

        def quantile(fraction):
            basis = np.cos(np.pi * np.arange(7) * fraction)
            embedding = np.maximum(dense(layers["FractionEmbedding_0"]["Dense_0"], basis), 0)
            hidden = np.maximum(dense(layers["outputs"]["Dense_0"], features * embedding), 0)
            return dense(layers["outputs"]["Dense_1"], hidden)

        for fractions, values in (
            (output.fractions, output.values),
            (output.boundaries, output.boundary_values),
        ):
            expected = np.stack([quantile(x) for x in np.asarray(fractions).tolist()], axis=1)
            np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)
        means = np.asarray(output.values) @ weights
        np.testing.assert_allclose(network.action_values(output), means, rtol=1e-3, atol=1e-4)

    def test_proposed_fractions_are_even_at_first(self):
        network = small("proposed_quantile")
        params = network.init(jax.random.key(0), OBS)
        np.testing.assert_allclose(network.apply(params, OBS).weights, [0.25] * 4, rtol=1e-6)

    def test_quantiles_and_their_proposal_learn_apart(self):
        network = small("proposed_quantile")
        params = random_params(network)
        of_values, of_boundaries = (
            jax.grad(lambda params, name=name: jnp.sum(getattr(network.apply(params, OBS), name)))(
                params
            )
            for name in ("values", "boundaries")
        )
        labels = jax.tree.leaves(label_fraction_proposal(params))
        assert set(labels) == {"value", "fraction_proposal"}
        for label, value_grad, boundary_grad in zip(
            labels, jax.tree.leaves(of_values), jax.tree.leaves(of_boundaries), strict=True
        ):
            assert np.any(value_grad) == (label == "value")
            assert np.any(boundary_grad) == (label == "fraction_proposal")

    @pytest.mark.parametrize("num", [1, 2, 7])
    def test_midpoints(self, num):
        expected = [(i + 0.5) / num for i in range(num)]
        np.testing.assert_allclose(midpoints(num), expected, rtol=1e-6)
