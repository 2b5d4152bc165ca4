"""Describes where a target differs from the declared one, and what the difference depends on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from purejaxdqn.testing.fixed_points import FixedPoint
from purejaxdqn.testing.losses.single_transitions import Cases, Subject
from purejaxdqn.testing.losses.target_formulas import TOLERANCE

_THOUSAND = 1e3
_Differences = Callable[[Cases], np.ndarray]


def find_difference(subject: Subject, fixed_point: FixedPoint) -> tuple[float, str, str]:
    """Compares the target with the declared one, where both networks agree.

    Returns:
      The largest difference, an example of it, and what it depends on; no texts where there is
      none.
    """

    def differences(cases: Cases) -> np.ndarray:
        settled = subject.settle(cases)
        own, q_t = cases.target[:, 0].copy(), cases.target[:, 1]
        if subject.bootstrap == "online":  # its own prediction has moved meanwhile
            own[np.arange(len(own)), cases.a_tm1] = settled
        declared = fixed_point.target(own, cases.a_tm1, cases.r_t, cases.discount_t, q_t)
        return np.where(np.isfinite(settled), (settled - declared), np.inf)

    def size(difference: np.ndarray) -> float:
        return float(np.abs(difference).max())

    def example(cases: Cases, difference: np.ndarray) -> str:
        i = int(np.argmax(np.abs(difference)))
        declared = float(subject.settle(cases)[i] - difference[i])
        q_t = ", ".join(f"{q:.3g}" for q in cases.target[i, 1])
        return (
            f"where r_t is {cases.r_t[i]:.3g}, discount_t {cases.discount_t[i]:.3g} and q_t "
            f"[{q_t}], the target is {declared + difference[i]:.4g} and {fixed_point.name} "
            f"declares {declared:.4g}"
        )

    cases = subject.cases.equate_networks()
    ordinary = differences(cases)
    if size(ordinary) > TOLERANCE:
        said = _describe_dependence(subject, ordinary, differences)
        return size(ordinary), example(cases, ordinary), said
    ended = cases.terminate()
    terminal = differences(ended)
    if size(terminal) > TOLERANCE:
        return size(terminal), example(ended, terminal), _describe_end(subject, ended, terminal)
    if subject.table.representation != "categorical":  # its support ends before a thousand
        scaled = Cases(
            *(_THOUSAND * cases.online, _THOUSAND * cases.target, cases.a_tm1),
            *(_THOUSAND * cases.r_t, cases.discount_t),
        )
        large = differences(scaled)
        if size(large) > TOLERANCE * _THOUSAND:
            said = "at values of a thousand the target is clipped or bent"
            return size(large), example(scaled, large), said
    return size(ordinary), "", ""


def _describe_end(subject: Subject, ended: Cases, difference: np.ndarray) -> str:
    """Describes what is wrong with the targets of terminal transitions alone."""
    end = "where the episode terminated (discount_t = 0)"
    if np.abs(subject.settle(ended) - ended.read_predictions()).max() < TOLERANCE:
        return f"{end} nothing is learned, although such a transition counts like any other"
    features = np.stack([ended.r_t, np.ones_like(ended.r_t)], 1)
    factors = np.linalg.lstsq(features, difference, rcond=None)[0]
    if np.abs(features @ factors - difference).max() > TOLERANCE:
        return f"{end} the target is another one"
    times, more = 1 + factors[0], factors[1]
    said = []
    if abs(times) < TOLERANCE:
        said.append("the reward r_t is lost")
    elif abs(times - 1) > TOLERANCE:
        said.append(f"the reward counts {times:.3g} times")
    if abs(more) > TOLERANCE:
        said.append(f"a constant of {more:.3g} is added to the target")
    return f"{end} {' and '.join(said)}"


def _describe_dependence(
    subject: Subject, difference: np.ndarray, differences: _Differences
) -> str:
    """Describes what changes the difference to the declared target, and how."""
    cases = subject.cases.equate_networks()

    def roll(x: np.ndarray, row: int) -> np.ndarray:
        x = x.copy()
        x[:, row] = np.roll(x[:, row], 1, axis=0)
        return x

    others = {
        "r_t": cases._replace(r_t=np.roll(cases.r_t, 1)),
        "discount_t": cases._replace(discount_t=np.roll(cases.discount_t, 1)),
        "a_tm1": cases._replace(a_tm1=np.roll(cases.a_tm1, 1)),
        "the values at obs_tm1": cases._replace(target=roll(cases.target, 0)).equate_networks(),
        "the values at obs_t": cases._replace(target=roll(cases.target, 1)).equate_networks(),
    }
    names = [
        name
        for name, other in others.items()
        if np.abs(differences(other) - difference).max() > TOLERANCE
    ]
    said = [
        f"the difference depends on {', '.join(names)}" if names else "it differs",
        describe_rounding(subject),
        describe_reward(subject),
        describe_discount(subject),
        _describe_values(subject),
        _describe_constant(subject, differences),
    ]
    return "; ".join(filter(None, said))


def _describe_constant(subject: Subject, differences: _Differences) -> str:
    """Describes what is added to the target, which must be 0 where all else is."""
    cases = subject.cases
    nothing = cases._replace(online=0 * cases.online, target=0 * cases.target, r_t=0 * cases.r_t)
    difference = differences(nothing)
    i = int(np.argmax(np.abs(difference)))
    if not np.abs(difference[i]) > TOLERANCE:
        return ""
    target, discount = subject.settle(nothing)[i], nothing.discount_t[i]
    return (
        f"with r_t and all values 0 the target is {target:.3g} where discount_t is {discount:.3g}: "
        "something is added to it"
    )


def _describe_factors(what: str, given: list[float], found: list[np.ndarray], wrong: str) -> str:
    """Describes how sizes `given` count, from `found` `[N]` of each; "" if as themselves."""
    if any(np.ptp(x) > TOLERANCE for x in found):
        return ""
    counted = [float(x.mean()) for x in found]
    if np.allclose(counted, given, rtol=0, atol=TOLERANCE):
        return ""
    factor = counted[-1] / given[-1]
    if np.allclose(counted, factor * np.array(given), rtol=0, atol=TOLERANCE):
        return f"{what} counts {factor:.3g} times"
    texts = (", ".join(f"{x:.3g}" for x in xs) for xs in (given, counted))
    return f"{what} of {' counts as '.join(texts)}: {wrong}"


def describe_rounding(subject: Subject) -> str:
    """Describes a rounded reward: a little more of it does not move the target."""
    cases = subject.cases.equate_networks()
    still, a_little, more = (
        subject.settle(cases._replace(r_t=cases.r_t + by)) for by in (0.0, 1e-4, 1.0)
    )
    stays = (np.abs(a_little - still) < 1e-6) & (np.abs(more - still) > 0.5)
    share = float(stays.mean())
    if share < 0.5:
        return ""
    return (
        f"in {share:.0%} of cases 0.0001 more of r_t does not move the target: it is rounded, or "
        "cast to a type of fewer digits"
    )


def describe_reward(subject: Subject) -> str:
    """Describes how rewards of several sizes count in the target; "" if as themselves."""
    cases = subject.cases.equate_networks()
    sizes = [-3.0, -0.5, 0.5, 3.0]
    zero = subject.settle(cases._replace(r_t=0 * cases.r_t))
    found = [subject.settle(cases._replace(r_t=0 * cases.r_t + size)) - zero for size in sizes]
    return _describe_factors("r_t", sizes, found, "the reward is clipped or bent")


def describe_discount(subject: Subject) -> str:
    """Describes how discounts count in the target; "" if as themselves."""
    if subject.bootstrap == "none":
        return ""
    cases = subject.cases.equate_networks()
    sizes = [0.25, 0.5, 0.75, 0.95]
    found = []
    for size in sizes:
        at = cases._replace(discount_t=0 * cases.discount_t + size)
        found.append(subject.settle(at.shift(q_t=1.0, q_t_selector=1.0)) - subject.settle(at))
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
    num_actions = cases.target.shape[2]
    said = []
    for action in range(num_actions):
        rows = np.tile(4.0 * (np.arange(num_actions) == action), (len(still), 1))
        moved = subject.settle(cases.shift(q_t=rows, q_t_selector=rows)) - still
        if np.abs(moved).max() < TOLERANCE:
            said.append(f"the value of action {action} at obs_t does not count")
    if len(said) == num_actions:
        return "no value at obs_t counts"
    shifts = [-4.0, -1.0, 1.0, 4.0]
    found = [
        (subject.settle(cases.shift(q_t=by, q_t_selector=by)) - still) / cases.discount_t
        for by in shifts
    ]
    bent = any(
        np.abs(x - by * found[-1] / shifts[-1]).max() > 10 * TOLERANCE
        for x, by in zip(found, shifts, strict=True)
    )
    if bent:
        said.append("the values at obs_t, or the target, are clipped or bent")
    return "; ".join(said)
