"""Convolutions, the torso of images, and spectral norms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.networks import MLP, CNNTorso, MLPTorso, make_network, value_network
from purejaxdqn.networks.layers import Conv, SpectralDense, largest_singular_value
from purejaxdqn.types import ConfigError
from tiny_networks import shapes

CONVOLUTIONS = [
    # (height, width, channels), kernel, strides, features
    ((10, 10, 4), (3, 3), (1, 1), 5),
    ((7, 9, 3), (2, 3), (3, 2), 2),  # pixels are left over
    ((5, 6, 17), (4, 2), (1, 3), 2),  # many channels
    ((6, 5, 16), (1, 5), (2, 1), 1),
    ((11, 12, 2), (5, 4), (3, 4), 3),  # a kernel for XLA's convolution
    ((3, 4, 1), (3, 4), (1, 1), 2),  # one patch
]


@pytest.mark.parametrize(
    ("shape", "size", "strides", "features", "backend"),
    [*((*one, "cpu") for one in CONVOLUTIONS), (*CONVOLUTIONS[1], "gpu")],
)
def test_conv_is_that_of_flax(shape, size, strides, features, backend, monkeypatch):
    """For runs side by side, each with a batch, in its values and in all of its gradients."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours, theirs = Conv(features, size, strides), nn.Conv(features, size, strides, "VALID")
    images = jax.random.normal(jax.random.key(0), (2, 3, *shape))
    params = jax.vmap(theirs.init)(jax.random.split(jax.random.key(1), 2), images[:, 0])
    params = jax.tree.map(lambda x: x + 0.3, params)

    def loss(params, images, layer, is_mapped):
        apply = functools.partial(layer.apply, params)
        outputs = jax.vmap(apply)(images) if is_mapped else apply(images)
        return jnp.sum(jnp.sin(outputs)), outputs

    def gradients(layer, is_mapped=True):
        one = functools.partial(loss, layer=layer, is_mapped=is_mapped)
        return jax.jit(jax.vmap(jax.value_and_grad(one, (0, 1), has_aux=True)))(params, images)

    expected = gradients(theirs)
    for found in (gradients(ours), gradients(ours, is_mapped=False)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
        )
    wrong = jax.tree.map(lambda x: np.any(np.isnan(x)) or not np.any(x), expected)
    assert not any(jax.tree.leaves(wrong))


