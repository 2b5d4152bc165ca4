"""Plays MinAtar's Freeway: a chicken crosses 8 lanes of cars, for a reward of 1 each time.

It can move every third step only. A game ends with its 2,501st step, as in the original, whose
clock starts at 2,500 and ends the game in the step after the one that brings it to 0. Agents do
not see the clock. The end is the game's own, so that it terminates the episode: it is no time
limit, which truncates one.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from purejaxdqn.environments.minatar.common import DOWN, NOOP, SIZE, UP, Game, light, minatar
from purejaxdqn.types import Array

COLUMN = 4  # the chicken's
BOTTOM = SIZE - 1  # the row where it starts
WAIT = 3  # steps from one move of the chicken to the next
NUM_CARS, SLOWEST = 8, 5  # one car for each of rows 1 to 8, and the steps between two of its moves
CLOCK = 2_500


@flax.struct.dataclass
class FreewayState:
    """One game; rows count from the top and columns from the left."""

    row: Array  # [] int32, of the chicken
    wait: Array  # [] int32, steps until it may move
    clock: Array  # [] int32, steps until the game is all but over
    columns: Array  # [8] int32, of the cars
    timers: Array  # [8] int32, steps until each moves
    # [8] int32, steps between two moves, 1 to 5; negative for cars that move left
    speeds: Array


def begin(speeds: Array) -> FreewayState:
    """Begins with the chicken at the bottom and all cars, of speeds `[8]`, at the left."""
    row, wait, clock = (jnp.asarray(x, jnp.int32) for x in (BOTTOM, WAIT, CLOCK))
    return FreewayState(row, wait, clock, jnp.zeros_like(speeds), jnp.abs(speeds), speeds)


def draw(key: Array) -> Array:
    """Draws new speeds of the cars, `[8]` int32: each of -5 to -1 and 1 to 5 equally often."""
    uniform = jax.random.uniform(key, (NUM_CARS,), jnp.float32)
    number = jnp.floor(uniform * 2 * SLOWEST).astype(jnp.int32)  # 0 to 9
    return jnp.where(number < SLOWEST, number - SLOWEST, number - SLOWEST + 1)


def reset(key: Array) -> FreewayState:
    """Begins with drawn speeds."""
    return begin(draw(key))


def advance(state: FreewayState, action: Array, draws: Array) -> tuple[FreewayState, Array, Array]:
    """Moves the chicken and then the cars, `(state, reward [], terminated [])`.

    - At the top, the chicken goes back to the bottom, and `draws` are the cars' new speeds.
    - A car that is where the chicken is, before or after it moves, sends it back to the bottom.
    - Cars that leave the screen come back on the other side.
    """
    step = ((action == DOWN).astype(jnp.int32) - (action == UP)) * (state.wait == 0)
    row = jnp.clip(state.row + step, 0, BOTTOM)
    wait = jnp.maximum(jnp.where(step == 0, state.wait, WAIT) - 1, 0)
    arrives = row == 0
    row = jnp.where(arrives, BOTTOM, row)

    speeds = jnp.where(arrives, draws, state.speeds)
    timers = jnp.where(arrives, jnp.abs(draws), state.timers)
    moves = timers == 0
    columns = state.columns + jnp.where(moves, jnp.sign(speeds), 0)
    columns = jnp.where(columns < 0, SIZE - 1, jnp.where(columns >= SIZE, 0, columns))
    timers = jnp.where(moves, jnp.abs(speeds), timers - 1)
    meets = (state.columns == COLUMN) | (columns == COLUMN)
    is_hit = (meets & (jnp.arange(1, NUM_CARS + 1) == row)).any()

    clock = state.clock - 1
    row = jnp.where(is_hit, BOTTOM, row)
    next_state = FreewayState(row, wait, clock, columns, timers, speeds)
    return next_state, arrives.astype(jnp.float32), clock < 0


def observe(state: FreewayState) -> Array:
    """Shows the chicken, the cars, and behind each car a trail in the channel of its speed."""
    rows = jnp.arange(1, NUM_CARS + 1)
    behind = (state.columns - jnp.sign(state.speeds)) % SIZE
    screen = jnp.zeros((SIZE, SIZE, 2 + SLOWEST), bool).at[state.row, COLUMN, 0].set(True)
    screen = light(screen, rows, state.columns, 1)
    return light(screen, rows, behind, 1 + jnp.abs(state.speeds))


GAME = Game(reset, draw, advance, observe, 2 + SLOWEST, (NOOP, UP, DOWN))
freeway = functools.partial(minatar, game=GAME)
