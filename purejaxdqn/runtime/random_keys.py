"""Keys whose random numbers a CPU draws faster: the same numbers as those of JAX's own keys."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_2x32

from purejaxdqn.types import Array


def make_key(seed: Array | int) -> Array:
    """Makes the key `[]` of a seed `[]`, which draws what `jax.random.key(seed)` draws."""
    return jax.random.key(seed, impl=_fastest())


def wrap_key_data(data: Array) -> Array:
    """Makes keys `[...]` of their data `[..., 2]`, of the same kind as `make_key`."""
    return jax.random.wrap_key_data(data, impl=_fastest())


def _fastest() -> Any:
    return UNROLLED if jax.default_backend() == "cpu" else _JAX


def _threefry(key: Array, counts: Array) -> tuple[Array, Array]:
    """Encrypts counters `[*shape]` with a key `[2]`: two words `[*shape]` of each.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011), section
    3.3: Threefry-2x32 in 20 rounds. On a CPU, JAX's own function loops over the rounds, which takes
    four times as long as these, which are one operation.
    """
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    high, low = jnp.broadcast_to(words[0], counts.shape), counts + words[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            high += low
            low = high ^ ((low << rotation) | (low >> (32 - rotation)))
        high += words[(i + 1) % 3]
        low += words[(i + 2) % 3] + jnp.uint32(i + 1)
    return high, low


_JAX = "threefry2x32"  # whatever JAX's own default is set to
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def _count(shape: tuple[int, ...]) -> Array:
    return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def _compute_in_loop(function: Callable[[], Array]) -> Array:
    """Does what `types.compute_once` does, in a loop of one step: one call, where data are few."""
    shape = jax.eval_shape(function)
    one = jax.lax.optimization_barrier(jnp.int32(1))  # or else it would see through the loop
    return jax.lax.fori_loop(0, one, lambda *_: function(), jnp.zeros(shape.shape, shape.dtype))


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _split(key: Array, shape: tuple[int, ...]) -> Array:
    def draw() -> Array:
        counts = jnp.expand_dims(_count(shape), -1)
        # Both words in each place, of which one is taken: to put two arrays together takes longer.
        high, low = _threefry(key, jnp.broadcast_to(counts, (*shape, 2)))
        return jnp.where(jnp.arange(2) == 0, high, low)

    return _compute_in_loop(draw)


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    dtype = jnp.dtype(f"uint{bit_width}")

    def draw() -> Array:
        high, low = _threefry(key, _count(shape))
        if bit_width == 64:
            return high.astype(dtype) << 32 | low.astype(dtype)
        return (high ^ low).astype(dtype)

    return _compute_in_loop(draw)


def _seed(seed: Array) -> Array:
    return jax.random.key_data(jax.random.key(seed, impl=_JAX))


def _fold_in(key: Array, data: Any) -> Array:
    return threefry_2x32(key, _seed(jnp.uint32(data)))


UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32, unrolled",
    tag="unrolled",
)
