"""Checks what errors of each sign and size cost, and which priority they get."""

import numpy as np

from purejaxdqn.testing.losses.single_transitions import Cases, Subject, find_size
from purejaxdqn.testing.report import expect, find_true
from purejaxdqn.testing.tabular.table_networks import FRACTIONS

_SHARE = 1e-3
_CHUNKS = 16  # of as many sizes as there are cases, so that nothing is compiled again
_SMALL_ERROR = 0.1
_HUBER = "a Huber loss is error^2 / 2 up to delta, and delta * (|error| - delta / 2) beyond"
_PRIORITY = "a priority is the size of the error, such as jnp.abs(target - prediction)"


def check_asymmetry(subject: Subject) -> str:
    """Checks which quantile is learned, by how much errors of either sign pull at the prediction.

    A penalty that is the same on both sides has a share of one half.
    """
    cases, settled = subject.cases, subject.settled
    is_quantile = subject.table.representation == "quantile"
    expected = FRACTIONS if is_quantile else np.array([0.5])
    worst = 0.0
    # Large errors first: their sign is right also where a target is a little off.
    for size in (30.0, 0.3):
        answers = (subject.evaluate(cases.predict(settled + by)) for by in (-size, size))
        above, below = (-answer.taken.reshape(len(settled), -1) for answer in answers)
        idle = int(((above == 0) & (below == 0)).all(0).sum())
        wrong = (
            f"no gradient reaches {idle} of the {len(expected)} quantiles: the loss is the sum "
            "over all of the predicted ones"
        )
        expect(idle == 0 or not is_quantile, f"{idle} idle", wrong)
        wrong_way = float(((above < 0) | (below > 0)).mean())
        wrong = (
            f"in {wrong_way:.0%} of cases a prediction is pushed away from its target: the sign of "
            "the penalty, or, with quantiles, |fraction - (error < 0)| without its absolute value"
        )
        expect(wrong_way == 0, f"{wrong_way:.0%}", wrong)
        with np.errstate(invalid="ignore"):
            shares = np.nan_to_num(above / (above - below))
        error = np.abs(shares - expected).max(1)
        worst = max(worst, float(error.max()))
        share = shares[int(error.argmax())]
        wrong = (
            f"an error counts {share[0]:.2g} to {1 - share[0]:.2g} where the target is above the "
            "prediction and where it is below: where outcomes are random, such values lean to one "
            "side and are not the declared ones. Where that is meant: fixed_point=None"
        )
        wrong = _describe_fractions(share) if is_quantile else wrong
        expect(worst < _SHARE, f"{worst:.1e}", wrong)
    return f"{worst:.1e}"


def _describe_fractions(share: np.ndarray) -> str:
    num = len(FRACTIONS)
    i = np.arange(num)
    formulas = {
        "i / N": i / num,
        "(i + 1) / N": (i + 1) / num,
        "i / (N - 1)": i / (num - 1),
        "(i + 1) / (N + 1)": (i + 1) / (num + 1),
    }
    known = {text: find_size(share - xs) < _SHARE for text, xs in formulas.items()}
    formula = "".join(find_true(known)[:1])
    is_mirrored = find_size(share - FRACTIONS[::-1]) < _SHARE
    why = {
        "that of 1 - fraction: the sign of the error, or the asymmetry, is the wrong way round": (
            is_mirrored
        ),
        f"those are {formula}, and the midpoints belong, (i + 0.5) / N: take the fractions that "
        "the network gives": formula,
        "all are the same: is the fraction that of the prediction, on its own axis, and the "
        "asymmetry |fraction - (error < 0)|?": np.ptp(share) < _SHARE,
        "the asymmetry must be |fraction - (error < 0)|, with the network's fractions": True,
    }
    learned, right = (", ".join(f"{x:.3g}" for x in xs) for xs in (share, FRACTIONS))
    return f"the fractions are {right}, and those learned are {learned}: {find_true(why)[0]}"


