"""What the target of a loss is made of: where its gradient goes, and what moves it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from purejaxdqn.testing.cases import NUM_CASES, Answers, Bench, Cases, random_cases
from purejaxdqn.testing.distributions import check_distribution
from purejaxdqn.testing.fixed_points import Bootstrap, FixedPoint
from purejaxdqn.testing.mdps import NUM_ACTIONS
from purejaxdqn.testing.naming import Formula, name_target
from purejaxdqn.testing.penalties import check_penalty, check_priority
from purejaxdqn.testing.reading import (
    agreeing,
    discount_reading,
    read_target,
    reward_reading,
    rounding,
)
from purejaxdqn.testing.report import Check, attempt, expect
from purejaxdqn.testing.tables import FRACTIONS, Table

_FAR = 1e3
_MILLION = 1e6
_SHARE = 1e-3
_STOP = "wrap the target in jax.lax.stop_gradient"


def check_target(
    bench: Bench,
    table: Table,
    fixed_point: FixedPoint | None,
    bootstrap: Bootstrap,
    learns_other_actions: bool,
    learns_next_obs: bool,
) -> tuple[list[Check], str]:
    """The rows on gradient and target, and what is wrong with the target."""
    cases = random_cases(NUM_CASES, NUM_ACTIONS)
    try:
        answers, settled = bench.answers(cases), bench.settled(cases)
    except Exception as error:
        message = f"raises {type(error).__name__} with float64 values: {error}"
        return [Check("runs in float64", False, type(error).__name__, message)], ""

    def look(name: str, check: Callable[..., str], *args: object) -> Check:
        return attempt(name, lambda: check(*args))

    finite = look("finite at a million, and at zero", _finite, bench, cases)
    if not all(np.isfinite(x).all() for x in answers):
        return [finite], ""  # nothing else can be told
    checks = [
        look("no gradient to the target network", _target_network, answers),
        look("the gradient reaches q_tm1[a_tm1]", _reaches, bench, answers, cases),
        look("leads towards the target", _direction, bench, table, cases),
        look("finite differences, float64", _slopes, bench, cases),
        finite,
    ]
    if not learns_next_obs:
        checks.insert(1, look("no gradient through the target", _through_target, answers))
    if not learns_other_actions:
        checks.insert(3, look("no gradient to other actions", _others, answers, cases))
    counts = look("the reward counts once", _reward, bench, cases)
    if fixed_point is None and counts.passed is False:
        why = "no fixed point is declared, and a regulariser may hang on q_tm1 too"
        counts = Check(counts.name, None, counts.figure, why)
    checks.append(counts)
    if bootstrap == "none":
        checks.append(look("bootstraps from: none", _nothing, bench, cases))
    else:
        checks += [
            look("the discount counts once", _discount, bench, cases, bootstrap),
            look(
                f"bootstraps from: {bootstrap}",
                _bootstrap,
                *(bench, cases, answers, bootstrap, learns_other_actions),
            ),
        ]
    if fixed_point is None:
        return checks, ""
    formula = _find_formula(bench, cases, settled, fixed_point, bootstrap)
    mistakes = [""]
    target = (bench, cases, settled, fixed_point, bootstrap, formula)
    far = table.representation != "categorical"
    checks.append(look("the target is the declared one", _formula, *target, far, mistakes))
    if far:
        title = "errors of both signs" if table.representation == "values" else "the fractions"
        checks.append(look(title, _asymmetry, bench, table, cases, settled))
    if all(check.passed is not False for check in checks):  # else the errors are not known
        if far:
            checks.append(look("the penalty", check_penalty, bench, cases, settled))
        of_taken_alone = bootstrap != "online" and not learns_other_actions
        checks.append(_priority(bench, table, cases, settled, of_taken_alone))
    if fixed_point.name == "optimal" and table.representation != "values":
        checks.append(_distribution(bench, table, cases))
    return checks, mistakes[0]


def _find_formula(
    bench: Bench,
    cases: Cases,
    settled: np.ndarray,
    fixed_point: FixedPoint,
    bootstrap: Bootstrap,
) -> Formula | None:
    if not np.isfinite(settled).all():
        return None
    q_tm1 = cases.online[:, 0].copy()
    q_tm1[np.arange(NUM_CASES), cases.a_tm1] = settled
    formula = name_target(settled, q_tm1, cases, fixed_point, bootstrap)
    if formula is None:  # it may hang on the very values that were moved
        reached = _reached_by_reward(bench, cases)
        if _size(reached) > _FAR / 2:
            return None  # no reward makes the prediction stay
        formula = name_target(reached, cases.online[:, 0], cases, fixed_point, bootstrap)
    return formula


def _reached_by_reward(bench: Bench, cases: Cases) -> np.ndarray:
    """`[N]` the targets, by what the reward must be for the prediction to stay: by bisection."""
    low, high = (np.full(len(cases.r_t), by) for by in (-_FAR, _FAR))
    for _ in range(45):
        middle = (low + high) / 2
        rises = bench.answers(cases.shifted(r_t=middle)).pull > 0
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    predicted = cases.online[np.arange(len(middle)), 0, cases.a_tm1]
    return predicted - middle


def _size(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0))


def _entries(grad: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes `[N, A]` of a gradient at obs_tm1, and which of them are of the action taken."""
    sizes = np.abs(grad[:, 0]).reshape(*grad[:, 0].shape[:2], -1).max(-1)
    return sizes, np.arange(sizes.shape[1]) == action[:, np.newaxis]


