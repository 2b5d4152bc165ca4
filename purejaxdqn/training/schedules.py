"""Schedules: numbers that change with a count of environment steps or gradient steps."""

import jax.numpy as jnp

from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import Array, Schedule


def linear_schedule(start: Array | float, end: Array | float, duration: Array | float) -> Schedule:
    """Goes from `start` at count 0 to `end` in a straight line over `duration` counts, then stays.

    With a duration of 0 it is `end` from the start. A count is of environment steps or of gradient
    steps. All three may be tracers, unlike those of `optax.linear_schedule`.
    """

    def schedule(count: Array) -> Array:
        along = start + (end - start) * (count / jnp.maximum(duration, 1.0))
        return jnp.where(count >= duration, end, along)

    return schedule


def multiplicative_schedule(
    start: Array | float, decay: Array | float, end: Array | float = 0.0
) -> Schedule:
    """Multiplies `start` by `decay` (between 0 and 1) at every count from 0 on, down to `end`.

    Below a count of 0 it is `start`. All three may be tracers.
    """

    def schedule(count: Array) -> Array:
        power = jnp.maximum(jnp.asarray(count, jnp.float32), 0.0)
        return jnp.maximum(start * jnp.power(decay, power), end)

    return schedule


def linear_epsilon(config: RunConfig) -> Schedule:
    """Makes the schedule `num_steps -> epsilon`, in environment steps."""
    duration = config.epsilon_fraction * config.total_steps
    return linear_schedule(config.epsilon_start, config.epsilon_end, duration)
