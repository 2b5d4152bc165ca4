"""Plays MinAtar's Space Invaders, see `common.py`.

A cannon at the bottom shoots at a wave of aliens, which shoot back. The aliens march to one side,
and at the edge of the screen down, and then to the other side. Each one that is shot is worth 1;
when all are, another wave comes, which with the difficulty's ramping marches faster. The game ends
when a bullet or an alien reaches the cannon, or when an alien would march out at the bottom.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.minatar.common import (
    FIRE,
    LEFT,
    NOOP,
    RIGHT,
    SIZE,
    Game,
    minatar,
    unpack,
)
from purejaxdqn.types import Array

SHOT_COOL_DOWN = 5  # steps between two shots of the cannon
ALIEN_SHOT_INTERVAL = 10  # steps between two shots of the aliens
WAVE = np.array([0b0011111100] * 4 + [0] * 6, np.int32)  # rows of columns, as bits
SLOWEST_MARCH, FASTEST_MARCH = 12, 6  # steps between two moves of the first wave, and of the last


@flax.struct.dataclass
class SpaceInvadersState:
    """One wave of aliens above a cannon; maps are rows of ten columns, as bits."""

    position: Array  # [] int32, the cannon's column in the last row
    bullets: Array  # [10] int32, the cannon's
    alien_bullets: Array  # [10] int32
    aliens: Array  # [10] int32
    to_right: Array  # [] bool, where the aliens march
    shot_timer: Array  # [] int32, steps until the cannon can shoot
    alien_shot_timer: Array  # [] int32, steps until an alien shoots
    march_timer: Array  # [] int32, steps until the aliens move
    march_interval: Array  # [] int32, steps between two moves while there are many aliens


def reset(key: Array | None = None) -> SpaceInvadersState:
    """Begins an episode; all begin alike."""
    del key
    empty = jnp.zeros(SIZE, jnp.int32)
    position, shot_timer, alien_shot_timer, march_timer, march_interval = (
        jnp.asarray(x, jnp.int32) for x in (5, 0, ALIEN_SHOT_INTERVAL, SLOWEST_MARCH, SLOWEST_MARCH)
    )
    timers = (shot_timer, alien_shot_timer, march_timer, march_interval)
    wave = jnp.asarray(WAVE, jnp.int32)
    return SpaceInvadersState(position, empty, empty, wave, jnp.bool(False), *timers)


def draw(key: Array) -> None:
    """Draws nothing: only sticky actions are random."""
    del key


def _count(rows: Array) -> Array:
    return jax.lax.population_count(rows).sum(dtype=jnp.int32)


def _march(aliens: Array, to_right: Array) -> tuple[Array, Array, Array]:
    """Moves all aliens, `(aliens, to_right, is_out)`: at the edge down, and then back."""
    at_edge = (aliens & jnp.where(to_right, 1 << (SIZE - 1), 1)).any()
    sideways = jnp.where(to_right, aliens << 1, aliens >> 1)
    # One that is in the last row comes back at the top, in the last observation of the game.
    marched = jnp.where(at_edge, jnp.roll(aliens, 1), sideways)
    return marched, to_right ^ at_edge, at_edge & (aliens[-1] != 0)


def _nearest(aliens: Array, position: Array) -> Array:
    """Finds the lowest alien of the nearest column, or of the left one of two, `[10]` int32."""
    cells = np.arange(SIZE, dtype=np.int32)
    columns = jnp.bitwise_or.reduce(aliens)
    offset = cells - position
    order = (2 * jnp.abs(offset) + (offset > 0)) << 4
    nearest = jnp.where((columns >> cells) & 1 == 1, order + cells, 1 << 9).min() & 15
    in_column = aliens & (1 << nearest)
    lowest = jnp.where(in_column != 0, cells, -1).max()
    return jnp.where(cells == lowest, in_column, 0)


def advance(
    state: SpaceInvadersState, action: Array, draws: None, *, difficulty_ramping: bool
) -> tuple[SpaceInvadersState, Array, Array]:
    """Takes a step of one of all six actions `[]`, `(state, reward, terminated)`."""
    del draws
    shoots = (action == FIRE) & (state.shot_timer == 0)
    right = (action == RIGHT).astype(jnp.int32) - (action == LEFT)
    position = jnp.clip(state.position + right, 0, SIZE - 1)
    cannon = 1 << position
    # All bullets fly a cell, also the new one.
    none = jnp.zeros(1, jnp.int32)
    fired = jnp.where(shoots, cannon, 0)
    bullets = jnp.concatenate([state.bullets[1:-1], (state.bullets[-1] | fired)[jnp.newaxis], none])
    alien_bullets = jnp.concatenate([none, state.alien_bullets[:-1]])

    marches = state.march_timer == 0
    marched, to_right, is_out = _march(state.aliens, state.to_right)
    aliens = jnp.where(marches, marched, state.aliens)
    # Before and after the aliens move.
    is_hit = ((alien_bullets[-1] | state.aliens[-1] | aliens[-1]) & cannon) != 0
    interval = jnp.minimum(_count(state.aliens), state.march_interval)
    aliens_shoot = state.alien_shot_timer == 0
    alien_bullets |= jnp.where(aliens_shoot, _nearest(aliens, position), 0)

    killed = aliens & bullets
    aliens, bullets = aliens ^ killed, bullets ^ killed
    is_cleared = ~aliens.any()
    ramps = is_cleared & (state.march_interval > FASTEST_MARCH) & difficulty_ramping
    next_state = SpaceInvadersState(
        position=position,
        bullets=bullets,
        alien_bullets=alien_bullets,
        aliens=jnp.where(is_cleared, WAVE, aliens),
        to_right=jnp.where(marches, to_right, state.to_right),
        shot_timer=jnp.maximum(jnp.where(shoots, SHOT_COOL_DOWN, state.shot_timer) - 1, 0),
        alien_shot_timer=jnp.where(aliens_shoot, ALIEN_SHOT_INTERVAL, state.alien_shot_timer) - 1,
        march_timer=jnp.where(marches, interval, state.march_timer) - 1,
        march_interval=state.march_interval - ramps,
    )
    return next_state, _count(killed).astype(jnp.float32), is_hit | (marches & is_out)


def observe(state: SpaceInvadersState) -> Array:
    """Shows cannon, aliens, those that march left, and right, and the bullets of both."""
    return unpack(
        jnp.where(np.arange(SIZE) == SIZE - 1, 1 << state.position, 0),
        state.aliens,
        jnp.where(state.to_right, 0, state.aliens),
        jnp.where(state.to_right, state.aliens, 0),
        state.bullets,
        state.alien_bullets,
    )


GAME = Game(
    reset, draw, advance, observe, 6, (NOOP, LEFT, RIGHT, FIRE), ramps=True, observes_again=False
)
space_invaders = functools.partial(minatar, game=GAME)
