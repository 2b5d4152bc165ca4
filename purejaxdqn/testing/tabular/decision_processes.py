"""Small tabular decision processes whose values are known, by value iteration in plain NumPy."""

from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.testing.fixed_points import FixedPoint
from purejaxdqn.types import ConfigError

NUM_ACTIONS = 3
BANDIT_REWARDS = 1e4 * np.array([-4.0, -2.5, -2.0, -0.5, 0.25, 1.0, 1.75, 3.0, 5.0])
_MAX_SWEEPS = 20_000
_TERMINAL_VALUE = 7.0  # of the state after a terminal transition; it must not count


class MDP(NamedTuple):
    """All transitions of one or more decision processes, as a table of `N` rows."""

    state: np.ndarray  # [N] int32, as `action` and `next_state`
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray  # [N] gamma, and 0 only where the process terminates
    next_state: np.ndarray
    probability: np.ndarray  # [N] of the transition, given state and action
    process: np.ndarray  # [S] the index in `names` of the process that has the state
    names: tuple[str, ...]  # of the processes

    @property
    def num_states(self) -> int:
        """The number of states of all processes."""
        return len(self.process)

    @property
    def is_final(self) -> np.ndarray:
        """`[S]` which states follow an end, so that no action is ever taken in them."""
        return ~np.isin(np.arange(self.num_states), self.state)

    def states_of(self, name: str) -> np.ndarray:
        """Returns `[S]` which rows of a table belong to a process."""
        return self.process == self.names.index(name)


def make_mdps(discount: float) -> MDP:
    """Makes all processes, side by side in one table; `discount` is gamma of the time limit.

    The others have `discount - 0.09`, so that they are told apart.
    """
    rng = np.random.default_rng(0)
    lower = max(discount - 0.09, 0.0)
    pairs = [*np.ndindex(4, NUM_ACTIONS)]
    # Of each process the number of states, the one after an end included, and the rows.
    processes: dict[str, tuple[int, list[tuple[Any, ...]]]] = {}
    rewards = rng.uniform(-1, 1, (4, NUM_ACTIONS))
    following = rng.permuted(np.tile(np.arange(4), (NUM_ACTIONS, 1)), axis=1).T
    rows = [(s, a, rewards[s, a], lower, following[s, a], 1.0) for s, a in pairs]
    processes["deterministic"] = 4, rows
    processes["stochastic"] = 4, []  # the reward depends on the next state
    for s, a in pairs:
        share = rng.uniform(0.2, 0.8)
        for t, p in zip(rng.choice(4, 2, replace=False), (share, 1 - share), strict=True):
            processes["stochastic"][1].append((s, a, rng.uniform(-1, 1), lower, t, p))
    # Action 0 ends the episode, 1 goes on, and 2 goes back; in the last state every action ends it.
    rewards = rng.uniform(-0.5, 1, (4, NUM_ACTIONS))
    rewards[3] += 1
    following = np.array([[4, 1, 0], [4, 2, 0], [4, 3, 0], [4, 4, 4]])
    discounts = np.where(following == 4, 0.0, lower)
    rows = [(s, a, rewards[s, a], discounts[s, a], following[s, a], 1.0) for s, a in pairs]
    processes["terminal"] = 5, rows
    # A loop; where the limit cuts an episode off, the discount stays gamma.
    rows = [(s, a, 0.1 - 0.05 * a, discount, (s + 1) % 3, 1.0) for s, a in pairs if s < 3]
    processes["time limit"] = 3, rows
    # One step whose rewards lie far apart, for losses whose minimiser is a quantile.
    share = 1 / len(BANDIT_REWARDS)
    rows = [(0, a, r, 0.0, 1, share) for a in range(NUM_ACTIONS) for r in BANDIT_REWARDS]
    processes["bandit"] = 2, rows
    table: list[tuple[Any, ...]] = []
    process: list[int] = []
    for i, (num_states, rows) in enumerate(processes.values()):
        at = len(process)
        table += [(s + at, a, r, gamma, t + at, p) for s, a, r, gamma, t, p in rows]
        process += [i] * num_states
    columns = map(np.array, zip(*table, strict=True), "iiddid")
    return MDP._make((*columns, np.array(process), tuple(processes)))


def draw_start_values(mdp: MDP) -> np.ndarray:
    """Draws small values `[S, A]` to start from; those after an end are large."""
    q_values = np.random.default_rng(1).normal(size=(mdp.num_states, NUM_ACTIONS)) * 0.3
    return np.where(mdp.is_final[:, np.newaxis], _TERMINAL_VALUE, q_values)


def value_iteration(mdp: MDP, fixed_point: FixedPoint, q_values: np.ndarray) -> np.ndarray:
    """Finds the table `[S, A]` that equals its own expected targets, or raises a ConfigError."""
    is_final = mdp.is_final[:, np.newaxis]
    taken = (mdp.action, mdp.reward, mdp.discount)
    for _ in range(_MAX_SWEEPS):
        target = fixed_point.target(q_values[mdp.state], *taken, q_values[mdp.next_state])
        new = np.where(is_final, q_values, 0.0)  # values after an end stay
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
