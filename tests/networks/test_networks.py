"""Networks of one observation."""

import math

import chex
import flax.linen as nn
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
    ActionOutputs,
    CNNTorso,
    Dueling,
    MLPTorso,
    NoisyDense,
    cosines,
    expected_value,
    label_fraction_proposal,
    make_network,
    mean_of_quantiles,
    midpoints,
    value_network,
    value_plus_advantages,
)
from purejaxdqn.testing import check_network
from purejaxdqn.types import Categorical, ConfigError, ProposedQuantiles, Quantiles


def numpy_mlp(params, x):
    layers = [params["params"][f"Dense_{i}"] for i in range(len(params["params"]))]
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]


class TestMLP:
    @pytest.mark.parametrize("hidden_sizes", [(), (5,), (7, 3)])
    def test_by_hand(self, hidden_sizes):
        network = make_network(MLP(hidden_sizes, 2))
        obs = jnp.array([0.5, -1.0, 2.0, 0.1])
        params = jax.jit(network.init)(jax.random.key(0), obs)
        # Biases start at 0, which would hide that they are used.
        params = jax.tree.map(lambda x: x + 0.1, params)
        q_values = network.action_values(network.apply(params, obs))
        assert q_values.shape == (2,)
        np.testing.assert_allclose(
            q_values, numpy_mlp(params, np.asarray(obs)), rtol=1e-5, atol=1e-6
        )

    def test_number_of_weights(self):
        network = make_network(MLP((120, 84), 2))
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(4))
        num_weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert num_weights == (4 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 2

    def test_observations_of_any_shape_and_dtype(self):
        network = make_network(MLP((8,), 3))
        image = jnp.arange(24, dtype=jnp.uint8).reshape(2, 3, 4)
        params = jax.jit(network.init)(jax.random.key(0), image)
        output = network.apply(params, image)
        assert output.shape == (3,)
        assert output.dtype == jnp.float32
        flat = image.ravel().astype(jnp.float32)
        np.testing.assert_array_equal(output, network.apply(params, flat))

    def test_weights_are_the_keys(self):
        network = make_network(MLP((8,), 2))
        init = jax.jit(network.init)
        a, b, c = (init(jax.random.key(seed), jnp.zeros(4)) for seed in (0, 0, 1))
        for x, y, z in zip(*map(jax.tree.leaves, (a, b, c)), strict=True):
            np.testing.assert_array_equal(x, y)
            assert np.any(x != z) == np.any(x)  # all but the biases


class NoisyValues(nn.Module):
    """Three values with noise, where a stream for it is given."""

    @nn.compact
    def __call__(self, obs):
        values = nn.Dense(3)(obs)
        if self.has_rng("noise"):
            values += jax.random.normal(self.make_rng("noise"), (3,))
        return values


class TestMakeNetwork:
    def test_noise_comes_from_the_key_alone(self):
        network = make_network(NoisyValues())
        obs = jnp.ones(4)
        params = jax.jit(network.init)(jax.random.key(0), obs)
        plain = network.apply(params, obs)
        np.testing.assert_array_equal(plain, network.apply(params, obs, None))
        noisy = [network.apply(params, obs, jax.random.key(seed)) for seed in (1, 1, 2)]
        np.testing.assert_array_equal(noisy[0], noisy[1])
        assert np.all(noisy[0] != noisy[2])
        assert np.all(noisy[0] != plain)

    def test_action_values_of_another_head(self):
        """Two atoms for each action, at 0 and 10: the value is the mean."""
        support = jnp.array([0.0, 10.0])

        def mean(output: jax.Array) -> jax.Array:
            return nn.softmax(output.reshape(2, 2)) @ support

        network = make_network(MLP((), 4), mean)
        params = jax.jit(network.init)(jax.random.key(0), jnp.zeros(1))
        params["params"]["Dense_0"]["bias"] = jnp.log(jnp.array([0.5, 0.5, 0.8, 0.2]))
        output = network.apply(params, jnp.zeros(1))
        assert output.shape == (4,)
        np.testing.assert_allclose(network.action_values(output), [5.0, 2.0], rtol=1e-6)


OBS = jnp.array([0.5, -1.0, 2.0, 0.1])
NUMBERS = st.floats(-100, 100, width=32)
REPRESENTATIONS = ("values", "categorical", "quantile", "implicit_quantile", "proposed_quantile")


def small(representation="values", **kwargs):
    """Three actions; the counts differ, so that no axis is taken for another."""
    kwargs = {"hidden_sizes": (6,), "num_atoms": 5, "num_quantiles": 4, "num_cosines": 7, **kwargs}
    return value_network(3, representation=representation, **kwargs)


def shapes(network, obs=OBS):
    """Weights' shapes by path, without computing any."""
    params = jax.eval_shape(network.init, jax.random.key(0), obs)["params"]
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in paths}


