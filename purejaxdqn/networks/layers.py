"""Layers of torsos and heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxdqn.types import Array

DenseLayer = Callable[..., nn.Module]  # features -> layer, such as nn.Dense


def hidden_layers(
    module: nn.Module,
    x: Array,
    sizes: Sequence[int],
    layer_norm: bool = False,
    dense: DenseLayer = nn.Dense,
) -> Array:
    """Adds layers with ReLU to the module that calls this, and maps `[..., F]` to `[..., size]`."""
    for i, size in enumerate(sizes):
        x = dense(size)(x)
        if layer_norm:
            x = nn.LayerNorm()(x)
        x = nn.relu(x)
        sow_activation(module, f"hidden_{i}", x)
    return x


def sow_activation(module: nn.Module, name: str, x: Array) -> None:
    """Sows the output of a layer for diagnostics, under a name that `make_network` explains."""
    module.sow("intermediates", name, x)


class NoisyDense(nn.Module):
    """A linear layer whose weights carry learned, factorised Gaussian noise.

    Fortunato et al., "Noisy networks for exploration" (2018), equations 10 and 11: the noise of the
    weight from input `i` to output `j` is `f(e_i) f(e_j)`, that of bias `j` is `f(e_j)`, with
    `f(x) = sign(x) sqrt(|x|)` and `e` standard normal. Initialised as in section 3.2: means
    uniform within `1 / sqrt(inputs)`, scales `sigma / sqrt(inputs)`.

    Each call draws noise from the stream "noise", once for all leading axes of its input. Without
    that stream the weights are their means.
    """

    features: int
    sigma: float = 0.5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[..., inputs]` to `[..., features]`."""
        num_inputs = x.shape[-1]
        bound = 1 / math.sqrt(num_inputs)

        def mean(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        def draw(key: Array, size: int) -> Array:
            noise = jax.random.normal(key, (size,))
            return jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))

        def row(vector: Array) -> Array:  # no broadcasting between ranks
            return jnp.expand_dims(vector, range(x.ndim - 1))

        scale = nn.initializers.constant(self.sigma * bound)
        kernel = self.param("kernel", mean, (num_inputs, self.features))
        bias = self.param("bias", mean, (self.features,))
        kernel_sigma = self.param("kernel_sigma", scale, (num_inputs, self.features))
        bias_sigma = self.param("bias_sigma", scale, (self.features,))
        if not self.has_rng("noise"):
            return x @ kernel + row(bias)
        input_key, output_key = jax.random.split(self.make_rng("noise"))
        input_noise, output_noise = draw(input_key, num_inputs), draw(output_key, self.features)
        # Noise on inputs and outputs is noise on the weights, without a matrix of weights for each
        # transition of a batch.
        noise = (x * row(input_noise)) @ kernel_sigma * row(output_noise)
        return x @ kernel + noise + row(bias + bias_sigma * output_noise)
