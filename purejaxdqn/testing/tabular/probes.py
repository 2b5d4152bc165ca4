"""Five probe environments whose values are known, as one: each episode plays one of them."""

import functools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import Environment
from purejaxdqn.testing.report import Check, expect
from purejaxdqn.types import Array, Step, TimeStep, Transition

MAX_STEPS = 5  # odd, so that the delayed reward is cut off between its two observations
NUM_ACTIONS = 2
NUM_OBS = 8
DISCOUNT = 0.9  # of the values that are learned
# The observations of each probe.
_PROBES: dict[str, list[int]] = {
    "constant reward": [0],
    "value by observation": [1, 2],
    "delayed reward": [3, 4],
    "time limit": [5],
    "choice": [6, 7],
}
_STARTS = np.array([0, 1, 2, 3, 5, 6, 7], np.int32)  # where episodes may start
# By observation and action. The delayed reward moves between two observations, the time limit stays
# where it is; the others end after one step.
_REWARD = np.array([[1, 1], [-1, -1], [2, 2], [0, 0], [1, 1], [1, 1], [1, 0], [0, 1]], np.float32)
_FOLLOWING = np.array([0, 1, 2, 4, 3, 5, 6, 7], np.int32)
_IS_END = np.array([1, 1, 1, 0, 0, 0, 1, 1], bool)

_NO_END = "a terminal transition bootstraps: discount_t must be 0 where the episode terminated"
MISTAKES = {
    "death": "a time limit is learned as a death: where the episode was truncated, and not "
    "terminated, discount_t must stay gamma",
    "gamma": "the bootstrap after m steps is discounted by gamma and not by gamma to the m",
    "sum": "rewards within a window are summed without their discount",
    "across": "windows of n steps reach across the end of an episode into the next",
    "next episode": "at a time limit it bootstraps from the first observation of the next episode, "
    "and not from the true last one",
    "no end": _NO_END,
    "no end, next episode": _NO_END,
}
_State = tuple[Array, Array]  # the number of the observation, and the steps of the episode


def make_probe_environment() -> Environment:
    """Makes an environment of episodes drawn from the probes, with one-hot observations `[8]`."""
    rewards, following, is_end = map(jnp.asarray, (_REWARD, _FOLLOWING, _IS_END))

    def reset(key: Array) -> tuple[_State, Array]:
        number = jax.random.choice(key, jnp.asarray(_STARTS))
        return (number, jnp.zeros((), jnp.int32)), jax.nn.one_hot(number, NUM_OBS)

    def step(key: Array, state: _State, action: Array) -> tuple[_State, TimeStep]:
        number, num_steps = state[0], state[1] + 1
        flags = is_end[number], num_steps >= MAX_STEPS
        obs = jax.nn.one_hot(following[number], NUM_OBS)
        return (following[number], num_steps), TimeStep(obs, rewards[number, action], *flags)

    space = gymnasium.spaces.Box(0, 1, (NUM_OBS,), np.float32)
    return Environment("probes", reset, step, NUM_ACTIONS, space, None, MAX_STEPS)


def compute_known_values() -> np.ndarray:
    """Computes the optimal values `[observations, A]`, in closed form."""
    values = _REWARD.astype(np.float64)
    loop = 1 / (1 - DISCOUNT**2)
    values[3], values[4], values[5] = DISCOUNT * loop, loop, 1 / (1 - DISCOUNT)
    return values


def play_probes(num_steps: int, num_envs: int) -> Step:
    """Plays the same episodes each time; a `Step` of NumPy arrays `[T, E]`, obs are numbers."""
    rng = np.random.default_rng(0)
    rows = []
    number, since = rng.choice(_STARTS, num_envs), np.zeros(num_envs, int)
    for _ in range(num_steps):
        action = rng.integers(0, NUM_ACTIONS, num_envs)
        flags = ends, cut = _IS_END[number], since + 1 >= MAX_STEPS
        following = _FOLLOWING[number]
        rows.append((number, action, _REWARD[number, action], *flags, following))
        number = np.where(ends | cut, rng.choice(_STARTS, num_envs), following)
        since = np.where(ends | cut, 0, since + 1)
    fields: Any = map(np.array, zip(*rows, strict=True))
    return Step(*fields)


