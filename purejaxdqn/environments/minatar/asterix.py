"""Plays MinAtar's Asterix: gold, worth 1, and enemies, who end the game, cross the screen.

There is at most one of them in each of rows 1 to 8, and the player moves in these rows. With
ramping, they come more and more often, and faster and faster.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from purejaxdqn.environments.base import Environment
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
    is_here: Array  # [8] bool, whether something is in the row; else its other facts mean nothing
    columns: Array  # [8] int32
    is_gold: Array  # [8] bool, and no enemy
    goes_right: Array  # [8] bool
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
    nowhere = jnp.zeros((NUM_ROWS,), bool)
    start, spawn, move, ramp, zero = (
        jnp.asarray(x, jnp.int32) for x in (START, SPAWN_INTERVAL, MOVE_INTERVAL, RAMP_INTERVAL, 0)
    )
    columns = jnp.zeros((NUM_ROWS,), jnp.int32)
    things = (nowhere, columns, nowhere, nowhere)
    return AsterixState(start, start, *things, spawn, spawn, move, move, ramp, zero)


def _spawn(state: AsterixState, draws: Draws) -> AsterixState:
    """Places a new thing at the edge of a free row, if there is one."""
    num_free = jnp.cumsum(~state.is_here, dtype=jnp.int32)  # down to each row
    rank = jnp.floor(draws.choice * num_free[-1]).astype(jnp.int32)
    index = (num_free <= rank).sum(dtype=jnp.int32)  # 8, and no row, if none is free
    index = jnp.where(state.spawn_timer == 0, index, NUM_ROWS)

    def put(things: Array, new: Any) -> Array:
        return things.at[index].set(new, mode="drop")

    return dataclasses.replace(
        state,
        is_here=put(state.is_here, True),
        columns=put(state.columns, jnp.where(draws.goes_right, 0, SIZE - 1)),
        is_gold=put(state.is_gold, draws.is_gold),
        goes_right=put(state.goes_right, draws.goes_right),
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
    columns = state.columns + jnp.where(moves, jnp.where(state.goes_right, 1, -1), 0)
    index = row - 1
    is_met = (state.columns[index] == column) | (columns[index] == column)
    is_met &= state.is_here[index]
    takes_gold = is_met & state.is_gold[index]
    is_taken = takes_gold & (jnp.arange(NUM_ROWS) == index)
    is_here = state.is_here & ~is_taken & (columns >= 0) & (columns < SIZE)

    spawns = state.spawn_timer == 0
    state = dataclasses.replace(
        state,
        row=row,
        column=column,
        is_here=is_here,
        columns=columns,
        spawn_timer=jnp.where(spawns, state.spawn_interval, state.spawn_timer) - 1,
        move_timer=jnp.where(moves, state.move_interval, state.move_timer) - 1,
    )
    state = _ramp(state) if difficulty_ramping else state
    return state, takes_gold.astype(jnp.float32), is_met & ~takes_gold


def observe(state: AsterixState) -> Array:
    """Shows the player, enemies, trails (the cell behind each thing) and gold."""
    rows = jnp.arange(1, NUM_ROWS + 1)
    behind = state.columns + jnp.where(state.goes_right, -1, 1)
    columns, behind = (jnp.where(state.is_here, x, SIZE) for x in (state.columns, behind))
    screen = jnp.zeros((SIZE, SIZE, 4), bool).at[state.row, state.column, 0].set(True)
    screen = light(screen, rows, behind, 2)
    return light(screen, rows, columns, jnp.where(state.is_gold, 3, 1))


def asterix(
    name: str,
    sticky_actions: float = 0.1,
    time_limit: int | None = None,
    difficulty_ramping: bool = True,
) -> Environment:
    """Makes Asterix; without `difficulty_ramping` it stays as hard as it begins."""
    rules = functools.partial(advance, difficulty_ramping=difficulty_ramping)
    game = Game(reset, draw, rules, observe, 4, (NOOP, LEFT, UP, RIGHT, DOWN))
    return minatar(name, game, sticky_actions, time_limit)
