"""Networks of one observation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.networks import MLP, make_network


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
        network = make_network(
            MLP((), 4), lambda output: nn.softmax(output.reshape(2, 2)) @ support
        )
        params = jax.jit(network.init)(jax.random.key(0), jnp.zeros(1))
        params["params"]["Dense_0"]["bias"] = jnp.log(jnp.array([0.5, 0.5, 0.8, 0.2]))
        output = network.apply(params, jnp.zeros(1))
        assert output.shape == (4,)
        np.testing.assert_allclose(network.action_values(output), [5.0, 2.0], rtol=1e-6)
