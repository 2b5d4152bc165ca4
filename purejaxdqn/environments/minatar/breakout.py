"""Plays MinAtar's Breakout: a paddle, a ball, and 3 rows of bricks, each worth 1.

The ball moves one cell along a diagonal in each step. A game ends when it gets past the paddle.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.minatar.common import LEFT, NOOP, RIGHT, SIZE, Game, minatar
from purejaxdqn.types import Array

START = 4  # the paddle's column
BOTTOM = SIZE - 1  # the paddle's row
TOP_BRICKS, NUM_ROWS = 1, 3  # the first row of bricks, and how many there are
BITS = np.arange(NUM_ROWS * SIZE, dtype=np.uint32).reshape(NUM_ROWS, SIZE)
ALL_BRICKS = np.uint32(2**BITS.size - 1)


@flax.struct.dataclass
class BreakoutState:
    """One game; rows count from the top and columns from the left."""

    paddle: Array  # [] int32, its column
    row: Array  # [] int32, of the ball
    column: Array  # [] int32
    down: Array  # [] int32, 1 if the ball falls and -1 if it rises
    right: Array  # [] int32, 1 if the ball moves right and -1 if it moves left
    trail_row: Array  # [] int32, where the ball was one step before
    trail_column: Array  # [] int32
    bricks: Array  # [] uint32, a bit for each brick that is left, row by row
    meets_brick: Array  # [] bool, whether the last step broke a brick or passed through one


def begin(is_right: Array) -> BreakoutState:
    """Begins with all bricks, and the ball at the left or the right wall, on its way inwards."""
    row, column, paddle = (
        jnp.asarray(x, jnp.int32) for x in (TOP_BRICKS + NUM_ROWS - 1, is_right * BOTTOM, START)
    )
    down, right = jnp.ones((), jnp.int32), jnp.where(is_right, -1, 1).astype(jnp.int32)
    bricks, meets_brick = jnp.asarray(ALL_BRICKS), jnp.zeros((), bool)
    return BreakoutState(paddle, row, column, down, right, row, column, bricks, meets_brick)


def reset(key: Array) -> BreakoutState:
    """Begins on either side, equally often."""
    return begin(jax.random.bernoulli(key))


def advance(
    state: BreakoutState, action: Array, draws: None = None
) -> tuple[BreakoutState, Array, Array]:
    """Moves the paddle and then the ball, `(state, reward [], terminated [])`; draws nothing.

    - A wall turns the ball round in its column, and the ceiling in the top row.
    - A brick breaks, for a reward of 1, and turns the ball round in its row. A brick right after a
      brick is passed through, and stays.
    - The paddle turns the ball round in its row. Below the cell that the ball comes *from*, it
      sends it on to the side it moves to, and below the one it moves to, back where it came from.
    - A ball that gets so low brings new bricks if none are left. Beside the paddle, it is lost.
    """
    del draws
    paddle = jnp.clip(state.paddle + (action == RIGHT) - (action == LEFT), 0, SIZE - 1)
    row, column = state.row + state.down, state.column + state.right
    is_outside = (column < 0) | (column >= SIZE)
    column = jnp.where(is_outside, state.column, column)
    right = jnp.where(is_outside, -state.right, state.right)

    is_above, is_low = row < 0, row == BOTTOM
    is_among_bricks = (row >= TOP_BRICKS) & (row < TOP_BRICKS + NUM_ROWS)
    index = ((row - TOP_BRICKS) * SIZE + column).astype(jnp.uint32)
    brick = jnp.where(is_among_bricks, jnp.uint32(1) << index, 0)
    meets_brick = (brick & state.bricks) != 0
    breaks = meets_brick & ~state.meets_brick
    bricks = jnp.where(breaks, state.bricks & ~brick, state.bricks)
    bricks = jnp.where(is_low & (bricks == 0), ALL_BRICKS, bricks)

    is_below = paddle == state.column
    is_caught = is_low & (is_below | (paddle == column))
    right = jnp.where(is_caught & ~is_below, -right, right)
    turns = is_above | breaks | is_caught
    next_state = BreakoutState(
        paddle=paddle,
        row=jnp.where(turns, state.row, row),
        column=column,
        down=jnp.where(turns, -state.down, state.down),
        right=right,
        trail_row=state.row,
        trail_column=state.column,
        bricks=bricks,
        meets_brick=meets_brick,
    )
    return next_state, breaks.astype(jnp.float32), is_low & ~is_caught


def observe(state: BreakoutState) -> Array:
    """Shows the paddle, the ball, its trail (the cell it was in before) and the bricks."""
    bricks = ((state.bricks >> BITS) & 1).astype(bool)
    below = SIZE - TOP_BRICKS - NUM_ROWS
    screen = jnp.pad(bricks[..., jnp.newaxis], ((TOP_BRICKS, below), (0, 0), (3, 0)))
    rows = jnp.stack([jnp.asarray(BOTTOM, jnp.int32), state.row, state.trail_row])
    columns = jnp.stack([state.paddle, state.column, state.trail_column])
    # Not by `light`: padding along one axis costs more than indices of three.
    return screen.at[rows, columns, jnp.arange(3)].set(True)


GAME = Game(reset, lambda key: None, advance, observe, 4, (NOOP, LEFT, RIGHT))
breakout = functools.partial(minatar, game=GAME)
