"""Checks where the gradient of a loss goes, and that it leads towards the target."""

import numpy as np

from purejaxdqn.testing.losses.single_transitions import Subject, find_size
from purejaxdqn.testing.report import Check, attempt, expect, find_true

FAR = 1e3
_STOP = "wrap the target in jax.lax.stop_gradient"
_CLIPPED = "a large error has no gradient: clip the gradient (Huber), not the error"


def check_gradients(subject: Subject) -> list[Check]:
    """Checks where the gradient goes, a row each."""
    rows = [
        ("no gradient to the target network", _check_target_network, True),
        ("no gradient through the target", _check_values_at_t, not subject.learns_next_obs),
        ("the gradient reaches q_tm1[a_tm1]", _check_prediction, True),
        ("no gradient to other actions", _check_other_actions, not subject.learns_other_actions),
        ("leads towards the target", _check_direction, True),
        ("finite differences, float64", _check_slopes, True),
    ]
    return [attempt(name, check, subject) for name, check, is_judged in rows if is_judged]


def _check_target_network(subject: Subject) -> str:
    grad = subject.answers.target_grad
    size = find_size(grad)
    at = "obs_t" if find_size(grad[:, 1]) else "obs_tm1"
    wrong = f"a gradient of up to {size:.3g} reaches target_params (its values at {at}): {_STOP}"
    return expect(size == 0, f"{size:.3g}", wrong)


def _check_values_at_t(subject: Subject) -> str:
    size = find_size(subject.answers.grad[:, 1])
    wrong = (
        f"a gradient of up to {size:.3g} flows through the target to the online network's values "
        f"at obs_t: {_STOP} (no semi-gradient)"
    )
    return expect(size == 0, f"{size:.3g}", wrong)


def _check_prediction(subject: Subject) -> str:
    answers = subject.answers
    sizes, is_taken = answers.sizes, subject.cases.is_taken
    share = float((sizes[is_taken] > 0).mean())
    is_swapped = answers.target_grad.any() and not answers.grad.any()
    is_of_obs_t = answers.grad[:, 1].any() and not sizes.any()
    why = {
        "the target network's weights are trained in its place (networks swapped)": is_swapped,
        "the gradient flows through the target to obs_t (stop_gradient on the wrong side)": (
            is_of_obs_t
        ),
        _CLIPPED: share > 0 and not sizes[~is_taken].any(),
        "another action's value is trained: index q_tm1 with a_tm1": sizes.any(),
        "stop that of the target alone, not of the prediction": True,
    }
    wrong = f"in {1 - share:.0%} of cases no gradient reaches q_tm1[a_tm1]: {find_true(why)[0]}"
    expect(share > 0.99, f"{share:.0%}", wrong)
    ended = subject.evaluate(subject.cases.set(discount_t=0.0))
    of_ends = float((ended.sizes[is_taken] > 0).mean())
    wrong = (
        f"where the episode terminated (discount_t = 0), in {1 - of_ends:.0%} of cases no gradient "
        "reaches q_tm1[a_tm1]: a terminal transition counts like any other, and is not masked by "
        "discount_t"
    )
    return expect(of_ends > 0.99, f"{share:.0%}", wrong)


def _check_other_actions(subject: Subject) -> str:
    sizes = subject.answers.sizes
    size = find_size(sizes[~subject.cases.is_taken])
    is_alike = np.ptp(sizes, axis=1).max() < 1e-6 * size
    why = {
        "the same as reaches that of a_tm1, so that the error is a mean or a sum over the actions "
        "(broadcast against all of q_tm1): index q_tm1 with a_tm1 before": is_alike,
        "index it with a_tm1, and stop the gradient of what belongs to the target": True,
    }
    wrong = (
        f"a gradient of up to {size:.3g} reaches q_tm1 of actions that were not taken: "
        f"{find_true(why)[0]}. For a loss that is meant to: learns_other_actions=True"
    )
    return expect(size < 1e-9, f"{size:.3g}", wrong)


def _check_direction(subject: Subject) -> str:
    cases = subject.cases
    far = 6.0 if subject.table.representation == "categorical" else FAR
    up, down = (subject.pull(r_t=by) for by in (far, -far))
    share = float(((up > 0) & (down < 0)).mean())
    is_away = ((up < 0) & (down > 0)).mean() > 0.99
    is_constant = up.any() and not (up - down).any()
    is_negated = is_away and subject.compare(cases, cases.shift(r_t=1.0, q_tm1=1.0)) < 1e-6
    bends = (subject.pull(q_tm1=far) - subject.pull(q_tm1=-far)).any()
    why = {
        "a gradient step leads away from the target: the loss has the wrong sign": is_negated,
        "more reward lowers the prediction: the reward, or the prediction in the TD error, has the "
        "wrong sign": is_away,
        "the reward r_t does not count in the gradient": is_constant and bends,
        "it is the same whatever the error is: the error itself is minimised, and no penalty of it "
        "such as its square": is_constant,
        "it leads the same way from errors of both signs: the penalty is an odd power of the "
        "error, and must be the same on both sides as its square is": (up * down > 0).all(),
        _CLIPPED: not (up * down).all(),
        "the step depends on something else than target less prediction": True,
    }
    wrong = f"in {share:.0%} of cases a step leads from an error of +-{far:g} to its target: "
    return expect(share > 0.99, f"{share:.0%}", wrong + find_true(why)[0])


def _check_slopes(subject: Subject) -> str:
    answers, cases = subject.answers, subject.cases
    is_double = answers.loss.dtype == np.float64  # else the loss itself rounds
    width, tolerance = (1e-5, 1e-5) if is_double else (1e-2, 2e-2)
    direction = np.random.default_rng(6).normal(size=answers.grad.shape)
    direction[:, 1] = 0  # only the prediction's side: a semi-gradient ignores the target's
    online, target = cases.make_tables(subject.table)
    up, down = (
        subject.evaluate(cases, (online + step * direction, target)).loss
        for step in (width, -width)
    )
    grad = (answers.grad * direction).reshape(len(direction), -1).sum(1)
    difference = np.asarray(up - down, np.float64) / (2 * width)
    error = find_size((grad - difference) / (1 + np.abs(difference)))
    i = int(np.argmax(np.abs(grad - difference)))
    wrong = (
        f"the gradient is {grad[i]:.6g} along a direction in which the loss changes by "
        f"{difference[i]:.6g}: part of the prediction is behind a stop_gradient (such as in a "
        "weight of the error's own size), is rounded, or has a derivative of its own that is wrong"
    )
    return expect(error < tolerance, f"{error:.1e}", wrong)


def check_finite(subject: Subject) -> str:
    """Checks that nothing overflows at values of a million, and where there is no error."""
    tables = subject.cases.make_tables(subject.table)
    signs = np.where(np.arange(len(subject.settled)) % 2, 1.0, -1.0)
    for what, scale in (
        ("values of a million", 1e6),
        ("values of minus a million", -1e6),
        ("values that are all 0, without an error", 0.0),
    ):
        cases = subject.cases._replace(r_t=abs(scale) * signs)
        found = subject.evaluate(cases, [scale * x for x in tables], np.float32)
        for name, x in zip(found._fields, found, strict=True):
            wrong = (
                f"with {what} in float32 the {name} is not finite: look for an exponential or a "
                "power without its maximum taken off, a division by 0, a logarithm of 0, or the "
                "gradient of a root at 0"
            )
            expect(np.isfinite(x).all(), "not finite", wrong)
    return "finite"
