"""Finds the formula that a target follows, and the mistakes that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax

from purejaxdqn.testing.fixed_points import Bootstrap, FixedPoint, take_value
from purejaxdqn.testing.losses.single_transitions import Cases

TOLERANCE = 1e-4


class Formula(NamedTuple):
    """A target that was found to fit.

    Attributes:
      text: the formula.
      mistakes: what is wrong with it; none where it is as declared.
    """

    text: str
    mistakes: tuple[str, ...]


class Part(NamedTuple):
    """A part that a formula may have: its text, its values `[N]`, and what is wrong with it."""

    text: str
    values: np.ndarray
    mistake: str


class _Term(NamedTuple):
    """A value at time t, with a bonus `[N]` that is added whatever the discount is."""

    bonus: np.ndarray
    value: Part


def _join(*mistakes: str) -> str:
    return "; ".join(filter(None, dict.fromkeys(mistakes)))


# -------------------------------------------------------------------------- parts of a formula


def _list_sources(cases: Cases, q_tm1: np.ndarray, bootstrap: Bootstrap) -> list[Part]:
    """Lists the rows of action values, and what is wrong with bootstrapping from each."""
    wrong_network = {
        "target": (
            "it bootstraps from the online network (params, q_t_selector) and not from the target "
            "network (target_params, q_t); where that is meant, bootstrap='online'"
        ),
        "online": "it bootstraps from the target network although bootstrap='online'",
        "both": "",
        "none": "",
    }[bootstrap]
    early = "it takes values at time t - 1 (obs_tm1) where those at time t (obs_t) belong"
    right, wrong = ("q_t_selector", "q_t") if bootstrap == "online" else ("q_t", "q_t_selector")
    rows = {"q_t": cases.target[:, 1], "q_t_selector": cases.online[:, 1]}
    return [
        Part(right, rows[right], ""),
        Part(wrong, rows[wrong], wrong_network),
        Part("q_tm1", q_tm1, early),
        Part("the target network's q_tm1", cases.target[:, 0], early),
    ]


def _list_values(cases: Cases, sources: list[Part], is_optimal: bool) -> Iterator[Part]:
    """Lists what may stand for the value at time t."""
    not_highest = "where the maximum belongs" if is_optimal else "where the declared value belongs"
    for name, q, mistake in sources:
        greedy = "" if is_optimal else f"it takes the maximum {not_highest}"
        yield Part(f"max({name})", q.max(1), _join(greedy, mistake))
        for word, value in (
            ("min", q.min(1)),
            ("mean", q.mean(1)),
            ("sum", q.sum(1)),
            ("median", np.median(q, 1)),
            ("max of |.|, ", np.abs(q).max(1)),
            ("softmax-weighted mean", (softmax(q, axis=1) * q).sum(1)),
            ("log-sum-exp", logsumexp(q, axis=1)),
        ):
            wrong = f"it takes the {word} of {name} {not_highest}"
            yield Part(f"{word}({name})", value, _join(wrong, mistake))
        for action, which in ((cases.a_tm1, "a_tm1"), (0 * cases.a_tm1, "0"), (-1, "-1")):
            wrong = f"it takes {name}[{which}] {not_highest}: the value of another action"
            chosen = take_value(q, np.broadcast_to(action, cases.a_tm1.shape) % q.shape[1])
            yield Part(f"{name}[{which}]", chosen, _join(wrong, mistake))
        index = f"it takes the number of the best action, argmax({name}), for its value"
        yield Part(f"argmax({name})", 1.0 * q.argmax(1), _join(index, mistake))
        for picker, q_pick, _ in sources:
            if picker == name:
                continue
            at_t = picker in ("q_t", "q_t_selector")
            wrong = "" if at_t else f"{picker} picks the action at time t: obs_t must pick it"
            if not mistake and at_t and not is_optimal:
                wrong = f"it takes the greedy value {not_highest}"
            roles = (
                ": the online network picks and the target network judges, here it is the other "
                "way round (q_t and q_t_selector swapped)"
                if (picker, name) == ("q_t", "q_t_selector") and mistake
                else ""
            )
            wrong = _join(mistake + roles, wrong)
            yield Part(f"{name}[argmax {picker}]", take_value(q, q_pick.argmax(1)), wrong)
            lowest = f"the action of the lowest {picker} is taken for the best"
            yield Part(f"{name}[argmin {picker}]", take_value(q, q_pick.argmin(1)), lowest)


def _list_rewards(cases: Cases) -> list[Part]:
    r_t = cases.r_t
    return [
        Part("r_t", r_t, ""),
        Part("discount_t * r_t", cases.discount_t * r_t, "the reward is discounted"),
        Part("|r_t|", np.abs(r_t), "the reward loses its sign"),
        Part("sign(r_t)", np.sign(r_t), "the reward is clipped to its sign"),
        Part("r_t^2", r_t**2, "the reward is squared"),
    ]


def _list_discounts(cases: Cases) -> list[Part]:
    r_t, d = cases.r_t, cases.discount_t
    lost = "the discount is lost: discount_t does not multiply what comes from time t"
    swapped = "r_t stands in the place of discount_t (swapped arguments)"
    both = "r_t multiplies what comes from time t beside discount_t"
    return [
        Part("discount_t", d, ""),
        Part("1", np.ones_like(r_t), lost),
        Part("r_t", r_t, swapped),
        Part("(1 - discount_t)", 1 - d, "it takes discount_t for a flag of the end"),
        Part("discount_t^2", d**2, "the discount is applied twice: discount_t is gamma itself"),
        Part("sqrt(discount_t)", np.sqrt(d), "it takes the root of discount_t"),
        Part("discount_t * r_t", d * r_t, both),
        Part("(r_t + discount_t)", r_t + d, f"{both}: a bracket in the wrong place"),
    ]


def _list_declared(
    fixed_point: FixedPoint,
    cases: Cases,
    sources: list[Part],
    own_rows: list[tuple[str, np.ndarray]],
) -> Iterator[_Term]:
    """Lists what the declared target and its near misses add to the reward."""
    nothing = np.zeros_like(cases.r_t)
    for near, off in (("", fixed_point), *fixed_point.near_misses):
        for name, q_t, mistake in sources:
            for i, (own, q_own) in enumerate(own_rows):
                # A terminal transition has the bonus alone, such as Munchausen's.
                bonus = off.target(q_own, cases.a_tm1, nothing, nothing, q_t)
                value = off.target(q_own, cases.a_tm1, nothing, nothing + 1, q_t) - bonus
                wrong = _join(near, mistake, f"it sees the {own} network's q_tm1" if i else "")
                yield _Term(bonus, Part(f"{off.name} of {name}", value, wrong))


# ------------------------------------------------------------------------ fits and their names


def name_target(
    settled: np.ndarray,
    q_tm1: np.ndarray,
    cases: Cases,
    fixed_point: FixedPoint,
    bootstrap: Bootstrap,
) -> Formula | None:
    """Finds the formula that gives a loss's targets, the one with the fewest mistakes.

    First it tries the near misses of the declared fixed point; then a reward, a discount and a
    value at time t of many kinds, with fitted factors; then sums of several values.

    Args:
      settled: `[N]` the targets, from `Subject.settle`.
      q_tm1: `[N, A]` the online network's values at `obs_tm1` with which they were found.
      cases: the `N` cases.
      fixed_point: what is declared.
      bootstrap: the network whose values at time t are in the target.

    Returns:
      The `Formula`; None if none fits.
    """
    sources = _list_sources(cases, q_tm1, bootstrap)
    own_rows = [("target", cases.target[:, 0]), ("online", q_tm1)]
    if bootstrap == "online":
        own_rows.reverse()
    if near_miss := _find_near_miss(settled, cases, fixed_point, sources[0], own_rows):
        return near_miss
    is_optimal = fixed_point.name == "optimal"
    nothing = np.zeros_like(settled)
    terms = [*_list_declared(fixed_point, cases, sources, own_rows)]
    terms += [_Term(nothing, value) for value in _list_values(cases, sources, is_optimal)]
    fits = (
        formula
        for reward in _list_rewards(cases)
        for discount in _list_discounts(cases)
        for formula in _fit(settled, cases, reward, discount, terms)
    )
    best = min(fits, key=lambda formula: len(formula.mistakes), default=None)
    return best or _fit_mixture(settled, cases, sources, is_optimal)


def _find_near_miss(
    settled: np.ndarray,
    cases: Cases,
    fixed_point: FixedPoint,
    source: Part,
    own_rows: list[tuple[str, np.ndarray]],
) -> Formula | None:
    """Finds a mistake that is known of the declared fixed point, as a whole."""
    for wrong, off in fixed_point.near_misses:
        for i, (own, q_own) in enumerate(own_rows):
            target = off.target(q_own, cases.a_tm1, cases.r_t, cases.discount_t, source.values)
            if np.abs(target - settled).max() < TOLERANCE:
                elsewhere = f"it sees the {own} network's q_tm1" if i else ""
                mistakes = filter(None, (wrong, source.mistake, elsewhere))
                return Formula("another one", tuple(mistakes))
    return None


def _fit(
    settled: np.ndarray, cases: Cases, reward: Part, discount: Part, terms: list[_Term]
) -> Iterator[Formula]:
    """Fits `a * reward + b * discount_t + c + d * discount * value` with each of the values."""
    fixed = (reward.values, cases.discount_t, np.ones_like(settled))
    columns = [(*fixed, discount.values * value.values) for _, value in terms]
    wanted = settled - np.array([bonus for bonus, _ in terms])
    features = np.moveaxis(np.array(columns), 1, 2)
    factors = np.einsum("mfn,mn->mf", np.linalg.pinv(features), wanted)
    residual = np.abs(np.einsum("mnf,mf->mn", features, factors) - wanted).max(1)
    for i in map(int, np.flatnonzero(residual < TOLERANCE)):
        value = terms[i].value
        itself = np.abs(discount.values * value.values - settled).max() < TOLERANCE
        if not (itself and "q_tm1" in value.text):  # the settled prediction fits itself
            yield _write_formula(factors[i], reward, discount, value)


def _is_close(x: float, y: float) -> bool:
    return abs(x - y) < 1e-3


def _write_term(factor: float, part: str) -> str:
    return (
        part
        if _is_close(factor, 1)
        else f"-{part}"
        if _is_close(factor, -1)
        else f"{factor:.3g} * {part}"
    )


def _write_formula(factors: np.ndarray, reward: Part, discount: Part, value: Part) -> Formula:
    """Writes `a * reward + b * discount_t + c + d * discount * value`, and its mistakes."""
    a, b, c, d = map(float, factors)
    if not value.values.any():
        d = 1.0  # any factor fits, as nothing of time t is declared to count
    mistakes = []
    text = "{}"
    if _is_close(a, d) and not _is_close(a, 1) and not _is_close(a, 0):
        text = "-({})" if _is_close(a, -1) else f"{a:.3g} * ({{}})"
        wrong = "has the wrong sign" if _is_close(a, -1) else f"is scaled by {1 / a:.4g}"
        mistakes.append(f"the prediction q_tm1[a_tm1] {wrong}")
        a, b, c, d = 1.0, b / a, c / a, 1.0
    parts = []
    swapped = _is_close(a, 0) and _is_close(b, 1)
    if swapped:
        parts.append("discount_t")
        mistakes.append("r_t and discount_t are swapped")
    elif _is_close(a, 0):
        mistakes.append("the reward r_t is lost")
    else:
        parts.append(_write_term(a, reward.text))
        mistakes.append(reward.mistake)
        if _is_close(a, -1):
            mistakes.append("the reward has the wrong sign")
        elif not _is_close(a, 1):
            mistakes.append(f"the reward is scaled by {a:.3g}")
    if not _is_close(b, 0) and not swapped:
        parts.append(_write_term(b, "discount_t"))
        mistakes.append(f"{b:.3g} * discount_t is added: the value at time t is off by {b:.3g}")
    if not _is_close(c, 0):
        parts.append(f"{c:.3g}")
        mistakes.append(f"a constant of {c:.3g} is added to the target")
    if _is_close(d, 0):
        mistakes.append("nothing of time t counts: there is no bootstrap")
    else:
        product = value.text if discount.text == "1" else f"{discount.text} * {value.text}"
        parts.append(_write_term(d, product))
        mistakes += _name_bootstrap_mistakes(d, discount, value)
    whole = " + ".join(parts).replace("+ -", "- ") or "0"
    return Formula(text.format(whole), tuple(dict.fromkeys(filter(None, mistakes))))


def _name_bootstrap_mistakes(factor: float, discount: Part, value: Part) -> list[str]:
    written = discount.text == "1" and not _is_close(factor, 1)
    twice = discount.text == "discount_t" and 0 < factor < 1 and not _is_close(factor, 1)
    mistakes = [
        f"a discount of {factor:.3g} is written into it: discount_t is lost"
        if written
        else f"the discount is applied twice, as {factor:.3g} * discount_t: discount_t is gamma "
        "itself"
        if twice
        else discount.mistake,
        value.mistake,
    ]
    if _is_close(factor, -1):
        mistakes.append("what comes from time t has the wrong sign")
    elif not (_is_close(factor, 1) or written or twice):
        mistakes.append(f"what comes from time t counts {factor:.3g} times")
    return mistakes


def _fit_mixture(
    settled: np.ndarray, cases: Cases, sources: list[Part], is_optimal: bool
) -> Formula | None:
    """Fits a sum of several values at time t, by rank and by action."""
    columns = [cases.r_t, cases.discount_t, np.ones_like(cases.r_t)]
    ranked: list[tuple[str, str]] = [("r_t", ""), ("discount_t", ""), ("1", "")]
    for name, q, mistake in sources:
        ordered = np.sort(q, 1)[:, ::-1]
        columns += [cases.discount_t * x for x in ordered.T]
        places = ("highest", "second", *(f"{i + 1}th" for i in range(2, q.shape[1] - 1)), "lowest")
        ranked += [(f"({place} {name})", mistake) for place in places]
        if name != "q_tm1":
            columns.append(cases.discount_t * take_value(q, cases.a_tm1))
            ranked.append((f"{name}[a_tm1]", mistake))
    features = np.array(columns).T
    factors = np.linalg.lstsq(features, settled, rcond=None)[0]
    if np.abs(features @ factors - settled).max() > TOLERANCE:
        return None
    used = [i for i in range(3, len(factors)) if not _is_close(factors[i], 0)]
    values = " + ".join(f"{factors[i]:.3g} * {ranked[i][0]}" for i in used).replace("+ -", "- ")
    belongs = "the maximum" if is_optimal else "the declared value"
    mistakes = [f"it takes {values} where {belongs} belongs{_describe_epsilon(factors, used)}"]
    mistakes += [ranked[i][1] for i in used]
    if not _is_close(factors[0], 1):
        mistakes.append(f"the reward is scaled by {factors[0]:.3g}")
    if not (_is_close(factors[1], 0) and _is_close(factors[2], 0)):
        mistakes.append("a constant is added to the target")
    return Formula(f"r_t + discount_t * ({values})", tuple(dict.fromkeys(filter(None, mistakes))))


def _describe_epsilon(factors: np.ndarray, used: list[int]) -> str:
    """Says which epsilon gives such factors, if an epsilon-greedy policy does."""
    shares = factors[used]
    one_source = len(used) > 1 and used == [*range(used[0], used[0] + len(used))]
    if (
        one_source
        and _is_close(shares.sum(), 1)
        and np.ptp(shares[1:]) < 1e-3
        and 0 < shares[1] < 1
    ):
        return f": that of an epsilon of {len(shares) * shares[1]:.3g}"
    return ""
