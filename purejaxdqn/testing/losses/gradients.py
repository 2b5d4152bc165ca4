"""Checks where the gradient of a loss goes, what errors cost by sign and size, and the priority."""

import numpy as np

from purejaxdqn.testing.fixed_points import is_bent
from purejaxdqn.testing.losses.single_transitions import Answers, Cases, Subject, find_size
from purejaxdqn.testing.report import Check, attempt, expect, find_true
from purejaxdqn.testing.tabular.table_networks import FRACTIONS

FAR = 1e3
_STOP = "wrap the target in jax.lax.stop_gradient"
_CLIPPED = "a large error has no gradient: clip the gradient (Huber), not the error"
_SHARE = 1e-3
_CHUNKS = 16  # of as many sizes as there are cases, so that nothing is compiled again
_SMALL_ERROR = 0.1
_HUBER = "a Huber loss is error^2 / 2 up to delta, and delta * (|error| - delta / 2) beyond"
_PRIORITY = "a priority is the size of the error, such as jnp.abs(target - prediction)"


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


def _expect_none(grad: np.ndarray, goes: str, most: float = 0.0) -> str:
    size = find_size(grad)
    return expect(size <= most, f"{size:.3g}", f"a gradient of up to {size:.3g} {goes}")


def _check_target_network(subject: Subject) -> str:
    grad = subject.answers.target_grad
    at = "obs_t" if grad[:, 1].any() else "obs_tm1"
    return _expect_none(grad, f"reaches target_params (its values at {at}): {_STOP}")


def _check_values_at_t(subject: Subject) -> str:
    goes = "flows through the target to the online network's values at obs_t"
    return _expect_none(subject.answers.grad[:, 1], f"{goes}: {_STOP} (no semi-gradient)")


