"""Layers of torsos and heads, and the torsos, which turn ONE observation into features."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from purejaxdqn.networks.layer_norm import LayerNorm
from purejaxdqn.types import BATCH, Array, ConfigError, compute_once, ensure, is_mapped_over_batch

DenseLayer = Callable[..., nn.Module]  # features -> layer, such as nn.Dense
Noise = Literal["batch", "transition"]  # what has noise of its own, see `make_network`


def ensure_noise(noise: Any) -> None:
    """Refuses what is no `Noise`."""
    ensure(noise in get_args(Noise), "noise", noise, "'batch' or 'transition'")


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


def largest_singular_value(matrix: Array, num_iterations: int = 16) -> Array:
    """Estimates a matrix's spectral norm `[]`, from below, by power iteration from a fixed vector.

    It is at most a tenth too small for random matrices, usually a fiftieth. No gradient flows
    through the iteration.
    """
    fixed = jax.lax.stop_gradient(matrix)

    def unit(vector: Array) -> Array:
        return vector / (jnp.linalg.norm(vector) + _TINY)

    def iterate(_: int, right: Array) -> Array:
        return unit(fixed.T @ (fixed @ right))

    start = jax.random.normal(jax.random.key(0), matrix.shape[1:], matrix.dtype)
    right = jax.lax.fori_loop(0, num_iterations, iterate, unit(start))
    return unit(fixed @ right) @ (matrix @ right)


def _normalised_dot(
    x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None
) -> Array:
    kernel /= largest_singular_value(kernel) + _TINY
    return dot(x, kernel, dimension_numbers, precision)


_TINY = 1e-12  # beside which weights of zeros are no division by zero
# Miyato et al., "Spectral normalization for generative adversarial networks" (2018), equation 8.
SpectralDense = functools.partial(nn.Dense, dot_general=_normalised_dot)


class Conv(nn.Module):
    """A convolution without padding, with the weights of `nn.Conv`, fast on a CPU.

    There its patches are slices laid side by side, and one matrix product multiplies them with the
    kernel, which takes a fourth of the time of XLA's convolution and its gradients, or less.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps images `[..., height, width, channels]` to `[..., rows, columns, features]`."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if jax.default_backend() != "cpu" or math.prod(self.kernel_size) > _MANY_SLICES:
            images, axes = x.reshape(-1, *x.shape[-3:]), ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(
                images, kernel, self.strides, "VALID", dimension_numbers=axes
            )
            return y.reshape(*x.shape[:-3], *y.shape[1:]) + jnp.expand_dims(bias, range(x.ndim - 1))
        patches = _patches(x, self.kernel_size, self.strides)
        # The bias multiplies ones: its gradient comes with the kernel's, out of one product.
        weights = jnp.concatenate([kernel.reshape(-1, self.features), bias[None]])
        weights = jnp.pad(weights, ((0, patches.shape[-1] - len(weights)), (0, 0)))
        positions = patches.reshape(*x.shape[:-3], -1, len(weights))
        multiply = _multiply_by_image if self.features <= _FEW_OUTPUTS else dot
        y = multiply(positions, weights, None)
        return y.reshape(*patches.shape[:-1], self.features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply_by_image(x: Array, kernel: Array, dimension_numbers: Any) -> Array:
    """Multiplies as `dot`; each image `[positions, inputs]` has a gradient, and these are added.

    In one product over all images, XLA would transpose one of the factors first.
    """
    return dot(x, kernel, dimension_numbers)


def _multiply_forward(x: Array, kernel: Array, dimension_numbers: Any) -> Any:
    return _multiply_by_image(x, kernel, dimension_numbers), (x, kernel)


def _multiply_backward(_: Any, factors: tuple[Array, Array], gradient: Array) -> Any:
    x, kernel = factors
    over = tuple(range(x.ndim - 1))
    # Behind a barrier XLA does not turn it round: in this order it takes three fourths of the time.
    transposed = jax.lax.dot_general(gradient, x, ((over, over), ((), ())))
    return gradient @ kernel.T, jax.lax.optimization_barrier(transposed).T


_multiply_by_image.defvjp(_multiply_forward, _multiply_backward)

_MANY_SLICES = 16  # a patch of more takes longer to lay out than XLA takes to convolve
_FEW_CHANNELS = 16  # in fewer, a patch is laid out faster by rows of patches


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _patches(x: Array, size: tuple[int, int], strides: tuple[int, int]) -> Array:
    """Maps `[..., height, width, C]` to `[..., rows, columns, inputs]`, a patch in `C` order.

    Behind a patch stand ones, for the bias, which fill a register.
    """
    # Once for the product and its gradient, which would else lay out the patches anew; and behind a
    # barrier XLA does not convert an image for each slice.
    x = jax.lax.optimization_barrier(x)
    return compute_once(lambda: _lay_out(x, size, strides))


def _lay_out(x: Array, size: tuple[int, int], strides: tuple[int, int]) -> Array:
    def slices(x: Array, axis: int) -> list[Array]:
        count, stride = size[axis], strides[axis]
        end = x.shape[axis - 3] - count + 1
        return [jax.lax.slice_in_dim(x, i, i + end, stride, axis - 3) for i in range(count)]

    if x.shape[-1] < _FEW_CHANNELS:
        parts = slices(jnp.concatenate(slices(x, 1), axis=-1), 0)
    else:
        parts = [one for rows in slices(x, 0) for one in slices(rows, 1)]
    num_ones = 8 - math.prod(size) * x.shape[-1] % 8
    ones = jnp.ones((*parts[0].shape[:-1], num_ones), x.dtype)
    return jnp.concatenate([*parts, ones], axis=-1)


def as_floats(obs: Array) -> Array:
    """Makes floats of an observation: bytes are divided by 255, all else is taken as it is."""
    x = obs.astype(jnp.float32)
    return x / 255 if obs.dtype == jnp.uint8 else x


def hidden_layers(
    module: nn.Module,
    x: Array,
    sizes: Sequence[int],
    layer_norm: bool,
    dense: DenseLayer,
    last: DenseLayer | None = None,
) -> Array:
    """Adds layers with ReLU to the module that calls this, and maps `[..., F]` to `[..., size]`.

    The `last` of them may be another kind of layer.
    """
    for i, size in enumerate(sizes):
        layer = dense if last is None or i < len(sizes) - 1 else last
        x = layer(size)(x)
        if layer_norm:
            x = LayerNorm()(x)
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
      last: likewise, for the last layer; None for the same.
    """

    hidden_sizes: Sequence[int]
    layer_norm: bool = False
    dense: DenseLayer = Dense
    last: DenseLayer | None = None

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Maps one observation `[*obs]` to features `[F]`."""
        x = as_floats(jnp.ravel(obs))
        return hidden_layers(self, x, self.hidden_sizes, self.layer_norm, self.dense, self.last)


class CNNTorso(nn.Module):
    """Convolutions and a fully connected layer, each followed by ReLU.

    Mnih et al., "Human-level control through deep reinforcement learning" (2015), Methods, "Model
    architecture": 32 filters 8x8 with stride 4, 64 4x4 with stride 2, 64 3x3 with stride 1, none
    padded, and 512 units. For images of 10x10, such as MinAtar's: `CNNTorso(channels=(16,),
    kernel_sizes=(3,), strides=(1,), hidden_size=128)`. Bytes are divided by 255, floats are not.

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
        x = as_floats(obs)
        convolutions = zip(self.channels, self.kernel_sizes, self.strides, strict=True)
        for i, (channels, kernel_size, stride) in enumerate(convolutions):
            if kernel_size > min(x.shape[:2]):
                raise ConfigError(
                    f"kernel_sizes {tuple(self.kernel_sizes)} and strides {tuple(self.strides)}: "
                    f"a kernel of {kernel_size} must be at most the {x.shape[0]}x{x.shape[1]} "
                    f"pixels that reach it of an image of {obs.shape[0]}x{obs.shape[1]}; give "
                    "fewer or smaller ones, such as kernel_sizes=(3,), strides=(1,), channels=(16,)"
                )
            x = Conv(channels, (kernel_size,) * 2, (stride,) * 2)(x)
            if self.layer_norm:
                x = LayerNorm()(x)
            x = nn.relu(x)
            self.sow("intermediates", f"hidden_convolution_{i}", x)
        hidden_sizes = () if self.hidden_size is None else (self.hidden_size,)
        return hidden_layers(self, jnp.ravel(x), hidden_sizes, self.layer_norm, self.dense)