def _target_network(answers: Answers) -> str:
    size = _size(answers.target_grad)
    at = "obs_t" if _size(answers.target_grad[:, 1]) else "obs_tm1"
    return expect(
        size == 0,
        f"{size:.3g}",
        f"a gradient of up to {size:.3g} reaches target_params (its values at {at}): {_STOP}",
    )


def _through_target(answers: Answers) -> str:
    size = _size(answers.grad[:, 1])
    return expect(
        size == 0,
        f"{size:.3g}",
        f"a gradient of up to {size:.3g} flows through the target to the online network's values "
        f"at obs_t: {_STOP} (no semi-gradient)",
    )


def _reaches(bench: Bench, answers: Answers, cases: Cases) -> str:
    sizes, is_taken = _entries(answers.grad, cases.a_tm1)
    share = float((sizes[is_taken] > 0).mean())
    if _size(answers.target_grad) and not _size(answers.grad):
        why = "the target network's weights are trained in its place (networks swapped)"
    elif _size(answers.grad[:, 1]) and not sizes.any():
        why = "the gradient goes to obs_t, by way of the target (stop_gradient on the wrong side)"
    elif share > 0 and not sizes[~is_taken].any():
        why = "a large error has no gradient: clip the gradient (Huber), not the error"
    elif sizes.any():
        why = "another action's value is trained: index q_tm1 with a_tm1"
    else:
        why = "stop that of the target alone, not of the prediction"
    message = f"in {1 - share:.0%} of cases no gradient reaches q_tm1[a_tm1]: {why}"
    expect(share > 0.99, f"{share:.0%}", message)
    ended = bench.answers(cases._replace(discount_t=0 * cases.discount_t))
    of_ends = float((_entries(ended.grad, cases.a_tm1)[0][is_taken] > 0).mean())
    message = (
        f"where the episode terminated (discount_t = 0), in {1 - of_ends:.0%} of cases no gradient "
        "reaches q_tm1[a_tm1]: a terminal transition counts like any other, and is not masked by "
        "discount_t"
    )
    return expect(of_ends > 0.99, f"{share:.0%}", message)


def _others(answers: Answers, cases: Cases) -> str:
    sizes, is_taken = _entries(answers.grad, cases.a_tm1)
    size = _size(sizes[~is_taken])
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


