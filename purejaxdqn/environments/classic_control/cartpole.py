"""Plays CartPole as pure functions, like gymnasium's "CartPole-v0" and "CartPole-v1".

The task is Barto, Sutton and Anderson, "Neuronlike adaptive elements that can solve difficult
learning control problems" (1983); the equations of motion are Florian, "Correct equations for the
dynamics of the cart-pole system" (2005), equations 23 and 24 without friction, integrated by
explicit Euler as gymnasium does.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.drawing import BLACK, BLUE, GREY, ORANGE, blank, disc, segment
from purejaxdqn.types import Array, TimeStep

GRAVITY = 9.8  # m / s^2
MASS_CART = 1.0  # kg
MASS_POLE = 0.1  # kg
TOTAL_MASS = MASS_CART + MASS_POLE
LENGTH = 0.5  # m, half of the pole's length
POLE_MASS_LENGTH = MASS_POLE * LENGTH
FORCE = 10.0  # N
TAU = 0.02  # s between two steps
THETA_THRESHOLD = 12 * 2 * math.pi / 360  # rad
X_THRESHOLD = 2.4  # m
RESET_BOUND = 0.05


@flax.struct.dataclass
class CartPoleState:
    """One cart with its pole."""

    x: Array  # [] m, position of the cart
    x_dot: Array  # [] m / s
    theta: Array  # [] rad, angle of the pole from upright
    theta_dot: Array  # [] rad / s
    num_steps: Array  # [] int32, steps taken in this episode


def _observe(state: CartPoleState) -> Array:
    return jnp.stack([state.x, state.x_dot, state.theta, state.theta_dot])


def reset(key: Array) -> tuple[CartPoleState, Array]:
    """Begins an episode, `(state, obs [4])`: draws all four numbers uniformly from [-0.05, 0.05).

    They are of JAX's default float type (float64 under x64).
    """
    values = jax.random.uniform(key, (4,), minval=-RESET_BOUND, maxval=RESET_BOUND)
    x, x_dot, theta, theta_dot = values
    state = CartPoleState(x, x_dot, theta, theta_dot, jnp.zeros((), jnp.int32))
    return state, _observe(state)


def step(
    key: Array, state: CartPoleState, action: Array, *, max_steps: int
) -> tuple[CartPoleState, TimeStep]:
    """Pushes the cart for 0.02 seconds: an action `[]` of 0 to the left, and 1 to the right.

    The reward is 1 for every step, also the last one.
    """
    del key  # the dynamics are deterministic
    force = jnp.where(action == 1, FORCE, -FORCE).astype(state.x.dtype)
    cos_theta, sin_theta = jnp.cos(state.theta), jnp.sin(state.theta)
    push = (force + POLE_MASS_LENGTH * jnp.square(state.theta_dot) * sin_theta) / TOTAL_MASS
    theta_acc = (GRAVITY * sin_theta - cos_theta * push) / (
        LENGTH * (4.0 / 3.0 - MASS_POLE * jnp.square(cos_theta) / TOTAL_MASS)
    )
    x_acc = push - POLE_MASS_LENGTH * theta_acc * cos_theta / TOTAL_MASS
    next_state = CartPoleState(
        x=state.x + TAU * state.x_dot,
        x_dot=state.x_dot + TAU * x_acc,
        theta=state.theta + TAU * state.theta_dot,
        theta_dot=state.theta_dot + TAU * theta_acc,
        num_steps=state.num_steps + 1,
    )
    is_off_track = jnp.abs(next_state.x) > X_THRESHOLD
    terminated = is_off_track | (jnp.abs(next_state.theta) > THETA_THRESHOLD)
    reward, truncated = jnp.ones((), state.x.dtype), next_state.num_steps >= max_steps
    return next_state, TimeStep(_observe(next_state), reward, terminated, truncated)


def render(state: CartPoleState) -> Array:
    """Draws the track with cart and pole, `[100, 150, 3]` uint8."""
    scale, height = 65 / X_THRESHOLD, 25  # pixels a metre; of the track
    x = 75 + scale * state.x
    top = x + 2 * LENGTH * scale * jnp.sin(state.theta)
    image = segment(blank(100, 150), (0, height), (150, height), 1, GREY)
    image = segment(image, (x - 7, height), (x + 7, height), 5, BLACK)
    pole = (x, height + 4), (top, height + 4 + 2 * LENGTH * scale * jnp.cos(state.theta))
    return disc(segment(image, *pole, 2, ORANGE), pole[0], 2, BLUE)


def cartpole(name: str, max_steps: int, threshold: float | None) -> Environment:
    """Makes CartPole with a time limit of `max_steps` steps."""
    import gymnasium  # only where an environment is made

    bounds = np.array([2 * X_THRESHOLD, np.inf, 2 * THETA_THRESHOLD, np.inf], np.float32)
    space = gymnasium.spaces.Box(-bounds, bounds, dtype=np.float32)
    limited_step = functools.partial(step, max_steps=max_steps)
    return Environment(name, reset, limited_step, 2, space, threshold, max_steps, render=render)
