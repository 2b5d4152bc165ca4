"""Finds the values that the probes have where transitions are made wrongly, in plain NumPy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from purejaxdqn.testing.report import Check
from purejaxdqn.testing.tabular.probe_environment import (
    FOLLOWING,
    IS_END,
    MAX_STEPS,
    NUM_ACTIONS,
    NUM_OBS,
    PROBES,
    REWARD,
    STARTS,
    compute_known_values,
)
from purejaxdqn.types import Step

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


def play_probes(num_steps: int, num_envs: int) -> Step:
    """Plays episodes of all probes one after another, the same each time.

    Returns:
      A `Step` of NumPy arrays `[T, E]`, with numbers for observations.
    """
    rng = np.random.default_rng(0)
    starts = np.concatenate([STARTS[name] for name in PROBES])
    rows = []
    number, since = rng.choice(starts, num_envs), np.zeros(num_envs, int)
    for _ in range(num_steps):
        action = rng.integers(0, NUM_ACTIONS, num_envs)
        since = since + 1
        row = (number, action, REWARD[number, action], IS_END[number], since >= MAX_STEPS)
        rows.append((*row, FOLLOWING[number]))
        ended = row[3] | row[4]
        number = np.where(ended, rng.choice(starts, num_envs), FOLLOWING[number])
        since = np.where(ended, 0, since)
    fields: Any = (np.array(x) for x in zip(*rows, strict=True))
    return Step._make(fields)


def solve_values(
    obs_tm1: np.ndarray,
    a_tm1: np.ndarray,
    r_t: np.ndarray,
    discount_t: np.ndarray,
    obs_t: np.ndarray,
) -> np.ndarray:
    """Finds the values `[observations, A]` that equal their own mean targets.

    The transitions are `[N]`. Actions that were never taken have NaN; values that do not settle
    grow large.
    """
    shape = (NUM_OBS, NUM_ACTIONS)
    count = np.zeros(shape)
    np.add.at(count, (obs_tm1, a_tm1), 1)
    q_values = np.zeros(shape)
    for _ in range(400):
        total = np.zeros(shape)
        np.add.at(total, (obs_tm1, a_tm1), r_t + discount_t * q_values[obs_t].max(1))
        q_values = np.clip(total / np.maximum(count, 1), -1e6, 1e6)
    return np.where(count > 0, q_values, np.nan)


@functools.cache
def find_values(mistake: str, discount: float, n_step: int) -> np.ndarray:
    """Finds the values `[observations, A]` that one of `MISTAKES` leads to; "" stands for none."""
    stream = play_probes(3000, 1)
    rows = []
    for t in range(len(stream.obs) - n_step):
        m, end = n_step, t + n_step - 1
        ends = (stream.terminated | stream.truncated)[t : t + n_step, 0]
        if ends.any() and mistake != "across":
            m = int(ends.argmax()) + 1
            end = t + m - 1
        gammas = np.ones(m) if mistake == "sum" else discount ** np.arange(m)
        r_t = float((gammas * stream.reward[t : t + m, 0]).sum())
        discount_t = discount if mistake == "gamma" else discount**m
        if stream.terminated[end, 0] and not mistake.startswith("no end"):
            discount_t = 0.0
        if stream.truncated[end, 0] and mistake == "death":
            discount_t = 0.0
        obs_t = stream.next_obs[end, 0]
        follows = {"next episode": stream.truncated, "no end, next episode": stream.terminated}
        if mistake in follows and follows[mistake][end, 0]:
            obs_t = stream.obs[end + 1, 0]
        rows.append((stream.obs[t, 0], stream.action[t, 0], r_t, discount_t, obs_t))
    return solve_values(*(np.array(x) for x in zip(*rows, strict=True)))


def name_mistake(learned: np.ndarray, discount: float, n_step: int) -> str:
    """Names the mistake whose values are nearest to those `[observations, A]` that were learned."""

    def distance(mistake: str) -> float:
        expected = find_values(mistake, discount, n_step)
        difference = np.abs(np.clip(learned, -100, 100) - np.clip(expected, -100, 100))
        return float(np.nanmean(np.where(np.isfinite(learned), difference, 100)))

    nearest = min(MISTAKES, key=distance)
    return (
        MISTAKES[nearest] if distance(nearest) < distance("") else "no mistake that is known fits"
    )


def check_probes(learned: np.ndarray, discount: float, n_step: int) -> list[Check]:
    """Makes a row for each probe from the values `[observations, A]` that were learned."""
    known = compute_known_values(discount)
    checks = []
    for name, numbers in PROBES.items():
        rows = list(numbers)
        error = np.abs(np.nan_to_num(learned[rows], nan=np.inf) - known[rows])
        worst = float(error.max())
        if worst < 0.02 * max(1.0, float(np.abs(known[rows]).max())):
            checks.append(Check(f"probe: {name}", True, f"{worst:.1e}"))
            continue
        i, a = np.unravel_index(error.argmax(), error.shape)
        message = (
            f"the value of action {a} in observation {rows[i]} is learned as "
            f"{learned[rows][i, a]:.4g} and is {known[rows][i, a]:.4g}: "
            f"{name_mistake(learned, discount, n_step)}"
        )
        checks.append(Check(f"probe: {name}", False, f"{worst:.3g}", message))
    return checks