def _direction(bench: Bench, table: Table, cases: Cases) -> str:
    far = 6.0 if table.representation == "categorical" else _FAR
    up, down = (bench.answers(cases.shifted(r_t=by)).pull for by in (far, -far))
    share = float(((up > 0) & (down < 0)).mean())
    away = float(((up < 0) & (down > 0)).mean())
    if away > 0.99:
        same = _loss_change(bench, cases, cases.shifted(r_t=1.0, q_tm1=1.0)) < 1e-6
        why = (
            "a gradient step leads away from the target: the loss has the wrong sign"
            if same
            else "more reward lowers the prediction: the reward, or the prediction in the TD "
            "error, has the wrong sign"
        )
    elif not up.any() and not down.any():
        why = "a large error has no gradient: clip the gradient (Huber), not the error"
    elif not (up - down).any():
        above, below = (bench.answers(cases.shifted(q_tm1=by)).pull for by in (far, -far))
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
        why = "a large error has no gradient: clip the gradient (Huber), not the error"
    else:
        why = "the step depends on something else than target less prediction"
    message = (
        f"in {share:.0%} of cases a step leads from an error of +-{far:g} to its target: {why}"
    )
    return expect(share > 0.99, f"{share:.0%}", message)


def _slopes(bench: Bench, cases: Cases) -> str:
    answers = bench.answers(cases)
    is_double = answers.loss.dtype == np.float64  # else it rounds by itself
    width, tolerance = (1e-5, 1e-5) if is_double else (1e-2, 2e-2)
    direction = np.random.default_rng(6).normal(size=answers.grad.shape)
    direction[:, 1] = 0  # only the prediction's side: a semi-gradient ignores the target's
    up, down = (bench.answers(cases, nudge=step * direction).loss for step in (width, -width))
    grad = (answers.grad * direction).reshape(len(direction), -1).sum(1)
    difference = np.asarray(up - down, np.float64) / (2 * width)
    error = _size((grad - difference) / (1 + np.abs(difference)))
    i = int(np.argmax(np.abs(grad - difference)))
    return expect(
        error < tolerance,
        f"{error:.1e}",
        f"the gradient is {grad[i]:.6g} along a direction in which the loss changes by "
        f"{difference[i]:.6g}: part of the prediction is behind a stop_gradient (such as in a "
        "weight of the error's own size), is rounded, or has a derivative of its own that is "
        "wrong",
    )


def _finite(bench: Bench, cases: Cases) -> str:
    signs = np.where(np.arange(len(cases.r_t)) % 2, 1.0, -1.0)
    for what, scale, r_t in (
        ("values of a million", _MILLION, _MILLION * signs),
        ("values of minus a million", -_MILLION, _MILLION * signs),
        ("values that are all 0, without an error", 0.0, 0 * signs),
    ):
        found = bench.answers(cases._replace(r_t=r_t), np.float32, scale)
        for name, x in zip(found._fields, found, strict=True):
            expect(
                np.isfinite(x).all(),
                "not finite",
                f"with {what} in float32 the {name} is not finite: look for an exponential or a "
                "power without its maximum taken off, a division by 0, a logarithm of 0, or the "
                "gradient of a root at 0",
            )
    return "finite"


def _loss_change(bench: Bench, one: Cases, other: Cases) -> float:
    """How far the losses of two lists of cases differ, as a share."""
    a, b = bench.answers(one).loss, bench.answers(other).loss
    return _size((a - b) / (1 + np.abs(a)))


def _weighed(bench: Bench, cases: Cases, expected: np.ndarray | float, *others: Cases) -> str:
    """Whether it is not the target that is wrong, for a message: the others all move it as much."""
    settled = bench.settled(cases)
    if any(_size(bench.settled(other) - settled - expected) > 1e-4 for other in others):
        return ""
    return (
        "the target moves as it must, but what the error costs hangs on r_t, discount_t or values "
        "too: weights that differ between transitions bias what is learned"
    )


def _reward(bench: Bench, cases: Cases) -> str:
    change = _loss_change(bench, cases, cases.shifted(r_t=1.0, q_tm1=1.0))
    if change < 1e-6:
        return f"{change:.1e}"
    why = (
        _weighed(bench, cases, 1.0, cases.shifted(r_t=1.0))
        or rounding(bench, agreeing(cases))
        or reward_reading(bench, agreeing(cases))
        or "r_t must count once in the target, undiscounted and with a plus sign, and "
        "q_tm1[a_tm1] be taken off"
    )
    raise AssertionError(
        f"{change:.1e}",
        "1 more of reward and of all q_tm1 changes the loss, by a share of up to "
        f"{change:.3g}: {why}",
    )


