"""TD errors of action values: functions of ONE transition, to be passed to `bellman_loss`."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from purejaxdqn.types import Array


def _check(
    q_tm1: Array, a_tm1: Array, r_t: Array, discount_t: Array, q_t: Array, q_t_online: Array
) -> None:
    # A batch axis here would broadcast (B, 1) against (B,) into (B, B) without a word.
    chex.assert_rank([q_tm1, a_tm1, r_t, discount_t, q_t, q_t_online], [1, 0, 0, 0, 1, 1])
    chex.assert_type(a_tm1, int)


def q_learning(
    q_tm1: Array, a_tm1: Array, r_t: Array, discount_t: Array, q_t: Array, q_t_online: Array
) -> Array:
    """The TD error of Q-learning with a target network.

    Mnih et al., "Human-level control through deep reinforcement learning" (2015), equation 2:
    `r_t + discount_t * max_a q_t[a] - q_tm1[a_tm1]`.

    Args:
      q_tm1: `[A]` online action values at time t - 1.
      a_tm1: `[]` int, the action taken at time t - 1.
      r_t: `[]` reward.
      discount_t: `[]` gamma, or 0 where the episode terminated.
      q_t: `[A]` the target network's action values at time t.
      q_t_online: `[A]` the online network's action values at time t, unused here.

    Returns:
      `[]` the TD error; no gradient flows through the target.
    """
    _check(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_online)
    target_tm1 = r_t + discount_t * jnp.max(q_t)
    return jax.lax.stop_gradient(target_tm1) - q_tm1[a_tm1]


def double_q_learning(
    q_tm1: Array, a_tm1: Array, r_t: Array, discount_t: Array, q_t: Array, q_t_online: Array
) -> Array:
    """The TD error of double Q-learning: the online network picks, the target network judges.

    van Hasselt, Guez and Silver, "Deep reinforcement learning with double Q-learning" (2016),
    equation 4: `r_t + discount_t * q_t[argmax_a q_t_online[a]] - q_tm1[a_tm1]`.

    Args:
      q_tm1: `[A]` online action values at time t - 1.
      a_tm1: `[]` int, the action taken at time t - 1.
      r_t: `[]` reward.
      discount_t: `[]` gamma, or 0 where the episode terminated.
      q_t: `[A]` the target network's action values at time t.
      q_t_online: `[A]` the online network's action values at time t.

    Returns:
      `[]` the TD error; no gradient flows through the target.
    """
    _check(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_online)
    target_tm1 = r_t + discount_t * q_t[jnp.argmax(q_t_online)]
    return jax.lax.stop_gradient(target_tm1) - q_tm1[a_tm1]
