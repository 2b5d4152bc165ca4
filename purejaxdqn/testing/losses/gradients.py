"""Checks where the gradient of a loss goes, and that it leads towards the target."""

from __future__ import annotations

import functools

import numpy as np

from purejaxdqn.testing.losses.single_transitions import Answers, Cases, Subject
from purejaxdqn.testing.report import Check, attempt, expect

FAR = 1e3
_MILLION = 1e6
_STOP = "wrap the target in jax.lax.stop_gradient"
_CLIPPED = "a large error has no gradient: clip the gradient (Huber), not the error"


def check_gradients(subject: Subject) -> list[Check]:
    """Checks where the gradient goes, a row each."""
    rows = {
        "no gradient to the target network": _check_target_network,
        "no gradient through the target": _check_values_at_t,
        "the gradient reaches q_tm1[a_tm1]": _check_prediction,
        "no gradient to other actions": _check_other_actions,
        "leads towards the target": _check_direction,
        "finite differences, float64": _check_slopes,
    }
    if subject.learns_other_actions:
        del rows["no gradient to other actions"]
    if subject.learns_next_obs:
        del rows["no gradient through the target"]
    return [attempt(name, functools.partial(check, subject)) for name, check in rows.items()]


def find_size(x: np.ndarray) -> float:
    """Returns the largest magnitude."""
    return float(np.abs(x).max(initial=0))


def compare_losses(subject: Subject, one: Cases, other: Cases) -> float:
    """Returns how far the losses of two lists of cases differ, as a share."""
    a, b = subject.evaluate(one).loss, subject.evaluate(other).loss
    return find_size((a - b) / (1 + np.abs(a)))