def solve_values(transitions: Transition) -> np.ndarray:
    """Finds the values `[observations, A]` that equal their own mean targets.

    Transitions are NumPy arrays `[N]`, their observations numbers; values that do not settle grow
    large, and those of actions that were never taken are NaN.
    """
    obs_tm1, a_tm1, r_t, discount_t, obs_t, *_ = transitions
    count = np.zeros((NUM_OBS, NUM_ACTIONS))
    np.add.at(count, (obs_tm1, a_tm1), 1)
    q_values = np.zeros_like(count)
    for _ in range(400):
        total = np.zeros_like(count)
        np.add.at(total, (obs_tm1, a_tm1), r_t + discount_t * q_values[obs_t].max(1))
        q_values = np.clip(total / np.maximum(count, 1), -1e6, 1e6)
    return np.where(count > 0, q_values, np.nan)


@functools.cache
def find_values(mistake: str, n_step: int) -> np.ndarray:
    """Finds the values `[observations, A]` that one of `MISTAKES` leads to; "" stands for none."""
    stream = jax.tree.map(lambda x: x[:, 0], play_probes(3000, 1))
    t = np.arange(len(stream.obs) - n_step)
    steps = t[:, np.newaxis] + np.arange(n_step)
    ends = (stream.terminated | stream.truncated)[steps] & (mistake != "across")
    m = np.where(ends.any(1), ends.argmax(1) + 1, n_step)
    gammas = np.full(n_step, 1.0 if mistake == "sum" else DISCOUNT) ** np.arange(n_step)
    r_t = (stream.reward[steps] * gammas * (np.arange(n_step) < m[:, np.newaxis])).sum(1)
    last = t + m - 1
    terminated, truncated = stream.terminated[last], stream.truncated[last]
    is_end = terminated & (not mistake.startswith("no end")) | truncated & (mistake == "death")
    discount_t = np.where(is_end, 0.0, DISCOUNT ** (1 if mistake == "gamma" else m))
    late = {"next episode": truncated, "no end, next episode": terminated}.get(mistake, False)
    obs_t = np.where(late, stream.obs[last + 1], stream.next_obs[last])
    fields: Any = (stream.obs[t], stream.action[t], r_t, discount_t, obs_t, None, {})
    return solve_values(Transition._make(fields))


def name_mistake(learned: np.ndarray, n_step: int) -> str:
    """Names the mistake whose values are nearest to those `[observations, A]` that were learned."""

    def distance(mistake: str) -> float:
        difference = np.clip(learned, -100, 100) - np.clip(find_values(mistake, n_step), -100, 100)
        return float(np.nanmean(np.where(np.isfinite(learned), np.abs(difference), 100)))

    nearest = min(["", *MISTAKES], key=distance)
    return MISTAKES.get(nearest, "no mistake that is known fits")


def check_approach(before: np.ndarray, after: np.ndarray) -> str:
    """Checks that values `[observations, A]` of episodes of one step come nearer to the known."""
    rows = [i for name in ("constant reward", "value by observation") for i in _PROBES[name]]
    known = compute_known_values()[rows]
    one, other = (float(np.abs(values[rows] - known).mean()) for values in (before, after))
    wrong = (
        f"the values of episodes of one step are off by {one:.3g} at first and by {other:.3g} in "
        "the end: the optimizer leads away from them; is the sign of its step wrong?"
    )
    return expect(other < one, f"{one:.3g} to {other:.3g}", wrong)


def check_probes(learned: np.ndarray, n_step: int) -> list[Check]:
    """Makes a row for each probe from the values `[observations, A]` that were learned."""
    checks = []
    for name, rows in _PROBES.items():
        found, known = learned[rows], compute_known_values()[rows]
        error = np.abs(np.nan_to_num(found, nan=np.inf) - known)
        i, a = np.unravel_index(error.argmax(), error.shape)
        passed, message = bool(error[i, a] < 0.02 * max(1.0, np.abs(known).max())), ""
        if not passed:
            message = (
                f"the value of action {a} in observation {rows[i]} is learned as {found[i, a]:.4g} "
                f"and is {known[i, a]:.4g}: {name_mistake(learned, n_step)}"
            )
        checks.append(Check(f"probe: {name}", passed, f"{error[i, a]:.1e}", message))
    return checks
