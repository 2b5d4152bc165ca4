"""Checks that a replay draws as often as it says, and by the priorities that it was given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing.compiled_functions import to_numpy
from purejaxdqn.testing.requirements import require
from purejaxdqn.types import Array, ArrayTree, Replay, Sample, Step

_NUM_BATCHES = 512
_SIGMAS = 6.0


def fill(replay: Replay, steps: Step, state: ArrayTree = None) -> ArrayTree:
    """Adds steps `[T, E, ...]` one after another, to an empty replay by default."""
    if state is None:
        state = replay.init(jax.tree.map(lambda x: jnp.asarray(x[0]), steps))
    return jax.lax.scan(lambda state, step: (replay.add(state, step), None), state, steps)[0]


def check_draws(replay: Replay, steps: Step, key: Array, num_held: int) -> str:
    """Compares how often entries are drawn with `Sample.probabilities`, before and after updates.

    The replay holds `num_held` entries once all steps `[T, E, ...]` were added. Returns what was
    measured.
    """
    keys_before, keys_after = jax.random.split(key, (2, _NUM_BATCHES))
    sample = jax.jit(jax.vmap(replay.sample, in_axes=(None, 0)))
    update = jax.jit(replay.update)
    state = jax.jit(lambda steps: fill(replay, steps))(steps)
    drawn: Sample = to_numpy(sample(state, keys_before))
    _compare_counts(drawn, num_held, "")
    # Gives each entry a priority of its own, unrelated to its index; a batch at a time.
    entries = np.unique(drawn.indices)
    priorities = 1.0 + np.random.default_rng(9).permutation(len(entries)).astype(np.float32)
    size = drawn.indices.shape[1]
    for start in range(0, len(entries), size):
        places = np.arange(start, start + size) % len(entries)
        state = update(state, entries[places], priorities[places])
    drawn = to_numpy(sample(state, keys_after))
    _compare_counts(drawn, num_held, "after Replay.update, ")
    _, places, first = np.intersect1d(entries, drawn.indices, return_indices=True)
    found = drawn.probabilities.ravel()[first][np.argsort(priorities[places])]
    if np.ptp(found) < 1e-3 * found.max():
        return "all as likely"
    rises = np.diff(found / found.max())
    rising = rises > -1e-3
    why = (
        "the higher the priority, the lower the probability: is its inverse or its negative taken?"
        if (rises < 1e-3).all()
        else "are they written at the indices that Replay.update is given?"
    )
    require(
        rising.all(),
        "after Replay.update with a priority of its own for each entry, the probabilities do not "
        f"rise with the priorities (they do from {rising.mean():.0%} of entries to the next): "
        f"{why}",
    )
    return "by priority"


def _compare_counts(drawn: Sample, num_held: int, when: str) -> None:
    """Compares how often each entry was drawn with its probability."""
    indices, given = drawn.indices.ravel(), drawn.probabilities.ravel().astype(np.float64)
    entries, first, inverse, counts = np.unique(
        indices, return_index=True, return_inverse=True, return_counts=True
    )
    probabilities = given[first]
    same = np.abs(given - probabilities[inverse]) <= 1e-4 * given
    require(
        same.all(),
        f"{when}the same entry has several probabilities in Sample.probabilities: one state gives "
        "each entry one",
    )
    expected = len(indices) * probabilities
    off = (counts - expected) / np.sqrt(expected)
    i = int(np.abs(off).argmax())
    total = float(probabilities.sum())
    if len(entries) == num_held:
        require(
            abs(total - 1) < 1e-3,
            f"{when}the probabilities of all {num_held} entries that are held sum to {total:.3g} "
            "and not to 1: each is the probability with which the entry is drawn, among those that "
            "were written",
        )
    require(
        bool(abs(off[i]) < _SIGMAS),
        f"{when}{counts[i] / len(indices):.3g} of all draws are of an entry whose probability is "
        f"said to be {probabilities[i]:.3g}: Sample.probabilities are to be those with which "
        "entries are drawn",
    )
