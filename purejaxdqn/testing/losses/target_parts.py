"""Checks that reward, discount and bootstrap enter the target as in a Bellman equation."""

from collections.abc import Callable

import numpy as np

from purejaxdqn.testing.fixed_points import is_bent, take_value
from purejaxdqn.testing.losses.gradients import FAR
from purejaxdqn.testing.losses.single_transitions import Cases, Subject, draw_cases, find_size
from purejaxdqn.testing.losses.target_formulas import TOLERANCE, Formula, name_target
from purejaxdqn.testing.report import Check, attempt, expect, find_true
from purejaxdqn.testing.tabular.decision_processes import NUM_ACTIONS

_LOW, _HIGH = 0.02, 0.9999  # the discounts that are tried, beside others between
_CAPPED = "discount_t is capped, or bent: it is gamma itself"


def check_target_parts(subject: Subject) -> list[Check]:
    """Makes the rows on each part of the target."""
    reward = attempt("the reward counts once", _check_reward, subject)
    if reward.passed is False and subject.fixed_point is None:
        why = "no fixed point is declared, and a regulariser may depend on q_tm1 too"
        reward = reward._replace(passed=None, message=why)
    rows = [reward]
    if subject.bootstrap != "none":
        rows.append(attempt("the discount counts once", _check_discount, subject))
    return [*rows, attempt(f"bootstraps from: {subject.bootstrap}", _check_bootstrap, subject)]


def check_declared_target(subject: Subject) -> tuple[Check, str]:
    """Makes the row on the whole target, and says what is wrong with it."""
    wrong = ""

    def look() -> str:
        nonlocal wrong
        size = find_size(subject.settled)
        unsettled = (
            f"minimised with all else held fixed, q_tm1[a_tm1] goes to {size:.3g} and does not "
            "settle: the loss, or the prediction in it, has the wrong sign, or the error has no "
            "penalty"
        )
        expect(size < FAR / 2, f"{size:.1e}", unsettled)
        formula = _find_formula(subject)
        difference, example, wrong = _find_difference(subject)
        # A bootstrap from both networks may mix them: it is judged only where they agree.
        if formula is not None and formula.mistakes and (example or subject.bootstrap != "both"):
            wrong = "; ".join(formula.mistakes)
            example = f"the target is {formula.text}, and {subject.fixed_point.name} was declared"
        return expect(not example, f"{difference:.1e}", f"{example}: {wrong}")

    return attempt("the target is the declared one", look), wrong


def _find_formula(subject: Subject) -> Formula | None:
    cases, declared = subject.cases, (subject.fixed_point, subject.bootstrap)
    if formula := name_target(subject.settled, cases.predict(subject.settled), *declared):
        return formula
    # The target may depend on the very values that were moved: by bisection, find the reward that
    # makes each prediction stay.
    low, high = np.full((2, len(cases.r_t)), [[-FAR], [FAR]])
    for _ in range(45):
        middle = (low + high) / 2
        rises = subject.pull(r_t=middle) > 0
        low, high = np.where(rises, low, middle), np.where(rises, middle, high)
    reached = take_value(cases.q_tm1, cases.a_tm1) - middle
    is_found = find_size(reached) <= FAR / 2  # else no reward does
    return name_target(reached, cases, *declared) if is_found else None


def _expect_alike(
    subject: Subject, one: Cases, other: Cases, wrong: str, *why: str | Callable[[Subject], str]
) -> str:
    """Fails where two cases have other losses, with the first reason that says something."""
    change = subject.compare(one, other)
    if not change < 1e-6:
        texts = (text if isinstance(text, str) else text(subject) for text in why)
        wrong = f"{wrong} by a share of up to {change:.3g}: {next(filter(None, texts))}"
    return expect(change < 1e-6, f"{change:.1e}", wrong)


def _describe_weights(subject: Subject, expected: np.ndarray | float, *others: Cases) -> str:
    """Says that a weight is wrong, and not the target, if other cases move it as `expected`."""
    moves = (subject.settle(other) - subject.settled for other in others)
    if any(find_size(move - expected) > 1e-4 for move in moves):
        return ""
    return (
        "the target moves as it must, but what the error costs depends on r_t, discount_t or "
        "values too: weights that differ between transitions bias what is learned"
    )


