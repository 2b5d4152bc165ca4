"""Networks of one observation, their layers and their torsos."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from purejaxdqn.networks import (
    MLP,
    ActionOutputs,
    CNNTorso,
    Dueling,
    NoisyDense,
    ensemble,
    make_network,
    value_network,
)
from purejaxdqn.testing import check_network
from purejaxdqn.types import ConfigError
from tiny_networks import OBS, REPRESENTATIONS, dense, random_params, shapes, small


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
        flat = image.ravel().astype(jnp.float32) / 255  # bytes are divided
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

    @pytest.mark.parametrize("noisy", [False, True])
    def test_contract_of_an_ensemble(self, noisy):
        network = ensemble(small("values", noisy=noisy), 3, functools.partial(jnp.min, axis=0))
        check_network(network, jax.random.key(0), OBS, 3)

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
            ({"v_min": math.nan}, r"v_min \(nan\) must be a finite number"),
            ({"v_max": math.inf}, r"v_max \(inf\) must be a finite number"),
            ({"torso": "cnn"}, r"torso \(.cnn.\) must be a module of flax"),
            ({"spectral_norm": 1}, r"spectral_norm \(1\) must be True or False"),
            ({"noisy_sigma": -0.1}, r"noisy_sigma \(-0.1\) must be at least 0"),
            ({"representation": "c51"}, r"representation \('c51'\) must be one of values, cat"),
        ],
    )
    def test_refusals(self, kwargs, message):
        with pytest.raises(ConfigError, match=message):
            value_network(**{"num_actions": 2, "hidden_sizes": (4,), **kwargs})


class TestEnsemble:
    def test_members_are_networks_with_weights_and_noise_of_their_own(self):
        member = small("values", noisy=True)
        network = ensemble(member, 3, functools.partial(jnp.mean, axis=0))
        key = jax.random.key(4)
        params = network.init(key, OBS)
        for noise in (None, jax.random.key(5)):
            keys = [None] * 3 if noise is None else jax.random.split(noise, 3)
            each = [
                member.apply(jax.tree.map(lambda x, k=k: x[k], params), OBS, keys[k])
                for k in range(3)
            ]
            output = network.apply(params, OBS, noise)
            np.testing.assert_allclose(output, each, rtol=1e-6)
            np.testing.assert_allclose(network.action_values(output), np.mean(each, 0), rtol=1e-6)
            assert len({*np.asarray(output)[:, 0].tolist()}) == 3

    def test_units_of_the_members_stand_beside_each_other(self):
        member = value_network(3, (6, 5))
        network = ensemble(member, 2, functools.partial(jnp.min, axis=0))
        params = network.init(jax.random.key(0), jnp.arange(4.0))
        assert network.activations is not None
        assert member.activations is not None
        shown = network.activations(params, jnp.arange(4.0))
        assert sorted(x.shape for x in shown.hidden) == [(1, 10), (1, 12)]
        each = [
            member.activations(jax.tree.map(lambda x, k=k: x[k], params), jnp.arange(4.0))
            for k in range(2)
        ]
        np.testing.assert_array_equal(shown.features, np.concatenate([x.features for x in each]))

    def test_bad_arguments_are_refused(self):
        member = value_network(3, (4,))
        with pytest.raises(ConfigError, match=r"num_members \(0\) must be at least 1"):
            ensemble(member, 0, jnp.min)
        with pytest.raises(ConfigError, match="read"):
            ensemble(member, 2, "min")  # type: ignore[arg-type]
