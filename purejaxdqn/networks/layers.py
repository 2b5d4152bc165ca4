"""Layers of torsos and heads, and the torsos, which turn ONE observation into features."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxdqn.types import BATCH, Array, ConfigError, ensure

DenseLayer = Callable[..., nn.Module]  # features -> layer, such as nn.Dense
Noise = Literal["batch", "transition"]  # what has noise of its own, see `make_network`


def ensure_noise(noise: Any) -> None:
    """Refuses what is no `Noise`."""
    ensure(noise in get_args(Noise), "noise", noise, "'batch' or 'transition'")


def is_mapped_over_batch() -> bool:
    """Tells whether this is traced for each transition, or environment, of a batch."""
    try:
        jax.lax.axis_size(BATCH)
    except NameError:  # no `vmap` around this has that axis
        return False
    return True


def key_of_batch(key: Array) -> Array:
    """Returns the key of a batch's first transition to all of them; elsewhere, the key `[]` itself.

    What is drawn from it is the same number for all, which the compiled program draws once.
    """
    if not is_mapped_over_batch():
        return key
    first = jax.lax.all_gather(jax.random.key_data(key), BATCH)[0]
    return jax.random.wrap_key_data(first, impl=jax.random.key_impl(key))


def dot(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None) -> Array:
    """Multiplies `[..., inputs]` by `[inputs, outputs]`, as the `dot_general` of `Dense`."""
    if x.ndim == 1 and kernel.shape[1] > _FEW_OUTPUTS:
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision)
    # The gradient of few outputs, or of many rows, XLA computes with both factors transposed, which
    # takes up to seven times as long on a CPU; behind a barrier it does not see that it could.
    transposed = jax.lax.optimization_barrier(kernel.T)
    return jax.lax.dot_general(x, transposed, (((x.ndim - 1,), (1,)), ((), ())), precision)


_FEW_OUTPUTS = 16  # up to which a product of matrices on a CPU fills no register
Dense = functools.partial(nn.Dense, dot_general=dot)


def hidden_layers(
    module: nn.Module, x: Array, sizes: Sequence[int], layer_norm: bool, dense: DenseLayer
) -> Array:
    """Adds layers with ReLU to the module that calls this, and maps `[..., F]` to `[..., size]`."""
    for i, size in enumerate(sizes):
        x = dense(size)(x)
        if layer_norm:
            x = nn.LayerNorm()(x)
        x = nn.relu(x)
        module.sow("intermediates", f"hidden_{i}", x)  # `make_network` explains these names
    return x


class NoisyDense(nn.Module):
    """A linear layer whose weights carry learned, factorised Gaussian noise.

    Fortunato et al., "Noisy networks for exploration" (2018), equations 10 and 11: the noise of the
    weight from input `i` to output `j` is `f(e_i) f(e_j)`, that of bias `j` is `f(e_j)`, with
    `f(x) = sign(x) sqrt(|x|)` and `e` standard normal. Initialised as in section 3.2: means
    uniform within `1 / sqrt(inputs)`, scales `sigma / sqrt(inputs)`.

    Each call draws noise from the stream "noise", once for all leading axes of its input. Without
    that stream the weights are their means. With `noise` "batch" it is the same for a whole batch,
    see `make_network`.
    """

    features: int
    sigma: float = 0.5
    noise: Noise = "transition"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[..., inputs]` to `[..., features]`."""
        num_inputs = x.shape[-1]
        bound = 1 / math.sqrt(num_inputs)

        def mean(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        def scale_noise(noise: Array) -> Array:
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
        # Both in one call of the generator. They are scaled in a loop, as XLA would else draw the
        # noise of an input or output anew for each of its weights.
        drawn = jax.random.normal(self.make_rng("noise"), (2, max(num_inputs, self.features)))
        input_noise, output_noise = jax.lax.map(scale_noise, drawn)
        input_noise, output_noise = input_noise[:num_inputs], output_noise[: self.features]
        if self.noise == "batch" and is_mapped_over_batch():
            # The weights are noisy once for all, so that one product of matrices is enough.
            kernel += kernel_sigma * jnp.outer(input_noise, output_noise)
            return x @ kernel + row(bias + bias_sigma * output_noise)
        # Noise on inputs and outputs is noise on the weights, without a matrix of weights for each
        # transition of a batch.
        noisy = (x * row(input_noise)) @ kernel_sigma * row(output_noise)
        return x @ kernel + noisy + row(bias + bias_sigma * output_noise)


class MLPTorso(nn.Module):
    """Fully connected layers, each followed by ReLU.

    Attributes:
      hidden_sizes: width of each layer.
      layer_norm: whether LayerNorm (Ba et al., 2016) comes between each layer and its ReLU.
      dense: `features -> layer`, such as `Dense` or `NoisyDense`.
    """

    hidden_sizes: Sequence[int]
    layer_norm: bool = False
    dense: DenseLayer = Dense

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Maps one observation `[*obs]` to features `[F]`."""
        x = jnp.ravel(obs).astype(jnp.float32)
        return hidden_layers(self, x, self.hidden_sizes, self.layer_norm, self.dense)


class CNNTorso(nn.Module):
    """Convolutions and a fully connected layer, each followed by ReLU.

    Mnih et al., "Human-level control through deep reinforcement learning" (2015), Methods, "Model
    architecture": 32 filters 8x8 with stride 4, 64 4x4 with stride 2, 64 3x3 with stride 1, none
    padded, and 512 units. For images of 10x10, such as MinAtar's: `CNNTorso(channels=(16,),
    kernel_sizes=(3,), strides=(1,), hidden_size=128)`. Integers are divided by 255, floats are not.

    Attributes:
      channels: filters of each convolution.
      kernel_sizes: side of each convolution's square kernel, in pixels.
      strides: of each convolution, in pixels.
      hidden_size: width of the fully connected layer; None leaves it out, for heads that have
        hidden layers of their own.
      layer_norm: as in `MLPTorso`, over all units of a layer; a channel has one gain and one bias
        for all positions.
      dense: as in `MLPTorso`, for the fully connected layer.

    Raises:
      ConfigError: if the convolutions' settings differ in number, or a kernel is larger than the
        image that reaches it.
    """

    channels: Sequence[int] = (32, 64, 64)
    kernel_sizes: Sequence[int] = (8, 4, 3)
    strides: Sequence[int] = (4, 2, 1)
    hidden_size: int | None = 512
    layer_norm: bool = False
    dense: DenseLayer = Dense

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Maps one image `[height, width, channels]` to features `[F]`."""
        chex.assert_rank(obs, 3)
        if not len(self.channels) == len(self.kernel_sizes) == len(self.strides):
            raise ConfigError(
                f"channels {tuple(self.channels)}, kernel_sizes {tuple(self.kernel_sizes)} and "
                f"strides {tuple(self.strides)} must be equal in number: give each convolution one "
                "of each"
            )
        x = obs.astype(jnp.float32)
        if jnp.issubdtype(obs.dtype, jnp.integer):
            x /= 255
        convolutions = zip(self.channels, self.kernel_sizes, self.strides, strict=True)
        for i, (channels, kernel_size, stride) in enumerate(convolutions):
            if kernel_size > min(x.shape[:2]):
                raise ConfigError(
                    f"kernel_sizes {tuple(self.kernel_sizes)} and strides {tuple(self.strides)}: "
                    f"a kernel of {kernel_size} must be at most the {x.shape[0]}x{x.shape[1]} "
                    f"pixels that reach it of an image of {obs.shape[0]}x{obs.shape[1]}; give "
                    "fewer or smaller ones, such as kernel_sizes=(3,), strides=(1,), channels=(16,)"
                )
            x = nn.Conv(channels, (kernel_size,) * 2, (stride,) * 2, padding="VALID")(x)
            if self.layer_norm:
                x = nn.LayerNorm(reduction_axes=(-3, -2, -1))(x)
            x = nn.relu(x)
            self.sow("intermediates", f"hidden_convolution_{i}", x)
        hidden_sizes = () if self.hidden_size is None else (self.hidden_size,)
        return hidden_layers(self, jnp.ravel(x), hidden_sizes, self.layer_norm, self.dense)
