"""Tests the optimiser that agents have by default."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.training.learner import _LARGE, _clip_by_norm, _join_small


@settings(max_examples=40)
@given(
    size=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    max_norm=st.sampled_from([0.5, 10.0, float("inf")]),
)
def test_clipping_is_that_of_optax(size, seed, scale, max_norm):
    rng = np.random.default_rng(seed)
    gradient = jnp.float32(scale * rng.normal(size=size))
    found, expected = (
        clip.update(gradient, clip.init(gradient))[0]
        for clip in (_clip_by_norm(max_norm), optax.clip_by_global_norm(max_norm))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("max_norm", [10.0, float("inf")])
def test_nothing_is_clipped_to_nothing_and_a_nan_stays(max_norm):
    clip = jax.jit(lambda gradient: _clip_by_norm(max_norm).update(gradient, None)[0])
    assert np.all(np.asarray(clip(jnp.zeros(40))) == 0)
    assert np.isnan(clip(jnp.zeros(40).at[3].set(jnp.nan))).all()


@pytest.mark.parametrize(
    "sizes", [(3,), (5, 7, 1), (_LARGE,), (4, _LARGE + 1, 6), (_LARGE, 2, _LARGE)], ids=str
)
def test_joined_arrays_are_moved_as_each_by_itself(sizes):
    rng = np.random.default_rng(0)
    arrays = [{"w": jnp.float32(rng.normal(size=(1, size)))} for size in sizes]
    gradients = jax.tree.map(lambda x: 30 * x - 1, arrays)
    plain = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(1e-2, weight_decay=0.1))
    joined = _join_small(optax.chain(_clip_by_norm(10.0), optax.adamw(1e-2, weight_decay=0.1)))

    def twice(optimizer):
        state = optimizer.init(arrays)
        for factor in (1, -2):
            scaled = optax.tree.scale(factor, gradients)
            updates, state = optimizer.update(scaled, state, arrays)
        return updates

    chex.assert_trees_all_close(twice(joined), twice(plain), rtol=1e-4, atol=1e-6)
