"""Plays CliffWalking as pure functions, like gymnasium's "CliffWalking-v1".

A walk along a cliff: Sutton and Barto, "Reinforcement Learning: An Introduction" (2018), example
6.6. Gymnasium's observation is the number of the cell, row by row. Here it is that number one-hot,
which says the same and is what a network can read.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import drawing
from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.grids import common
from purejaxdqn.environments.grids.common import Walker
from purejaxdqn.environments.tabular import TabularMDP, tabulate
from purejaxdqn.types import Array, TimeStep

SHAPE = (4, 12)
START, GOAL = (3, 0), (3, 11)  # row and column; the cliff lies between them
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)  # up, right, down, left
SLIPPERY = (1 / 3, 1 / 3, 1 / 3)  # of a turn to one side, none, and one to the other
FIRM = (0.0, 1.0, 0.0)


def _observe(state: Walker) -> Array:
    return common.mark(state.position, SHAPE).ravel()


def _is_cliff(row: Array | np.ndarray, column: Array | np.ndarray) -> Array:
    return jnp.asarray((row == START[0]) & (column > START[1]) & (column < GOAL[1]))


def reset(key: Array) -> tuple[Walker, Array]:
    """Begins an episode, `(state, obs [48] bool)`, at the bottom left."""
    del key  # every episode begins there
    state = common.begin(jnp.array(START, jnp.int32))
    return state, _observe(state)


def move(
    state: Walker, action: Array, outcome: Array, *, max_steps: int | None
) -> tuple[Walker, TimeStep]:
    """Goes to the next cell: up, right, down or left for an action `[]` of 0 to 3.

    An outcome `[]` of 0 or 2 turns this to a side; nothing leads off the board. Whoever falls off
    the cliff is back at the start. The reward is -100 for that, and -1 for every other step.
    """
    wished = state.position + jnp.asarray(MOVES)[(action + outcome - 1) % 4]
    wished = jnp.clip(wished, 0, np.array(SHAPE, np.int32) - 1)
    falls = _is_cliff(*wished)
    position = jnp.where(falls, jnp.array(START, jnp.int32), wished)
    next_state = Walker(position, state.num_steps + 1)
    reward, terminated = jnp.where(falls, -100.0, -1.0), (position == np.array(GOAL)).all()
    truncated = common.is_late(next_state.num_steps, max_steps)
    return next_state, TimeStep(_observe(next_state), reward, terminated, truncated)


def step(
    key: Array,
    state: Walker,
    action: Array,
    *,
    max_steps: int | None,
    probabilities: Sequence[float],
) -> tuple[Walker, TimeStep]:
    """Goes to the next cell as `move` does, with an outcome of these probabilities."""
    return move(state, action, common.draw(key, probabilities), max_steps=max_steps)


def render(state: Walker) -> Array:
    """Draws the board, `[H, W, 3]` uint8, with the cliff, the goal and the walker."""
    cliff, goal = _is_cliff(*np.ogrid[: SHAPE[0], : SHAPE[1]]), common.mark(np.array(GOAL), SHAPE)
    walker = common.mark(state.position, SHAPE)
    layers = ((cliff, drawing.BLACK), (goal, drawing.BLUE), (walker, drawing.ORANGE))
    return common.paint(SHAPE, *layers)


def tabular(*, probabilities: Sequence[float]) -> TabularMDP:
    """Makes the exact decision process; its states are the cells beside the cliff and the goal."""
    states = [np.indices(SHAPE, np.int32).reshape(2, -1).T]
    starts = [np.array([START], np.int32)]
    moves = functools.partial(move, max_steps=None)
    return tabulate(common.begin, _observe, moves, states, starts, len(MOVES), probabilities)


def cliff_walking(
    name: str, max_steps: int | None, threshold: float | None, *, is_slippery: bool = False
) -> Environment:
    """Makes CliffWalking with a time limit of `max_steps` steps, or none, as gymnasium has it.

    Where it is slippery, a third of the steps goes where it should, and a third to either side.
    """
    probabilities = SLIPPERY if is_slippery else FIRM
    return Environment(
        name,
        reset,
        functools.partial(step, max_steps=max_steps, probabilities=probabilities),
        len(MOVES),
        common.bool_space((SHAPE[0] * SHAPE[1],)),
        threshold,
        max_steps,
        render=render,
        tabular=functools.cache(functools.partial(tabular, probabilities=probabilities)),
    )
