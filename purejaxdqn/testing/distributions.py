"""Whether a loss carries the whole distribution at time t over, and not only its mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from purejaxdqn.testing.cases import Bench, Cases
from purejaxdqn.testing.report import expect
from purejaxdqn.testing.tables import FRACTIONS, NUM_QUANTILES, SUPPORT, Table

_FAR = 1e4  # so far apart that a Huber penalty is as good as none
_TOLERANCE = 1e-3  # of probabilities
_ATOM_WIDTH = SUPPORT[1] - SUPPORT[0]
_ONE_ALONE = "each quantile is compared with one of the target alone, and not with all of them"


def check_distribution(bench: Bench, table: Table, cases: Cases) -> str | None:
    """The figure of the row; None where only means are carried over, as two-hot losses do.

    Raises:
      AssertionError: if the distribution is another one than that of the action with the highest
        mean, scaled by `discount_t` and moved by `r_t`.
    """
    if table.representation == "quantile":
        return _quantiles(bench, cases)
    return _categories(bench, table, cases)


def _at_t(table: Table, cases: Cases, outputs: np.ndarray) -> np.ndarray:
    """Tables `[N, 2, A, *]` with given outputs `[N, A, *]` at time t."""
    tables = table.from_values(cases.target)
    tables[:, 1] = outputs
    return tables


def _quantiles(bench: Bench, cases: Cases) -> str:
    num, _, num_actions = cases.target.shape
    rng = np.random.default_rng(7)
    values = _FAR * rng.uniform(-1, 1, (num, num_actions, NUM_QUANTILES))
    tables = np.repeat(cases.target[..., np.newaxis], NUM_QUANTILES, -1)
    tables[:, 1] = values
    r_t = _FAR * cases.r_t
    found = bench.outputs(cases._replace(r_t=r_t), tables)
    lanes = np.arange(num)

    def targets(values: np.ndarray) -> np.ndarray:
        return np.sort(r_t[:, np.newaxis] + cases.discount_t[:, np.newaxis] * values, 1)

    def error(expected: np.ndarray) -> float:
        difference = np.abs(np.sort(found, 1) - expected).max() / _FAR
        return float(difference) if np.isfinite(difference) else np.inf

    best = values[lanes, values.mean(2).argmax(1)]
    largest = error(targets(best))
    mean = np.repeat(best.mean(1, keepdims=True), NUM_QUANTILES, 1)
    others = {
        "only the mean of the target's quantiles counts: each of them must": mean,
        "the maximum is taken quantile by quantile, and not the action with the highest mean": (
            values.max(1)
        ),
        "the action at time t is picked by its highest quantile and not by its mean": (
            values[lanes, values.max(2).argmax(1)]
        ),
        "the action at time t is picked by its last quantile and not by its mean": (
            values[lanes, values[:, :, -1].argmax(1)]
        ),
        "the action at time t is picked by its median and not by its mean": (
            values[lanes, np.median(values, 2).argmax(1)]
        ),
        "the action at time t is picked by its middle quantile and not by its mean": (
            values[lanes, values[:, :, NUM_QUANTILES // 2].argmax(1)]
        ),
        "it takes the quantiles of a_tm1 at time t": values[lanes, cases.a_tm1],
        "the quantiles are averaged over the actions": values.mean(1),
    }
    why = next((why for why, values in others.items() if error(targets(values)) < 1e-2), None)
    unordered = r_t[:, np.newaxis] + cases.discount_t[:, np.newaxis] * best
    if why is None and np.abs(found - unordered).max() / _FAR < 1e-2:
        why = _ONE_ALONE
    if why is None:
        near, far = (
            bench.answers(cases.shifted(q_tm1=-by)).pull.mean() for by in (_FAR, 10 * _FAR)
        )
        if far > 5 * near:
            why = (
                "the penalty grows with the square of large errors: its minimisers are expectiles "
                "and not quantiles; take |error|, or Huber's penalty"
            )
    expect(
        largest < 1e-2 and np.abs(found - np.sort(found, 1)).max() / _FAR < 1e-2,
        f"{largest:.1e}",
        "the quantiles that are learned are not those of r_t + discount_t * (the quantiles at time "
        "t of the action with the highest mean), by a share of up to "
        f"{largest:.2g}: {why or 'compare every predicted quantile with every one of the target'}",
    )
    _of_all_pairs(bench, cases, tables, r_t, best)
    return f"{largest:.1e}"


def _of_all_pairs(
    bench: Bench, cases: Cases, tables: np.ndarray, r_t: np.ndarray, best: np.ndarray
) -> None:
    """Whether every quantile of the target pulls at each predicted one.

    Raises:
      AssertionError: if not.
    """
    lanes, half = np.arange(len(best)), NUM_QUANTILES // 2
    middle = np.sort(best, 1)[:, half - 1 : half + 1].mean(1)  # as many above it as below
    tables = tables.copy()
    tables[:, 0] = (r_t + cases.discount_t * middle)[:, np.newaxis, np.newaxis]
    grad = bench.answers(cases._replace(r_t=r_t), outputs=tables).grad[lanes, 0, cases.a_tm1]
    expected = 2 * FRACTIONS - 1
    found = -grad / np.maximum(np.abs(grad).max(1, keepdims=True), 1e-12)
    error = float(np.abs(found - expected / expected.max()).max())
    expect(
        error < 1e-2,
        f"{error:.1e}",
        f"where half of the target's quantiles are above the "
        f"predicted ones and half below, their gradients are off by a share of {error:.2g}: "
        f"{_ONE_ALONE}",
    )


def _project(probabilities: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """`[N, M]` masses `[N, M]` at atoms `[N, M]`, given to their neighbours on SUPPORT."""
    position = np.clip((atoms - SUPPORT[0]) / _ATOM_WIDTH, 0, len(SUPPORT) - 1)
    distance = np.abs(position[:, np.newaxis, :] - np.arange(len(SUPPORT))[:, np.newaxis])
    return (np.maximum(1 - distance, 0) * probabilities[:, np.newaxis, :]).sum(2)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _of_categories(
    found: np.ndarray, probabilities: np.ndarray, best: np.ndarray, cases: Cases
) -> str | None:
    """What is wrong with masses `[N, M]` that were found, where it is known."""
    lanes = np.arange(len(best))
    atoms = cases.r_t[:, np.newaxis] + cases.discount_t[:, np.newaxis] * SUPPORT

    def moved(masses: np.ndarray, position: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        at = SUPPORT[0] + _ATOM_WIDTH * position((atoms - SUPPORT[0]) / _ATOM_WIDTH)
        return _project(masses, at)

    def same(position: np.ndarray) -> np.ndarray:
        return position

    def mirrored(position: np.ndarray) -> np.ndarray:
        low = np.floor(position)
        return low + 1 - (position - low)

    num = len(SUPPORT)
    others = {
        "each atom's mass goes to the atom below as a whole (floor on both sides?)": (
            moved(best, np.floor)
        ),
        "each atom's mass goes to the atom above as a whole": moved(best, np.ceil),
        "each atom's mass goes to the nearest atom as a whole": moved(best, np.round),
        "the shares of the atom below and of the one above are swapped": moved(best, mirrored),
        "the distance between atoms is taken as their range over N, and not over N - 1": (
            moved(best, lambda position: position * num / (num - 1))
        ),
        "the atoms are not moved by reward and discount at all": best,
        "it takes the distribution of a_tm1 at time t": moved(
            probabilities[lanes, cases.a_tm1], same
        ),
        "the distributions of the actions are averaged": moved(probabilities.mean(1), same),
        "the action at time t is picked by its highest probability, and not by its mean": moved(
            probabilities[lanes, probabilities.max(2).argmax(1)], same
        ),
    }
    for why, masses in others.items():
        if np.abs(np.nan_to_num(found, nan=1.0) - masses).max() < 10 * _TOLERANCE:
            return why
    return None


def _categories(bench: Bench, table: Table, cases: Cases) -> str | None:
    num, _, num_actions = cases.target.shape
    rng = np.random.default_rng(7)
    within = np.abs(SUPPORT) <= 10
    logits = np.where(within, 1.5 * rng.normal(size=(num, num_actions, len(SUPPORT))), -40.0)
    probabilities = _softmax(logits)
    means = (probabilities * SUPPORT).sum(2)
    best = probabilities[np.arange(num), means.argmax(1)]
    sides = np.where(np.arange(num) % 2, 1.0, -1.0)
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
        found = _softmax(bench.outputs(changed, _at_t(table, cases, logits)))
        expected = _project(best, r_t[:, np.newaxis] + discount_t[:, np.newaxis] * SUPPORT)
        error = float(np.abs(np.nan_to_num(found, nan=1.0) - expected).max())
        if error > _TOLERANCE and largest == 0.0:
            of_bells = bench.outputs(changed, _at_t(table, cases, table.from_values(means)))
            same = np.abs(_softmax(of_bells) - found).max() < _TOLERANCE
            if same and np.abs((found - expected) @ SUPPORT).max() < 1e-2:
                return None
        largest = max(largest, error)
        expect(
            error < _TOLERANCE,
            f"{error:.1e}",
            f"{what} is not that of r_t + discount_t * (the atoms at time t), by a probability of "
            f"up to {error:.2g}: {_of_categories(found, probabilities, best, changed) or hint}",
        )
    return f"{largest:.1e}"