def _check_prediction(subject: Subject) -> str:
    answers = subject.answers
    sizes, is_taken = answers.sizes, subject.cases.is_taken
    share = float((sizes[is_taken] > 0).mean())
    is_swapped = answers.target_grad.any() and not answers.grad.any()
    is_at_t = answers.grad[:, 1].any() and not sizes.any()
    why = {
        "the target network's weights are trained in its place (networks swapped)": is_swapped,
        "the gradient flows through the target to obs_t (stop_gradient on the wrong side)": is_at_t,
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
    others = sizes[~subject.cases.is_taken]
    why = {
        "the same as reaches that of a_tm1, so that the error is a mean or a sum over the actions "
        "(broadcast against all of q_tm1): index q_tm1 with a_tm1 before": (
            np.ptp(sizes, axis=1).max() < 1e-6 * find_size(others)
        ),
        "index it with a_tm1, and stop the gradient of what belongs to the target": True,
    }
    wrong = f"reaches q_tm1 of actions that were not taken: {find_true(why)[0]}"
    meant = "For a loss that is meant to: learns_other_actions=True"
    return _expect_none(others, f"{wrong}. {meant}", 1e-9)


def _check_direction(subject: Subject) -> str:
    cases = subject.cases
    far = 6.0 if subject.table.representation == "categorical" else FAR
    bends_rewards = subject.fixed_point is not None and is_bent(subject.fixed_point)
    moves = [{"q_tm1": -by} if bends_rewards else {"r_t": by} for by in (far, -far)]
    up, down = (subject.pull(**move) for move in moves)
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
    sides = [(online + step * direction, target) for step in (width, -width)]
    up, down = (subject.evaluate(cases, tables).loss for tables in sides)
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
    scales = {"values of a million": 1e6, "values of minus a million": -1e6}
    scales["values that are all 0, without an error"] = 0.0
    for what, scale in scales.items():
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


def check_weights(subject: Subject) -> str | None:
    """Checks that errors of one size pull alike, also at the end; None if they cannot be made."""
    cases, settled = subject.cases, subject.settled
    moved = cases.shift(q_tm1=1.0)
    targets = [subject.fixed_point.target(x.q_tm1, *x[4:], x.q_t) for x in (cases, moved)]
    if subject.bootstrap != "target" or find_size(targets[0] - targets[1]) > 0:
        return None
    ended = cases.set(discount_t=0.0)
    pulls = [subject.evaluate(cases.predict(settled - 0.3)).pull]
    pulls.append(subject.evaluate(ended.predict(subject.settle(ended) - 0.3)).pull)
    # By the action they may be meant to differ, and not by what follows it.
    scale, of_action = max(find_size(pulls[0]), 1e-12), cases.a_tm1
    both = (np.concatenate([x[of_action == a] for x in pulls]) for a in np.unique(of_action))
    spread = max(float(np.ptp(x)) for x in both) / scale
    shares = pulls[1] / np.maximum(pulls[0], 1e-12)
    low, high = shares.min(), shares.max()
    wrong = (
        f"an error of 0.3 pulls by shares that differ up to {spread:.2g}, where the episode "
        f"terminated {low:.3g} to {high:.3g} times as much: what it counts depends on discount_t, "
        "r_t or values, which biases what is learned. Where that is meant: fixed_point=None"
    )
    return expect(spread < 1e-3, f"{spread:.1e}", wrong)


def check_asymmetry(subject: Subject) -> str:
    """Checks how much errors of either sign count: as the quantile's fraction says, else alike."""
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
    formulas = {"i / N": i / num, "(i + 1) / N": (i + 1) / num, "i / (N - 1)": i / (num - 1)}
    formulas["(i + 1) / (N + 1)"] = (i + 1) / (num + 1)
    formula = next((x for x, xs in formulas.items() if find_size(share - xs) < _SHARE), "")
    why = {
        "that of 1 - fraction: the sign of the error, or the asymmetry, is the wrong way round": (
            find_size(share - FRACTIONS[::-1]) < _SHARE
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
    """Checks that errors from a thousandth to a thousand meet no jump and no drop of the slope."""
    num = len(subject.settled)
    one = Cases(*(np.repeat(x[:1], num, axis=0) for x in subject.cases))
    sizes = np.geomspace(1e-3, 1e3, _CHUNKS * num)
    largest = 0.0
    for sign in (1.0, -1.0):
        values = np.split(subject.settled[0] + sign * sizes, _CHUNKS)
        parts = zip(*(subject.evaluate(one.predict(chunk)) for chunk in values), strict=True)
        answers = Answers._make(map(np.concatenate, parts))
        loss, taken = (x.astype(np.float64) for x in (answers.loss, answers.taken))
        slope = sign * taken.reshape(len(sizes), -1).sum(1)  # by the size
        steps, slopes = np.diff(sizes), np.abs(np.diff(slope))
        jump = np.abs(np.diff(loss) - steps * (slope[1:] + slope[:-1]) / 2) - steps * slopes
        i = int(jump.argmax())
        wrong = (
            f"what an error costs jumps from {loss[i]:.4g} to {loss[i + 1]:.4g} where its size is "
            f"{sizes[i]:.3g}: the pieces of the penalty do not meet there; {_HUBER}"
        )
        is_double = answers.loss.dtype == np.float64  # else rounding looks like jumps
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
    """Checks that the priority, unless always the same, grows with the error's size alone."""
    cases = subject.cases
    large = 5.0 if subject.table.representation == "categorical" else 30.0
    values = (subject.settled + error for error in (_SMALL_ERROR, large, -large))
    all_three = [np.float64(subject.evaluate(cases.predict(x)).priority) for x in values]
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
    text = (
        "1 more of reward and of all q_tm1 changes the priority, by a share of up to {:.3g}, "
        "although the error is the same: it depends on the target or the prediction alone"
    )
    is_straight = subject.fixed_point is None or not is_bent(subject.fixed_point)
    others = {text: cases.shift(r_t=1.0, q_tm1=1.0)} if is_straight else {}
    if subject.bootstrap != "online" and not subject.learns_other_actions:
        noise = np.random.default_rng(8).normal(size=cases.q_tm1.shape)
        text = (
            "the priority changes with q_tm1 of actions that were not taken, by a share of up to "
            "{:.3g}: index it with a_tm1"
        )
        others[text] = cases.shift(q_tm1=~cases.is_taken * noise)
    change = 0.0
    for text, other in others.items():
        change = subject.compare(cases, other, "priority", 0.1)
        expect(change < 1e-3, f"{change:.1e}", f"{text.format(change)}; {_PRIORITY}")
    return f"{change:.1e}"
