"""Plays MinAtar's Space Invaders, see `common.py`.

A cannon at the bottom shoots at a wave of aliens, which shoot back. The aliens march to one side,
and at the edge of the screen down, and then to the other side. Each one that is shot is worth 1;
when all are, another wave comes, which with the difficulty's ramping marches faster. The game ends
when a bullet or an alien reaches the cannon, or when an alien would march out at the bottom.
"""

import functools

import flax.struct
import jax.numpy as jnp

from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.minatar.common import (
    FIRE,
    LEFT,
    NOOP,
    RIGHT,
    SIZE,
    Game,
    grid,
    minatar,
    planes,
)
from purejaxdqn.types import Array

SHOT_COOL_DOWN = 5  # steps between two shots of the cannon
ALIEN_SHOT_INTERVAL = 10  # steps between two shots of the aliens
SLOWEST_MARCH, FASTEST_MARCH = 12, 6  # steps between two moves of the first wave, and of the last


@flax.struct.dataclass
class SpaceInvadersState:
    """One wave of aliens above a cannon."""

    position: Array  # [] int32, the cannon's column in the last row
    bullets: Array  # [10, 10] bool, the cannon's
    alien_bullets: Array  # [10, 10] bool
    aliens: Array  # [10, 10] bool
    direction: Array  # [] int32, where the aliens march: -1 to the left, 1 to the right
    shot_timer: Array  # [] int32, steps until the cannon can shoot
    alien_shot_timer: Array  # [] int32, steps until an alien shoots
    march_timer: Array  # [] int32, steps until the aliens move
    march_interval: Array  # [] int32, steps between two moves while there are many aliens


def _wave() -> Array:
    cells = jnp.arange(SIZE)
    return (cells < 4)[:, jnp.newaxis] & (cells >= 2) & (cells < 8)


def reset(key: Array) -> SpaceInvadersState:
    """Begins an episode; all begin alike."""
    del key
    empty = jnp.zeros((SIZE, SIZE), bool)
    position, direction, shot_timer, alien_shot_timer, march_timer, march_interval = (
        jnp.asarray(x, jnp.int32)
        for x in (5, -1, 0, ALIEN_SHOT_INTERVAL, SLOWEST_MARCH, SLOWEST_MARCH)
    )
    timers = (shot_timer, alien_shot_timer, march_timer, march_interval)
    return SpaceInvadersState(position, empty, empty, _wave(), direction, *timers)


def draw(key: Array) -> None:
    """Draws nothing: only sticky actions are random."""
    del key


def _march(aliens: Array, direction: Array) -> tuple[Array, Array, Array]:
    """Moves all aliens, `(aliens, direction, is_out)`: at the edge down, and then back."""
    at_edge = jnp.where(direction < 0, aliens[:, 0].any(), aliens[:, -1].any())
    sideways = jnp.where(direction < 0, jnp.roll(aliens, -1, 1), jnp.roll(aliens, 1, 1))
    # One that is in the last row comes back at the top, in the observation at the game's end.
    marched = jnp.where(at_edge, jnp.roll(aliens, 1, 0), sideways)
    return marched, jnp.where(at_edge, -direction, direction), at_edge & aliens[-1].any()


def _nearest(aliens: Array, position: Array) -> Array:
    """Marks the lowest alien, `[10, 10]` bool, of the nearest column, on a draw of the left one."""
    cells = jnp.arange(SIZE)
    offset = cells - position
    distance = jnp.where(aliens.any(0), 2 * jnp.abs(offset) + (offset > 0), 4 * SIZE)
    row = jnp.max(jnp.where(aliens, cells[:, jnp.newaxis], -1), axis=0)
    return (distance == distance.min()) & (row == cells[:, jnp.newaxis]) & aliens


def advance(
    state: SpaceInvadersState, action: Array, draws: None, *, difficulty_ramping: bool
) -> tuple[SpaceInvadersState, Array, Array]:
    """Takes a step of one of all six actions `[]`, `(state, reward, terminated)`."""
    del draws
    shoots = (action == FIRE) & (state.shot_timer == 0)
    move = jnp.where(action == LEFT, -1, jnp.where(action == RIGHT, 1, 0))
    position = jnp.clip(state.position + move, 0, SIZE - 1)
    cannon = jnp.arange(SIZE) == position
    # All bullets fly a cell, also the new one.
    bullets = jnp.roll(state.bullets, -1, 0).at[-1].set(False)
    bullets |= shoots & grid(SIZE - 2, position)
    alien_bullets = jnp.roll(state.alien_bullets, 1, 0).at[0].set(False)
    hit = (cannon & (alien_bullets[-1] | state.aliens[-1])).any()

    marched, direction, is_out = _march(state.aliens, state.direction)
    marches = state.march_timer == 0
    aliens = jnp.where(marches, marched, state.aliens)
    hit |= (cannon & aliens[-1]).any() | (marches & is_out)
    interval = jnp.minimum(state.aliens.sum(dtype=jnp.int32), state.march_interval)
    aliens_shoot = state.alien_shot_timer == 0
    alien_bullets |= aliens_shoot & _nearest(aliens, position)

    killed = aliens & bullets
    aliens, bullets = aliens & ~killed, bullets & ~killed
    is_cleared = ~aliens.any()
    ramps = is_cleared & (state.march_interval > FASTEST_MARCH) & difficulty_ramping
    next_state = SpaceInvadersState(
        position=position,
        bullets=bullets,
        alien_bullets=alien_bullets,
        aliens=jnp.where(is_cleared, _wave(), aliens),
        direction=jnp.where(marches, direction, state.direction),
        shot_timer=jnp.maximum(jnp.where(shoots, SHOT_COOL_DOWN, state.shot_timer) - 1, 0),
        alien_shot_timer=jnp.where(aliens_shoot, ALIEN_SHOT_INTERVAL, state.alien_shot_timer) - 1,
        march_timer=jnp.where(marches, interval, state.march_timer) - 1,
        march_interval=state.march_interval - ramps,
    )
    return next_state, killed.sum(dtype=jnp.float32), hit


def observe(state: SpaceInvadersState) -> Array:
    """Shows cannon, aliens, those that march left, and right, and the bullets of both."""
    to_left = state.direction < 0
    return planes(
        grid(SIZE - 1, state.position),
        state.aliens,
        state.aliens & to_left,
        state.aliens & ~to_left,
        state.bullets,
        state.alien_bullets,
    )


def space_invaders(
    name: str,
    sticky_actions: float = 0.1,
    time_limit: int | None = None,
    difficulty_ramping: bool = True,
) -> Environment:
    """Makes Space Invaders; with `difficulty_ramping` each wave marches faster than the last."""
    rules = functools.partial(advance, difficulty_ramping=difficulty_ramping)
    game = Game(reset, draw, rules, observe, 6, (NOOP, LEFT, RIGHT, FIRE))
    return minatar(name, game, sticky_actions, time_limit)
