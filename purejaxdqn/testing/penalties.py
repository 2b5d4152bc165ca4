"""What an error costs, and which priority it gets: on single transitions, by the error's size."""

from __future__ import annotations

import numpy as np

from purejaxdqn.testing.cases import Answers, Bench, Cases
from purejaxdqn.testing.report import expect

_SMALLEST, _LARGEST = 1e-3, 1e3
_CHUNKS = 16  # of as many sizes as there are cases, so that nothing is compiled again
_SMALL_ERROR = 0.1


def _with_error(cases: Cases, settled: np.ndarray, error: np.ndarray | float) -> Cases:
    """Predictions that much above the target."""
    lanes = np.arange(len(settled))
    moved = np.zeros(cases.online[:, 0].shape)
    moved[lanes, cases.a_tm1] = settled + error - cases.online[lanes, 0, cases.a_tm1]
    return cases.shifted(q_tm1=moved)


def check_penalty(bench: Bench, cases: Cases, settled: np.ndarray) -> str:
    """The figure of the row on the penalty's shape, along errors from a thousandth to a thousand.

    A penalty has no jump, and its slope does not drop at once where pieces of it are joined.

    Raises:
      AssertionError: if it has.
    """
    num = len(settled)
    one = Cases(*(np.repeat(x[:1], num, axis=0) for x in cases))
    target = np.repeat(settled[:1], num)
    sizes = np.geomspace(_SMALLEST, _LARGEST, _CHUNKS * num)
    largest = 0.0
    for sign in (1.0, -1.0):
        parts = [
            bench.answers(_with_error(one, target, sign * chunk))
            for chunk in np.split(sizes, _CHUNKS)
        ]
        loss = np.concatenate([np.asarray(part.loss, np.float64) for part in parts])
        grad = np.concatenate([np.asarray(part.grad, np.float64) for part in parts])
        slope = sign * grad[:, 0, one.a_tm1[0]].reshape(len(sizes), -1).sum(1)  # by the size
        steps, slopes = np.diff(sizes), np.abs(np.diff(slope))
        unexplained = np.abs(np.diff(loss) - steps * (slope[1:] + slope[:-1]) / 2)
        jump = unexplained - steps * slopes
        # An error's digits are those of the values around it.
        if (parts[0].loss.dtype == np.float64) and (jump > 1e-6 * (1 + np.abs(loss[1:]))).any():
            i = int(jump.argmax())
            raise AssertionError(
                f"{jump[i]:.3g}",
                f"what an error costs jumps from {loss[i]:.4g} to {loss[i + 1]:.4g} where its size "
                f"is {sizes[i]:.3g}: the pieces of the penalty do not meet there; a Huber loss is "
                "error^2 / 2 up to delta, and delta * (|error| - delta / 2) beyond",
            )
        drop = 1 - np.abs(slope[1:]) / np.maximum(np.abs(slope[:-1]), 1e-12)
        largest = max(largest, float(drop.max()))
        i = int(drop.argmax())
        expect(
            drop[i] < 0.2,
            f"{drop[i]:.0%}",
            f"the slope of the penalty drops from {slope[i]:.4g} to {slope[i + 1]:.4g} where the "
            f"error's size is {sizes[i]:.3g}: its pieces are scaled differently; a Huber loss is "
            "error^2 / 2 up to delta, and delta * (|error| - delta / 2) beyond",
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


def check_priority(
    bench: Bench, cases: Cases, settled: np.ndarray, large: float, of_taken_alone: bool
) -> str | None:
    """The figure of the row on the priority; None where it is the same whatever happens.

    Args:
      bench: of the loss.
      cases: some.
      settled: `[N]` their targets.
      large: the size of a large error.
      of_taken_alone: whether no other action's value at `obs_tm1` may count.

    Raises:
      AssertionError: if it does not grow with the error's size, on both sides.
    """

    def at(error: float) -> np.ndarray:
        return np.asarray(bench.answers(_with_error(cases, settled, error)).priority, np.float64)

    nothing = at(_SMALL_ERROR)
    above, below = at(large), at(-large)
    everything = np.concatenate([nothing, above, below])
    if np.ptp(everything) < 1e-9:
        return None
    hint = "a priority is the size of the error, such as jnp.abs(target - prediction)"
    grows = [float((x > nothing).mean()) for x in (above, below)]
    if np.ptp(np.stack([nothing, above, below]), axis=0).max() < 1e-9:
        why = "it does not depend on the prediction q_tm1[a_tm1], but on other things"
    elif max(above.max(), below.max()) < nothing.min():
        why = "it falls as the error grows"
    else:
        sides = [
            side
            for side, share in zip(("above", "below"), grows, strict=True)
            if share < 1  # how often it grows
        ]
        why = f"it does not grow with the error where the prediction is {' and '.join(sides)} it"
    expect(
        min(grows) == 1,
        f"{min(grows):.0%}",
        f"with an error of {large:g} the priority is larger than with one of "
        f"{_SMALL_ERROR:g} in {min(grows):.0%} of cases: {why}; {hint}",
    )
    moved = cases.shifted(r_t=1.0, q_tm1=1.0)
    change = _change(bench.answers(cases), bench.answers(moved))
    expect(
        change < 1e-3,
        f"{change:.1e}",
        f"1 more of reward and of all q_tm1 changes the priority, by a share of up to {change:.3g},"
        f" although the error is the same: it hangs on the target or the prediction alone; {hint}",
    )
    if of_taken_alone:
        noise = np.random.default_rng(8).normal(size=cases.online[:, 0].shape)
        noise[np.arange(len(settled)), cases.a_tm1] = 0
        change = _change(bench.answers(cases), bench.answers(cases.shifted(q_tm1=noise)))
        expect(
            change < 1e-3,
            f"{change:.1e}",
            "the priority changes with q_tm1 of actions that were not taken, by a share of up to "
            f"{change:.3g}: index it with a_tm1; {hint}",
        )
    return f"{change:.1e}"


def _change(one: Answers, other: Answers) -> float:
    """How far the priorities differ, as a share."""
    x, y = (np.asarray(answers.priority, np.float64) for answers in (one, other))
    return float((np.abs(x - y) / (0.1 + np.abs(x))).max())
