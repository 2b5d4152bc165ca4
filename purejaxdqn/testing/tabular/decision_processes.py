"""Small tabular decision processes whose values are known, by value iteration in plain NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.testing.fixed_points import FixedPoint
from purejaxdqn.types import ConfigError

NUM_ACTIONS = 3
BANDIT_REWARDS = 1e4 * np.array([-4.0, -2.5, -2.0, -0.5, 0.25, 1.0, 1.75, 3.0, 5.0])
_MAX_SWEEPS = 20_000
_TERMINAL_VALUE = 7.0  # of the state after a terminal transition; it must not count


class MDP(NamedTuple):
    """All transitions of one or more decision processes, as a table.

    Attributes:
      state: `[N]` int32, in which `action` is taken.
      action: `[N]` int32.
      reward: `[N]`.
      discount: `[N]` gamma, and 0 only where the process terminates.
      next_state: `[N]` int32.
      probability: `[N]` of the transition, given state and action.
      names: the processes; `names[i]` has the states from `starts[i]` to `starts[i + 1]`.
      starts: the first state of each process, and at the end the number of states.
    """

    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    next_state: np.ndarray
    probability: np.ndarray
    names: tuple[str, ...]
    starts: tuple[int, ...]

    @property
    def num_states(self) -> int:
        """The number of states of all processes."""
        return self.starts[-1]

    @property
    def is_final(self) -> np.ndarray:
        """`[S]` which states follow an end, so that no action is ever taken in them."""
        return ~np.isin(np.arange(self.num_states), self.state)

    def states_of(self, name: str) -> slice:
        """Returns the rows of a table that belong to a process."""
        i = self.names.index(name)
        return slice(self.starts[i], self.starts[i + 1])


Row = tuple[Any, ...]  # the fields of MDP up to probability, in their order


def _list_deterministic(rng: np.random.Generator, discount: float) -> list[Row]:
    rewards = rng.uniform(-1, 1, (4, NUM_ACTIONS))
    following = rng.permuted(np.tile(np.arange(4), (NUM_ACTIONS, 1)), axis=1).T
    return [
        (s, a, rewards[s, a], discount, int(following[s, a]), 1.0)
        for s, a in np.ndindex(4, NUM_ACTIONS)
    ]


def _list_stochastic(rng: np.random.Generator, discount: float) -> list[Row]:
    rows: list[Row] = []
    for s, a in np.ndindex(4, NUM_ACTIONS):
        share = rng.uniform(0.2, 0.8)
        first, second = rng.choice(4, 2, replace=False)
        # The reward depends on the next state.
        rows.append((s, a, rng.uniform(-1, 1), discount, int(first), share))
        rows.append((s, a, rng.uniform(-1, 1), discount, int(second), 1 - share))
    return rows


def _list_terminal(rng: np.random.Generator, discount: float) -> list[Row]:
    """Lists rows in which action 0 ends the episode, 1 goes on, and 2 goes back.

    Every action ends the episode in the last state.
    """
    rows: list[Row] = []
    for s in range(4):
        rewards = rng.uniform(-0.5, 1, NUM_ACTIONS)
        for a in range(NUM_ACTIONS):
            ends = a == 0 or s == 3
            following = 4 if ends else s + 1 if a == 1 else 0
            rows.append((s, a, rewards[a] + (s == 3), 0.0 if ends else discount, following, 1.0))
    return rows


def _list_time_limit(discount: float) -> list[Row]:
    """Lists a loop of 3 states; where the limit cuts an episode off, the discount stays gamma."""
    reward = (0.1, 0.05, 0.0)
    return [(s, a, reward[a], discount, (s + 1) % 3, 1.0) for s, a in np.ndindex(3, NUM_ACTIONS)]


def _list_bandit() -> list[Row]:
    """Lists one step whose rewards lie far apart, for losses whose minimiser is a quantile."""
    share = 1 / len(BANDIT_REWARDS)
    return [(0, a, r, 0.0, 1, share) for a in range(NUM_ACTIONS) for r in BANDIT_REWARDS]


def make_mdps(discount: float) -> MDP:
    """Makes all processes, side by side in one table.

    Args:
      discount: gamma of the time limit; the others have `discount - 0.09`, so that they are told
        apart.
    """
    rng = np.random.default_rng(0)
    lower = max(discount - 0.09, 0.0)
    # The number of states of each, the one after an end included.
    processes = {
        "deterministic": (4, _list_deterministic(rng, lower)),
        "stochastic": (4, _list_stochastic(rng, lower)),
        "terminal": (5, _list_terminal(rng, lower)),
        "time limit": (3, _list_time_limit(discount)),
        "bandit": (2, _list_bandit()),
    }
    starts, rows = [0], []
    for size, process in processes.values():
        first = starts[-1]
        rows += [(s + first, a, r, d, t + first, p) for s, a, r, d, t, p in process]
        starts.append(first + size)
    state, action, reward, gamma, following, probability = map(np.array, zip(*rows, strict=True))
    state, action, following = (x.astype(np.int32) for x in (state, action, following))
    transitions = (state, action, reward, gamma, following, probability)
    return MDP(*transitions, tuple(processes), tuple(starts))


def draw_start_values(mdp: MDP) -> np.ndarray:
    """Draws small values `[S, A]` to start from; those after an end are large."""
    q_values = np.random.default_rng(1).normal(size=(mdp.num_states, NUM_ACTIONS)) * 0.3
    return np.where(mdp.is_final[:, np.newaxis], _TERMINAL_VALUE, q_values)


def value_iteration(mdp: MDP, fixed_point: FixedPoint, q_values: np.ndarray) -> np.ndarray:
    """Finds the table `[S, A]` that equals its own expected targets.

    Args:
      mdp: the transitions.
      fixed_point: the target of one of them.
      q_values: `[S, A]` to start from; values after an end stay.

    Raises:
      ConfigError: if there is none.
    """
    is_final = mdp.is_final[:, np.newaxis]
    for _ in range(_MAX_SWEEPS):
        target = fixed_point.target(
            q_values[mdp.state], mdp.action, mdp.reward, mdp.discount, q_values[mdp.next_state]
        )
        new = np.where(is_final, q_values, 0.0)
        np.add.at(new, (mdp.state, mdp.action), mdp.probability * target)
        change = np.abs(new - q_values).max()
        q_values = new
        if change < 1e-9:
            return q_values
        if not np.isfinite(change):
            break
    raise ConfigError(
        f"fixed_point ({fixed_point.name}) has no values on the decision processes: iteration "
        "does not settle; its target must discount what comes from q_t"
    )
