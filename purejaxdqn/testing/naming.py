"""Which formula a target follows: what the mistakes of a loss are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from purejaxdqn.losses.fixed_points import Bootstrap, FixedPoint
from purejaxdqn.testing.cases import Cases

_TOLERANCE = 1e-4


class Formula(NamedTuple):
    """A target that was found to fit.

    Attributes:
      text: the formula.
      mistakes: what is wrong with it; none where it is as declared.
    """

    text: str
    mistakes: tuple[str, ...]


Part = tuple[str, np.ndarray, str]  # text, values, and what is wrong with it


def _at(q_values: np.ndarray, action: np.ndarray) -> np.ndarray:
    return np.take_along_axis(q_values, action[:, np.newaxis], 1)[:, 0]


def _sources(cases: Cases, q_tm1: np.ndarray, bootstrap: Bootstrap) -> list[Part]:
    """The rows of values there are, and what is wrong with bootstrapping from them."""
    wrong_network = {
        "target": (
            "it bootstraps from the online network (params, q_t_online) and not from the target "
            "network (target_params, q_t); where that is meant, bootstrap='online'"
        ),
        "online": "it bootstraps from the target network although bootstrap='online'",
        "both": "",
        "none": "",
    }[bootstrap]
    early = "it takes values at time t - 1 (obs_tm1) where those at time t (obs_t) belong"
    right, wrong = ("q_t_online", "q_t") if bootstrap == "online" else ("q_t", "q_t_online")
    rows = {"q_t": cases.target[:, 1], "q_t_online": cases.online[:, 1]}
    return [
        (right, rows[right], ""),
        (wrong, rows[wrong], wrong_network),
        ("q_tm1", q_tm1, early),
        ("the target network's q_tm1", cases.target[:, 0], early),
    ]


def _values(cases: Cases, sources: list[Part], is_optimal: bool) -> Iterator[Part]:
    """What may stand for the value at time t."""
    not_highest = "where the maximum belongs" if is_optimal else "where the declared value belongs"
    for name, q, mistake in sources:
        yield (
            f"max({name})",
            q.max(1),
            mistake if is_optimal else f"it takes the maximum {not_highest} {mistake}".rstrip(),
        )
        for word, value in (
            ("min", q.min(1)),
            ("mean", q.mean(1)),
            ("sum", q.sum(1)),
            ("median", np.median(q, 1)),
            ("max of |.|, ", np.abs(q).max(1)),
        ):
            wrong = f"it takes the {word} of {name} {not_highest}"
            yield f"{word}({name})", value, "; ".join(filter(None, [wrong, mistake]))
        for action, which in ((cases.a_tm1, "a_tm1"), (0 * cases.a_tm1, "0"), (-1, "-1")):
            wrong = f"it takes {name}[{which}] {not_highest}: the value of another action"
            chosen = _at(q, np.broadcast_to(action, cases.a_tm1.shape) % q.shape[1])
            yield f"{name}[{which}]", chosen, "; ".join(filter(None, [wrong, mistake]))
        index = f"it takes the number of the best action, argmax({name}), for its value"
        yield f"argmax({name})", 1.0 * q.argmax(1), "; ".join(filter(None, [index, mistake]))
        for picker, q_pick, _ in sources:
            if picker == name:
                continue
            at_t = picker in ("q_t", "q_t_online")
            wrong = "" if at_t else f"{picker} picks the action at time t: obs_t must pick it"
            if not mistake and at_t and not is_optimal:
                wrong = f"it takes the greedy value {not_highest}"
            roles = (
                ": the online network picks and the target network judges, here it is the other "
                "way round (q_t and q_t_online swapped)"
                if (picker, name) == ("q_t", "q_t_online") and mistake
                else ""
            )
            wrong = "; ".join(filter(None, [mistake + roles, wrong]))
            yield f"{name}[argmax {picker}]", _at(q, q_pick.argmax(1)), wrong
            lowest = f"the action of the lowest {picker} is taken for the best"
            yield f"{name}[argmin {picker}]", _at(q, q_pick.argmin(1)), lowest


def _rewards(cases: Cases) -> list[Part]:
    r_t, discount_t = cases.r_t, cases.discount_t
    return [
        ("r_t", r_t, ""),
        ("-r_t", -r_t, "the reward has the wrong sign"),
        ("0", 0 * r_t, "the reward r_t is lost"),
        ("discount_t", discount_t, "r_t and discount_t are swapped"),
        ("discount_t * r_t", discount_t * r_t, "the reward is discounted, r_t counts in full"),
        ("2 * r_t", 2 * r_t, "the reward counts twice"),
        *((f"{c} * r_t", c * r_t, f"the reward is scaled by {c}") for c in (0.01, 0.1, 0.5, 10)),
        ("|r_t|", np.abs(r_t), "the reward loses its sign"),
        ("sign(r_t)", np.sign(r_t), "the reward is clipped to its sign"),
    ]


def _discounts(cases: Cases) -> list[Part]:
    r_t, discount_t = cases.r_t, cases.discount_t
    one = np.ones_like(r_t)
    return [
        ("discount_t", discount_t, ""),
        ("1", one, "the discount is lost: discount_t does not multiply what comes from time t"),
        ("-discount_t", -discount_t, "what comes from time t has the wrong sign"),
        ("0", 0 * one, "nothing of time t counts: there is no bootstrap"),
        ("r_t", r_t, "r_t stands in the place of discount_t (swapped arguments)"),
        ("(1 - discount_t)", 1 - discount_t, "it takes discount_t for a flag of the end"),
        (
            "discount_t^2",
            discount_t**2,
            "the discount is applied twice: discount_t is gamma itself",
        ),
        *(
            (f"{g}", g * one, f"a discount of {g} is written into it: discount_t is lost")
            for g in (0.9, 0.95, 0.99, 0.999)
        ),
        *(
            (
                f"{g} * discount_t",
                g * discount_t,
                f"the discount is applied twice, as {g} * discount_t: discount_t is gamma itself",
            )
            for g in (0.9, 0.95, 0.99)
        ),
    ]


def name_target(
    settled: np.ndarray,
    q_tm1: np.ndarray,
    cases: Cases,
    fixed_point: FixedPoint,
    bootstrap: Bootstrap,
) -> Formula | None:
    """The formula that gives what a loss was found to pull to, the one with the fewest mistakes.

    Args:
      settled: `[N]` from `Bench.settled`.
      q_tm1: `[N, A]` the online network's values at `obs_tm1` with which it was found.
      cases: the `N` cases.
      fixed_point: what is declared.
      bootstrap: from which network.

    Returns:
      The `Formula`; None if none fits.
    """
    sources = _sources(cases, q_tm1, bootstrap)
    rewards, discounts = _rewards(cases), _discounts(cases)
    is_optimal = fixed_point.name == "optimal"
    values = [*_values(cases, sources, is_optimal)]
    best: Formula | None = None

    def consider(text: str, target: np.ndarray, *mistakes: str) -> None:
        nonlocal best
        found = tuple(dict.fromkeys(m for m in mistakes if m))
        if best is not None and len(best.mistakes) <= len(found):
            return
        for sign, wrong in ((1, ""), (-1, "the prediction q_tm1[a_tm1] has the wrong sign")):
            if np.abs(settled - sign * target).max() < _TOLERANCE:
                best = Formula(
                    f"-({text})" if wrong else text, (*found, *([wrong] if wrong else []))
                )
                return

    for r_text, reward, r_wrong in rewards:
        for d_text, discount, d_wrong in discounts:
            for name, q_t, mistake in sources:
                for own, q_own in (("target", cases.target[:, 0]), ("online", q_tm1)):
                    right_own = "online" if bootstrap == "online" else "target"
                    elsewhere = "" if own == right_own else f"it sees the {own} network's q_tm1"
                    target = fixed_point.target(q_own, cases.a_tm1, reward, discount, q_t)
                    text = f"{fixed_point.name} of {name}, {r_text} and {d_text}"
                    consider(text, target, r_wrong, d_wrong, mistake, elsewhere)
            for v_text, value, v_wrong in values:
                if r_text == "0" and v_text.startswith("q_tm1["):
                    continue  # what it settled at is always what it settled at
                wrong = (r_wrong, d_wrong, v_wrong)
                consider(f"{r_text} + {d_text} * {v_text}", reward + discount * value, *wrong)
                if (r_text, d_text) == ("r_t", "discount_t"):
                    both = "the reward is discounted, r_t counts in full"
                    consider(
                        f"discount_t * (r_t + {v_text})", discount * (reward + value), both, v_wrong
                    )
    return best