def test_conv_begins_as_that_of_flax():
    """So that seeds have the same weights with either."""

    def init(layer):
        module = nn.Sequential([layer])
        return module.init(jax.random.key(3), jnp.zeros((5, 5, 2)))["params"]["layers_0"]

    found, expected = init(Conv(4, (3, 2))), init(nn.Conv(4, (3, 2), padding="VALID"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("torso", [MLP((3,), 2), MLPTorso((3,)), CNNTorso((2,), (2,), (1,), 3)])
def test_bytes_are_divided_and_flags_are_ones(torso):
    network = make_network(torso)
    flags = np.random.default_rng(0).integers(0, 2, (4, 4, 2)).astype(bool)
    params = network.init(jax.random.key(0), jnp.asarray(flags))
    expected = network.apply(params, jnp.asarray(flags, jnp.float32))
    assert np.abs(expected).max() > 0
    np.testing.assert_array_equal(network.apply(params, jnp.asarray(flags)), expected)
    as_bytes = jnp.asarray(flags * 255, jnp.uint8)
    np.testing.assert_array_equal(network.apply(params, as_bytes), expected)
    whole = jnp.asarray(flags * 7, jnp.int32)  # no bytes: as they are
    np.testing.assert_allclose(
        network.apply(params, whole), network.apply(params, jnp.asarray(flags * 7.0)), rtol=1e-5
    )


@pytest.mark.parametrize("dueling", [False, True])
def test_hidden_layers_stand_behind_a_torso(dueling):
    torso = CNNTorso((3,), (2,), (1,), hidden_size=None, layer_norm=True)
    network = value_network(
        2, (6, 5), torso=torso, noisy=True, layer_norm=True, dueling=dueling, head_sizes=(4,)
    )
    found = shapes(network, jnp.zeros((4, 4, 2)))
    expected = {
        "torso/layers_0/Conv_0/kernel": (2, 2, 2, 3),
        "torso/layers_0/LayerNorm_0/scale": (3,),
        "torso/layers_1/NoisyDense_0/kernel_sigma": (27, 6),
        "torso/layers_1/NoisyDense_1/kernel": (6, 5),
        "torso/layers_1/LayerNorm_1/scale": (5,),
    }
    stream = "outputs/value" if dueling else "outputs"
    expected[f"{stream}/NoisyDense_0/kernel"] = (5, 4)
    assert found.items() >= expected.items()


def test_one_layer_is_divided_by_its_spectral_norm():
    network = value_network(2, (5, 4), spectral_norm=True)
    params = network.init(jax.random.key(0), jnp.zeros(3))
    kernels = params["params"]["torso"]
    for name in ("Dense_0", "Dense_1"):
        kernels[name]["kernel"] = kernels[name]["kernel"] * 7
    x = rest = jnp.array([1.0, -2.0, 0.5])
    for name in ("Dense_0", "Dense_1"):
        kernel = kernels[name]["kernel"]
        norm = np.linalg.norm(kernel, 2) if name == "Dense_1" else 1.0
        rest = nn.relu(rest @ (kernel / norm) + kernels[name]["bias"])
    outputs = params["params"]["outputs"]["Dense_0"]
    expected = rest @ outputs["kernel"] + outputs["bias"]
    assert np.abs(expected).min() > 0
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-3)


def test_it_is_the_last_hidden_layer_of_each_stream():
    network = value_network(2, (5,), dueling=True, head_sizes=(4,), spectral_norm=True)
    params = network.init(jax.random.key(0), jnp.zeros(3))
    x, before = jnp.array([1.0, -2.0, 0.5]), params["params"]
    plain = network.apply(params, x)

    def scaled(*path):
        changed = jax.tree.map(lambda x: x, before)
        inner = changed
        for key in path:
            inner = inner[key]
        inner["kernel"] = inner["kernel"] * 3
        return np.abs(network.apply({"params": changed}, x) - plain).max()

    assert scaled("outputs", "value", "Dense_0") < 1e-5
    assert scaled("outputs", "advantages", "Dense_0") < 1e-5
    assert scaled("torso", "Dense_0") > 1e-3
    assert scaled("outputs", "value", "Dense_1") > 1e-3


@pytest.mark.parametrize("shape", [(40, 12), (3, 9), (6, 1), (1, 6)])
def test_largest_singular_value(shape):
    matrix = jax.random.normal(jax.random.key(2), shape)
    exact = np.linalg.norm(matrix, 2)
    assert 0.95 * exact < largest_singular_value(matrix) < 1.0001 * exact
    # Its gradient is that of the norm: the outer product of the singular vectors.
    left, _, right = np.linalg.svd(matrix)
    found = jax.grad(lambda x: largest_singular_value(x, 300))(matrix)
    np.testing.assert_allclose(found, np.outer(left[:, 0], right[0]), atol=2e-3)


def test_a_spectral_norm_of_zeros_divides_nothing_by_zero():
    layer, x = SpectralDense(3), jnp.ones(4)
    params = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(0), x))
    network = make_network(layer)
    value, grads = jax.value_and_grad(lambda p: jnp.sum(network.apply(p, x)))(params)
    assert value == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("kwargs", [{"noisy": True}, {"hidden_sizes": ()}])
def test_a_spectral_norm_needs_a_hidden_layer_without_noise(kwargs):
    with pytest.raises(ConfigError, match=r"spectral_norm \(True\) needs a hidden layer without"):
        value_network(2, **{"hidden_sizes": (4,), "spectral_norm": True, **kwargs})
