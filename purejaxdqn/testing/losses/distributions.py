"""Checks that a loss carries the whole distribution at time t over, and not only its mean."""

import numpy as np
from scipy.special import softmax

from purejaxdqn.testing.losses.single_transitions import Cases, Subject, find_size
from purejaxdqn.testing.report import expect, find_true
from purejaxdqn.testing.tabular.table_networks import FRACTIONS, NUM_QUANTILES, SUPPORT

_FAR = 1e4  # so far apart that a Huber penalty is almost linear
_TOLERANCE = 1e-3  # of probabilities
_ATOM_WIDTH = SUPPORT[1] - SUPPORT[0]
_ONE_ALONE = "each quantile is compared with one of the target alone, and not with all of them"


def _move(cases: Cases, values: np.ndarray) -> np.ndarray:
    """Moves quantiles or atoms `[N, M]` at time t to where the target has them."""
    return cases.r_t[:, np.newaxis] + cases.discount_t[:, np.newaxis] * values


def _check_quantiles(subject: Subject) -> str:
    cases = subject.cases
    values = np.random.default_rng(7).uniform(-_FAR, _FAR, (*cases.q_t.shape, NUM_QUANTILES))
    tables = cases.make_tables(subject.table)[1]
    tables[:, 1] = values
    moved = cases._replace(r_t=_FAR * cases.r_t)
    found = subject.settle_both(moved, (tables, tables))[1]
    best = values[np.arange(len(values)), values.mean(2).argmax(1)]
    largest = _compare_quantiles(found, moved, best)
    is_right = largest < 1e-2 and find_size(found - np.sort(found, 1)) / _FAR < 1e-2
    why = "" if is_right else _name_quantile_mistake(subject, moved, found, values, best)
    wrong = (
        "the quantiles that are learned are not those of r_t + discount_t * (the quantiles at time "
        f"t of the action with the highest mean), by a share of up to {largest:.2g}: {why}"
    )
    expect(is_right, f"{largest:.1e}", wrong)
    _check_all_pairs(subject, moved, tables, best)
    return f"{largest:.1e}"


def _compare_quantiles(found: np.ndarray, cases: Cases, values: np.ndarray) -> float:
    """Returns how far quantiles are from those of a target with `values` `[N, M]` at time t."""
    return find_size(np.sort(found, 1) - np.sort(_move(cases, values), 1)) / _FAR


