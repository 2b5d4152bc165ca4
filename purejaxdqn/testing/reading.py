"""Where a target differs from the declared one, and on what the difference hangs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from purejaxdqn.testing.cases import Bench, Cases
from purejaxdqn.testing.fixed_points import Bootstrap, FixedPoint
from purejaxdqn.testing.naming import TOLERANCE

_THOUSAND = 1e3


def agreeing(cases: Cases) -> Cases:
    """The same ones where the online network is as the target network."""
    return cases._replace(online=cases.target)


def _declared(
    cases: Cases, settled: np.ndarray, fixed_point: FixedPoint, bootstrap: Bootstrap
) -> np.ndarray:
    """`[N]` the declared targets of cases whose networks agree."""
    own = cases.target[:, 0]
    if bootstrap == "online":  # its own prediction has moved meanwhile
        own = own.copy()
        own[np.arange(len(own)), cases.a_tm1] = settled
    return fixed_point.target(own, cases.a_tm1, cases.r_t, cases.discount_t, cases.target[:, 1])


def read_target(
    bench: Bench, cases: Cases, fixed_point: FixedPoint, bootstrap: Bootstrap, far: bool
) -> tuple[float, str, str]:
    """How far the target is from the declared one, where both networks say the same, and how so.

    Args:
      bench: of the loss.
      cases: some.
      fixed_point: what is declared.
      bootstrap: from which network.
      far: whether values of a thousand can be represented.

    Returns:
      The largest difference, an example of it, and what it hangs on; no texts where there is none.
    """

    def differences(cases: Cases) -> np.ndarray:
        settled = bench.settled(cases)
        declared = _declared(cases, settled, fixed_point, bootstrap)
        return np.where(np.isfinite(settled), (settled - declared), np.inf)

    def is_off(difference: np.ndarray, scale: float = 1.0) -> bool:
        return bool(np.abs(difference).max() > TOLERANCE * scale)

    def example(cases: Cases, difference: np.ndarray) -> str:
        i = int(np.argmax(np.abs(difference)))
        declared = float(bench.settled(cases)[i] - difference[i])
        q_t = ", ".join(f"{q:.3g}" for q in cases.target[i, 1])
        return (
            f"where r_t is {cases.r_t[i]:.3g}, discount_t {cases.discount_t[i]:.3g} and q_t "
            f"[{q_t}], the target is {declared + difference[i]:.4g} and {fixed_point.name} "
            f"declares {declared:.4g}"
        )

    cases = agreeing(cases)
    ordinary = differences(cases)
    largest = float(np.abs(ordinary).max())
    if is_off(ordinary):
        said = _what_it_hangs_on(bench, cases, bootstrap, ordinary, differences)
        return largest, example(cases, ordinary), said
    ended = cases._replace(discount_t=0 * cases.discount_t)
    terminal = differences(ended)
    if is_off(terminal):
        said = _of_the_end(bench, ended, terminal)
        return float(np.abs(terminal).max()), example(ended, terminal), said
    if far:
        scaled = Cases(
            *(_THOUSAND * cases.online, _THOUSAND * cases.target, cases.a_tm1),
            *(_THOUSAND * cases.r_t, cases.discount_t),
        )
        large = differences(scaled)
        if is_off(large, _THOUSAND):
            said = "at values of a thousand the target is clipped or bent"
            return float(np.abs(large).max()), example(scaled, large), said
    return largest, "", ""


def _of_the_end(bench: Bench, ended: Cases, difference: np.ndarray) -> str:
    """What is wrong with the targets of terminal transitions alone."""
    end = "where the episode terminated (discount_t = 0)"
    predicted = ended.online[np.arange(len(ended.r_t)), 0, ended.a_tm1]
    if np.abs(bench.settled(ended) - predicted).max() < TOLERANCE:
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


def _what_it_hangs_on(
    bench: Bench,
    cases: Cases,
    bootstrap: Bootstrap,
    difference: np.ndarray,
    differences: Callable[[Cases], np.ndarray],
) -> str:
    """What changes the difference to the declared target, and what can be said of each."""

    def rolled(x: np.ndarray, row: int) -> np.ndarray:
        x = x.copy()
        x[:, row] = np.roll(x[:, row], 1, axis=0)
        return x

    others = {
        "r_t": cases._replace(r_t=np.roll(cases.r_t, 1)),
        "discount_t": cases._replace(discount_t=np.roll(cases.discount_t, 1)),
        "a_tm1": cases._replace(a_tm1=np.roll(cases.a_tm1, 1)),
        "the values at obs_tm1": agreeing(cases._replace(target=rolled(cases.target, 0))),
        "the values at obs_t": agreeing(cases._replace(target=rolled(cases.target, 1))),
    }
    hangs_on = [
        name
        for name, other in others.items()
        if np.abs(differences(other) - difference).max() > TOLERANCE
    ]
    readings = (
        *(rounding(bench, cases), reward_reading(bench, cases)),
        *(discount_reading(bench, cases, bootstrap), _value_reading(bench, cases)),
        _zero_reading(bench, cases, differences),
    )
    said = [f"it differs by what hangs on {', '.join(hangs_on)}" if hangs_on else "it differs"]
    return "; ".join([*said, *filter(None, readings)])


def _zero_reading(bench: Bench, cases: Cases, differences: Callable[[Cases], np.ndarray]) -> str:
    """Whether something is left of the target where nothing goes into it."""
    nothing = cases._replace(online=0 * cases.online, target=0 * cases.target, r_t=0 * cases.r_t)
    difference = differences(nothing)
    i = int(np.argmax(np.abs(difference)))
    if not np.abs(difference[i]) > TOLERANCE:
        return ""
    return (
        f"with r_t and all values 0 the target is {bench.settled(nothing)[i]:.3g} where discount_t "
        f"is {nothing.discount_t[i]:.3g}: something is added to it"
    )


def _table(what: str, given: list[float], found: list[np.ndarray], wrong: str) -> str:
    """`given` counts as `found`, each `[N]`; empty where it is right, or differs between cases."""
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


def rounding(bench: Bench, cases: Cases) -> str:
    """Whether a little more of the reward does not move the target, and more of it does."""
    still, a_little, more = (
        bench.settled(cases._replace(r_t=cases.r_t + by)) for by in (0.0, 1e-4, 1.0)
    )
    stays = (np.abs(a_little - still) < 1e-6) & (np.abs(more - still) > 0.5)
    share = float(stays.mean())
    if share < 0.5:
        return ""
    return (
        f"in {share:.0%} of cases 0.0001 more of r_t does not move the target: it is rounded, or "
        "cast to a type of fewer digits"
    )


def reward_reading(bench: Bench, cases: Cases) -> str:
    """As what rewards of several sizes count in the target, where it is not as themselves."""
    sizes = [-3.0, -0.5, 0.5, 3.0]
    zero = bench.settled(cases._replace(r_t=0 * cases.r_t))
    found = [bench.settled(cases._replace(r_t=0 * cases.r_t + size)) - zero for size in sizes]
    return _table("r_t", sizes, found, "the reward is clipped or bent")


def discount_reading(bench: Bench, cases: Cases, bootstrap: Bootstrap) -> str:
    """As what discounts count in the target, where it is not as themselves."""
    sizes = [0.25, 0.5, 0.75, 0.95]
    found = []
    for size in sizes:
        at = cases._replace(discount_t=0 * cases.discount_t + size)
        raised = at.shifted(q_t=1.0, q_t_selector=1.0)
        found.append(bench.settled(raised) - bench.settled(at))
    if bootstrap == "none":
        return ""
    counted = [float(x.mean()) for x in found]
    constant = np.ptp(np.stack(found)) < TOLERANCE
    wrong = (
        f"a discount of {counted[0]:.3g} is written into it, discount_t is lost"
        if constant
        else "the discount is bent: discount_t is gamma itself"
    )
    return _table("discount_t", sizes, found, wrong)


def _value_reading(bench: Bench, cases: Cases) -> str:
    """Which actions' values at time t do not count, and as what all of them do."""
    still = bench.settled(cases)
    said = []
    for action in range(cases.target.shape[2]):
        more = 4.0 * (np.arange(cases.target.shape[2]) == action)
        rows = np.tile(more, (len(still), 1))
        moved = bench.settled(cases.shifted(q_t=rows, q_t_selector=rows)) - still
        if np.abs(moved).max() < TOLERANCE:
            said.append(f"the value of action {action} at obs_t does not count")
    if len(said) == cases.target.shape[2]:
        return "no value at obs_t counts"
    shifts = [-4.0, -1.0, 1.0, 4.0]
    found = [
        (bench.settled(cases.shifted(q_t=by, q_t_selector=by)) - still) / cases.discount_t
        for by in shifts
    ]
    bent = any(
        np.abs(x - by * found[-1] / shifts[-1]).max() > 10 * TOLERANCE
        for x, by in zip(found, shifts, strict=True)
    )
    if bent:
        said.append("the values at obs_t, or the target, are clipped or bent")
    return "; ".join(said)
