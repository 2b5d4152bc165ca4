"""Plays MountainCar as pure functions, like gymnasium's "MountainCar-v0".

A car that is too weak for a hill has to gather speed on the hill behind it. The task is Moore,
"Efficient memory-based learning for robot control" (1990), with the equations of motion of Sutton
and Barto, "Reinforcement learning: An introduction" (2018), example 10.1.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.drawing import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    blank,
    disc,
    fill,
    grid,
    segment,
)
from purejaxdqn.types import Array, TimeStep

FORCE = 0.001  # of the motor
GRAVITY = 0.0025
MIN_POSITION, MAX_POSITION = -1.2, 0.6  # a wall at either end
MAX_SPEED = 0.07
GOAL_POSITION = 0.5
RESET_LOW, RESET_HIGH = -0.6, -0.4  # of the position


@flax.struct.dataclass
class MountainCarState:
    """One car between its hills; the height at a position x is that of sin(3 x)."""

    position: Array  # []
    velocity: Array  # [] per step
    num_steps: Array  # [] int32, steps taken in this episode


def _observe(state: MountainCarState) -> Array:
    return jnp.stack([state.position, state.velocity])


def reset(key: Array) -> tuple[MountainCarState, Array]:
    """Begins an episode, `(state, obs [2])`: at rest, at a position drawn from [-0.6, -0.4).

    It is uniform, and of JAX's default float type (float64 under x64).
    """
    position = jax.random.uniform(key, minval=RESET_LOW, maxval=RESET_HIGH)
    state = MountainCarState(position, jnp.zeros_like(position), jnp.zeros((), jnp.int32))
    return state, _observe(state)


def step(
    key: Array, state: MountainCarState, action: Array, *, max_steps: int
) -> tuple[MountainCarState, TimeStep]:
    """Drives the car for a step: an action `[]` of 0 to the left, 1 not at all, 2 to the right.

    The reward is -1 for every step, also the last one.
    """
    del key  # the dynamics are deterministic
    push = (action - 1).astype(state.velocity.dtype) * FORCE
    velocity = state.velocity + push - GRAVITY * jnp.cos(3 * state.position)
    velocity = jnp.clip(velocity, -MAX_SPEED, MAX_SPEED)
    position = jnp.clip(state.position + velocity, MIN_POSITION, MAX_POSITION)
    # The wall on the left stops the car.
    velocity = jnp.where((position <= MIN_POSITION) & (velocity < 0), 0.0, velocity)
    next_state = MountainCarState(position, velocity, state.num_steps + 1)
    terminated = (position >= GOAL_POSITION) & (velocity >= 0)
    reward, truncated = -jnp.ones((), position.dtype), next_state.num_steps >= max_steps
    return next_state, TimeStep(_observe(next_state), reward, terminated, truncated)


def render(state: MountainCarState) -> Array:
    """Draws the car between its hills and the flag, `[100, 150, 3]` uint8."""
    scale = 150 / (MAX_POSITION - MIN_POSITION)  # pixels a unit

    def hill(position: Array) -> tuple[Array, Array, Array]:
        """Finds a place of the ground, and how steep it is there."""
        height = 0.45 * jnp.sin(3 * position) + 0.55
        return scale * (position - MIN_POSITION), scale * height, 1.35 * jnp.cos(3 * position)

    image = blank(100, 150)
    x, y = grid(image)
    _, height, slope = hill(x / scale + MIN_POSITION)
    image = fill(image, (y - height) / jnp.sqrt(1 + jnp.square(slope)), GREY)
    x, y, _ = hill(jnp.array(GOAL_POSITION))
    image = segment(image, (x, y), (x, y + 13), 0.5, BLACK)
    image = segment(image, (x + 2, y + 11), (x + 6, y + 11), 2, ORANGE)
    x, y, slope = hill(state.position)
    cos, sin = 1 / jnp.sqrt(1 + jnp.square(slope)), slope / jnp.sqrt(1 + jnp.square(slope))

    def place(along: float, above: float) -> tuple[Array, Array]:
        return x + along * cos - above * sin, y + along * sin + above * cos

    image = segment(image, place(-4, 5), place(4, 5), 2.5, BLUE)
    return disc(disc(image, place(-3, 2), 2, BLACK), place(3, 2), 2, BLACK)


def mountain_car(name: str, max_steps: int, threshold: float | None) -> Environment:
    """Makes MountainCar with a time limit of `max_steps` steps."""
    import gymnasium  # only where an environment is made

    low = np.array([MIN_POSITION, -MAX_SPEED], np.float32)
    high = np.array([MAX_POSITION, MAX_SPEED], np.float32)
    space = gymnasium.spaces.Box(low, high, dtype=np.float32)
    limited_step = functools.partial(step, max_steps=max_steps)
    return Environment(name, reset, limited_step, 3, space, threshold, max_steps, render=render)