def _name_quantile_mistake(
    subject: Subject, moved: Cases, found: np.ndarray, values: np.ndarray, best: np.ndarray
) -> str:
    """Names what is wrong with quantiles `[N, M]`; `values` `[N, A, M]` are those at time t."""
    lanes = np.arange(len(found))
    picked = {
        "highest quantile": values.max(2),
        "last quantile": values[:, :, -1],
        "median": np.median(values, 2),
        "middle quantile": values[:, :, NUM_QUANTILES // 2],
    }
    means = np.repeat(best.mean(1, keepdims=True), NUM_QUANTILES, 1)
    others = {
        "only the mean of the target's quantiles counts: each of them must": means,
        "the maximum is taken quantile by quantile, and not the action with the highest "
        "mean": values.max(1),
        "it takes the quantiles of a_tm1 at time t": values[lanes, moved.a_tm1],
        "the quantiles are averaged over the actions": values.mean(1),
    }
    for name, by in picked.items():
        text = f"the action at time t is picked by its {name} and not by its mean"
        others[text] = values[lanes, by.argmax(1)]
    # An error ten times as large: a linear penalty pulls as much, a square ten times as much.
    near, far = (subject.pull(q_tm1=-by).mean() for by in (_FAR, 10 * _FAR))
    why = {
        **{text: _compare_quantiles(found, moved, wrong) < 1e-2 for text, wrong in others.items()},
        _ONE_ALONE: find_size(found - _move(moved, best)) / _FAR < 1e-2,
        "the penalty grows with the square of large errors: its minimisers are expectiles and not "
        "quantiles; take |error|, or Huber's penalty": far > 5 * near,
        "compare every predicted quantile with every one of the target": True,
    }
    return find_true(why)[0]


def _check_all_pairs(subject: Subject, cases: Cases, tables: np.ndarray, best: np.ndarray) -> None:
    """Checks that every quantile of the target pulls at each predicted one."""
    half = NUM_QUANTILES // 2
    middle = np.sort(best, 1)[:, half - 1 : half + 1].mean(1)  # as many above it as below
    tables = tables.copy()
    tables[:, 0] = (cases.r_t + cases.discount_t * middle)[:, np.newaxis, np.newaxis]
    grad = subject.evaluate(cases, (tables, tables)).taken
    expected = 2 * FRACTIONS - 1
    found = -grad / np.maximum(np.abs(grad).max(1, keepdims=True), 1e-12)
    error = find_size(found - expected / expected.max())
    wrong = (
        "where half of the target's quantiles are above the predicted ones and half below, their "
        f"gradients are off by a share of {error:.2g}: {_ONE_ALONE}"
    )
    expect(error < 1e-2, f"{error:.1e}", wrong)


def _check_categories(subject: Subject) -> str | None:
    """Checks the masses that are learned, unless means alone count, as in two-hot losses."""
    cases, table = subject.cases, subject.table
    num, num_actions = cases.q_t.shape
    noise = np.random.default_rng(7).normal(size=(num, num_actions, len(SUPPORT)))
    logits = np.where(np.abs(SUPPORT) <= 10, 1.5 * noise, -40.0)
    probabilities = softmax(logits, axis=-1)
    means = (probabilities * SUPPORT).sum(2)
    best = probabilities[np.arange(num), means.argmax(1)]
    sides = np.where(np.arange(num) % 2, 1.0, -1.0)

    def settle(cases: Cases, outputs: np.ndarray) -> np.ndarray:
        """Returns the masses that are learned from tables with `outputs` at time t."""
        tables = cases.make_tables(table)[1]
        tables[:, 1] = outputs
        learned = softmax(subject.settle_both(cases, (tables, tables))[1], axis=-1)
        return np.nan_to_num(learned, nan=1.0)

    kinds = {
        "the distribution that is learned": (
            *(cases.r_t, cases.discount_t),
            "an atom's mass goes to its neighbours, the more the nearer, and the action at time t "
            "is the one with the highest mean",
        ),
        "where atoms of the target fall on atoms of the support, the distribution": (
            *(2 * _ATOM_WIDTH * sides, np.full(num, 0.5)),
            "all of their mass belongs there, and none is to be lost",
        ),
        "where atoms of the target fall outside of the support, the distribution": (
            *(17 * sides, np.full(num, 0.9)),
            "all of their mass belongs to its end: clip them, and lose none",
        ),
    }
    largest = 0.0
    for what, (r_t, discount_t, hint) in kinds.items():
        changed = cases._replace(r_t=r_t, discount_t=discount_t)
        found = settle(changed, logits)
        expected = _project(best, _locate(changed))
        error = find_size(found - expected)
        if error > _TOLERANCE and largest == 0.0:
            # Another distribution with the same means teaches the same: only means count.
            same = find_size(settle(changed, table.from_values(means)) - found) < _TOLERANCE
            if same and find_size((found - expected) @ SUPPORT) < 1e-2:
                return None
        largest = max(largest, error)
        is_right = error < _TOLERANCE
        why = "" if is_right else _name_category_mistake(found, probabilities, best, changed)
        wrong = (
            f"{what} is not that of r_t + discount_t * (the atoms at time t), by a probability of "
            f"up to {error:.2g}: {why or hint}"
        )
        expect(is_right, f"{error:.1e}", wrong)
    return f"{largest:.1e}"


def _locate(cases: Cases) -> np.ndarray:
    """Finds the places `[N, M]` on SUPPORT, from 0 to `M - 1`, of the target's atoms."""
    return (_move(cases, SUPPORT) - SUPPORT[0]) / _ATOM_WIDTH


def _project(probabilities: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Spreads masses `[N, M]` at places `[N, M]` over their neighbours on SUPPORT."""
    places = np.clip(places, 0, len(SUPPORT) - 1)
    distance = np.abs(places[:, np.newaxis, :] - np.arange(len(SUPPORT))[:, np.newaxis])
    return (np.maximum(1 - distance, 0) * probabilities[:, np.newaxis, :]).sum(2)


def _name_category_mistake(
    found: np.ndarray, probabilities: np.ndarray, best: np.ndarray, cases: Cases
) -> str:
    """Names what is wrong with the masses `found` `[N, M]`; `probabilities` are `[N, A, M]`."""
    lanes, num = np.arange(len(best)), len(SUPPORT)
    places = _locate(cases)
    below = np.floor(places)
    swapped, wider = 2 * below + 1 - places, (best, places * num / (num - 1))
    of_a_tm1, mean = probabilities[lanes, cases.a_tm1], probabilities.mean(1)
    picked = (probabilities[lanes, probabilities.max(2).argmax(1)], places)
    others = {
        "each atom's mass goes to the atom below as a whole (floor on both sides?)": (best, below),
        "each atom's mass goes to the atom above as a whole": (best, np.ceil(places)),
        "each atom's mass goes to the nearest atom as a whole": (best, np.round(places)),
        "the shares of the atom below and of the one above are swapped": (best, swapped),
        "the distance between atoms is taken as their range over N, and not over N - 1": wider,
        "the atoms are not moved by reward and discount at all": (best, np.arange(num)[np.newaxis]),
        "it takes the distribution of a_tm1 at time t": (of_a_tm1, places),
        "the distributions of the actions are averaged": (mean, places),
        "the action at time t is picked by its highest probability, and not by its mean": picked,
    }
    why = {
        text: find_size(found - _project(masses, at)) < 10 * _TOLERANCE
        for text, (masses, at) in others.items()
    }
    return next(iter(find_true(why)), "")


CHECKS = {"quantile": _check_quantiles, "categorical": _check_categories}
