"""Plays FrozenLake as pure functions, like gymnasium's "FrozenLake-v1" and "FrozenLake8x8-v1".

A walk over a frozen lake to its far corner. The ice is slippery: a third of the steps goes where it
should, and a third to either side. Gymnasium's observation is the number of the cell, row by row.
Here it is that number one-hot, which says the same and is what a network can read.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import drawing
from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.grids import common
from purejaxdqn.environments.grids.common import Walker
from purejaxdqn.environments.tabular import TabularMDP, tabulate
from purejaxdqn.types import Array, TimeStep, ensure

MAPS = {
    "4x4": ("SFFF", "FHFH", "FFFH", "HFFG"),
    "8x8": (
        *("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF"),
        *("FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
    ),
}
HOLE, GOAL = map(ord, "HG")  # where an episode ends; the others are start and frozen cells
MOVES = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]], np.int32)  # left, down, right, up
STRAIGHT = 1 / 3  # the probability of the direction that was meant
# Of a turn to one side, none, and one to the other; of a side it is computed as gymnasium does.
SLIPPERY = ((1 - STRAIGHT) / 2, STRAIGHT, (1 - STRAIGHT) / 2)
FIRM = (0.0, 1.0, 0.0)


def _observe(state: Walker, *, tiles: np.ndarray) -> Array:
    return common.mark(state.position, tiles.shape).ravel()


def reset(key: Array, *, tiles: np.ndarray) -> tuple[Walker, Array]:
    """Begins an episode, `(state, obs [cells] bool)`, in the corner at the top left."""
    del key  # every episode begins there
    state = common.begin(jnp.zeros(2, jnp.int32))
    return state, _observe(state, tiles=tiles)


def move(
    state: Walker, action: Array, outcome: Array, *, tiles: np.ndarray, max_steps: int
) -> tuple[Walker, TimeStep]:
    """Goes to the next cell: left, down, right or up for an action `[]` of 0 to 3.

    An outcome `[]` of 0 or 2 turns this to a side. Nothing leads off the lake, or on from a hole or
    the goal. The reward is 1 for reaching the goal, and else 0.
    """
    cells = jnp.asarray(tiles)
    here = cells[tuple(state.position)]
    wished = state.position + jnp.asarray(MOVES)[(action + outcome - 1) % 4]
    wished = jnp.clip(wished, 0, np.array(tiles.shape, np.int32) - 1)
    is_over = (here == HOLE) | (here == GOAL)
    position = jnp.where(is_over, state.position, wished)
    there = cells[tuple(position)]
    next_state = Walker(position, state.num_steps + 1)
    reward = jnp.where((there == GOAL) & ~is_over, 1.0, 0.0)
    terminated, truncated = (there == HOLE) | (there == GOAL), next_state.num_steps >= max_steps
    return next_state, TimeStep(_observe(next_state, tiles=tiles), reward, terminated, truncated)


def step(
    key: Array,
    state: Walker,
    action: Array,
    *,
    tiles: np.ndarray,
    max_steps: int,
    probabilities: Sequence[float],
) -> tuple[Walker, TimeStep]:
    """Goes to the next cell as `move` does, with an outcome of these probabilities."""
    outcome = common.draw(key, probabilities)
    return move(state, action, outcome, tiles=tiles, max_steps=max_steps)


def render(state: Walker, *, tiles: np.ndarray) -> Array:
    """Draws the lake, `[H, W, 3]` uint8, with its holes, the goal and the walker."""
    holes, goal, walker = tiles == HOLE, tiles == GOAL, common.mark(state.position, tiles.shape)
    layers = ((holes, drawing.BLACK), (goal, drawing.BLUE), (walker, drawing.ORANGE))
    return common.paint(tiles.shape, *layers)


def tabular(*, tiles: np.ndarray, probabilities: Sequence[float]) -> TabularMDP:
    """Makes the exact decision process; its states are the cells that are no hole or goal."""
    positions = np.indices(tiles.shape, np.int32).reshape(2, -1).T
    observe = functools.partial(_observe, tiles=tiles)
    moves = functools.partial(move, tiles=tiles, max_steps=1)
    states, starts = [positions], [positions[:1]]
    return tabulate(common.begin, observe, moves, states, starts, len(MOVES), probabilities)


def frozen_lake(
    name: str,
    max_steps: int,
    threshold: float | None,
    *,
    map_name: str = "4x4",
    is_slippery: bool = True,
) -> Environment:
    """Makes FrozenLake with a time limit of `max_steps` steps.

    Args:
      name: of the environment.
      max_steps: of an episode.
      threshold: the mean return at which it counts as solved.
      map_name: "4x4" or "8x8".
      is_slippery: whether a step may go to a side.
    """
    ensure(map_name in MAPS, "map_name", map_name, f"one of {', '.join(MAPS)}")
    tiles = np.array([[*map(ord, row)] for row in MAPS[map_name]], np.uint8)
    chance: dict[str, Any] = {"tiles": tiles, "probabilities": SLIPPERY if is_slippery else FIRM}
    return Environment(
        name,
        functools.partial(reset, tiles=tiles),
        functools.partial(step, max_steps=max_steps, **chance),
        len(MOVES),
        common.bool_space((tiles.size,)),
        threshold,
        max_steps,
        render=functools.partial(render, tiles=tiles),
        tabular=functools.cache(functools.partial(tabular, **chance)),
    )
