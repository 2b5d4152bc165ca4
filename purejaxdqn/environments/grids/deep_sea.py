"""Plays DeepSea as pure functions, like bsuite's: a chain that only deep exploration follows.

Osband et al., "Deep exploration via randomized value functions" (2019), and "Behaviour suite for
reinforcement learning" (2020). A diver sinks a row with every step. One sequence of actions in
2^size leads to the treasure, and each of its steps costs a little.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import drawing
from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.grids import common
from purejaxdqn.environments.tabular import MOST_STATES, TabularMDP, tabulate
from purejaxdqn.types import Array, TimeStep, ensure, ensure_whole

NUM_ACTIONS = 2
MOVE_COST = 0.01  # of an episode that goes right throughout: so 0.99 is the best return


@flax.struct.dataclass
class DeepSeaState:
    """One diver."""

    row: Array  # [] int32, as many as steps were taken in this episode
    column: Array  # [] int32


class Sea(NamedTuple):
    """What is fixed about a sea."""

    right: np.ndarray  # [size, size] int32, the action that goes right; the other one goes left
    is_deterministic: bool

    @property
    def probabilities(self) -> tuple[float, float]:
        """Those with which a step to the right succeeds (0), or fails (1)."""
        fails = 0.0 if self.is_deterministic else 1 / len(self.right)
        return 1 - fails, fails


def _observe(state: DeepSeaState, *, sea: Sea) -> Array:
    return common.mark((state.row, state.column), sea.right.shape)


def reset(key: Array, *, sea: Sea) -> tuple[DeepSeaState, Array]:
    """Begins an episode, `(state, obs [size, size] bool)`, at the top left."""
    del key  # every episode begins there
    state = DeepSeaState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    return state, _observe(state, sea=sea)


def move(
    state: DeepSeaState, action: Array, outcome: Array, *, sea: Sea
) -> tuple[DeepSeaState, TimeStep]:
    """Sinks a row and goes a column to the left or right; which action goes right the cell says.

    An outcome `[]` of 1 lets a step to the right fail: it goes straight down. Its cost is `0.01 /
    size` all the same. Going right from the last column is worth 1. The episode ends below the last
    row, with an observation in which no cell is marked.
    """
    size = len(sea.right)
    goes_right = action == jnp.asarray(sea.right)[state.row, state.column]
    finds = goes_right & (state.column == size - 1)
    reward = jnp.where(finds, 1.0, 0.0) - jnp.where(goes_right, MOVE_COST / size, 0.0)
    shift = jnp.where(goes_right, 1 - outcome, -1)
    column = jnp.clip(state.column + shift, 0, size - 1)
    next_state = DeepSeaState(state.row + 1, column)
    obs, terminated = _observe(next_state, sea=sea), next_state.row >= size
    return next_state, TimeStep(obs, reward, terminated, jnp.zeros((), bool))


def step(
    key: Array, state: DeepSeaState, action: Array, *, sea: Sea
) -> tuple[DeepSeaState, TimeStep]:
    """Sinks a row as `move` does.

    Where the sea is stochastic, a step to the right fails with probability `1 / size`, and the last
    step of an episode that reached either edge has a reward with standard normal noise.
    """
    outcome_key, noise_key = jax.random.split(key)
    next_state, timestep = move(state, action, common.draw(outcome_key, sea.probabilities), sea=sea)
    if sea.is_deterministic:
        return next_state, timestep
    last = len(sea.right) - 1
    is_noisy = (state.row == last) & ((state.column == 0) | (state.column == last))
    noise = jax.random.normal(noise_key, dtype=timestep.reward.dtype)
    reward = timestep.reward + jnp.where(is_noisy, noise, 0.0)
    return next_state, timestep._replace(reward=reward)


def render(state: DeepSeaState, *, sea: Sea) -> Array:
    """Draws the sea, `[H, W, 3]` uint8, with the treasure's column and the diver."""
    size = len(sea.right)
    treasure = common.mark((size - 1, size - 1), sea.right.shape)
    diver = common.mark((state.row, state.column), sea.right.shape)
    return common.paint(sea.right.shape, (treasure, drawing.BLUE), (diver, drawing.ORANGE))


def tabular(*, sea: Sea) -> TabularMDP:
    """Makes the exact decision process; the noise of rewards has mean 0."""
    states = [*np.indices(sea.right.shape, np.int32).reshape(2, -1)]
    starts = [np.zeros(1, np.int32)] * 2
    observe, moves = functools.partial(_observe, sea=sea), functools.partial(move, sea=sea)
    return tabulate(DeepSeaState, observe, moves, states, starts, NUM_ACTIONS, sea.probabilities)


def deep_sea(
    name: str,
    *,
    size: int = 10,
    deterministic: bool = True,
    randomize_actions: bool = True,
    mapping_seed: int = 42,
) -> Environment:
    """Makes DeepSea; its episodes last `size` steps, and it has no time limit.

    Its decision process is made up to a size of 50.

    Args:
      name: of the environment.
      size: rows, and columns.
      deterministic: whether steps to the right always succeed, and rewards have no noise.
      randomize_actions: whether each cell has its own action that goes right; else it is 1.
      mapping_seed: of these actions, which are the same in every episode and run. They are those of
        bsuite, whose experiments have the seed 42.
    """
    ensure_whole("size", size, 2)
    ensure(size <= 1_000, "size", size, "at most 1000")
    ensure_whole("mapping_seed", mapping_seed, 0)
    ensure(mapping_seed < 2**32, "mapping_seed", mapping_seed, "at most 2**32 - 1")
    right = np.ones((size, size), np.int32)
    if randomize_actions:
        right = np.random.RandomState(mapping_seed).binomial(1, 0.5, (size, size)).astype(np.int32)
    sea = Sea(right, deterministic)
    table = functools.partial(tabular, sea=sea)
    return Environment(
        name,
        functools.partial(reset, sea=sea),
        functools.partial(step, sea=sea),
        NUM_ACTIONS,
        common.bool_space((size, size)),
        threshold=None,
        max_steps=None,
        render=functools.partial(render, sea=sea),
        tabular=None if size**2 > MOST_STATES else functools.cache(table),
    )
