"""Checks that reward, discount and bootstrap enter the target as in a Bellman equation."""

from __future__ import annotations

import functools

import numpy as np

from purejaxdqn.testing.fixed_points import FixedPoint
from purejaxdqn.testing.losses.gradients import FAR, compare_losses, find_size, split_by_action
from purejaxdqn.testing.losses.single_transitions import Cases, Subject
from purejaxdqn.testing.losses.target_differences import (
    describe_discount,
    describe_reward,
    describe_rounding,
    find_difference,
)
from purejaxdqn.testing.losses.target_formulas import Formula, name_target
from purejaxdqn.testing.report import Check, attempt, expect


def check_target_parts(subject: Subject) -> list[Check]:
    """Makes the rows on each part of the target."""
    reward = attempt("the reward counts once", functools.partial(_check_reward, subject))
    if reward.passed is False and subject.fixed_point is None:
        why = "no fixed point is declared, and a regulariser may depend on q_tm1 too"
        reward = reward._replace(passed=None, message=why)
    rows = {
        "the discount counts once": _check_discount,
        f"bootstraps from: {subject.bootstrap}": _check_bootstrap,
    }
    if subject.bootstrap == "none":
        rows = {"bootstraps from: none": _check_no_bootstrap}
    return [reward, *(attempt(row, functools.partial(f, subject)) for row, f in rows.items())]


def check_declared_target(subject: Subject, fixed_point: FixedPoint) -> tuple[Check, str]:
    """Makes the row on the whole target, and says what is wrong with it."""
    wrong = ""

    def look() -> str:
        nonlocal wrong
        size = find_size(subject.settled)
        expect(
            np.isfinite(size) and size < FAR / 2,
            f"{size:.1e}",
            f"minimised with all else held fixed, q_tm1[a_tm1] goes to {size:.3g} and does not "
            "settle: the loss, or the prediction in it, has the wrong sign, or the error has no "
            "penalty",
        )
        formula = _find_formula(subject, fixed_point)
        difference, example, wrong = find_difference(subject, fixed_point)
        # A bootstrap from both networks may mix them: it is judged only where they agree.
        if formula is not None and formula.mistakes and (example or subject.bootstrap != "both"):
            wrong = "; ".join(formula.mistakes)
            example = f"the target is {formula.text}, and {fixed_point.name} was declared"
        return expect(not example, f"{difference:.1e}", f"{example}: {wrong}")

    return attempt("the target is the declared one", look), wrong


def _find_formula(subject: Subject, fixed_point: FixedPoint) -> Formula | None:
    cases, settled = subject.cases, subject.settled
    q_tm1 = cases.online[:, 0].copy()
    q_tm1[np.arange(len(settled)), cases.a_tm1] = settled
    formula = name_target(settled, q_tm1, cases, fixed_point, subject.bootstrap)
    if formula is None:  # the target may depend on the very values that were moved
        reached = _find_targets_by_reward(subject)
        if find_size(reached) > FAR / 2:
            return None  # no reward makes the prediction stay
        q_tm1 = cases.online[:, 0]
        formula = name_target(reached, q_tm1, cases, fixed_point, subject.bootstrap)
    return formula


def _find_targets_by_reward(subject: Subject) -> np.ndarray:
    """Finds the targets `[N]` from the reward that makes each prediction stay, by bisection."""
    cases = subject.cases
    low, high = (np.full(len(cases.r_t), by) for by in (-FAR, FAR))
    for _ in range(45):
        middle = (low + high) / 2
        rises = subject.evaluate(cases.shift(r_t=middle)).pull > 0
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    return cases.read_predictions() - middle


def _describe_weights(subject: Subject, expected: np.ndarray | float, *others: Cases) -> str:
    """Says that a weight is wrong, and not the target, if other cases move it as `expected`."""
    moves = (subject.settle(other) - subject.settled for other in others)
    if any(find_size(move - expected) > 1e-4 for move in moves):
        return ""
    return (
        "the target moves as it must, but what the error costs depends on r_t, discount_t or "
        "values too: weights that differ between transitions bias what is learned"
    )


