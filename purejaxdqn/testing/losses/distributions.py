"""Checks that a loss carries the whole distribution at time t over, and not only its mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from purejaxdqn.testing.losses.single_transitions import Cases, Subject
from purejaxdqn.testing.report import expect
from purejaxdqn.testing.tabular.table_networks import FRACTIONS, NUM_QUANTILES, SUPPORT

_FAR = 1e4  # so far apart that a Huber penalty is almost linear
_TOLERANCE = 1e-3  # of probabilities
_ATOM_WIDTH = SUPPORT[1] - SUPPORT[0]
_ONE_ALONE = "each quantile is compared with one of the target alone, and not with all of them"


def check_distribution(subject: Subject) -> str | None:
    """Checks the distribution that a loss teaches.

    It must be that of the action with the highest mean, scaled by `discount_t` and moved by `r_t`.

    Returns:
      What was measured; None where only means are carried over, as two-hot losses do.
    """
    is_quantile = subject.table.representation == "quantile"
    return _check_quantiles(subject) if is_quantile else _check_categories(subject)


# -------------------------------------------------------------------------------------- quantiles


def _check_quantiles(subject: Subject) -> str:
    cases = subject.cases
    num, _, num_actions = cases.target.shape
    rng = np.random.default_rng(7)
    values = _FAR * rng.uniform(-1, 1, (num, num_actions, NUM_QUANTILES))
    tables = np.repeat(cases.target[..., np.newaxis], NUM_QUANTILES, -1)
    tables[:, 1] = values
    moved = cases._replace(r_t=_FAR * cases.r_t)
    found = subject.settle_outputs(moved, tables)
    best = values[np.arange(num), values.mean(2).argmax(1)]
    largest = _compare_quantiles(found, moved, best)
    is_right = largest < 1e-2 and np.abs(found - np.sort(found, 1)).max() / _FAR < 1e-2
    why = "" if is_right else _name_quantile_mistake(subject, moved, found, values, best)
    expect(
        is_right,
        f"{largest:.1e}",
        "the quantiles that are learned are not those of r_t + discount_t * (the quantiles at time "
        f"t of the action with the highest mean), by a share of up to {largest:.2g}: {why}",
    )
    _check_all_pairs(subject, moved, tables, best)
    return f"{largest:.1e}"


def _move(cases: Cases, values: np.ndarray) -> np.ndarray:
    """Moves quantiles `[N, M]` at time t to where the target has them."""
    return cases.r_t[:, np.newaxis] + cases.discount_t[:, np.newaxis] * values


def _compare_quantiles(found: np.ndarray, cases: Cases, values: np.ndarray) -> float:
    """Returns how far quantiles are from those of a target with `values` `[N, M]` at time t."""
    difference = np.abs(np.sort(found, 1) - np.sort(_move(cases, values), 1)).max() / _FAR
    return float(difference) if np.isfinite(difference) else np.inf


def _name_quantile_mistake(
    subject: Subject, moved: Cases, found: np.ndarray, values: np.ndarray, best: np.ndarray
) -> str:
    """Names what is wrong with the quantiles `found` `[N, M]` of the cases `moved`.

    `values` `[N, A, M]` are the quantiles at time t, `best` `[N, M]` those of the action with the
    highest mean.
    """
    cases = subject.cases
    lanes = np.arange(len(found))
    picked = "the action at time t is picked by its {} and not by its mean"
    others = {
        "only the mean of the target's quantiles counts: each of them must": np.repeat(
            best.mean(1, keepdims=True), NUM_QUANTILES, 1
        ),
        "the maximum is taken quantile by quantile, and not the action with the highest mean": (
            values.max(1)
        ),
        picked.format("highest quantile"): values[lanes, values.max(2).argmax(1)],
        picked.format("last quantile"): values[lanes, values[:, :, -1].argmax(1)],
        picked.format("median"): values[lanes, np.median(values, 2).argmax(1)],
        picked.format("middle quantile"): (
            values[lanes, values[:, :, NUM_QUANTILES // 2].argmax(1)]
        ),
        "it takes the quantiles of a_tm1 at time t": values[lanes, cases.a_tm1],
        "the quantiles are averaged over the actions": values.mean(1),
    }
    for why, wrong in others.items():
        if _compare_quantiles(found, moved, wrong) < 1e-2:
            return why
    if np.abs(found - _move(moved, best)).max() / _FAR < 1e-2:
        return _ONE_ALONE
    # An error ten times as large: a linear penalty pulls as much, a square ten times as much.
    near, far = (subject.evaluate(cases.shift(q_tm1=-by)).pull.mean() for by in (_FAR, 10 * _FAR))
    if far > 5 * near:
        return (
            "the penalty grows with the square of large errors: its minimisers are expectiles "
            "and not quantiles; take |error|, or Huber's penalty"
        )
    return "compare every predicted quantile with every one of the target"


def _check_all_pairs(subject: Subject, cases: Cases, tables: np.ndarray, best: np.ndarray) -> None:
    """Checks that every quantile of the target pulls at each predicted one."""
    half = NUM_QUANTILES // 2
    middle = np.sort(best, 1)[:, half - 1 : half + 1].mean(1)  # as many above it as below
    tables = tables.copy()
    tables[:, 0] = (cases.r_t + cases.discount_t * middle)[:, np.newaxis, np.newaxis]
    grad = subject.evaluate(cases, outputs=tables).grad[np.arange(len(best)), 0, cases.a_tm1]
    expected = 2 * FRACTIONS - 1
    found = -grad / np.maximum(np.abs(grad).max(1, keepdims=True), 1e-12)
    error = float(np.abs(found - expected / expected.max()).max())
    expect(
        error < 1e-2,
        f"{error:.1e}",
        "where half of the target's quantiles are above the predicted ones and half below, their "
        f"gradients are off by a share of {error:.2g}: {_ONE_ALONE}",
    )


# ------------------------------------------------------------------------------------- categories


def _project(probabilities: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Spreads masses `[N, M]` at atoms `[N, M]` over their neighbours on SUPPORT."""
    position = np.clip((atoms - SUPPORT[0]) / _ATOM_WIDTH, 0, len(SUPPORT) - 1)
    distance = np.abs(position[:, np.newaxis, :] - np.arange(len(SUPPORT))[:, np.newaxis])
    return (np.maximum(1 - distance, 0) * probabilities[:, np.newaxis, :]).sum(2)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _name_category_mistake(
    found: np.ndarray, probabilities: np.ndarray, best: np.ndarray, cases: Cases
) -> str | None:
    """Names what is wrong with the masses `found` `[N, M]`; `probabilities` are `[N, A, M]`."""
    lanes = np.arange(len(best))
    atoms = _move(cases, SUPPORT)

    def move(
        masses: np.ndarray, place: Callable[[np.ndarray], np.ndarray] = np.positive
    ) -> np.ndarray:
        return _project(
            masses, SUPPORT[0] + _ATOM_WIDTH * place((atoms - SUPPORT[0]) / _ATOM_WIDTH)
        )

    def mirror(position: np.ndarray) -> np.ndarray:
        low = np.floor(position)
        return low + 1 - (position - low)

    num = len(SUPPORT)
    others = {
        "each atom's mass goes to the atom below as a whole (floor on both sides?)": (
            move(best, np.floor)
        ),
        "each atom's mass goes to the atom above as a whole": move(best, np.ceil),
        "each atom's mass goes to the nearest atom as a whole": move(best, np.round),
        "the shares of the atom below and of the one above are swapped": move(best, mirror),
        "the distance between atoms is taken as their range over N, and not over N - 1": (
            move(best, lambda position: position * num / (num - 1))
        ),
        "the atoms are not moved by reward and discount at all": best,
        "it takes the distribution of a_tm1 at time t": move(probabilities[lanes, cases.a_tm1]),
        "the distributions of the actions are averaged": move(probabilities.mean(1)),
        "the action at time t is picked by its highest probability, and not by its mean": move(
            probabilities[lanes, probabilities.max(2).argmax(1)]
        ),
    }
    for why, masses in others.items():
        if np.abs(np.nan_to_num(found, nan=1.0) - masses).max() < 10 * _TOLERANCE:
            return why
    return None


