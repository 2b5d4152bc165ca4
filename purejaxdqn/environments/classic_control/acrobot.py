"""Plays Acrobot as pure functions, like gymnasium's "Acrobot-v1".

Two links hang from a fixed joint, and a motor in the joint between them has to swing the lower tip
above a line. The task is Sutton, "Generalization in reinforcement learning: Successful examples
using sparse coarse coding" (1996). The equations of motion are those of Sutton and Barto,
"Reinforcement learning: An introduction" (1998), section 11.3, which the experiments of the paper
had used too; one step of the classical Runge-Kutta method integrates them, as in gymnasium.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.drawing import BLUE, GREY, ORANGE, blank, disc, segment
from purejaxdqn.types import Array, TimeStep

GRAVITY = 9.8  # m / s^2
MASS = 1.0  # kg, of each link
LENGTH = 1.0  # m, of each link
CENTRE = 0.5  # m, from a link's upper end to its centre of mass
INERTIA = 1.0  # kg m^2, of each link
TORQUES = (-1.0, 0.0, 1.0)  # N m, of each action
TAU = 0.2  # s between two steps
MAX_SPEED_1 = 4 * math.pi  # rad / s
MAX_SPEED_2 = 9 * math.pi
GOAL_HEIGHT = 1.0  # m, above the fixed joint
RESET_BOUND = 0.1


@flax.struct.dataclass
class AcrobotState:
    """One pair of links."""

    theta_1: Array  # [] rad, angle of the upper link from hanging down, from -pi to pi
    theta_2: Array  # [] rad, angle of the lower link from the upper one, from -pi to pi
    theta_1_dot: Array  # [] rad / s
    theta_2_dot: Array  # [] rad / s
    num_steps: Array  # [] int32, steps taken in this episode


def _observe(state: AcrobotState) -> Array:
    angles = jnp.stack([state.theta_1, state.theta_2])
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([cos[0], sin[0], cos[1], sin[1], state.theta_1_dot, state.theta_2_dot])


def reset(key: Array) -> tuple[AcrobotState, Array]:
    """Begins an episode, `(state, obs [6])`: draws all four numbers uniformly from [-0.1, 0.1).

    They are of JAX's default float type (float64 under x64).
    """
    values = jax.random.uniform(key, (4,), minval=-RESET_BOUND, maxval=RESET_BOUND)
    theta_1, theta_2, theta_1_dot, theta_2_dot = values
    state = AcrobotState(theta_1, theta_2, theta_1_dot, theta_2_dot, jnp.zeros((), jnp.int32))
    return state, _observe(state)


def _derivative(y: Array, torque: Array) -> Array:
    """Differentiates `y [4]`, both angles and both speeds, by time."""
    theta_1, theta_2, speed_1, speed_2 = y
    cos_2, sin_2 = jnp.cos(theta_2), jnp.sin(theta_2)
    d_1 = MASS * (CENTRE**2 + LENGTH**2 + CENTRE**2 + 2 * LENGTH * CENTRE * cos_2) + 2 * INERTIA
    d_2 = MASS * (CENTRE**2 + LENGTH * CENTRE * cos_2) + INERTIA
    # The angle from the horizontal, whose cosine the book has, is the one from the vertical less
    # pi / 2.
    phi_2 = MASS * CENTRE * GRAVITY * jnp.sin(theta_1 + theta_2)
    phi_1 = (
        -MASS * LENGTH * CENTRE * speed_2 * (speed_2 + 2 * speed_1) * sin_2
        + MASS * (CENTRE + LENGTH) * GRAVITY * jnp.sin(theta_1)
        + phi_2
    )
    centrifugal = MASS * LENGTH * CENTRE * jnp.square(speed_1) * sin_2
    acceleration_2 = (torque + d_2 / d_1 * phi_1 - centrifugal - phi_2) / (
        MASS * CENTRE**2 + INERTIA - jnp.square(d_2) / d_1
    )
    acceleration_1 = -(d_2 * acceleration_2 + phi_1) / d_1
    return jnp.stack([speed_1, speed_2, acceleration_1, acceleration_2])


def _wrap(angle: Array) -> Array:
    """Turns an angle by whole turns until it is between -pi and pi."""
    return angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))


def step(
    key: Array, state: AcrobotState, action: Array, *, max_steps: int
) -> tuple[AcrobotState, TimeStep]:
    """Turns the joint for 0.2 seconds: by an action `[]` of 0 with -1, 1 with 0, and 2 with 1 N m.

    The reward is -1 for every step but the one that lifts the tip above the line, for which it is
    0.
    """
    del key  # the dynamics are deterministic
    y = jnp.stack([state.theta_1, state.theta_2, state.theta_1_dot, state.theta_2_dot])
    torque = jnp.asarray(TORQUES, y.dtype)[action]
    k_1 = _derivative(y, torque)
    k_2 = _derivative(y + TAU / 2 * k_1, torque)
    k_3 = _derivative(y + TAU / 2 * k_2, torque)
    k_4 = _derivative(y + TAU * k_3, torque)
    theta_1, theta_2, speed_1, speed_2 = y + TAU / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    next_state = AcrobotState(
        theta_1=_wrap(theta_1),
        theta_2=_wrap(theta_2),
        theta_1_dot=jnp.clip(speed_1, -MAX_SPEED_1, MAX_SPEED_1),
        theta_2_dot=jnp.clip(speed_2, -MAX_SPEED_2, MAX_SPEED_2),
        num_steps=state.num_steps + 1,
    )
    _, tip = _find_joints(next_state)
    terminated = tip[1] > GOAL_HEIGHT
    reward = jnp.where(terminated, 0.0, -1.0).astype(y.dtype)
    truncated = next_state.num_steps >= max_steps
    return next_state, TimeStep(_observe(next_state), reward, terminated, truncated)


def _find_joints(state: AcrobotState) -> tuple[Array, Array]:
    """Finds where both links end, `(x, y)` `[2]` in metres from the fixed joint."""
    angles = jnp.stack([state.theta_1, state.theta_1 + state.theta_2])
    upper, lower = LENGTH * jnp.stack([jnp.sin(angles), -jnp.cos(angles)], axis=1)
    return upper, upper + lower


def render(state: AcrobotState) -> Array:
    """Draws both links and the line above, `[100, 150, 3]` uint8."""
    scale, middle = 50 / (2.2 * LENGTH), jnp.array([75, 50])  # pixels a metre; the fixed joint
    elbow, tip = (middle + scale * end for end in _find_joints(state))
    line = 50 + scale * GOAL_HEIGHT
    image = segment(blank(100, 150), (0, line), (150, line), 0.5, GREY)
    image = segment(segment(image, middle, elbow, 2.5, BLUE), elbow, tip, 2.5, BLUE)
    return disc(disc(image, middle, 2, ORANGE), elbow, 2, ORANGE)


def acrobot(name: str, max_steps: int, threshold: float | None) -> Environment:
    """Makes Acrobot with a time limit of `max_steps` steps."""
    import gymnasium  # only where an environment is made

    bounds = np.array([1, 1, 1, 1, MAX_SPEED_1, MAX_SPEED_2], np.float32)
    space = gymnasium.spaces.Box(-bounds, bounds, dtype=np.float32)
    limited_step = functools.partial(step, max_steps=max_steps)
    return Environment(name, reset, limited_step, 3, space, threshold, max_steps, render=render)