def split_by_action(answers: Answers, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradient's sizes `[N, A]` at obs_tm1, and which are those of `a_tm1`."""
    grad = answers.grad[:, 0]
    sizes = np.abs(grad).reshape(*grad.shape[:2], -1).max(-1)
    return sizes, np.arange(sizes.shape[1]) == cases.a_tm1[:, np.newaxis]


def _check_target_network(subject: Subject) -> str:
    grad = subject.answers.target_grad
    size = find_size(grad)
    at = "obs_t" if find_size(grad[:, 1]) else "obs_tm1"
    return expect(
        size == 0,
        f"{size:.3g}",
        f"a gradient of up to {size:.3g} reaches target_params (its values at {at}): {_STOP}",
    )


def _check_values_at_t(subject: Subject) -> str:
    size = find_size(subject.answers.grad[:, 1])
    return expect(
        size == 0,
        f"{size:.3g}",
        f"a gradient of up to {size:.3g} flows through the target to the online network's values "
        f"at obs_t: {_STOP} (no semi-gradient)",
    )


def _check_prediction(subject: Subject) -> str:
    answers, cases = subject.answers, subject.cases
    sizes, is_taken = split_by_action(answers, cases)
    share = float((sizes[is_taken] > 0).mean())
    if find_size(answers.target_grad) and not find_size(answers.grad):
        why = "the target network's weights are trained in its place (networks swapped)"
    elif find_size(answers.grad[:, 1]) and not sizes.any():
        why = "the gradient flows through the target to obs_t (stop_gradient on the wrong side)"
    elif share > 0 and not sizes[~is_taken].any():
        why = _CLIPPED
    elif sizes.any():
        why = "another action's value is trained: index q_tm1 with a_tm1"
    else:
        why = "stop that of the target alone, not of the prediction"
    message = f"in {1 - share:.0%} of cases no gradient reaches q_tm1[a_tm1]: {why}"
    expect(share > 0.99, f"{share:.0%}", message)
    ended = subject.evaluate(cases.terminate())
    of_ends = float((split_by_action(ended, cases)[0][is_taken] > 0).mean())
    message = (
        f"where the episode terminated (discount_t = 0), in {1 - of_ends:.0%} of cases no gradient "
        "reaches q_tm1[a_tm1]: a terminal transition counts like any other, and is not masked by "
        "discount_t"
    )
    return expect(of_ends > 0.99, f"{share:.0%}", message)


def _check_other_actions(subject: Subject) -> str:
    sizes, is_taken = split_by_action(subject.answers, subject.cases)
    size = find_size(sizes[~is_taken])
    alike = np.ptp(sizes, axis=1).max() < 1e-6 * size
    why = (
        "the same as reaches that of a_tm1, so that the error is a mean or a sum over the actions "
        "(broadcast against all of q_tm1): index q_tm1 with a_tm1 before"
        if alike
        else "index it with a_tm1, and stop the gradient of what belongs to the target"
    )
    return expect(
        size < 1e-9,
        f"{size:.3g}",
        f"a gradient of up to {size:.3g} reaches q_tm1 of actions that were not taken: {why}. For "
        "a loss that is meant to: learns_other_actions=True",
    )


def _check_direction(subject: Subject) -> str:
    cases = subject.cases
    far = 6.0 if subject.table.representation == "categorical" else FAR
    up, down = (subject.evaluate(cases.shift(r_t=by)).pull for by in (far, -far))
    share = float(((up > 0) & (down < 0)).mean())
    away = float(((up < 0) & (down > 0)).mean())
    if away > 0.99:
        same = compare_losses(subject, cases, cases.shift(r_t=1.0, q_tm1=1.0)) < 1e-6
        why = (
            "a gradient step leads away from the target: the loss has the wrong sign"
            if same
            else "more reward lowers the prediction: the reward, or the prediction in the TD "
            "error, has the wrong sign"
        )
    elif not up.any() and not down.any():
        why = _CLIPPED
    elif not (up - down).any():
        above, below = (subject.evaluate(cases.shift(q_tm1=by)).pull for by in (far, -far))
        why = (
            "the reward r_t does not count in the gradient"
            if (above - below).any()
            else "it is the same whatever the error is: the error itself is minimised, and no "
            "penalty of it such as its square"
        )
    elif (up * down > 0).all():
        why = (
            "it leads the same way from errors of both signs: the penalty is an odd power of the "
            "error, and must be the same on both sides as its square is"
        )
    elif not (up * down).all():
        why = _CLIPPED
    else:
        why = "the step depends on something else than target less prediction"
    message = (
        f"in {share:.0%} of cases a step leads from an error of +-{far:g} to its target: {why}"
    )
    return expect(share > 0.99, f"{share:.0%}", message)


def _check_slopes(subject: Subject) -> str:
    answers, cases = subject.answers, subject.cases
    is_double = answers.loss.dtype == np.float64  # else the loss itself rounds
    width, tolerance = (1e-5, 1e-5) if is_double else (1e-2, 2e-2)
    direction = np.random.default_rng(6).normal(size=answers.grad.shape)
    direction[:, 1] = 0  # only the prediction's side: a semi-gradient ignores the target's
    up, down = (subject.evaluate(cases, nudge=step * direction).loss for step in (width, -width))
    grad = (answers.grad * direction).reshape(len(direction), -1).sum(1)
    difference = np.asarray(up - down, np.float64) / (2 * width)
    error = find_size((grad - difference) / (1 + np.abs(difference)))
    i = int(np.argmax(np.abs(grad - difference)))
    return expect(
        error < tolerance,
        f"{error:.1e}",
        f"the gradient is {grad[i]:.6g} along a direction in which the loss changes by "
        f"{difference[i]:.6g}: part of the prediction is behind a stop_gradient (such as in a "
        "weight of the error's own size), is rounded, or has a derivative of its own that is wrong",
    )


def check_finite(subject: Subject) -> str:
    """Checks that nothing overflows at values of a million, and where there is no error."""
    cases = subject.cases
    signs = np.where(np.arange(len(cases.r_t)) % 2, 1.0, -1.0)
    for what, scale, r_t in (
        ("values of a million", _MILLION, _MILLION * signs),
        ("values of minus a million", -_MILLION, _MILLION * signs),
        ("values that are all 0, without an error", 0.0, 0 * signs),
    ):
        found = subject.evaluate(cases._replace(r_t=r_t), np.float32, scale)
        for name, x in zip(found._fields, found, strict=True):
            expect(
                np.isfinite(x).all(),
                "not finite",
                f"with {what} in float32 the {name} is not finite: look for an exponential or a "
                "power without its maximum taken off, a division by 0, a logarithm of 0, or the "
                "gradient of a root at 0",
            )
    return "finite"
