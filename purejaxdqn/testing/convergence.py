"""Whether a loss, iterated on tabular decision processes, finds the values that it declares."""

from __future__ import annotations

from typing import Any

import numpy as np

from purejaxdqn.testing.cases import NUM_CASES, Bench, random_cases
from purejaxdqn.testing.fixed_points import Bootstrap, FixedPoint
from purejaxdqn.testing.iteration import action_values, iterate
from purejaxdqn.testing.mdps import (
    BANDIT_REWARDS,
    MDP,
    NUM_ACTIONS,
    is_final,
    make_mdps,
    start_values,
    value_iteration,
)
from purejaxdqn.testing.report import Check
from purejaxdqn.testing.tables import FRACTIONS, Table
from purejaxdqn.types import LossFn

_TOLERANCE = 5e-3  # of values up to 10; with 0.99 some 500 copies leave a hundredth of the start
_PROCESSES = ("deterministic", "stochastic", "terminal", "time limit")


def check_fixed_point(
    loss_fn: LossFn[Any],
    table: Table,
    bench: Bench,
    fixed_point: FixedPoint,
    bootstrap: Bootstrap,
    discount: float,
    wrong: str,
) -> list[Check]:
    """A row for each decision process, and one for known quantiles.

    Args:
      loss_fn: the loss.
      table: the kind of network.
      bench: of the loss.
      fixed_point: what is declared.
      bootstrap: from which network.
      discount: the largest gamma.
      wrong: what was found to be wrong already, to be said of values that are.

    Raises:
      ConfigError: if what is declared has no values.
    """
    mdp = make_mdps(discount)
    expected = value_iteration(mdp, fixed_point, start_values(mdp))
    learned = iterate(loss_fn, table, mdp, bootstrap, _near(mdp, expected))
    found = action_values(table, learned)
    is_mean, is_quantile = _minimiser(bench, table)
    checks = []
    for name in _PROCESSES:
        title = f"fixed point, {name}"
        if name == "stochastic" and not is_mean:
            why = "the penalty is no square: its minimiser is not the mean"
            checks.append(Check(title, None, "", why))
            continue
        rows = mdp.states_of(name)
        checks.append(_compare(title, found, expected, mdp, rows, fixed_point, wrong))
    if not is_mean:
        bandit = learned[mdp.states_of("bandit")][0]
        checks.append(_quantiles(table, bandit, is_quantile, wrong))
    return checks


def _near(mdp: MDP, expected: np.ndarray) -> np.ndarray:
    """Values to start from: not far, as what is slow to settle would take long with 0.99."""
    noise = np.random.default_rng(5).normal(size=expected.shape) * 0.3
    start = np.where(is_final(mdp)[:, np.newaxis], expected, expected + noise)
    start[mdp.states_of("bandit")] = start_values(mdp)[mdp.states_of("bandit")]
    return start


def _minimiser(bench: Bench, table: Table) -> tuple[bool, bool]:
    """Whether the minimiser is the mean, and else whether it is a quantile.

    It is the mean where the gradient grows as the error does, and a quantile of targets that lie
    far apart where it does not grow any more.
    """
    if table.representation == "categorical":
        return True, False  # the mixture of the targets, and its mean is theirs
    cases = random_cases(NUM_CASES, NUM_ACTIONS)  # as many as elsewhere: nothing new to compile
    base, near, far, farther, farthest = (
        bench.answers(cases.shifted(q_tm1=-by)).pull for by in (0.0, 1.0, 1e3, 1e5, 1e7)
    )
    is_mean = np.allclose(far - base, 1e3 * (near - base), rtol=1e-3)
    return bool(is_mean), bool(np.allclose(farther, farthest, rtol=1e-3))


def _compare(
    title: str,
    found: np.ndarray,
    expected: np.ndarray,
    mdp: MDP,
    rows: slice,
    fixed_point: FixedPoint,
    wrong: str,
) -> Check:
    used = ~is_final(mdp)[rows]
    error = np.abs(found[rows] - expected[rows])[used]
    error = np.where(np.isfinite(error), error, np.inf)
    state, action = np.unravel_index(error.argmax(), error.shape)
    worst = float(error.max())
    if worst < _TOLERANCE * max(1.0, np.abs(expected[rows]).max() / 10):
        return Check(title, True, f"{worst:.1e}")
    message = (
        f"the value of action {action} in state {state} converges to "
        f"{found[rows][used][state, action]:.4g}, and that of the declared fixed point "
        f"({fixed_point.name}) is {expected[rows][used][state, action]:.4g}"
    )
    hint = wrong or (
        "what a loss is meant to converge to can be declared: fixed_point=soft(0.1) and others of "
        "purejaxdqn.testing.fixed_points, a function of one's own, or None"
    )
    return Check(title, False, f"{worst:.3g}", f"{message}: {hint}")


def _quantiles(table: Table, learned: np.ndarray, is_quantile: bool, wrong: str) -> Check:
    """Rewards that lie far apart, all as likely: `learned` is `[A, ...]` of their state."""
    title = "known quantiles"
    if not is_quantile:
        why = "its minimiser is neither a mean nor a quantile"
        return Check(title, None, "", why)
    fractions = FRACTIONS if table.representation == "quantile" else np.array([0.5])
    expected = BANDIT_REWARDS[np.floor(fractions * len(BANDIT_REWARDS)).astype(int)]
    found = learned.reshape(len(learned), -1)
    scale = float(np.ptp(BANDIT_REWARDS))
    error = np.abs(found - expected[np.newaxis]) / scale
    worst = float(np.where(np.isfinite(error), error, np.inf).max())
    if worst < 1e-2:
        return Check(title, True, f"{worst:.1e}")
    i = int(error.max(0).argmax())
    mirrored = np.abs(found - expected[::-1][np.newaxis]).max() / scale < 1e-2
    same = len(fractions) > 1 and np.ptp(found, axis=1).max() / scale < 1e-2
    why = (
        "it learns the quantile of 1 - fraction: the sign of the error, or the asymmetry "
        "|fraction - (error < 0)|, is the wrong way round"
        if mirrored
        else "all quantiles are the same: is the fraction that of the prediction, on its own axis?"
        if same
        else "the asymmetry must be |fraction - (error < 0)|, with the fraction of the prediction"
    )
    message = (
        f"the quantile {fractions[i]:.4g} of rewards that are all as likely converges to "
        f"{found[0, i]:.6g} and is {expected[i]:.6g}: {wrong or why}"
    )
    return Check(title, False, f"{worst:.3g}", message)
