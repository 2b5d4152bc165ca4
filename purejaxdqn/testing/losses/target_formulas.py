"""Finds the formula that a target follows, and the mistakes that it shows."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax

from purejaxdqn.testing.fixed_points import Bootstrap, FixedPoint, take_value
from purejaxdqn.testing.losses.single_transitions import Cases, find_size
from purejaxdqn.testing.report import find_true

TOLERANCE = 1e-4


class Formula(NamedTuple):
    """A target that was found to fit, and what is wrong with it."""

    text: str
    mistakes: list[str]


class Part(NamedTuple):
    """A part that a formula may have."""

    text: str
    values: np.ndarray  # [N], or [N, A] of a source of values
    mistake: str = ""  # what is wrong with it
    bonus: np.ndarray | float = 0.0  # [N] beside a value at time t, whatever the discount is


def _join(*mistakes: str) -> str:
    return "; ".join(filter(None, mistakes))


def _list_sources(cases: Cases, bootstrap: Bootstrap) -> list[Part]:
    """Lists the rows of action values, and what is wrong with bootstrapping from each."""
    wrong_network = {
        "target": (
            "it bootstraps from the online network (params, q_t_selector) and not from the target "
            "network (target_params, q_t); where that is meant, bootstrap='online'"
        ),
        "online": "it bootstraps from the target network although bootstrap='online'",
    }.get(bootstrap, "")
    early = "it takes values at time t - 1 (obs_tm1) where those at time t (obs_t) belong"
    rows = [("q_t", cases.q_t), ("q_t_selector", cases.q_t_selector)]
    right, wrong = rows[::-1] if bootstrap == "online" else rows
    return [
        Part(*right),
        Part(*wrong, wrong_network),
        Part("q_tm1", cases.q_tm1, early),
        Part("the target network's q_tm1", cases.target_q_tm1, early),
    ]


def _list_values(cases: Cases, sources: list[Part], is_optimal: bool) -> Iterator[Part]:
    """Lists what may stand for the value at time t."""
    here = "where the maximum belongs" if is_optimal else "where the declared value belongs"
    for name, q, mistake, _ in sources:
        greedy = "" if is_optimal else f"it takes the maximum {here}"
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
            wrong = f"it takes the {word} of {name} {here}"
            yield Part(f"{word}({name})", value, _join(wrong, mistake))
        nought = 0 * cases.a_tm1
        for which, action in (("a_tm1", cases.a_tm1), ("0", nought), ("-1", nought - 1)):
            wrong = f"it takes {name}[{which}] {here}: the value of another action"
            yield Part(f"{name}[{which}]", take_value(q, action), _join(wrong, mistake))
        wrong = f"it takes the number of the best action, argmax({name}), for its value"
        yield Part(f"argmax({name})", 1.0 * q.argmax(1), _join(wrong, mistake))
        for picker, q_pick, *_ in [other for other in sources if other.text != name]:
            at_t = picker in ("q_t", "q_t_selector")
            roles = (
                ": the online network picks and the target network judges, here it is the other "
                "way round (q_t and q_t_selector swapped)"
            )
            is_swapped = mistake and (picker, name) == ("q_t", "q_t_selector")
            wrong = _join(
                mistake + (roles if is_swapped else ""),
                "" if at_t else f"{picker} picks the action at time t: obs_t must pick it",
                f"it takes the greedy value {here}" if at_t and not (mistake or is_optimal) else "",
            )
            yield Part(f"{name}[argmax {picker}]", take_value(q, q_pick.argmax(1)), wrong)
            lowest = f"the action of the lowest {picker} is taken for the best"
            yield Part(f"{name}[argmin {picker}]", take_value(q, q_pick.argmin(1)), lowest)


def _list_scalars(cases: Cases) -> tuple[list[Part], list[Part]]:
    """Lists what may stand for the reward, and for the discount."""
    r_t, d = cases.r_t, cases.discount_t
    rewards = [
        Part("r_t", r_t),
        Part("discount_t * r_t", d * r_t, "the reward is discounted"),
        Part("|r_t|", np.abs(r_t), "the reward loses its sign"),
        Part("sign(r_t)", np.sign(r_t), "the reward is clipped to its sign"),
        Part("r_t^2", r_t**2, "the reward is squared"),
    ]
    lost = "the discount is lost: discount_t does not multiply what comes from time t"
    both = "r_t multiplies what comes from time t beside discount_t"
    discounts = [
        Part("discount_t", d),
        Part("1", np.ones_like(r_t), lost),
        Part("r_t", r_t, "r_t stands in the place of discount_t (swapped arguments)"),
        Part("(1 - discount_t)", 1 - d, "it takes discount_t for a flag of the end"),
        Part("discount_t^2", d**2, "the discount is applied twice: discount_t is gamma itself"),
        Part("sqrt(discount_t)", np.sqrt(d), "it takes the root of discount_t"),
        Part("discount_t * r_t", d * r_t, both),
        Part("(r_t + discount_t)", r_t + d, f"{both}: a bracket in the wrong place"),
    ]
    return rewards, discounts


def _list_declared(
    fixed_point: FixedPoint, cases: Cases, sources: list[Part], own_rows: list[Part]
) -> Iterator[Part]:
    """Lists what the declared target and its near misses add to the reward."""
    nothing = np.zeros_like(cases.r_t)
    for near, off in (("", fixed_point), *fixed_point.near_misses):
        for name, q_t, mistake, _ in sources:
            for own in own_rows:
                # A terminal transition has the bonus alone, such as Munchausen's.
                bonus = off.target(own.values, cases.a_tm1, nothing, nothing, q_t)
                value = off.target(own.values, cases.a_tm1, nothing, nothing + 1, q_t) - bonus
                wrong = _join(near, mistake, own.mistake)
                yield Part(f"{off.name} of {name}", value, wrong, bonus)


def name_target(
    settled: np.ndarray, cases: Cases, fixed_point: FixedPoint, bootstrap: Bootstrap
) -> Formula | None:
    """Finds the formula with the fewest mistakes that gives a loss's targets `[N]` in cases.

    First it tries the near misses of the declared fixed point, each as a whole; then a reward, a
    discount and a value at time t of many kinds, with fitted factors; then sums of several values.
    """
    sources = _list_sources(cases, bootstrap)
    rows = [("target", cases.target_q_tm1), ("online", cases.q_tm1)]
    right, (own, q_own) = rows[::-1] if bootstrap == "online" else rows
    own_rows = [Part(*right), Part(own, q_own, f"it sees the {own} network's q_tm1")]
    declared = fixed_point.target(own_rows[0].values, *cases[4:], sources[0].values)
    if find_size(declared - settled) < TOLERANCE:
        return Formula(fixed_point.name, [])
    for wrong, off in fixed_point.near_misses:
        for own_row in own_rows:
            target = off.target(own_row.values, *cases[4:], sources[0].values)
            if find_size(target - settled) < TOLERANCE:
                return Formula("another one", [*filter(None, (wrong, own_row.mistake))])
    is_optimal = fixed_point.name == "optimal"
    values = [*_list_declared(fixed_point, cases, sources, own_rows)]
    values += _list_values(cases, sources, is_optimal)
    fits = (
        formula
        for scalars in itertools.product(*_list_scalars(cases))
        for formula in _fit(settled, cases, *scalars, values)
    )
    best = min(fits, key=lambda formula: len(formula.mistakes), default=None)
    return best or _fit_mixture(settled, cases, sources, is_optimal)


def _fit(
    settled: np.ndarray, cases: Cases, reward: Part, discount: Part, values: list[Part]
) -> Iterator[Formula]:
    """Fits `a * reward + b * discount_t + c + d * discount * value` with each of the values."""
    fixed = (reward.values, cases.discount_t, np.ones_like(settled))
    columns = [(*fixed, discount.values * value.values) for value in values]
    wanted = np.array([settled - value.bonus for value in values])
    features = np.moveaxis(np.array(columns), 1, 2)
    factors = np.einsum("mfn,mn->mf", np.linalg.pinv(features), wanted)
    residual = np.abs(np.einsum("mnf,mf->mn", features, factors) - wanted).max(1)
    for i in map(int, np.flatnonzero(residual < TOLERANCE)):
        itself = find_size(discount.values * values[i].values - settled) < TOLERANCE
        if not (itself and "q_tm1" in values[i].text):  # the settled prediction fits itself
            yield _write_formula(factors[i], reward, discount, values[i])


def _is_close(x: float, *others: float) -> bool:
    return any(abs(x - other) < 1e-3 for other in others)


def _write_term(factor: float, part: str) -> str:
    """Writes a term of a sum; that of the part "" is a number."""
    if part and _is_close(factor, 1, -1):
        return part if factor > 0 else f"-{part}"
    return f"{factor:.3g} * {part}" if part else f"{factor:.3g}"


def _write_formula(factors: np.ndarray, reward: Part, discount: Part, value: Part) -> Formula:
    """Writes `a * reward + b * discount_t + c + d * discount * value`, and its mistakes."""
    a, b, c, d = map(float, factors)
    if not value.values.any():
        d = 1.0  # any factor fits, as nothing of time t is declared to count
    text, mistakes = "{}", []
    if _is_close(a, d) and not _is_close(a, 0, 1):
        text, wrong = f"{a:.3g} * ({{}})", f"is scaled by {1 / a:.4g}"
        if _is_close(a, -1):
            text, wrong = "-({})", "has the wrong sign"
        mistakes.append(f"the prediction q_tm1[a_tm1] {wrong}")
        a, b, c, d = 1.0, b / a, c / a, 1.0
    has_reward, bootstraps = not _is_close(a, 0), not _is_close(d, 0)
    swapped = not has_reward and _is_close(b, 1)
    has_offset = not (_is_close(b, 0) or swapped)
    written = discount.text == "1" and not _is_close(d, 0, 1)
    twice = discount.text == "discount_t" and 0 < d < 1 and not _is_close(d, 0, 1)
    is_scaled = not (_is_close(d, -1, 0, 1) or written or twice)
    factor = f"{d:.3g} * discount_t"
    known = {
        "r_t and discount_t are swapped": swapped,
        "the reward r_t is lost": not (has_reward or swapped),
        reward.mistake: has_reward,
        "the reward has the wrong sign": _is_close(a, -1),
        f"the reward is scaled by {a:.3g}": not _is_close(a, -1, 0, 1),
        f"{b:.3g} * discount_t is added: the value at time t is off by {b:.3g}": has_offset,
        f"a constant of {c:.3g} is added to the target": not _is_close(c, 0),
        "nothing of time t counts: there is no bootstrap": not bootstraps,
        f"a discount of {d:.3g} is written into it: discount_t is lost": written,
        f"the discount is applied twice, as {factor}: discount_t is gamma itself": twice,
        discount.mistake: bootstraps and not (written or twice),
        value.mistake: bootstraps,
        "what comes from time t has the wrong sign": _is_close(d, -1),
        f"what comes from time t counts {d:.3g} times": is_scaled,
    }
    product = value.text if discount.text == "1" else f"{discount.text} * {value.text}"
    terms = ((a, reward.text), (b, "discount_t"), (c, ""), (d, product))
    parts = [_write_term(factor, part) for factor, part in terms if not _is_close(factor, 0)]
    whole = " + ".join(parts).replace("+ -", "- ") or "0"
    return Formula(text.format(whole), [*mistakes, *find_true(known)])


def _fit_mixture(
    settled: np.ndarray, cases: Cases, sources: list[Part], is_optimal: bool
) -> Formula | None:
    """Fits a sum of several values at time t, by rank and by action."""
    d = cases.discount_t
    parts = [Part("r_t", cases.r_t), Part("discount_t", d), Part("1", np.ones_like(d))]
    for name, q, mistake, _ in sources:
        places = ("highest", "second", *(f"{i + 1}th" for i in range(2, q.shape[1] - 1)), "lowest")
        ranked = zip(places, np.sort(q, 1)[:, ::-1].T, strict=True)
        parts += [Part(f"({place} {name})", d * x, mistake) for place, x in ranked]
        if name != "q_tm1":
            parts.append(Part(f"{name}[a_tm1]", d * take_value(q, cases.a_tm1), mistake))
    features = np.stack([part.values for part in parts], 1)
    factors = np.linalg.lstsq(features, settled, rcond=None)[0]
    if find_size(features @ factors - settled) > TOLERANCE:
        return None
    used = [i for i in range(3, len(factors)) if not _is_close(factors[i], 0)]
    values = " + ".join(f"{factors[i]:.3g} * {parts[i].text}" for i in used).replace("+ -", "- ")
    belongs, policy = "the maximum" if is_optimal else "the declared value", ""
    is_of_one_source = len(used) > 1 and used == [*range(used[0], used[0] + len(used))]
    if is_of_one_source and _is_close(factors[used].sum(), 1):
        shares = factors[used[1:]]
        if 0 < shares[0] < 1 and np.ptp(shares) < 1e-3:
            policy = f": that of an epsilon of {len(used) * shares[0]:.3g}"
    known = {
        f"it takes {values} where {belongs} belongs{policy}": True,
        **{parts[i].mistake: True for i in used},
        f"the reward is scaled by {factors[0]:.3g}": not _is_close(factors[0], 1),
        "a constant is added to the target": find_size(factors[1:3]) >= 1e-3,
    }
    return Formula(f"r_t + discount_t * ({values})", find_true(known))
