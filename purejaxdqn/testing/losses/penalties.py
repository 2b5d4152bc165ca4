"""Checks what errors of each sign and size cost, and which priority they get."""

from __future__ import annotations

import numpy as np

from purejaxdqn.testing.losses.single_transitions import Cases, Subject
from purejaxdqn.testing.report import expect
from purejaxdqn.testing.tabular.table_networks import FRACTIONS

_SHARE = 1e-3
_SMALLEST, _LARGEST = 1e-3, 1e3
_CHUNKS = 16  # of as many sizes as there are cases, so that nothing is compiled again
_SMALL_ERROR = 0.1
_HUBER = "a Huber loss is error^2 / 2 up to delta, and delta * (|error| - delta / 2) beyond"
_PRIORITY = "a priority is the size of the error, such as jnp.abs(target - prediction)"


def _set_error(cases: Cases, settled: np.ndarray, error: np.ndarray | float) -> Cases:
    """Moves each prediction to `error` above its target."""
    moved = np.zeros(cases.online[:, 0].shape)
    moved[np.arange(len(settled)), cases.a_tm1] = settled + error - cases.read_predictions()
    return cases.shift(q_tm1=moved)


# ---------------------------------------------------------------------------- errors of both signs


def check_asymmetry(subject: Subject) -> str:
    """Checks which quantile is learned, by how much errors of either sign pull at the prediction.

    A penalty that is the same on both sides has a share of one half. Returns what was measured.
    """
    cases, settled, representation = subject.cases, subject.settled, subject.table.representation
    lanes = np.arange(len(settled))
    worst = 0.0
    expected = FRACTIONS if representation == "quantile" else np.array([0.5])
    # Large errors first: their sign is right also where a target is a little off.
    for size in (30.0, 0.3):
        above, below = (
            -subject.evaluate(_set_error(cases, settled, by))
            .grad[lanes, 0, cases.a_tm1]
            .reshape(len(settled), -1)
            for by in (-size, size)
        )
        idle = int(((above == 0) & (below == 0)).all(0).sum())
        expect(
            idle == 0 or representation == "values",
            f"{idle} idle",
            f"no gradient reaches {idle} of the {len(expected)} quantiles: the loss is the sum "
            "over all of the predicted ones",
        )
        wrong_way = float(((above < 0) | (below > 0)).mean())
        expect(
            wrong_way == 0,
            f"{wrong_way:.0%}",
            f"in {wrong_way:.0%} of cases a prediction is pushed away from its target: the sign of "
            "the penalty, or, with quantiles, |fraction - (error < 0)| without its absolute value",
        )
        with np.errstate(invalid="ignore"):
            shares = np.nan_to_num(above / (above - below))
        error = np.abs(shares - expected).max(1)
        worst = max(worst, float(error.max()))
        share = shares[int(error.argmax())]
        message = _describe_fractions(share) if len(share) > 1 else _describe_share(float(share[0]))
        expect(worst < _SHARE, f"{worst:.1e}", message)
    return f"{worst:.1e}"


def _describe_share(share: float) -> str:
    return (
        f"an error counts {share:.2g} to {1 - share:.2g} where the target is above the prediction "
        "and where it is below: where outcomes are random, such values lean to one side and are "
        "not the declared ones. Where that is meant: fixed_point=None"
    )


def _describe_fractions(share: np.ndarray) -> str:
    num = len(FRACTIONS)
    i = np.arange(num)
    known = {
        "i / N": i / num,
        "(i + 1) / N": (i + 1) / num,
        "i / (N - 1)": i / (num - 1),
        "(i + 1) / (N + 1)": (i + 1) / (num + 1),
    }
    learned, right = (", ".join(f"{x:.3g}" for x in xs) for xs in (share, FRACTIONS))
    formula = next((text for text, xs in known.items() if _are_close(share, xs)), None)
    why = (
        "that of 1 - fraction: the sign of the error, or the asymmetry, is the wrong way round"
        if _are_close(share, FRACTIONS[::-1])
        else f"those are {formula}, and the midpoints belong, (i + 0.5) / N: take the fractions "
        "that the network gives"
        if formula
        else "all are the same: is the fraction that of the prediction, on its own axis, and the "
        "asymmetry |fraction - (error < 0)|?"
        if np.ptp(share) < _SHARE
        else "the asymmetry must be |fraction - (error < 0)|, with the network's fractions"
    )
    return f"the fractions are {right}, and those learned are {learned}: {why}"


def _are_close(share: np.ndarray, fractions: np.ndarray) -> bool:
    return bool(np.abs(share - fractions).max() < _SHARE)


# --------------------------------------------------------------------------------- errors by size


