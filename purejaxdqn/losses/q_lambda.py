"""Q(lambda): returns of ONE trajectory, and the TD error towards them."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from purejaxdqn.types import Array


def q_lambda_returns(
    r_t: Array, discount_t: Array, truncated_t: Array, v_t: Array, lambda_: Array | float
) -> Array:
    """Computes the Q(lambda) return of every step of ONE trajectory of one or more episodes.

    Peng and Williams, "Incremental multi-step Q-learning" (1996). Returns of all lengths are
    averaged with weights that fall by lambda (Sutton and Barto 2018, equations 12.2 and 12.3). Each
    bootstraps from the highest action value, and exploratory actions do not cut them. They are
    worked out backwards, as Gallici et al., "Simplifying deep temporal difference learning" (2025)
    do: `G_{t-1} = r_t + discount_t * ((1 - lambda) v_t + lambda G_t)`.

    No return looks beyond its episode. At a termination `discount_t` is 0. At a truncation, and
    where the trajectory ends, `G_{t-1} = r_t + discount_t * v_t`, whatever lambda is.

    Args:
      r_t: `[T]` rewards.
      discount_t: `[T]` gamma, or 0 where the episode terminated.
      truncated_t: `[T]` bool, whether the time limit ended the episode here.
      v_t: `[T]` the highest action value of the observation that each step led to. At the end of an
        episode this is its last observation, and not the first one of the next episode.
      lambda_: `[]` between 0 and 1. At 0 the returns are the targets of one-step Q-learning, at 1
        the sums of all discounted rewards up to the episode's or trajectory's end.

    Returns:
      `[T]` the returns `G_{t-1}`, targets for `q_tm1[a_tm1]`. Gradients are not stopped.
    """
    chex.assert_rank([r_t, discount_t, truncated_t, v_t, lambda_], [1, 1, 1, 1, 0])
    chex.assert_equal_shape([r_t, discount_t, truncated_t, v_t])
    chex.assert_type(truncated_t, bool)

    def backwards(return_t: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        r_t, discount_t, truncated_t, v_t = step
        mixed_t = (1 - lambda_) * v_t + lambda_ * return_t
        return_tm1 = r_t + discount_t * jnp.where(truncated_t, v_t, mixed_t)
        return return_tm1, return_tm1

    # Cut where the trajectory ends, as a truncation cuts.
    cut_t = truncated_t | (jnp.arange(len(r_t)) == len(r_t) - 1)
    return jax.lax.scan(
        backwards, jnp.zeros_like(v_t[-1]), (r_t, discount_t, cut_t, v_t), reverse=True
    )[1]


def return_error(
    q_tm1: Array,
    a_tm1: Array,
    r_t: Array,
    discount_t: Array,
    q_t: Array,
    q_t_selector: Array | None = None,
) -> Array:
    """Computes the TD error towards a whole return: `r_t - q_tm1[a_tm1]`, without a bootstrap.

    The arguments are those of `q_learning`. `r_t` `[]` is a return, such as one of
    `q_lambda_returns`, and no gradient flows through it. The last three are unused.
    """
    del discount_t, q_t, q_t_selector
    chex.assert_rank([q_tm1, a_tm1, r_t], [1, 0, 0])
    chex.assert_type(a_tm1, int)
    return jax.lax.stop_gradient(r_t) - q_tm1[a_tm1]
