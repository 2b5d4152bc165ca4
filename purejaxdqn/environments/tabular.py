"""Small tasks as tables: the exact decision process of one, and its optimal action values."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments.base import EnvState
from purejaxdqn.types import Array, ConfigError, TimeStep, ensure, ensure_number

MOST_STATES = 2_500  # of a task that is small; a table takes their square
_MAX_SWEEPS = 100_000  # of value iteration, where nothing is discounted


class TabularMDP(NamedTuple):
    """A task of `S` states and `A` actions as a Markov decision process, in float64.

    Its states are those in which an action is taken; what an episode ends in is none of them. It
    knows no time limit: values are bootstrapped through it.
    """

    transition: np.ndarray  # [S, A, S] probability to go on to each state; else the episode ends
    reward: np.ndarray  # [S, A] the expected one; -inf where an action may not be taken
    observations: np.ndarray  # [S, *obs] by which a network tells the states apart
    start: np.ndarray  # [S] probability that an episode begins there


def tabulate(
    begin: Callable[..., EnvState],
    observe: Callable[[EnvState], Array],
    move: Callable[[EnvState, Array, Array], tuple[EnvState, TimeStep]],
    states: Sequence[np.ndarray],
    starts: Sequence[np.ndarray],
    num_actions: int,
    probabilities: Sequence[float] = (1.0,),
) -> TabularMDP:
    """Lists all that can happen in a task whose chance is a draw from a few outcomes.

    Args:
      begin: makes a state of numbers.
      observe: `state -> obs [*obs]`, which tells any two states apart.
      move: `(state, action [], outcome []) -> (state, TimeStep)`, a step without any chance. It is
        computed in 64-bit mode.
      states: those numbers, `[N, ...]` each, of all states in which an action may be taken. What is
        never reached from a start is left out.
      starts: likewise, `[K, ...]`; an episode begins in each of them with the same probability.
      num_actions: how many actions there are.
      probabilities: of the outcomes 0, 1, ...
    """

    def compute(states: Sequence[Array], starts: Sequence[Array]) -> tuple[Any, Array, TimeStep]:
        every, first = (jax.vmap(begin)(*numbers) for numbers in (states, starts))
        outcomes = jnp.arange(len(probabilities), dtype=jnp.int32)
        actions = jnp.arange(num_actions, dtype=jnp.int32)
        of_state = jax.vmap(jax.vmap(move, (None, None, 0)), (None, 0, None))
        timestep = jax.vmap(of_state, (0, None, None))(every, actions, outcomes)[1]
        return jax.vmap(observe)(every), jax.vmap(observe)(first), timestep

    with jax.enable_x64(True):
        # Compiled apart, as a program that is being traced may ask for the table.
        compiled = jax.jit(compute).lower(states, starts).compile()
        observations, first, timestep = jax.tree.map(np.asarray, compiled(states, starts))
    obs, reward, terminated, _ = timestep  # [N, A, outcomes, ...]
    number = {row.tobytes(): i for i, row in enumerate(observations)}
    goes_on = ~terminated & (np.array(probabilities) > 0)
    following = np.full(goes_on.shape, -1)
    following[goes_on] = [number[row.tobytes()] for row in obs[goes_on]]
    begins = np.array([number[row.tobytes()] for row in first])

    reached, new = np.zeros(len(observations), bool), begins
    while new.size:
        reached[new] = True
        new = np.setdiff1d(following[new], [-1, *np.flatnonzero(reached)])
    (kept,) = np.nonzero(reached)
    start = np.zeros(len(reached))
    np.add.at(start, begins, 1 / len(begins))
    transition = np.zeros((len(kept), num_actions, len(kept)))
    for outcome, probability in enumerate(probabilities):
        state, action = np.nonzero(following[kept, :, outcome] >= 0)
        to = np.searchsorted(kept, following[kept, :, outcome][state, action])
        transition[state, action, to] += probability
    mean = (reward[kept] * np.array(probabilities)).sum(axis=-1)
    return TabularMDP(transition, mean, observations[kept], start[kept])


def optimal_values(mdp: TabularMDP, discount: float) -> np.ndarray:
    """Computes the optimal action values Q* `[S, A]`, exactly up to rounding in float64.

    Value iteration is exact where episodes end after so many steps at most. Else policy iteration
    follows (Howard, "Dynamic programming and Markov processes", 1960), or more of value iteration
    where the discount is 1.

    Raises:
      ConfigError: for a table that is none, or a discount that does not lie between 0 and 1; and
        for 1, where the values never settle, as episodes may go on for ever and rewards add up.
    """
    ensure_number("discount", discount, 0, 1)
    transition, reward = mdp.transition, mdp.reward
    num_states = len(reward)
    is_right = transition.shape == (*reward.shape, num_states) and bool((transition >= 0).all())
    is_right &= bool((transition.sum(axis=-1) < 1 + 1e-9).all())
    ensure(is_right, "transition", transition.shape, "probabilities [S, A, S], at most 1 in sum")
    is_right = bool(np.isfinite(reward.max(axis=1)).all())
    ensure(is_right, "reward", reward, "numbers [S, A], or -inf for some actions of a state")
    values, every = np.zeros(num_states), np.arange(num_states)
    for _ in range(_MAX_SWEEPS if discount == 1 else num_states + 1):
        old, q_values = values, reward + discount * (transition @ values)
        values = q_values.max(axis=1)
        if np.abs(values - old).max() <= 1e-15 * np.abs(values).max():
            return q_values
    if discount == 1:
        raise ConfigError(
            "discount (1) must be below 1 for this task: its values do not settle in "
            f"{_MAX_SWEEPS:,} sweeps, as episodes may go on for ever"
        )
    policy = q_values.argmax(axis=1)
    while True:
        goes_on = np.eye(num_states) - discount * transition[every, policy]
        values = np.linalg.solve(goes_on, reward[every, policy])
        q_values = reward + discount * (transition @ values)
        # What rounding alone makes better would be followed round and round.
        better = q_values.max(axis=1) > values + 1e-12 * np.abs(values).max()
        if not better.any():
            return q_values
        policy = np.where(better, q_values.argmax(axis=1), policy)
