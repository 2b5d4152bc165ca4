"""Checks what a replay draws: probabilities, priorities, and streams of its own for each seed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.testing import require
from purejaxdqn.testing.programs import to_numpy
from purejaxdqn.types import Array, ArrayTree, Replay, Sample, Step

_NUM_BATCHES = 4096


def fill(
    replay: Replay, steps: Step, key: Array | None = None, state: ArrayTree = None
) -> ArrayTree:
    """Adds steps `[T, E, ...]` one after another, to an empty replay by default."""
    init_key, add_key = jax.random.split(jax.random.key(1) if key is None else key)
    if state is None:
        state = replay.init(jax.tree.map(lambda x: jnp.asarray(x[0]), steps), init_key)
    keys = jax.random.split(add_key, len(steps.reward))
    return jax.lax.scan(lambda state, xs: (replay.add(state, *xs), None), state, (steps, keys))[0]


class _Held:
    """A replay that holds all steps but the last row, which is still to be added."""

    def __init__(self, replay: Replay, steps: Step, key: Array) -> None:
        self.newest = jax.tree.map(lambda x: x[-1], steps)
        self.added: list[float] = []  # the observations' numbers of rows that were added later
        self._replay, self._keys = replay, jax.random.split(key, (3, _NUM_BATCHES))
        self._sample = jax.jit(jax.vmap(replay.sample, in_axes=(None, 0)))
        self._update = jax.jit(replay.update)
        self.state = jax.jit(lambda steps: fill(replay, steps))(
            jax.tree.map(lambda x: x[:-1], steps)
        )
        self.drawn = self.sample(0)
        self.entries, first = np.unique(self.drawn.indices, return_index=True)
        self.given = self.drawn.probabilities.ravel()[first]  # of each entry, at first

    def sample(self, i: int) -> Any:
        """Draws many batches `[_NUM_BATCHES, B, ...]`, others with each `i`."""
        return to_numpy(self._sample(self.state, self._keys[i]))

    def update(self, priorities: np.ndarray) -> None:
        """Gives each of the `entries` a priority, a batch at a time."""
        size, num = self.drawn.indices.shape[1], len(self.entries)
        for places in np.resize(np.arange(num), (-(-num // size), size)):
            given = self.entries[places], priorities[places].astype(np.float32)
            self.state = self._update(self.state, *given)

    def add_newest(self, by: float = 0.0) -> np.ndarray:
        """Adds the last row; returns the probabilities `[E]` of its steps, 0 where never drawn.

        Its observations are shifted, so that it may be added again.
        """
        add = jax.jit(self._replay.add)
        self.newest = self.newest._replace(obs=self.newest.obs + np.float32(by))
        self.state = add(self.state, self.newest, jax.random.key(4))
        self.drawn = self.sample(2)
        number = self.drawn.window.obs[..., 0, 0, 0]
        self.added += self.newest.obs[:, 0, 0, 0].tolist()
        given = [self.drawn.probabilities[number == x] for x in self.newest.obs[:, 0, 0, 0]]
        return np.array([x.max(initial=0) for x in given])


def check_draws(
    replay: Replay, steps: Step, key: Array, num_held: int, draws_all: bool = True
) -> str:
    """Compares `Sample.probabilities` of all `num_held` entries with draws, also after updates."""
    held = _Held(replay, steps, key)
    _compare_counts(held.drawn, num_held, "")
    num_drawn, total = len(held.entries), float(held.given.sum())
    wrong = (
        f"only {num_drawn} of {num_held} entries that are held are ever drawn: is the newest row, "
        "or an environment, left out? Where that is meant: newest=False"
    )
    require.that(not draws_all or num_drawn >= num_held or total < 1 - 1e-3, wrong)
    # Gives each entry a priority of its own, unrelated to its index.
    entries = held.entries
    priorities = 1.0 + np.random.default_rng(9).permutation(len(entries))
    held.update(priorities)
    drawn = held.sample(1)
    _compare_counts(drawn, num_held, "after Replay.update, ")
    _, places, first = np.intersect1d(entries, drawn.indices, return_indices=True)
    found = drawn.probabilities.ravel()[first]
    if np.allclose(found, held.given[places], rtol=1e-3):
        return "whatever the priorities are"
    found = found[np.argsort(priorities[places])]
    rises = np.diff(found / found.max())
    rising = np.mean(rises > -1e-3)
    why = (
        "the higher the priority, the lower the probability: is its inverse or its negative taken?"
        if (rises < 1e-3).all()
        else "are they written at the indices that Replay.update is given?"
    )
    require.that(
        rising == 1,
        "after Replay.update with a priority of its own for each entry, the probabilities do not "
        f"rise with the priorities (they do from {rising:.0%} of entries to the next): {why}",
    )
    for by in (0.0, 0.5):  # after an update, and after another row
        _check_newest(held, by)
    return "by priority"


def _check_newest(held: _Held, by: float) -> None:
    """Checks that new entries are as likely as the likeliest; a tie may put one before them."""
    new = held.add_newest(by)
    number, given = held.drawn.window.obs[..., 0, 0, 0], held.drawn.probabilities
    old = given[~np.isin(number, held.added)]
    likelier = np.unique(held.drawn.indices[np.isin(given, old[old > 1.001 * new.min()])])
    require.that(
        len(likelier) <= 1 and new.min() > 0,
        f"a new entry is drawn with a probability of {new.min():.3g}, and others with up to "
        f"{old.max():.3g}: Replay.add must give it the largest priority so far, so that each one "
        "is soon seen, and that of the entry it overwrites is forgotten",
    )


def check_odd_priorities(
    replay: Replay, steps: Step, key: Array, num_held: int, newest: bool
) -> str:
    """Checks that negative priorities and a NaN do no harm: an update may give TD errors."""
    held = _Held(replay, steps, key)
    priorities = 1.0 + np.arange(len(held.entries))
    with_nan = np.where(np.arange(len(priorities)) == 1, np.nan, priorities)
    for what, given, i in (("negative priorities", -priorities, 1), ("one NaN", with_nan, 2)):
        held.update(given)
        drawn, when = held.sample(i), f"after {what} in Replay.update, "
        low, high = drawn.probabilities.min(), drawn.probabilities.max()
        fix = "take the absolute value, and another priority where it is NaN"
        require.that(
            bool(low > 0) and bool(high <= 1) and len(np.unique(drawn.indices)) > 1,
            f"{when}probabilities reach from {low:.3g} to {high:.3g}: {fix}",
        )
        _compare_counts(drawn, num_held + 1, when)  # a NaN's entry may never be drawn again
    wrong = f"after a NaN in Replay.update a new entry is never drawn: {fix}"
    require.that(not newest or bool(held.add_newest().min() > 0), wrong)
    return ""


def check_streams(replay: Replay, steps: Step, key: Array) -> str | None:
    """Checks that what `init` and `add` draw depends on their keys; None if they draw nothing."""
    program = jax.make_jaxpr(lambda key: fill(replay, steps, key))(key)
    if "random_bits" not in str(program):
        return None
    one, other = (
        to_numpy(require.drop_keys(jax.jit(lambda key: fill(replay, steps, key))(key)))
        for key in jax.random.split(key)
    )
    is_same = all(np.array_equal(x, y, equal_nan=True) for x, y in zip(one, other, strict=True))
    require.that(
        not is_same,
        "Replay.init and add draw random numbers, and two seeds hold the same all the same: draw "
        "from the key that they are given, not from a constant one",
    )
    return "differ"


def _compare_counts(drawn: Sample, num_held: int, when: str) -> None:
    """Compares how often each entry was drawn with its probability."""
    indices, given = drawn.indices.ravel(), drawn.probabilities.ravel().astype(np.float64)
    _, first, inverse, counts = np.unique(indices, True, True, True)
    probabilities = given[first]
    require.that(
        np.allclose(probabilities[inverse], given, rtol=1e-4, atol=0),
        f"{when}the same entry has several probabilities in Sample.probabilities: one state gives "
        "each entry one",
    )
    total = float(probabilities.sum())
    require.that(
        abs(total - 1) < 1e-3 or len(counts) < num_held,
        f"{when}the probabilities of all {num_held} entries that are held sum to {total:.3g} and "
        "not to 1: each is the probability with which the entry is drawn, among those that were "
        "written",
    )
    fix = "Sample.probabilities are to be those with which entries are drawn"
    expected = len(indices) * probabilities
    sigmas = np.abs(counts - expected) / np.sqrt(expected)
    i = int(sigmas.argmax())
    require.that(
        sigmas[i] < 6,
        f"{when}{counts[i] / len(indices):.3g} of all draws are of an entry whose probability is "
        f"said to be {probabilities[i]:.3g}: {fix}",
    )
    # How entries deviate in one half of the batches must not be found again in the other half,
    # however the draws of a batch depend on each other.
    share = inverse.reshape(drawn.indices.shape)
    one, other = np.array_split(share, 2)
    size = share.shape[1] * len(one)
    bias = np.bincount(one.ravel(), minlength=len(counts)) / (size * probabilities) - 1
    again = (bias[other] - bias @ probabilities / total).sum(1)
    sigmas = again.mean() / max(again.std() / np.sqrt(len(again)), 1e-9)
    require.that(
        not (sigmas > 6 and again.mean() > 1e-3),
        f"{when}entries are drawn up to {np.abs(bias).max():.0%} more or less often than is said, "
        f"in two halves of the draws alike: {fix}",
    )
