"""Plays Catch as pure functions, like bsuite's.

A ball falls, and the paddle below has to be where it lands: Mnih et al., "Recurrent models of
visual attention" (2014), as in Osband et al., "Behaviour suite for reinforcement learning" (2020).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import drawing
from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.grids import common
from purejaxdqn.environments.tabular import MOST_STATES, TabularMDP, tabulate
from purejaxdqn.types import Array, TimeStep, ensure, ensure_whole

NUM_ACTIONS = 3  # left, stay, right


@flax.struct.dataclass
class CatchState:
    """One ball over its paddle, which stands in the last row."""

    ball_row: Array  # [] int32, as many as steps were taken in this episode
    ball_column: Array  # [] int32
    paddle: Array  # [] int32, its column


def _mark(state: CatchState, shape: tuple[int, int]) -> tuple[Array, Array]:
    ball = common.mark((state.ball_row, state.ball_column), shape)
    return ball, common.mark((shape[0] - 1, state.paddle), shape)


def _observe(state: CatchState, *, shape: tuple[int, int]) -> Array:
    ball, paddle = _mark(state, shape)
    return ball | paddle


def reset(key: Array, *, shape: tuple[int, int]) -> tuple[CatchState, Array]:
    """Begins an episode, `(state, obs [rows, columns] bool)`: a ball in any column of the top row.

    The paddle is in the middle.
    """
    ball_column = jax.random.randint(key, (), 0, shape[1], jnp.int32)
    paddle = jnp.full((), shape[1] // 2, jnp.int32)
    state = CatchState(jnp.zeros((), jnp.int32), ball_column, paddle)
    return state, _observe(state, shape=shape)


def step(
    key: Array | None, state: CatchState, action: Array, *, shape: tuple[int, int]
) -> tuple[CatchState, TimeStep]:
    """Moves the paddle left, not at all, or right for an action `[]` of 0 to 2; the ball falls.

    The episode ends as the ball reaches the paddle's row. The reward is 1 if it is caught then, -1
    if not, and 0 before.
    """
    del key  # only the ball's column is drawn
    rows, columns = shape
    paddle = jnp.clip(state.paddle + action - 1, 0, columns - 1)
    next_state = CatchState(state.ball_row + 1, state.ball_column, paddle)
    terminated = next_state.ball_row >= rows - 1
    caught = jnp.where(paddle == state.ball_column, 1.0, -1.0)
    reward = jnp.where(terminated, caught, 0.0)
    obs = _observe(next_state, shape=shape)
    return next_state, TimeStep(obs, reward, terminated, jnp.zeros((), bool))


def render(state: CatchState, *, shape: tuple[int, int]) -> Array:
    """Draws the board, `[H, W, 3]` uint8, with ball and paddle."""
    ball, paddle = _mark(state, shape)
    return common.paint(shape, (ball, drawing.ORANGE), (paddle, drawing.BLUE))


def tabular(*, shape: tuple[int, int]) -> TabularMDP:
    """Makes the exact decision process."""
    rows, columns = shape
    states = [*np.indices((rows - 1, columns, columns), np.int32).reshape(3, -1)]
    ball_columns = np.arange(columns, dtype=np.int32)
    starts = [0 * ball_columns, ball_columns, np.full(columns, columns // 2, np.int32)]

    def move(state: CatchState, action: Array, _: Array) -> tuple[CatchState, TimeStep]:
        return step(None, state, action, shape=shape)

    observe = functools.partial(_observe, shape=shape)
    return tabulate(CatchState, observe, move, states, starts, NUM_ACTIONS)


def catch(name: str, *, rows: int = 10, columns: int = 5) -> Environment:
    """Makes Catch on a board of `rows` times `columns` cells; its episodes last `rows - 1` steps.

    It has no time limit. The best return is 1. Its decision process is made where there are at most
    2,500 places of ball and paddle.
    """
    for side, length in (("rows", rows), ("columns", columns)):
        ensure_whole(side, length, 2)
        ensure(length <= 1_000, side, length, "at most 1000")
    shape = rows, columns
    table = functools.partial(tabular, shape=shape)
    return Environment(
        name,
        functools.partial(reset, shape=shape),
        functools.partial(step, shape=shape),
        NUM_ACTIONS,
        common.bool_space(shape),
        threshold=None,
        max_steps=None,
        render=functools.partial(render, shape=shape),
        tabular=None if rows * columns**2 > MOST_STATES else functools.cache(table),
    )