def _follow_declared(subject: Subject, other: Cases, what: str) -> str:
    """Compares how far a target moves with what a fixed point declares that bends rewards."""
    one = subject.cases.equate_networks()
    declared = [subject.fixed_point.target(x.q_tm1, *x[4:], x.q_t) for x in (one, other)]
    moved = subject.settle(other) - subject.settle(one)
    error = find_size(moved - (declared[1] - declared[0]))
    wrong = f"1 more of {what} does not move the target as {subject.fixed_point.name} declares"
    return expect(error < 10 * TOLERANCE, f"{error:.1e}", wrong)


def _is_bent(subject: Subject) -> bool:
    return subject.fixed_point is not None and is_bent(subject.fixed_point)


def check_other_sizes(subject: Subject) -> str:
    """Checks on 2 and on 6 actions that predictions are drawn to the declared target."""
    for num_actions in (2, 6):
        cases = draw_cases(num_actions).equate_networks()
        target = subject.fixed_point.target(cases.q_tm1, *cases[4:], cases.q_t)
        for by in (-0.05, 0.05):
            moved = cases.predict(target + by)
            seen = moved if subject.bootstrap == "online" else cases
            declared = subject.fixed_point.target(seen.q_tm1, *cases[4:], cases.q_t)
            wanted = np.sign(declared - target - by)
            share = float((np.sign(subject.evaluate(moved).pull) != wanted).mean())
            wrong = (
                f"with {num_actions} actions (and not with {NUM_ACTIONS}) {share:.0%} of "
                "predictions are drawn away from the declared target: a number of actions is "
                "written into the loss"
            )
            expect(share == 0, f"{share:.0%}", wrong)
    return "0%"


def _check_reward(subject: Subject) -> str:
    cases = subject.cases
    if _is_bent(subject):
        return _follow_declared(subject, cases.equate_networks().shift(r_t=1.0), "r_t")
    return _expect_alike(
        *(subject, cases, cases.shift(r_t=1.0, q_tm1=1.0)),
        "1 more of reward and of all q_tm1 changes the loss,",
        lambda _: _describe_weights(subject, 1.0, cases.shift(r_t=1.0)),
        *(_describe_rounding, _describe_reward),
        "r_t must count once in the target, undiscounted and with a plus sign, and q_tm1[a_tm1] be "
        "taken off",
    )


def _check_discount(subject: Subject) -> str:
    cases, both = subject.cases, ["q_t", "q_t_selector"]
    names = {"target": both[:1], "online": both[1:]}.get(subject.bootstrap, both)
    values = " and ".join(names)
    if _is_bent(subject):
        other = cases.equate_networks().shift(q_t=1.0, q_t_selector=1.0)
        return _follow_declared(subject, other, "all values at time t")
    raised = cases.shift(**dict.fromkeys(names, 1.0))
    high = cases.set(discount_t=_HIGH)
    rewarded = cases.shift(r_t=cases.discount_t)
    unused = f"{values} does not count at all: is the target built from other values?"
    measured = _expect_alike(
        *(subject, raised, rewarded),
        f"1 more of {values} must be worth as much as discount_t more of r_t, and the loss differs",
        lambda _: unused if subject.compare(cases, raised) == 0 else "",
        lambda _: _describe_weights(subject, cases.discount_t, raised, rewarded),
        *(_describe_discount, _describe_reward),
        "discount_t must multiply what comes from time t, once",
    )
    _expect_alike(
        *(subject, high.shift(**dict.fromkeys(names, 1.0)), high.shift(r_t=_HIGH)),
        f"1 more of {values} must be worth as much as discount_t more of r_t, and where discount_t "
        f"is {_HIGH} the loss differs",
        _CAPPED,
    )
    return measured