def _check_categories(subject: Subject) -> str | None:
    cases, table = subject.cases, subject.table
    num, _, num_actions = cases.target.shape
    rng = np.random.default_rng(7)
    within = np.abs(SUPPORT) <= 10
    logits = np.where(within, 1.5 * rng.normal(size=(num, num_actions, len(SUPPORT))), -40.0)
    probabilities = _softmax(logits)
    means = (probabilities * SUPPORT).sum(2)
    best = probabilities[np.arange(num), means.argmax(1)]
    sides = np.where(np.arange(num) % 2, 1.0, -1.0)

    def settle(cases: Cases, outputs: np.ndarray) -> np.ndarray:
        """Returns the masses that are learned from tables with `outputs` at time t."""
        tables = table.from_values(cases.target)
        tables[:, 1] = outputs
        return _softmax(subject.settle_outputs(cases, tables))

    kinds = (
        (
            "the distribution that is learned",
            (cases.r_t, cases.discount_t),
            "an atom's mass goes to its neighbours, the more the nearer, and the action at time t "
            "is the one with the highest mean",
        ),
        (
            "where atoms of the target fall on atoms of the support, the distribution",
            (2 * _ATOM_WIDTH * sides, np.full(num, 0.5)),
            "all of their mass belongs there, and none is to be lost",
        ),
        (
            "where atoms of the target fall outside of the support, the distribution",
            (17 * sides, np.full(num, 0.9)),
            "all of their mass belongs to its end: clip them, and lose none",
        ),
    )
    largest = 0.0
    for what, (r_t, discount_t), hint in kinds:
        changed = cases._replace(r_t=r_t, discount_t=discount_t)
        found = settle(changed, logits)
        expected = _project(best, _move(changed, SUPPORT))
        error = float(np.abs(np.nan_to_num(found, nan=1.0) - expected).max())
        if error > _TOLERANCE and largest == 0.0:
            # Another distribution with the same means teaches the same: only means count.
            same = np.abs(settle(changed, table.from_values(means)) - found).max() < _TOLERANCE
            if same and np.abs((found - expected) @ SUPPORT).max() < 1e-2:
                return None
        largest = max(largest, error)
        is_right = error < _TOLERANCE
        why = "" if is_right else _name_category_mistake(found, probabilities, best, changed)
        expect(
            is_right,
            f"{error:.1e}",
            f"{what} is not that of r_t + discount_t * (the atoms at time t), by a probability of "
            f"up to {error:.2g}: {why or hint}",
        )
    return f"{largest:.1e}"