def _discount(bench: Bench, cases: Cases, bootstrap: Bootstrap) -> str:
    names = {"target": ("q_t",), "online": ("q_t_selector",), "both": ("q_t", "q_t_selector")}
    raised = cases.shifted(**dict.fromkeys(names[bootstrap], 1.0))
    change = _loss_change(bench, raised, cases.shifted(r_t=cases.discount_t))
    if change < 1e-6:
        return f"{change:.1e}"
    values = " and ".join(names[bootstrap])
    if _loss_change(bench, raised, cases) == 0:
        why = f"{values} does not count at all: is the target built from other values?"
    else:
        why = (
            _weighed(bench, cases, cases.discount_t, raised, cases.shifted(r_t=cases.discount_t))
            or discount_reading(bench, agreeing(cases), bootstrap)
            or reward_reading(bench, agreeing(cases))
            or "discount_t must multiply what comes from time t, once"
        )
    raise AssertionError(
        f"{change:.1e}",
        f"1 more of {values} must be worth as much as discount_t more of r_t, and the loss differs "
        f"by a share of up to {change:.3g}: {why}",
    )


def _nothing(bench: Bench, cases: Cases) -> str:
    change = _loss_change(bench, cases, cases.shifted(q_t=1.0, q_t_selector=1.0))
    return expect(
        change < 1e-6,
        f"{change:.1e}",
        f"the loss changes with the values at obs_t, by a share of up to {change:.3g}, although it "
        "is said not to bootstrap (bootstrap='none')",
    )


def _bootstrap(
    bench: Bench, cases: Cases, answers: Answers, bootstrap: Bootstrap, learns_other_actions: bool
) -> str:
    rng = np.random.default_rng(4)
    largest = 0.0

    def still(what: str, other: Cases, message: str) -> None:
        nonlocal largest
        change = _loss_change(bench, cases, other)
        largest = max(largest, change)
        wrong = f"the loss changes with {what}, by a share of up to {change:.3g}: {message}"
        expect(change < 1e-6, f"{change:.1e}", wrong)

    if bootstrap == "target":
        message = (
            "the target takes values of the online network (params, q_t_selector), which may pick "
            "an action but not judge it: they belong to the target network (target_params, q_t). "
            "Where that is meant: bootstrap='online'"
        )
        still("1 more of all q_t_selector", cases.shifted(q_t_selector=1.0), message)
    if bootstrap == "online":
        message = (
            "it uses target_params although it is said to do without a target network "
            "(bootstrap='online')"
        )
        noise = {"q_t": rng.normal(size=NUM_ACTIONS), "target_q_tm1": rng.normal(size=NUM_ACTIONS)}
        rows = {name: np.tile(x, (len(cases.r_t), 1)) for name, x in noise.items()}
        still("the target network's values", cases.shifted(**rows), message)
    message = "the target takes values of obs_tm1 where those of obs_t belong"
    still("1 more of all the target network's q_tm1", cases.shifted(target_q_tm1=1.0), message)
    sizes, is_taken = _entries(answers.grad, cases.a_tm1)
    untaken = ~is_taken
    # Where they have a gradient, a row of its own says so.
    if bootstrap != "online" and not learns_other_actions and not sizes[untaken].any():
        noise_tm1 = untaken * rng.normal(size=untaken.shape)
        message = (
            "the target takes the online network's values at obs_tm1. For a loss that is meant to "
            "learn of other actions: learns_other_actions=True"
        )
        still("q_tm1 of actions not taken", cases.shifted(q_tm1=noise_tm1), message)
    return f"{largest:.1e}"