def _check_bootstrap(subject: Subject) -> str:
    """Checks that the loss does not change with values that are not to count."""
    cases, bootstrap = subject.cases, subject.bootstrap
    rng = np.random.default_rng(4)
    measured = []

    def expect_still(what: str, why: str, **shift: np.ndarray | float) -> None:
        wrong, other = f"the loss changes with {what},", cases.shift(**shift)
        measured.append(_expect_alike(subject, cases, other, wrong, why))

    if bootstrap == "none":
        why = "it is said not to bootstrap (bootstrap='none')"
        expect_still("the values at obs_t", why, q_t=1.0, q_t_selector=1.0)
    if bootstrap == "target":
        why = (
            "the target takes values of the online network (params, q_t_selector), which may pick "
            "an action but not judge it: they belong to the target network (target_params, q_t). "
            "Where that is meant: bootstrap='online'"
        )
        expect_still("1 more of all q_t_selector", why, q_t_selector=1.0)
    if bootstrap == "online":
        why = (
            "it uses target_params although it is said to do without a target network "
            "(bootstrap='online')"
        )
        q_t, target_q_tm1 = rng.normal(size=(2, 1, cases.q_t.shape[1]))
        expect_still("the target network's values", why, q_t=q_t, target_q_tm1=target_q_tm1)
    if bootstrap != "none":
        why = "the target takes values of obs_tm1 where those of obs_t belong"
        expect_still("1 more of all the target network's q_tm1", why, target_q_tm1=1.0)
    # Where other actions have a gradient, a row of its own says so.
    is_learned = subject.learns_other_actions or subject.answers.sizes[~cases.is_taken].any()
    if bootstrap in ("target", "both") and not is_learned:
        why = (
            "the target takes the online network's values at obs_tm1. For a loss that is meant to "
            "learn of other actions: learns_other_actions=True"
        )
        noise = ~cases.is_taken * rng.normal(size=cases.q_tm1.shape)
        expect_still("q_tm1 of actions not taken", why, q_tm1=noise)
    return max(measured, key=float)


def _differ(subject: Subject, cases: Cases) -> np.ndarray:
    settled = subject.settle(cases)
    # Without a target network its own prediction has moved meanwhile.
    moved = cases.predict(settled) if subject.bootstrap == "online" else cases
    declared = subject.fixed_point.target(moved.q_tm1, *cases[4:], cases.q_t)
    # What overflows where it is declared says nothing of the loss.
    difference = np.where(np.isfinite(declared), settled - declared, 0.0)
    return np.where(np.isfinite(settled), difference, np.inf)


def _find_difference(subject: Subject) -> tuple[float, str, str]:
    """Finds the largest difference to the declared target, an example, and what it depends on."""
    cases = subject.cases.equate_networks()
    stages: list[tuple[Cases, float, Callable[..., str]]] = [
        (cases, TOLERANCE, _describe_dependence),
        (cases.set(discount_t=0.0), TOLERANCE, _describe_end),
        (cases.set(discount_t=_HIGH), TOLERANCE, lambda *_: f"at {_HIGH} {_CAPPED}"),
        (cases.set(discount_t=_LOW), TOLERANCE, lambda *_: f"at {_LOW} {_CAPPED}"),
    ]
    if subject.table.representation != "categorical":  # its support ends before a thousand
        said = "at values of a thousand the target is clipped or bent"
        stages.append((cases.scale(1e3), 1e3 * TOLERANCE, lambda *_: said))
    sizes = []
    for cases, tolerance, describe in stages:
        difference = _differ(subject, cases)
        sizes.append(find_size(difference))
        if sizes[-1] > tolerance:
            i = int(np.argmax(np.abs(difference)))
            settled = subject.settle(cases)[i]
            example = (
                f"where r_t is {cases.r_t[i]:.3g}, discount_t {cases.discount_t[i]:.3g} and q_t "
                f"[{', '.join(f'{q:.3g}' for q in cases.q_t[i])}], the target is {settled:.4g} and "
                f"{subject.fixed_point.name} declares {settled - difference[i]:.4g}"
            )
            return sizes[-1], example, describe(subject, cases, difference)
    return sizes[0], "", ""


def _describe_end(subject: Subject, ended: Cases, difference: np.ndarray) -> str:
    """Describes what is wrong with the targets of terminal transitions alone."""
    end = "where the episode terminated (discount_t = 0)"
    predictions = take_value(ended.q_tm1, ended.a_tm1)
    if find_size(subject.settle(ended) - predictions) < TOLERANCE:
        return f"{end} nothing is learned, although such a transition counts like any other"
    features = np.stack([ended.r_t, np.ones_like(ended.r_t)], 1)
    factors = np.linalg.lstsq(features, difference, rcond=None)[0]
    if find_size(features @ factors - difference) > TOLERANCE:
        return f"{end} the target is another one"
    times, more = 1 + factors[0], factors[1]
    said = {
        "the reward r_t is lost": abs(times) < TOLERANCE,
        f"the reward counts {times:.3g} times": min(abs(times), abs(times - 1)) > TOLERANCE,
        f"a constant of {more:.3g} is added to the target": abs(more) > TOLERANCE,
    }
    return f"{end} {' and '.join(find_true(said))}"


