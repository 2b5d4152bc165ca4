"""Tests the optimiser that agents have by default."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.training.learner import _clip_by_norm


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
