"""Tests that keys of the package draw what JAX's own keys draw."""

import jax
import numpy as np
import pytest

from purejaxdqn.runtime.random_keys import UNROLLED, make_key

DRAWS = {
    "split": lambda key: jax.random.key_data(jax.random.split(key, (3, 2))),
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 2**32 - 1)),
    "key of a key": lambda key: jax.random.uniform(jax.random.split(key, 5)[4], (7,)),
    "for many keys": lambda key: jax.vmap(jax.random.normal)(jax.random.split(key, 9)),
    "a single number": jax.random.uniform,
    "no number": lambda key: jax.random.bits(key, (0, 3)),
    "an odd shape": lambda key: jax.random.normal(key, (3, 5, 7)),
    "8 bits": lambda key: jax.random.bits(key, (11,), "uint8"),
    "16 bits": lambda key: jax.random.bits(key, (11,), "uint16"),
    "integers": lambda key: jax.random.randint(key, (40,), -3, 1000),
    "an order": lambda key: jax.random.permutation(key, 100),
}


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_they_draw_what_the_keys_of_jax_draw(seed):
    def draw_all(key):
        return {name: draw(key) for name, draw in DRAWS.items()}

    own, expected = (
        jax.jit(draw_all)(jax.random.key(seed, impl=impl)) for impl in (UNROLLED, "threefry2x32")
    )
    for name, drawn in expected.items():
        np.testing.assert_array_equal(own[name], drawn, name)


def test_so_they_do_in_64_bits_and_without_a_compiled_program():
    with jax.enable_x64(True):
        for draw in (jax.random.normal, lambda key: jax.random.bits(key, (5,), "uint64")):
            own, expected = draw(make_key(7)), draw(jax.random.key(7, impl="threefry2x32"))
            assert own.dtype == expected.dtype
            np.testing.assert_array_equal(own, expected)
