"""Plays MinAtar's Asterix: gold, worth 1, and enemies, who end the game, cross the screen.

There is at most one of them in each of rows 1 to 8, and the player moves in these rows. With
ramping, they come more and more often, and faster and faster.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from purejaxdqn.environments.minatar.common import (
    DOWN,
    LEFT,
    NOOP,
    RIGHT,
    SIZE,
    UP,
    Game,
    light,
    minatar,
)
from purejaxdqn.types import Array

START = 5  # the player's row and column
NUM_ROWS = 8  # in which things move, from row 1 on
SPAWN_INTERVAL, MOVE_INTERVAL, RAMP_INTERVAL = 10, 5, 100  # steps, of the first


@flax.struct.dataclass
class AsterixState:
    """One game; rows count from the top and columns from the left."""

    row: Array  # [] int32, of the player
    column: Array  # [] int32
    columns: Array  # [8] int32, of what is in each row
    # [8] int32: 1 for an enemy and 2 for gold that goes right, -1 and -2 to the left, 0 for nothing
    kinds: Array
    spawn_timer: Array  # [] int32, steps until something comes
    spawn_interval: Array  # [] int32
    move_timer: Array  # [] int32, steps until all things move
    move_interval: Array  # [] int32
    ramp_timer: Array  # [] int32, steps until it becomes harder
    num_ramps: Array  # [] int32


class Draws(NamedTuple):
    """What a step draws, though it needs it only where something comes."""

    goes_right: Array  # [] bool
    is_gold: Array  # [] bool
    choice: Array  # [] float32 from [0, 1): among the rows that are free, from the top


def draw(key: Array) -> Draws:
    """Draws what comes: from both sides equally often, and gold once in three times."""
    uniform = jax.random.uniform(key, (3,), jnp.float32)
    return Draws(uniform[0] < 0.5, uniform[1] < 1 / 3, uniform[2])


def reset(key: Array | None = None) -> AsterixState:
    """Begins with an empty screen, always alike."""
    del key
    nothing = jnp.zeros((NUM_ROWS,), jnp.int32)
    start, spawn, move, ramp, zero = (
        jnp.asarray(x, jnp.int32) for x in (START, SPAWN_INTERVAL, MOVE_INTERVAL, RAMP_INTERVAL, 0)
    )
    return AsterixState(start, start, nothing, nothing, spawn, spawn, move, move, ramp, zero)


def _spawn(state: AsterixState, draws: Draws) -> AsterixState:
    """Places a new thing at the edge of a free row, if there is one."""
    num_free = jnp.cumsum(state.kinds == 0, dtype=jnp.int32)  # down to each row
    rank = jnp.floor(draws.choice * num_free[-1]).astype(jnp.int32)
    index = (num_free <= rank).sum(dtype=jnp.int32)  # 8, and no row, if none is free
    index = jnp.where(state.spawn_timer == 0, index, NUM_ROWS)
    kind = jnp.where(draws.goes_right, 1, -1) * jnp.where(draws.is_gold, 2, 1)
    column = jnp.where(draws.goes_right, 0, SIZE - 1)
    return dataclasses.replace(
        state,
        columns=state.columns.at[index].set(column, mode="drop"),
        kinds=state.kinds.at[index].set(kind, mode="drop"),
    )


def _ramp(state: AsterixState) -> AsterixState:
    """Shortens the interval of spawns each time, and that of moves every second time."""
    goes_on = (state.spawn_interval > 1) | (state.move_interval > 1)
    ramps = goes_on & (state.ramp_timer < 0)
    is_faster = ramps & (state.move_interval > 1) & (state.num_ramps % 2 == 1)
    timer = jnp.where(ramps, RAMP_INTERVAL, state.ramp_timer - goes_on)
    return dataclasses.replace(
        state,
        spawn_interval=state.spawn_interval - (ramps & (state.spawn_interval > 1)),
        move_interval=state.move_interval - is_faster,
        ramp_timer=timer,
        num_ramps=state.num_ramps + ramps,
    )


def advance(
    state: AsterixState, action: Array, draws: Draws, *, difficulty_ramping: bool = True
) -> tuple[AsterixState, Array, Array]:
    """Lets a thing come, moves the player and then all things, `(state, reward, terminated)`.

    What the player meets counts before things move, and after that; gold is taken away. Things
    that leave the screen are gone.
    """
    state = _spawn(state, draws)
    down = (action == DOWN).astype(jnp.int32) - (action == UP)
    right = (action == RIGHT).astype(jnp.int32) - (action == LEFT)
    row = jnp.clip(state.row + down, 1, NUM_ROWS)
    column = jnp.clip(state.column + right, 0, SIZE - 1)

    moves = state.move_timer == 0
    columns = state.columns + jnp.where(moves, jnp.sign(state.kinds), 0)
    index = row - 1
    kind = jnp.abs(state.kinds[index])
    is_met = (kind > 0) & ((state.columns[index] == column) | (columns[index] == column))
    takes_gold = is_met & (kind == 2)
    is_gone = (takes_gold & (jnp.arange(NUM_ROWS) == index)) | (columns < 0) | (columns >= SIZE)

    spawns = state.spawn_timer == 0
    state = dataclasses.replace(
        state,
        row=row,
        column=column,
        columns=columns,
        kinds=jnp.where(is_gone, 0, state.kinds),
        spawn_timer=jnp.where(spawns, state.spawn_interval, state.spawn_timer) - 1,
        move_timer=jnp.where(moves, state.move_interval, state.move_timer) - 1,
    )
    state = _ramp(state) if difficulty_ramping else state
    return state, takes_gold.astype(jnp.float32), is_met & ~takes_gold


def observe(state: AsterixState) -> Array:
    """Shows the player, enemies, trails (the cell behind each thing) and gold."""
    rows = jnp.arange(1, NUM_ROWS + 1)
    behind = state.columns - jnp.sign(state.kinds)
    columns, behind = (jnp.where(state.kinds == 0, SIZE, x) for x in (state.columns, behind))
    screen = jnp.zeros((SIZE, SIZE, 4), bool).at[state.row, state.column, 0].set(True)
    screen = light(screen, rows, behind, 2)
    return light(screen, rows, columns, jnp.where(jnp.abs(state.kinds) == 2, 3, 1))


GAME = Game(reset, draw, advance, observe, 4, (NOOP, LEFT, UP, RIGHT, DOWN), ramps=True)
asterix = functools.partial(minatar, game=GAME)