def check_penalty(subject: Subject) -> str:
    """Checks the penalty's shape, along errors from a thousandth to a thousand.

    A penalty has no jump, and its slope does not drop at once where pieces of it are joined.
    """
    num = len(subject.settled)
    one = Cases(*(np.repeat(x[:1], num, axis=0) for x in subject.cases))
    sizes = np.geomspace(1e-3, 1e3, _CHUNKS * num)
    largest = 0.0
    for sign in (1.0, -1.0):
        parts = [
            subject.evaluate(one.predict(subject.settled[0] + sign * chunk))
            for chunk in np.split(sizes, _CHUNKS)
        ]
        loss = np.concatenate([np.asarray(part.loss, np.float64) for part in parts])
        taken = np.concatenate([np.asarray(part.taken, np.float64) for part in parts])
        slope = sign * taken.reshape(len(sizes), -1).sum(1)  # by the size
        steps, slopes = np.diff(sizes), np.abs(np.diff(slope))
        unexplained = np.abs(np.diff(loss) - steps * (slope[1:] + slope[:-1]) / 2)
        jump = unexplained - steps * slopes
        i = int(jump.argmax())
        wrong = (
            f"what an error costs jumps from {loss[i]:.4g} to {loss[i + 1]:.4g} where its size is "
            f"{sizes[i]:.3g}: the pieces of the penalty do not meet there; {_HUBER}"
        )
        is_double = parts[0].loss.dtype == np.float64  # else rounding looks like jumps
        has_jump = is_double and (jump > 1e-6 * (1 + np.abs(loss[1:]))).any()
        expect(not has_jump, f"{jump[i]:.3g}", wrong)
        drop = 1 - np.abs(slope[1:]) / np.maximum(np.abs(slope[:-1]), 1e-12)
        largest = max(largest, float(drop.max()))
        i = int(drop.argmax())
        wrong = (
            f"the slope of the penalty drops from {slope[i]:.4g} to {slope[i + 1]:.4g} where the "
            f"error's size is {sizes[i]:.3g}: its pieces are scaled differently; {_HUBER}"
        )
        expect(drop[i] < 0.2, f"{drop[i]:.0%}", wrong)
        of = np.interp((2e-3, 0.2, 50.0, 500.0), sizes, slope)
        is_linear, is_square = np.isclose(of[0], of[1], 1e-3), np.isclose(10 * of[2], of[3], 1e-2)
        wrong = (
            "small errors cost by their size and large ones by their square: the pieces of the "
            "Huber loss are swapped, whose square is for small errors"
        )
        expect(not (is_linear and is_square), "swapped", wrong)
    return f"{largest:.1e}"


def check_priority(subject: Subject) -> str | None:
    """Checks that the priority grows with the error's size on both sides, and depends on it alone.

    One that is always the same is not judged.
    """
    cases, settled = subject.cases, subject.settled

    def find(cases: Cases) -> np.ndarray:
        return np.asarray(subject.evaluate(cases).priority, np.float64)

    large = 5.0 if subject.table.representation == "categorical" else 30.0
    all_three = [find(cases.predict(settled + error)) for error in (_SMALL_ERROR, large, -large)]
    if np.ptp(all_three) < 1e-9:
        return None
    nothing, *both = all_three
    grows = [float((x > nothing).mean()) for x in both]
    sides = " and ".join(find_true({"above": grows[0] < 1, "below": grows[1] < 1}))
    is_fixed = np.ptp(all_three, axis=0).max() < 1e-9
    why = {
        "it does not depend on the prediction q_tm1[a_tm1], but on other things": is_fixed,
        "it falls as the error grows": np.max(both) < nothing.min(),
        f"it does not grow with the error where the prediction is {sides} it": True,
    }
    wrong = (
        f"with an error of {large:g} the priority is larger than with one of {_SMALL_ERROR:g} in "
        f"{min(grows):.0%} of cases: {find_true(why)[0]}; {_PRIORITY}"
    )
    expect(min(grows) == 1, f"{min(grows):.0%}", wrong)

    others = {
        "1 more of reward and of all q_tm1 changes the priority, by a share of up to {:.3g}, "
        "although the error is the same: it depends on the target or the prediction alone": (
            cases.shift(r_t=1.0, q_tm1=1.0)
        ),
    }
    if subject.bootstrap != "online" and not subject.learns_other_actions:
        noise = np.random.default_rng(8).normal(size=cases.q_tm1.shape)
        text = (
            "the priority changes with q_tm1 of actions that were not taken, by a share of up to "
            "{:.3g}: index it with a_tm1"
        )
        others[text] = cases.shift(q_tm1=~cases.is_taken * noise)
    for text, other in others.items():
        x = find(cases)
        change = find_size((x - find(other)) / (0.1 + np.abs(x)))
        expect(change < 1e-3, f"{change:.1e}", f"{text.format(change)}; {_PRIORITY}")
    return f"{change:.1e}"
