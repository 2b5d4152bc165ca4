"""Walks through two or four rooms as pure functions, with images as observations.

The four rooms are those of Sutton, Precup and Singh, "Between MDPs and semi-MDPs" (1999), section
3. Their goal is the eastern doorway, as in Bacon, Harb and Precup, "The option-critic architecture"
(2017). Two rooms are half as much of the same.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import drawing
from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.grids import common
from purejaxdqn.environments.grids.common import Walker
from purejaxdqn.environments.tabular import TabularMDP, tabulate
from purejaxdqn.types import Array, TimeStep, ensure, ensure_number

LAYOUTS = {  # walls (#), free cells and the goal (G)
    2: (
        "###########",
        "#    #    #",
        "#    #    #",
        "#         #",
        "#    #    #",
        "#    #   G#",
        "###########",
    ),
    4: (
        "#############",
        "#     #     #",
        "#     #     #",
        "#           #",
        "#     #     #",
        "#     #     #",
        "## ####     #",
        "#     ###G###",
        "#     #     #",
        "#     #     #",
        "#           #",
        "#     #     #",
        "#############",
    ),
}
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)  # up, right, down, left


def _observe(state: Walker, *, cells: np.ndarray) -> Array:
    walker = common.mark(state.position, cells.shape)
    return jnp.stack([walker, cells == ord("G"), cells == ord("#")], axis=-1)


def _starts(cells: np.ndarray) -> np.ndarray:
    return np.argwhere(cells == ord(" ")).astype(np.int32)


def reset(key: Array, *, cells: np.ndarray) -> tuple[Walker, Array]:
    """Begins an episode, `(state, obs [rows, columns, 3] bool)`, in any free cell but the goal.

    The channels of an observation are the walker, the goal and the walls.
    """
    state = common.begin(jax.random.choice(key, _starts(cells)))
    return state, _observe(state, cells=cells)


def move(
    state: Walker,
    action: Array,
    outcome: Array,
    *,
    cells: np.ndarray,
    max_steps: int | None,
) -> tuple[Walker, TimeStep]:
    """Goes to the next cell: up, right, down or left for an action `[]` of 0 to 3.

    An outcome `[]` of 1 to 3 is one of the other directions in place of this one. Walls stop the
    walker. The reward is 1 at the goal, where the episode ends, and else 0.
    """
    wished = state.position + jnp.asarray(MOVES)[(action + outcome) % 4]
    kinds = jnp.asarray(cells)
    position = jnp.where(kinds[tuple(wished)] == ord("#"), state.position, wished)
    next_state = Walker(position, state.num_steps + 1)
    terminated = kinds[tuple(position)] == ord("G")
    reward = jnp.where(terminated, 1.0, 0.0)
    truncated = common.is_late(next_state.num_steps, max_steps)
    return next_state, TimeStep(_observe(next_state, cells=cells), reward, terminated, truncated)


def step(
    key: Array,
    state: Walker,
    action: Array,
    *,
    cells: np.ndarray,
    max_steps: int | None,
    probabilities: Sequence[float],
) -> tuple[Walker, TimeStep]:
    """Goes to the next cell as `move` does, with an outcome of these probabilities."""
    outcome = common.draw(key, probabilities)
    return move(state, action, outcome, cells=cells, max_steps=max_steps)


def render(state: Walker, *, cells: np.ndarray) -> Array:
    """Draws the rooms, `[H, W, 3]` uint8, with walls, goal and walker."""
    walker = common.mark(state.position, cells.shape)
    walls, goal = cells == ord("#"), cells == ord("G")
    layers = ((walls, drawing.BLACK), (goal, drawing.BLUE), (walker, drawing.ORANGE))
    return common.paint(cells.shape, *layers)


def tabular(*, cells: np.ndarray, probabilities: Sequence[float]) -> TabularMDP:
    """Makes the exact decision process; its states are the free cells but the goal."""
    states = [_starts(cells)]
    observe = functools.partial(_observe, cells=cells)
    moves = functools.partial(move, cells=cells, max_steps=None)
    return tabulate(common.begin, observe, moves, states, states, len(MOVES), probabilities)


def rooms(
    name: str,
    max_steps: int | None,
    threshold: float | None,
    *,
    num_rooms: int = 4,
    failure: float = 1 / 3,
) -> Environment:
    """Makes the rooms with a time limit of `max_steps` steps.

    Args:
      name: of the environment.
      max_steps: of an episode; None for no limit.
      threshold: the mean return at which it counts as solved.
      num_rooms: 2 or 4.
      failure: the probability that a step goes in one of the three other directions, each as often
        as the others.
    """
    ensure(num_rooms in LAYOUTS, "num_rooms", num_rooms, f"one of {', '.join(map(str, LAYOUTS))}")
    ensure_number("failure", failure, 0, 1)
    cells = np.array([[*map(ord, row)] for row in LAYOUTS[num_rooms]], np.uint8)
    chance: dict[str, Any] = {"cells": cells, "probabilities": (1 - failure, *3 * [failure / 3])}
    return Environment(
        name,
        functools.partial(reset, cells=cells),
        functools.partial(step, max_steps=max_steps, **chance),
        len(MOVES),
        common.bool_space((*cells.shape, 3)),
        threshold,
        max_steps,
        render=functools.partial(render, cells=cells),
        tabular=functools.cache(functools.partial(tabular, **chance)),
    )