def _describe_dependence(subject: Subject, cases: Cases, difference: np.ndarray) -> str:
    """Describes what changes the difference to the declared target, and how."""
    fields = {name: name for name in ("r_t", "discount_t", "a_tm1")}
    fields |= {"the values at obs_tm1": "target_q_tm1", "the values at obs_t": "q_t"}
    moves = {}
    for name, field in fields.items():
        other = cases._replace(**{field: np.roll(getattr(cases, field), 1, axis=0)})
        change = _differ(subject, other.equate_networks()) - difference
        moves[name] = find_size(change) > TOLERANCE
    names = ", ".join(find_true(moves))
    nothing = subject.cases.scale(0.0)
    constant = _differ(subject, nothing)
    i = int(np.argmax(np.abs(constant)))
    said = [f"the difference depends on {names}" if names else "it differs"]
    parts = (_describe_rounding, _describe_reward, _describe_discount, _describe_values)
    said += [describe(subject) for describe in parts]
    if abs(constant[i]) > TOLERANCE:
        said.append(
            f"with r_t and all values 0 the target is {subject.settle(nothing)[i]:.3g} where "
            f"discount_t is {nothing.discount_t[i]:.3g}: something is added to it"
        )
    return "; ".join(filter(None, said))


def _describe_factors(what: str, given: list[float], found: list[np.ndarray], wrong: str) -> str:
    """Describes how sizes `given` count, which moved the target by `found` `[N]` each."""
    counted = [float(x.mean()) for x in found]
    if any(np.ptp(x) > TOLERANCE for x in found) or np.allclose(counted, given, 0, TOLERANCE):
        return ""
    factor = counted[-1] / given[-1]
    if np.allclose(counted, factor * np.array(given), 0, TOLERANCE):
        return f"{what} counts {factor:.3g} times"
    texts = (", ".join(f"{x:.3g}" for x in xs) for xs in (given, counted))
    return f"{what} of {' counts as '.join(texts)}: {wrong}"


def _describe_rounding(subject: Subject) -> str:
    """Describes a rounded reward: a little more of it does not move the target."""
    cases = subject.cases.equate_networks()
    still, a_little, more = (subject.settle(cases.shift(r_t=by)) for by in (0.0, 1e-4, 1.0))
    share = float(((np.abs(a_little - still) < 1e-6) & (np.abs(more - still) > 0.5)).mean())
    if share < 0.5:
        return ""
    return (
        f"in {share:.0%} of cases 0.0001 more of r_t does not move the target: it is rounded, or "
        "cast to a type of fewer digits"
    )


def _describe_reward(subject: Subject) -> str:
    """Describes how rewards of several sizes count in the target; "" if as themselves."""
    cases = subject.cases.equate_networks()
    sizes = [-3.0, -0.5, 0.5, 3.0]
    zero, *found = (subject.settle(cases.set(r_t=size)) for size in (0.0, *sizes))
    wrong = "the reward is clipped or bent"
    return _describe_factors("r_t", sizes, [x - zero for x in found], wrong)


def _describe_discount(subject: Subject) -> str:
    """Describes how discounts count in the target; "" if as themselves."""
    if subject.bootstrap == "none":
        return ""
    cases = subject.cases.equate_networks()
    sizes = [0.25, 0.5, 0.75, 0.95]
    at = [cases.set(discount_t=size) for size in sizes]
    found = [subject.settle(x.shift(q_t=1.0, q_t_selector=1.0)) - subject.settle(x) for x in at]
    wrong = (
        f"a discount of {found[0].mean():.3g} is written into it, discount_t is lost"
        if np.ptp(np.stack(found)) < TOLERANCE
        else "the discount is bent: discount_t is gamma itself"
    )
    return _describe_factors("discount_t", sizes, found, wrong)


def _describe_values(subject: Subject) -> str:
    """Says which actions' values at time t do not count, and whether they are bent."""
    cases = subject.cases.equate_networks()
    still = subject.settle(cases)

    def move(by: np.ndarray | float) -> np.ndarray:
        return subject.settle(cases.shift(q_t=by, q_t_selector=by)) - still

    moves = [find_size(move(by)) for by in 4.0 * np.eye(cases.q_t.shape[1])[:, np.newaxis]]
    unused = [action for action, size in enumerate(moves) if size < TOLERANCE]
    if len(unused) == len(moves):
        return "no value at obs_t counts"
    said = [f"the value of action {action} at obs_t does not count" for action in unused]
    slope = move(4.0) / 4
    bends = [(move(by) - by * slope) / cases.discount_t for by in (-4.0, -1.0, 1.0)]
    if find_size(np.array(bends)) > 10 * TOLERANCE:
        said.append("the values at obs_t, or the target, are clipped or bent")
    return "; ".join(said)