def _formula(
    bench: Bench,
    cases: Cases,
    settled: np.ndarray,
    fixed_point: FixedPoint,
    bootstrap: Bootstrap,
    formula: Formula | None,
    far: bool,
    mistakes: list[str],
) -> str:
    """The row's figure; what is wrong is left in `mistakes` too."""
    size = _size(settled)
    expect(
        np.isfinite(size) and size < _FAR / 2,
        f"{size:.1e}",
        f"minimised with all else held fixed, q_tm1[a_tm1] goes to {size:.3g} and does not settle: "
        "the loss, or the prediction in it, has the wrong sign, or the error has no penalty",
    )
    difference, example, said = read_target(bench, cases, fixed_point, bootstrap, far)
    # What hangs on two networks is as declared where these say the same.
    if formula is not None and formula.mistakes and (example or bootstrap != "both"):
        said = "; ".join(formula.mistakes)
        example = f"the target is {formula.text}, and {fixed_point.name} was declared"
    mistakes[0] = said
    return expect(not example, f"{difference:.1e}", f"{example}: {said}")


def _asymmetry(bench: Bench, table: Table, cases: Cases, settled: np.ndarray) -> str:
    """How much more an error above the prediction pulls than one below: which quantile it learns.

    A penalty that is the same on both sides has a share of one half.
    """
    lanes = np.arange(len(settled))
    predicted = cases.online[lanes, 0, cases.a_tm1]
    worst = 0.0
    expected = FRACTIONS if table.representation == "quantile" else np.array([0.5])
    # Of large errors first: where a target is a little off, it is on the right side of them.
    for size in (30.0, 0.3):
        above, below = (
            -bench.answers(cases.shifted(q_tm1=settled + by - predicted))
            .grad[lanes, 0, cases.a_tm1]
            .reshape(len(settled), -1)
            for by in (-size, size)
        )
        idle = int(((above == 0) & (below == 0)).all(0).sum())
        expect(
            idle == 0 or table.representation == "values",
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
        message = _learned_shares(share) if len(share) > 1 else _leaning(float(share[0]))
        expect(worst < _SHARE, f"{worst:.1e}", message)
    return f"{worst:.1e}"


def _leaning(share: float) -> str:
    return (
        f"an error counts {share:.2g} to {1 - share:.2g} where the target is above the prediction "
        "and where it is below: where outcomes are random, such values lean to one side and are "
        "not the declared ones. Where that is meant: fixed_point=None"
    )


def _learned_shares(share: np.ndarray) -> str:
    num = len(FRACTIONS)
    i = np.arange(num)
    known = {
        "i / N": i / num,
        "(i + 1) / N": (i + 1) / num,
        "i / (N - 1)": i / (num - 1),
        "(i + 1) / (N + 1)": (i + 1) / (num + 1),
    }
    learned, right = (", ".join(f"{x:.3g}" for x in xs) for xs in (share, FRACTIONS))
    formula = next((text for text, xs in known.items() if _size(share - xs) < _SHARE), None)
    why = (
        "that of 1 - fraction: the sign of the error, or the asymmetry, is the wrong way round"
        if _size(share - FRACTIONS[::-1]) < _SHARE
        else f"those are {formula}, and the midpoints belong, (i + 0.5) / N: take the fractions "
        "that the network gives"
        if formula
        else "all are the same: is the fraction that of the prediction, on its own axis, and the "
        "asymmetry |fraction - (error < 0)|?"
        if np.ptp(share) < _SHARE
        else "the asymmetry must be |fraction - (error < 0)|, with the network's fractions"
    )
    return f"the fractions are {right}, and those learned are {learned}: {why}"


def _attempt_or_not(title: str, look: Callable[[], str | None], why_not: str) -> Check:
    """A row that is not judged where `look` gives None."""
    figures: list[str | None] = []

    def attempted() -> str:
        figures.append(look())
        return figures[0] or ""

    check = attempt(title, attempted)
    return Check(title, None, "", why_not) if figures == [None] else check


def _distribution(bench: Bench, table: Table, cases: Cases) -> Check:
    return _attempt_or_not(
        "the whole distribution",
        lambda: check_distribution(bench, table, cases),
        "it learns a mean alone, as a distribution",
    )


def _priority(
    bench: Bench, table: Table, cases: Cases, settled: np.ndarray, of_taken_alone: bool
) -> Check:
    large = 5.0 if table.representation == "categorical" else 30.0
    return _attempt_or_not(
        "the priority",
        lambda: check_priority(bench, cases, settled, large, of_taken_alone),
        "it is the same whatever the error is",
    )
