"""Q(lambda) returns against the definition: a weighted sum over the returns of all lengths."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.losses import q_lambda_returns, return_error

LAMBDAS = np.arange(11) / 10
LENGTHS = (1, 2, 7, 20)
EVENTS = (*["nothing"] * 5, "terminated", "truncated", "both")

all_lambdas = jax.jit(jax.vmap(q_lambda_returns, in_axes=(None, None, None, None, 0)))


def brute_force(r_t, discount_t, truncated_t, v_t, lambdas):
    """`[L, T]` in float64: every start, every length, every weight on its own."""
    terminated_t = discount_t == 0
    returns = []
    for start in range(len(r_t)):
        ends = np.flatnonzero(terminated_t[start:] | truncated_t[start:])
        longest = ends[0] + 1 if len(ends) else len(r_t) - start
        total = np.zeros(len(lambdas))
        for n in range(1, longest + 1):
            discounts = discount_t[start : start + n]
            weighted = [math.prod(discounts[:k]) * r_t[start + k] for k in range(n)]
            n_step_return = sum(weighted) + math.prod(discounts) * v_t[start + n - 1]
            # The longest stands for all that would be longer still.
            weight = lambdas ** (n - 1) * (1 - lambdas if n < longest else 1)
            total += weight * n_step_return
        returns.append(total)
    return np.array(returns).T


def in_float32(r_t, discount_t, truncated_t, v_t):
    return np.float32(r_t), np.float32(discount_t), truncated_t, np.float32(v_t)


def flags(events):
    """`(terminated [T], truncated [T])`."""
    return (
        np.array([event in ("terminated", "both") for event in events]),
        np.array([event in ("truncated", "both") for event in events]),
    )


@st.composite
def trajectories(draw):
    """What happens at each step; one draw, as a draw for each would take most of the time."""
    length = draw(st.sampled_from(LENGTHS))
    digits = draw(st.integers(0, 8**length - 1))
    return [EVENTS[digits // 8**i % 8] for i in range(length)]


@settings(max_examples=1_000)
@given(
    events=trajectories(),
    discount=st.floats(0.05, 1.0),
    scale=st.sampled_from([1e-2, 1.0, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_weighted_sum_over_all_n_step_returns(events, discount, scale, seed):
    terminated, truncated = flags(events)
    rng = np.random.default_rng(seed)
    r_t, v_t = scale * rng.normal(size=(2, len(events)))
    discount_t = np.where(terminated, 0.0, discount)
    arguments = in_float32(r_t, discount_t, truncated, v_t)
    found = all_lambdas(*arguments, np.float32(LAMBDAS))
    expected = brute_force(r_t, discount_t, truncated, v_t, LAMBDAS)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * scale)


@settings(max_examples=200)
@given(events=trajectories(), seed=st.integers(0, 2**32 - 1))
def test_lambda_0_is_one_step_q_learning_and_lambda_1_the_return_exactly(events, seed):
    """On numbers that float32 adds and halves without rounding."""
    terminated, truncated = flags(events)
    r_t, v_t = np.random.default_rng(seed).integers(-4, 5, size=(2, len(events))).astype(float)
    discount_t = np.where(terminated, 0.0, 0.5)
    arguments = in_float32(r_t, discount_t, truncated, v_t)
    zero, *_, one = np.asarray(all_lambdas(*arguments, np.float32(LAMBDAS)))
    np.testing.assert_array_equal(zero, r_t + discount_t * v_t)
    returns, following = [], v_t[-1]
    for t in reversed(range(len(events))):
        following = r_t[t] + discount_t[t] * (v_t[t] if truncated[t] else following)
        returns.append(following)
    np.testing.assert_array_equal(one, returns[::-1])


def test_by_hand():
    """Three episodes: a truncated one, a terminated one, and one that the rollout cuts."""
    r_t = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
    v_t = jnp.array([10.0, 20.0, 30.0, 40.0, 50.0])
    discount_t = jnp.array([0.5, 0.5, 0.5, 0.0, 0.5])
    truncated_t = jnp.array([False, True, False, False, False])
    returns = q_lambda_returns(r_t, discount_t, truncated_t, v_t, 0.25)
    truncated = 2 + 0.5 * 20
    terminated = 4
    expected = [
        1 + 0.5 * (0.75 * 10 + 0.25 * truncated),
        truncated,
        3 + 0.5 * (0.75 * 30 + 0.25 * terminated),
        terminated,
        5 + 0.5 * 50,
    ]
    np.testing.assert_allclose(returns, expected, rtol=1e-6)


@pytest.mark.parametrize("event", ["terminated", "truncated"])
def test_nothing_behind_the_end_of_an_episode_counts_before_it(event):
    end = 3
    terminated, truncated = flags(["nothing"] * end + [event] + ["nothing"] * 3)
    r_t, v_t = jnp.arange(14.0).reshape(2, 7)
    discount_t = jnp.where(jnp.asarray(terminated), 0.0, 0.9)

    def first_episode(r_t, v_t):
        return q_lambda_returns(r_t, discount_t, jnp.asarray(truncated), v_t, 0.7)[: end + 1].sum()

    by_reward, by_value = jax.grad(first_episode, argnums=(0, 1))(r_t, v_t)
    assert not np.any(by_reward[end + 1 :])
    assert not np.any(by_value[end + 1 :])
    assert np.all(np.asarray(by_reward[: end + 1]) != 0)
    assert (by_value[end] != 0) == (event == "truncated")


def test_batches_and_lengths_that_differ_are_refused():
    floats, truncated = jnp.ones(3), jnp.zeros(3, bool)
    with pytest.raises(AssertionError):
        q_lambda_returns(floats[None], floats[None], truncated[None], floats[None], 0.5)
    with pytest.raises(AssertionError):
        q_lambda_returns(floats, floats, truncated, floats[:2], 0.5)
    with pytest.raises(AssertionError):
        q_lambda_returns(floats, floats, floats, floats, 0.5)


def test_the_error_towards_a_return():
    values = jnp.array([1.0, 2.0, 3.0])

    def error(q_tm1, r_t, discount_t, q_t):
        return return_error(q_tm1, jnp.int32(1), r_t, discount_t, q_t, q_t)

    arguments = (values, jnp.float32(5.0), jnp.float32(0.0), values)
    assert error(*arguments) == 3
    by_value, *others = jax.grad(error, argnums=(0, 1, 2, 3))(*arguments)
    np.testing.assert_array_equal(by_value, [0, -1, 0])
    assert not any(np.any(other) for other in others)
