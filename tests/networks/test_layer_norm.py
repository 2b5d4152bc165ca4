"""LayerNorm, whose sums are the package's own, beside flax's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.networks import LayerNorm, MLPTorso, make_network
from tiny_networks import OBS, dense, random_params, shapes, small


def test_layer_norm_before_the_relu_by_hand():
    network = make_network(MLPTorso((5, 3), layer_norm=True))
    params = random_params(network)
    x = np.asarray(OBS)
    for i in range(2):
        x = dense(params["params"][f"Dense_{i}"], x)
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
        norm = params["params"][f"LayerNorm_{i}"]
        x = np.maximum(x * norm["scale"] + norm["bias"], 0)
    np.testing.assert_allclose(network.apply(params, OBS), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (4, 7, 3), (8, 8, 16)])
def test_values_and_gradients_are_those_of_flax(shape):
    ours, theirs = LayerNorm(), nn.LayerNorm(reduction_axes=tuple(range(-len(shape), 0)))
    rng = np.random.default_rng(0)
    xs, weights = (rng.normal(1, 3, (6, *shape)).astype(np.float32) for _ in range(2))
    params = random_params(make_network(ours), xs[0])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, theirs.init(jax.random.key(0), xs[0])
    )

    def measure(layer):
        def total(params, xs):
            outputs = jax.vmap(layer.apply, (None, 0))(params, xs)
            return jnp.sum(weights * outputs), outputs

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, xs)

    found = measure(ours)
    with jax.numpy_rank_promotion("allow"):  # flax's layer needs it
        expected = measure(theirs)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected
    )


def test_a_constant_layer_is_its_bias():
    layer = LayerNorm()
    params = random_params(make_network(layer), OBS)
    found = layer.apply(params, jnp.full_like(OBS, 3.0))
    np.testing.assert_allclose(np.asarray(found), params["params"]["bias"], atol=1e-3)


def test_layer_norm_is_an_argument():
    for kwargs in ({}, {"dueling": True, "head_sizes": (2,)}):
        assert not any("LayerNorm" in name for name in shapes(small(**kwargs)))
        found = shapes(small(layer_norm=True, **kwargs))
        hidden_layers = 1 if not kwargs else 3  # none before the outputs
        assert sum(name.endswith("scale") for name in found) == hidden_layers