def _check_reward(subject: Subject) -> str:
    cases = subject.cases
    change = compare_losses(subject, cases, cases.shift(r_t=1.0, q_tm1=1.0))
    if change < 1e-6:
        return f"{change:.1e}"
    why = (
        _describe_weights(subject, 1.0, cases.shift(r_t=1.0))
        or describe_rounding(subject)
        or describe_reward(subject)
        or "r_t must count once in the target, undiscounted and with a plus sign, and "
        "q_tm1[a_tm1] be taken off"
    )
    raise AssertionError(
        f"{change:.1e}",
        "1 more of reward and of all q_tm1 changes the loss, by a share of up to "
        f"{change:.3g}: {why}",
    )


def _check_discount(subject: Subject) -> str:
    cases = subject.cases
    names = {"target": ("q_t",), "online": ("q_t_selector",), "both": ("q_t", "q_t_selector")}
    raised = cases.shift(**dict.fromkeys(names[subject.bootstrap], 1.0))
    rewarded = cases.shift(r_t=cases.discount_t)
    change = compare_losses(subject, raised, rewarded)
    if change < 1e-6:
        return f"{change:.1e}"
    values = " and ".join(names[subject.bootstrap])
    if compare_losses(subject, raised, cases) == 0:
        why = f"{values} does not count at all: is the target built from other values?"
    else:
        why = (
            _describe_weights(subject, cases.discount_t, raised, rewarded)
            or describe_discount(subject)
            or describe_reward(subject)
            or "discount_t must multiply what comes from time t, once"
        )
    raise AssertionError(
        f"{change:.1e}",
        f"1 more of {values} must be worth as much as discount_t more of r_t, and the loss differs "
        f"by a share of up to {change:.3g}: {why}",
    )


def _check_no_bootstrap(subject: Subject) -> str:
    cases = subject.cases
    change = compare_losses(subject, cases, cases.shift(q_t=1.0, q_t_selector=1.0))
    return expect(
        change < 1e-6,
        f"{change:.1e}",
        f"the loss changes with the values at obs_t, by a share of up to {change:.3g}, although it "
        "is said not to bootstrap (bootstrap='none')",
    )


def _check_bootstrap(subject: Subject) -> str:
    cases, bootstrap = subject.cases, subject.bootstrap
    rng = np.random.default_rng(4)
    changed: list[tuple[str, Cases, str]] = []
    if bootstrap == "target":
        message = (
            "the target takes values of the online network (params, q_t_selector), which may pick "
            "an action but not judge it: they belong to the target network (target_params, q_t). "
            "Where that is meant: bootstrap='online'"
        )
        changed.append(("1 more of all q_t_selector", cases.shift(q_t_selector=1.0), message))
    if bootstrap == "online":
        message = (
            "it uses target_params although it is said to do without a target network "
            "(bootstrap='online')"
        )
        q_t, target_q_tm1 = rng.normal(size=(2, 1, cases.target.shape[2])).repeat(
            len(cases.r_t), axis=1
        )
        other = cases.shift(q_t=q_t, target_q_tm1=target_q_tm1)
        changed.append(("the target network's values", other, message))
    message = "the target takes values of obs_tm1 where those of obs_t belong"
    other = cases.shift(target_q_tm1=1.0)
    changed.append(("1 more of all the target network's q_tm1", other, message))
    sizes, is_taken = split_by_action(subject.answers, cases)
    # Where other actions have a gradient, a row of its own says so.
    is_learned = subject.learns_other_actions or sizes[~is_taken].any()
    if bootstrap != "online" and not is_learned:
        message = (
            "the target takes the online network's values at obs_tm1. For a loss that is meant to "
            "learn of other actions: learns_other_actions=True"
        )
        other = cases.shift(q_tm1=~is_taken * rng.normal(size=is_taken.shape))
        changed.append(("q_tm1 of actions not taken", other, message))
    largest = 0.0
    for what, other, message in changed:
        change = compare_losses(subject, cases, other)
        largest = max(largest, change)
        wrong = f"the loss changes with {what}, by a share of up to {change:.3g}: {message}"
        expect(change < 1e-6, f"{change:.1e}", wrong)
    return f"{largest:.1e}"