def check_penalty(subject: Subject) -> str:
    """Checks the penalty's shape, along errors from a thousandth to a thousand.

    A penalty has no jump, and its slope does not drop at once where pieces of it are joined.
    Returns what was measured.
    """
    num = len(subject.settled)
    one = Cases(*(np.repeat(x[:1], num, axis=0) for x in subject.cases))
    target = np.repeat(subject.settled[:1], num)
    sizes = np.geomspace(_SMALLEST, _LARGEST, _CHUNKS * num)
    largest = 0.0
    for sign in (1.0, -1.0):
        parts = [
            subject.evaluate(_set_error(one, target, sign * chunk))
            for chunk in np.split(sizes, _CHUNKS)
        ]
        loss = np.concatenate([np.asarray(part.loss, np.float64) for part in parts])
        grad = np.concatenate([np.asarray(part.grad, np.float64) for part in parts])
        slope = sign * grad[:, 0, one.a_tm1[0]].reshape(len(sizes), -1).sum(1)  # by the size
        if parts[0].loss.dtype == np.float64:  # else rounding looks like jumps
            _check_jumps(sizes, loss, slope)
        drop = 1 - np.abs(slope[1:]) / np.maximum(np.abs(slope[:-1]), 1e-12)
        largest = max(largest, float(drop.max()))
        i = int(drop.argmax())
        expect(
            drop[i] < 0.2,
            f"{drop[i]:.0%}",
            f"the slope of the penalty drops from {slope[i]:.4g} to {slope[i + 1]:.4g} where the "
            f"error's size is {sizes[i]:.3g}: its pieces are scaled differently; {_HUBER}",
        )
        of = [float(np.interp(size, sizes, slope)) for size in (2e-3, 0.2, 50.0, 500.0)]
        is_linear, is_square = np.isclose(of[0], of[1], 1e-3), np.isclose(10 * of[2], of[3], 1e-2)
        expect(
            not (is_linear and is_square),
            "swapped",
            "small errors cost by their size and large ones by their square: the pieces of the "
            "Huber loss are swapped, whose square is for small errors",
        )
    return f"{max(largest, 0.0):.1e}"


def _check_jumps(sizes: np.ndarray, loss: np.ndarray, slope: np.ndarray) -> None:
    steps, slopes = np.diff(sizes), np.abs(np.diff(slope))
    unexplained = np.abs(np.diff(loss) - steps * (slope[1:] + slope[:-1]) / 2)
    jump = unexplained - steps * slopes
    i = int(jump.argmax())
    expect(
        not (jump > 1e-6 * (1 + np.abs(loss[1:]))).any(),
        f"{jump[i]:.3g}",
        f"what an error costs jumps from {loss[i]:.4g} to {loss[i + 1]:.4g} where its size is "
        f"{sizes[i]:.3g}: the pieces of the penalty do not meet there; {_HUBER}",
    )


# ------------------------------------------------------------------------------------- priorities


def check_priority(subject: Subject) -> str | None:
    """Checks that the priority grows with the error's size on both sides, and depends on it alone.

    Returns:
      What was measured; None where the priority is always the same.
    """
    cases, settled = subject.cases, subject.settled
    large = 5.0 if subject.table.representation == "categorical" else 30.0
    nothing, above, below = (
        np.asarray(subject.evaluate(_set_error(cases, settled, error)).priority, np.float64)
        for error in (_SMALL_ERROR, large, -large)
    )
    all_three = np.stack([nothing, above, below])
    if np.ptp(all_three) < 1e-9:
        return None
    grows = {side: float((x > nothing).mean()) for side, x in (("above", above), ("below", below))}
    least = min(grows.values())
    if np.ptp(all_three, axis=0).max() < 1e-9:
        why = "it does not depend on the prediction q_tm1[a_tm1], but on other things"
    elif all_three[1:].max() < nothing.min():
        why = "it falls as the error grows"
    else:
        sides = " and ".join(side for side, share in grows.items() if share < 1)
        why = f"it does not grow with the error where the prediction is {sides} it"
    expect(
        least == 1,
        f"{least:.0%}",
        f"with an error of {large:g} the priority is larger than with one of "
        f"{_SMALL_ERROR:g} in {least:.0%} of cases: {why}; {_PRIORITY}",
    )
    change = _compare_priorities(subject, cases.shift(r_t=1.0, q_tm1=1.0))
    expect(
        change < 1e-3,
        f"{change:.1e}",
        f"1 more of reward and of all q_tm1 changes the priority, by a share of up to {change:.3g},"
        " although the error is the same: it depends on the target or the prediction alone; "
        f"{_PRIORITY}",
    )
    if subject.bootstrap != "online" and not subject.learns_other_actions:
        noise = np.random.default_rng(8).normal(size=cases.online[:, 0].shape)
        noise[np.arange(len(settled)), cases.a_tm1] = 0
        change = _compare_priorities(subject, cases.shift(q_tm1=noise))
        expect(
            change < 1e-3,
            f"{change:.1e}",
            "the priority changes with q_tm1 of actions that were not taken, by a share of up to "
            f"{change:.3g}: index it with a_tm1; {_PRIORITY}",
        )
    return f"{change:.1e}"


def _compare_priorities(subject: Subject, other: Cases) -> float:
    """Returns how far the priorities of other cases differ from the subject's, as a share."""
    answers = (subject.answers, subject.evaluate(other))
    x, y = (np.asarray(answer.priority, np.float64) for answer in answers)
    return float((np.abs(x - y) / (0.1 + np.abs(x))).max())