def random_like(shapes, seed=0):
    """Weights that hide nothing, no bias of 0 and no scale of 1; in NumPy, to compute by hand."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def random_params(network, obs=OBS, seed=0):
    return random_like(jax.eval_shape(network.init, jax.random.key(0), obs), seed)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


class TestNoisyDense:
    layer = make_network(NoisyDense(5))
    num_inputs = 4

    def weights(self, params, key=None):
        """The kernel and the bias that the layer has under a key, from what it makes of inputs."""
        inputs = jnp.concatenate([jnp.zeros((1, self.num_inputs)), jnp.eye(self.num_inputs)])
        bias, *rows = self.layer.apply({"params": params}, inputs, key)
        return jnp.stack(rows) - bias[None], bias

    @pytest.fixture(scope="class")
    def params(self):
        return random_params(self.layer)["params"]

    @pytest.fixture(scope="class")
    def draws(self, params):
        """Kernels and biases under many keys, fresh ones for each."""
        keys = jax.random.split(jax.random.key(3), 4000)
        return jax.jit(jax.vmap(self.weights, in_axes=(None, 0)))(params, keys)

    def test_without_a_key_the_weights_are_their_means(self, params):
        kernel, bias = self.weights(params)
        np.testing.assert_allclose(kernel, params["kernel"], atol=1e-6)
        np.testing.assert_allclose(bias, params["bias"], atol=1e-6)

    def test_noise_is_factorised(self, params, draws):
        """The kernel's noise is an outer product with the bias's own; rank one, in every draw."""
        kernels, biases = (np.asarray(x, np.float64) for x in draws)
        kernel_noise = (kernels - params["kernel"]) / params["kernel_sigma"]
        bias_noise = (biases - params["bias"]) / params["bias_sigma"]
        input_noise = kernel_noise[:, :, :1] / bias_noise[:, None, :1]
        rebuilt = input_noise * bias_noise[:, None, :]
        is_clear = np.abs(bias_noise[:, 0]) > 0.1  # divided by what is not nearly 0
        assert is_clear.mean() > 0.9
        np.testing.assert_allclose(
            kernel_noise[is_clear], rebuilt[is_clear], atol=2e-3 * np.abs(rebuilt[is_clear]).max()
        )
        # f(e) = sign(e) sqrt(|e|): undone, what is left is standard normal.
        factors = np.concatenate([bias_noise, input_noise[:, :, 0]], axis=1)[is_clear]
        for column in (np.sign(factors[:, 1:]) * factors[:, 1:] ** 2).T:
            assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
        # No two inputs or outputs share their noise, an input and an output neither.
        assert np.abs(np.corrcoef(factors.T) - np.eye(factors.shape[1])).max() < 0.1
        assert len(np.unique(biases[:, 1])) > 0.99 * len(biases)  # nor two keys

    def test_is_linear_in_the_input_with_one_noise_for_all_rows(self, params):
        rows = np.random.default_rng(0).normal(size=(2, 3, self.num_inputs)).astype(np.float32)
        key = jax.random.key(1)
        kernel, bias = self.weights(params, key)
        found = self.layer.apply({"params": params}, rows, key)
        np.testing.assert_allclose(
            found, rows @ np.asarray(kernel) + np.asarray(bias), rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize("sigma", [0.5, 0.1])
    def test_initial_weights(self, sigma):
        network = make_network(NoisyDense(200, sigma=sigma))
        params = jax.jit(network.init)(jax.random.key(0), jnp.zeros(100))["params"]
        bound = 0.1  # one over the square root of 100 inputs
        for name, tolerance in (("kernel", 0.02), ("bias", 0.15)):
            mean = np.asarray(params[name])
            assert np.abs(mean).max() <= bound
            assert np.abs(mean).max() > 0.95 * bound
            assert mean.std() == pytest.approx(bound / np.sqrt(3), rel=tolerance)
            assert abs(mean.mean()) < tolerance * bound
        np.testing.assert_allclose(params["kernel_sigma"], sigma * bound, rtol=1e-6)
        np.testing.assert_allclose(params["bias_sigma"], sigma * bound, rtol=1e-6)

    def test_scale_of_the_initial_noise(self):
        """One input of 1: E f(e)^2 = E |e| = sqrt(2 / pi), of inputs and outputs alike."""
        layer, x = make_network(NoisyDense(50)), jnp.zeros(25).at[3].set(1.0)

        def noise(init_key, key):
            params = layer.init(init_key, x)
            return layer.apply(params, x, key) - layer.apply(params, x)

        keys = jax.random.split(jax.random.key(0), 2000)
        noises = np.asarray(jax.jit(jax.vmap(noise, (None, 0)))(jax.random.key(1), keys))
        variance = (0.5 / 5) ** 2 * (2 / np.pi + np.sqrt(2 / np.pi))  # kernel and bias
        assert noises.var() == pytest.approx(variance, rel=0.1)
        assert abs(noises.mean()) < 0.01

    def test_gradient_reaches_means_and_scales(self, params):
        def loss(params, key):
            return self.layer.apply({"params": params}, OBS, key).sum()

        for name, grad in jax.grad(loss)(params, jax.random.key(0)).items():
            assert np.all(grad != 0), name


class TestNoisyNetworks:
    def test_layers(self):
        found = shapes(small(noisy=True, dueling=True, head_sizes=(2,)))
        kernels = {name for name in found if name.endswith("kernel")}
        assert len(kernels) == 5  # one hidden, and two in each stream
        assert {f"{name}_sigma" for name in kernels} <= set(found)
        assert not any("sigma" in name for name in shapes(small(dueling=True)))

    def test_fresh_noise_for_each_transition_and_layer(self):
        network = small(noisy=True)
        params = random_params(network)
        keys = jax.random.split(jax.random.key(0), 3)
        apply = jax.jit(jax.vmap(network.apply, in_axes=(None, None, 0)))
        found = np.asarray(apply(params, OBS, keys[jnp.array([0, 1, 0])]))
        np.testing.assert_array_equal(found[0], found[2])
        assert np.all(found[0] != found[1])
        assert np.all(found[0] != network.apply(params, OBS))
        np.testing.assert_allclose(found[1], network.apply(params, OBS, keys[1]), rtol=1e-5)
        # Two layers of one shape draw apart: with equal weights their outputs differ.
        streams = Dueling(ActionOutputs(3, dense=NoisyDense), ActionOutputs(3, dense=NoisyDense))
        ones = jax.tree.map(jnp.ones_like, random_params(make_network(streams)))
        value_minus_advantages = streams.bind(ones, rngs={"noise": keys[0]})
        value = value_minus_advantages.value(OBS)
        assert np.all(value != value_minus_advantages.advantages(OBS))

    def test_sigma_scales_the_noise(self):
        found = [small(noisy=True, noisy_sigma=sigma) for sigma in (0.0, 0.5)]
        init = [jax.jit(network.init)(jax.random.key(0), OBS) for network in found]
        key = jax.random.key(1)
        q, quiet, loud = (
            network.apply(params, OBS, k)
            for network, params, k in zip(
                (found[0], found[0], found[1]), (init[0], *init), (None, key, key), strict=True
            )
        )
        np.testing.assert_array_equal(q, quiet)
        assert np.all(q != loud)


class TestTorsos:
    def test_layer_norm_before_the_relu_by_hand(self):
        network = make_network(MLPTorso((5, 3), layer_norm=True))
        params = random_params(network)
        x = np.asarray(OBS)
        for i in range(2):
            x = dense(params["params"][f"Dense_{i}"], x)
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
            norm = params["params"][f"LayerNorm_{i}"]
            x = np.maximum(x * norm["scale"] + norm["bias"], 0)
        np.testing.assert_allclose(network.apply(params, OBS), x, rtol=1e-4, atol=1e-5)

    def test_layer_norm_is_an_argument(self):
        for kwargs in ({}, {"dueling": True, "head_sizes": (2,)}):
            assert not any("LayerNorm" in name for name in shapes(small(**kwargs)))
            found = shapes(small(layer_norm=True, **kwargs))
            hidden_layers = 1 if not kwargs else 3  # none before the outputs
            assert sum(name.endswith("scale") for name in found) == hidden_layers

    def test_cnn_of_the_paper(self):
        torso = make_network(CNNTorso())
        image = jnp.zeros((84, 84, 4), jnp.uint8)
        assert shapes(torso, image) == {
            "Conv_0/kernel": (8, 8, 4, 32),
            "Conv_0/bias": (32,),
            "Conv_1/kernel": (4, 4, 32, 64),
            "Conv_1/bias": (64,),
            "Conv_2/kernel": (3, 3, 64, 64),
            "Conv_2/bias": (64,),
            "Dense_0/kernel": (7 * 7 * 64, 512),
            "Dense_0/bias": (512,),
        }
        network = value_network(6, (), torso=CNNTorso(hidden_size=None), head_sizes=(512,))
        params = jax.eval_shape(network.init, jax.random.key(0), image)
        q_values = jax.eval_shape(network.apply, params, image)
        assert (q_values.shape, q_values.dtype) == ((6,), jnp.float32)
        assert params["params"]["outputs"]["Dense_0"]["kernel"].shape == (3136, 512)
        assert "Dense_0" not in params["params"]["torso"]

    @pytest.mark.parametrize("layer_norm", [False, True])
    def test_cnn_by_hand(self, layer_norm):
        torso = CNNTorso((3,), (2,), (3,), hidden_size=4, layer_norm=layer_norm)
        network = make_network(torso)
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (5, 6, 2), np.uint8)
        params = random_params(network, image)
        conv = params["params"]["Conv_0"]
        x = np.zeros((2, 2, 3))
        for row, column in np.ndindex(2, 2):
            patch = image[3 * row : 3 * row + 2, 3 * column : 3 * column + 2] / 255
            x[row, column] = np.tensordot(patch, conv["kernel"], 3) + conv["bias"]
        if layer_norm:
            norm = params["params"]["LayerNorm_0"]
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * norm["scale"] + norm["bias"]
        x = dense(params["params"]["Dense_0"], np.maximum(x, 0).ravel())
        if layer_norm:
            norm = params["params"]["LayerNorm_1"]
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * norm["scale"] + norm["bias"]
        found = network.apply(params, image)
        np.testing.assert_allclose(found, np.maximum(x, 0), rtol=1e-3, atol=1e-4)
        # Floats are taken as they are.
        scaled = jnp.asarray(image / 255, jnp.float32)
        np.testing.assert_allclose(network.apply(params, scaled), found, rtol=1e-5)

    @pytest.mark.parametrize(
        ("torso", "message"),
        [
            (CNNTorso(), r"kernel of 8 must be at most the 7x9 pixels .* kernel_sizes=\(3,\)"),
            (CNNTorso((4, 4), (3, 6), (1, 1)), "kernel of 6 must be at most the 5x7 pixels"),
            (CNNTorso((4, 4), (3,), (1, 1)), r"kernel_sizes \(3,\) .* equal in number"),
        ],
    )
    def test_cnn_that_does_not_fit(self, torso, message):
        with pytest.raises(ConfigError, match=message):
            shapes(make_network(torso), jnp.zeros((7, 9, 2)))


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

    def test_mean_of_quantiles_by_hand(self):
        values = jnp.array([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
        weights = jnp.array([0.5, 0.25, 0.25])
        found = mean_of_quantiles(Quantiles(values, jnp.array([0.25, 0.6, 0.9]), weights))
        np.testing.assert_allclose(found, [2.0, 2.0])

    def test_cosines_by_hand(self):
        fractions = np.array([0.0, 0.1, 0.5, 1.0], np.float32)
        expected = [[math.cos(math.pi * i * tau) for i in range(5)] for tau in fractions.tolist()]
        np.testing.assert_allclose(cosines(jnp.asarray(fractions), 5), expected, atol=1e-5)

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


class TestValueNetwork:
    @pytest.mark.parametrize("noisy", [False, True])
    @pytest.mark.parametrize("dueling", [False, True])
    @pytest.mark.parametrize("representation", REPRESENTATIONS)
    def test_contract(self, representation, dueling, noisy):
        network = small(representation, dueling=dueling, noisy=noisy)
        check_network(network, jax.random.key(0), OBS, 3)

    def test_contract_on_images(self):
        torso = CNNTorso((3,), (2,), (1,), hidden_size=4, layer_norm=True, dense=NoisyDense)
        network = small("implicit_quantile", hidden_sizes=(), torso=torso, layer_norm=True)
        check_network(network, jax.random.key(0), jnp.ones((4, 4, 2), jnp.uint8), 3)

    def test_floats_may_be_traced(self):
        """A sweep maps over them."""

        def apply(v_max, sigma):
            network = small("categorical", noisy=True, v_max=v_max, noisy_sigma=sigma)
            params = network.init(jax.random.key(0), OBS)
            return params, network.apply(params, OBS)

        params, output = jax.jit(jax.vmap(apply))(jnp.array([1.0, 8.0]), jnp.array([0.5, 0.25]))
        np.testing.assert_allclose(output.support[:, 1], [0.25, 2.0])
        sigmas = params["params"]["torso"]["NoisyDense_0"]["bias_sigma"][:, 0]
        np.testing.assert_allclose(sigmas, [0.25, 0.125])

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"num_actions": 0}, r"num_actions \(0\) must be at least 1"),
            ({"hidden_sizes": (4, 0)}, r"hidden_sizes\[1\] \(0\) must be at least 1"),
            ({"head_sizes": (-1,)}, r"head_sizes\[0\] \(-1\) must be at least 1"),
            ({"num_atoms": 1}, r"num_atoms \(1\) must be at least 2"),
            ({"num_quantiles": 0}, r"num_quantiles \(0\) must be at least 1"),
            ({"num_cosines": 0}, r"num_cosines \(0\) must be at least 1"),
            ({"v_min": 2.0, "v_max": 2.0}, r"v_min \(2.0\) must be below v_max \(2.0\)"),
            ({"v_min": math.nan}, r"v_min \(nan\) must be below v_max \(100.0\)"),
            ({"v_max": math.inf}, r"v_max \(inf\), both finite"),
            ({"noisy_sigma": -0.1}, r"noisy_sigma \(-0.1\) must be at least 0"),
            ({"representation": "c51"}, r"representation \('c51'\) must be one of values, cat"),
            ({"torso": CNNTorso()}, r"hidden_sizes \(4,\) must be \(\) beside a torso"),
        ],
    )
    def test_refusals(self, kwargs, message):
        with pytest.raises(ConfigError, match=message):
            value_network(**{"num_actions": 2, "hidden_sizes": (4,), **kwargs})
