"""Explores: epsilon-greedy actions, and schedules for epsilon."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import Array

Schedule = Callable[[Array], Array]  # a count -> a value


def epsilon_greedy(key: Array, q_values: Array, epsilon: Array | float) -> Array:
    """Takes the greedy action, or with probability `epsilon` one drawn uniformly from all.

    Sutton and Barto, "Reinforcement Learning: An Introduction" (2018), section 2.2.

    Args:
      key: `[]` PRNG key.
      q_values: `[A]` action values.
      epsilon: `[]` between 0 and 1; 0 never explores, 1 always does.

    Returns:
      `[]` int32 action. Ties go to the lowest action.
    """
    num_actions = q_values.shape[-1]
    # One draw of two numbers is cheaper than two draws.
    explore, choice = jax.random.uniform(key, (2,), jnp.float32)
    random_action = jnp.minimum(jnp.int32(choice * num_actions), num_actions - 1)
    return jnp.where(explore < epsilon, random_action, jnp.argmax(q_values).astype(jnp.int32))


def linear_schedule(start: Array | float, end: Array | float, duration: Array | float) -> Schedule:
    """Goes from `start` to `end` in a straight line over `duration` counts, then stays.

    Args:
      start: the value at count 0.
      end: the value from `duration` on; with a duration of 0, from count 0 on.
      duration: in the unit of the count (environment steps or gradient steps).

    Returns:
      `count [] -> value []`. All three may be tracers, unlike those of `optax.linear_schedule`.
    """

    def schedule(count: Array) -> Array:
        along = start + (end - start) * (count / jnp.maximum(duration, 1.0))
        return jnp.where(count >= duration, end, along)

    return schedule


def multiplicative_schedule(
    start: Array | float, decay: Array | float, end: Array | float = 0.0
) -> Schedule:
    """Multiplies `start` by `decay` at every count, down to `end`.

    Args:
      start: the value at count 0, and at counts below it.
      decay: the factor, between 0 and 1.
      end: the least value.

    Returns:
      `count [] -> value []`. All three may be tracers.
    """

    def schedule(count: Array) -> Array:
        power = jnp.maximum(jnp.asarray(count, jnp.float32), 0.0)
        return jnp.maximum(start * jnp.power(decay, power), end)

    return schedule


def linear_epsilon(config: RunConfig) -> Schedule:
    """Makes the schedule `num_steps -> epsilon`, in environment steps."""
    duration = config.epsilon_fraction * config.total_steps
    return linear_schedule(config.epsilon_start, config.epsilon_end, duration)
