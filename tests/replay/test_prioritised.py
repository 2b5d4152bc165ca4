"""The prioritised replay: what it draws, and the sums it draws by."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from purejaxdqn import testing
from purejaxdqn.replay import n_step_replay, prioritised_replay, uniform_replay
from purejaxdqn.replay.prioritised import (
    SumTree,
    _child_at,
    leaf_at,
    make_sum_tree,
    set_leaves,
    set_range,
)
from purejaxdqn.types import Replay, run_axes
from tiny import step_of

EXPONENT, EPSILON = 0.6, 1e-6  # the defaults


@functools.partial(jax.jit, static_argnums=(0, 1))
def filled(replay: Replay, num_envs: int, num_adds: Any) -> Any:
    """The state after so many steps, numbered from 0."""
    state = replay.init(step_of(num_envs))
    add = lambda t, state: replay.add(state, step_of(num_envs, 1.0 * t))  # noqa: E731
    return jax.lax.fori_loop(0, num_adds, add, state)


def scaled(priorities: Any) -> Any:
    return (np.abs(np.asarray(priorities, np.float64)) + EPSILON) ** EXPONENT


def assert_sums_are_fresh(tree: SumTree, rtol: float = 1e-5) -> None:
    """Each sum is that of its leaves, as NumPy adds them in 64 bits."""
    leaves = np.asarray(tree.leaves, np.float64)
    sums = leaves.reshape(*tree.sums.shape, -1).sum(axis=-1)
    np.testing.assert_allclose(tree.sums, sums, rtol=rtol, atol=0)
    np.testing.assert_allclose(tree.sums.sum(), leaves.sum(), rtol=rtol)


class TestFrequencies:
    @pytest.mark.parametrize("batch_size", [1, 1_000])
    def test_a_million_draws_of_a_hundred_entries(self, batch_size):
        rng = np.random.default_rng(0)
        priorities = np.exp(2 * rng.normal(size=100)).astype(np.float32)
        priorities[::9] = 0
        priorities[5::17] = -1e4  # TD errors have signs
        replay = prioritised_replay(100, batch_size)
        state = replay.update(filled(replay, 4, 25), jnp.arange(100), jnp.asarray(priorities))
        keys = jax.random.split(jax.random.key(1), 1_000_000 // batch_size)

        @jax.jit
        def draw(state, keys):
            sample = jax.vmap(replay.sample, in_axes=(None, 0))(state, keys)
            return sample.indices.ravel(), sample.probabilities.ravel()

        indices, probabilities = jax.tree.map(np.asarray, draw(state, keys))
        expected = scaled(priorities) / scaled(priorities).sum()
        np.testing.assert_allclose(probabilities, expected[indices], rtol=1e-5)

        counts = np.bincount(indices, minlength=100)
        assert np.abs(counts / counts.sum() - expected).sum() / 2 < 0.01
        # A chi-square test wants some draws of each: those with fewer are one category.
        rare = expected * counts.sum() < 20
        assert 0 < rare.sum() < 20
        observed = [*counts[~rare], counts[rare].sum()]
        share = np.array([*expected[~rare], expected[rare].sum()])
        assert stats.chisquare(observed, share * counts.sum()).pvalue > 1e-3

    def test_a_million_entries_that_are_alike(self):
        """More entries than a batch has strata, or float32 has digits for after a few sums."""
        tree = make_sum_tree(1_000_000)
        tree = set_range(tree, jnp.int32(0), jnp.full(1_000_000, 0.1))
        fractions = jax.random.uniform(jax.random.key(0), (1_000_000, 5))
        indices = np.asarray(jax.jit(jax.vmap(leaf_at, in_axes=(None, 0)))(tree, fractions))
        # The parts that a single float32 fraction could not tell apart: neighbours.
        for counts in (np.bincount(indices % 10), np.bincount(indices // 1_000)):
            assert stats.chisquare(counts).pvalue > 1e-3
        seen = len(np.unique(indices)) / 1_000_000
        assert seen == pytest.approx(1 - np.exp(-1), abs=0.002)

    def test_a_batch_is_stratified_over_groups(self):
        replay = prioritised_replay(1_000, 64)
        state = filled(replay, 4, 250)
        group_size = state.tree.leaves.size // len(state.tree.sums)
        keys = jax.random.split(jax.random.key(0), 50)
        draw = jax.jit(jax.vmap(lambda key: replay.sample(state, key).indices))
        shares = np.bincount(np.arange(1_000) // group_size) / 1_000 * 64
        assert len(shares) == 4
        for indices in np.asarray(draw(keys)):
            counts = np.bincount(indices // group_size, minlength=4)
            assert np.abs(counts - shares).max() < 2

    @pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
    def test_exponent(self, exponent):
        """It may be a tracer, as all floats of a sweep are."""
        priorities = jnp.array([1.0, 4.0, 9.0])

        @jax.jit
        def probabilities(exponent, epsilon):
            replay = prioritised_replay(3, 32, exponent=exponent, epsilon=epsilon)
            state = replay.add(replay.init(step_of(3)), step_of(3))
            sample = replay.sample(
                replay.update(state, jnp.arange(3), priorities), jax.random.key(0)
            )
            return sample.indices, sample.probabilities

        indices, found = probabilities(exponent, 7.0)
        expected = np.array([8.0, 11.0, 16.0]) ** exponent
        np.testing.assert_allclose(found, (expected / expected.sum())[indices], rtol=1e-6)


CAPACITIES = [1, 2, 3, 7, 16, 17, 64, 65, 97, 100, 101, 729, 1_000, 1_331]


@functools.cache
def compiled_tree(capacity: int) -> Any:
    """`(values [capacity], fractions [F, 5]) -> (tree, leaves [F])`."""

    @jax.jit
    def run(values, fractions):
        tree = set_leaves(make_sum_tree(capacity), jnp.arange(capacity), values)
        return tree, jax.vmap(leaf_at, in_axes=(None, 0))(tree, fractions)

    return run


class TestNoEmptySlot:
    @settings(max_examples=200)
    @given(
        capacity=st.sampled_from(CAPACITIES),
        fill=st.floats(0, 1),
        zeros=st.sampled_from([0.0, 0.5, 0.95]),
        magnitudes=st.sampled_from([0, 1, 8, 30]),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_at_any_fraction(self, capacity, fill, zeros, magnitudes, seed):
        """However little is written, and at the edges that rounding reaches."""
        rng = np.random.default_rng(seed)
        values = 10 ** rng.uniform(-magnitudes, magnitudes, capacity)
        values *= (np.arange(capacity) <= fill * capacity) & (rng.random(capacity) >= zeros)
        values[rng.integers(int(fill * (capacity - 1)) + 1)] += 1  # something must be there
        edges = np.array([0.0, 2**-24, 1 - 2**-24, 1.0])
        fractions = np.where(
            rng.random((512, 5)) < 0.5, edges[rng.integers(4, size=(512, 5))], rng.random((512, 5))
        )
        tree, leaves = compiled_tree(capacity)(
            values.astype(np.float32), fractions.astype(np.float32)
        )
        assert_sums_are_fresh(tree)
        assert np.asarray(leaves).max() < capacity
        assert (values.astype(np.float32)[leaves] > 0).all()

    @settings(max_examples=30)
    @given(
        layout=st.sampled_from([(1, 1), (1, 7), (3, 5), (4, 25), (10, 13), (100, 2)]),
        num_adds=st.integers(1, 30),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_rings_that_are_filled_in_part(self, layout, num_adds, seed):
        num_envs, max_rows = layout
        replay, sample = compiled_sample(num_envs, max_rows)
        drawn = sample(filled(replay, num_envs, num_adds), jax.random.key(seed))
        num_held = min(num_adds, max_rows) * num_envs
        assert np.asarray(drawn.indices).min() >= 0
        assert np.asarray(drawn.indices).max() < num_held
        np.testing.assert_allclose(drawn.probabilities, 1 / num_held, rtol=1e-5)
        # The windows are those of the indices: the ring holds the newest numbers.
        first = np.asarray(drawn.indices) // num_envs
        numbers = first + (num_adds - 1 - first) // max_rows * max_rows
        np.testing.assert_array_equal(drawn.window.reward[:, 0], numbers)

    def test_the_whole_sum_is_the_last_above_zero(self):
        children = jnp.array([0.0, 3.0, 0.0, 1e-30, 0.0])
        fractions = jnp.array([0, 0.5, 1, 1.5])
        found, _ = jax.vmap(_child_at, (None, 0))(children, fractions)
        assert found.tolist() == [1, 1, 3, 3]

    def test_what_is_left_of_the_fraction_falls_on_the_same_place_again(self):
        children = jnp.array([0.0, 2.0, 0.0, 1.0, 5.0])
        fractions = jnp.array([0.0, 0.125, 0.25, 0.3125, 0.375, 0.6875])
        found, leftover = jax.vmap(_child_at, (None, 0))(children, fractions)
        assert found.tolist() == [1, 1, 3, 3, 4, 4]
        np.testing.assert_allclose(leftover, [0, 0.5, 0, 0.5, 0, 0.5], atol=1e-6)

    def test_a_zero_between_others_where_rounding_differs(self):
        """Partial sums are added up in different orders, so they may grow at a 0, or shrink."""
        rng = np.random.default_rng(0)
        children = (rng.random((100, 100)) * (rng.random((100, 100)) < 0.5)).astype(np.float32)
        up_to = np.cumsum(children, axis=1)
        fractions = np.nextafter(
            up_to / up_to[:, -1:], np.array([[[-1.0]], [[0.5]], [[2.0]]]), dtype=np.float32
        )
        over_fractions = jax.vmap(_child_at, in_axes=(None, 0))
        found, _ = jax.jit(jax.vmap(over_fractions))(children, np.concatenate(fractions, axis=-1))
        assert (np.take_along_axis(children, np.asarray(found), axis=1) > 0).all()

    def test_what_is_not_a_number_is_not_drawn_among_numbers(self):
        replay, sample = compiled_sample(4, 25)
        state = filled(replay, 4, 10)
        for indices in ([3, 39, 20], range(40)):
            poison = jnp.full(len(indices), jnp.nan)
            state = replay.update(state, jnp.array(indices), poison)
            assert np.asarray(sample(state, jax.random.key(0)).indices).max() < 40


@functools.cache
def compiled_sample(num_envs: int, max_rows: int) -> Any:
    replay = prioritised_replay(num_envs * max_rows, 256)
    return replay, jax.jit(replay.sample)


@functools.cache
def compiled_replay(num_envs: int, max_rows: int) -> tuple[Any, Any, Any]:
    replay = prioritised_replay(num_envs * max_rows, 4)
    return replay, jax.jit(replay.add), jax.jit(replay.update)


class TestPriorities:
    @settings(max_examples=40)
    @given(
        layout=st.sampled_from([(1, 7), (3, 5), (4, 25), (10, 13), (30, 2), (100, 1)]),
        num_adds=st.integers(1, 30),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_against_a_dictionary(self, layout, num_adds, seed):
        num_envs, max_rows = layout
        replay, add, update = compiled_replay(*layout)
        rng = np.random.default_rng(seed)
        state = replay.init(step_of(num_envs))
        expected: dict[int, float] = {}
        largest = 1.0
        for t in range(num_adds):
            state = add(state, step_of(num_envs))
            start = t % max_rows * num_envs
            expected |= dict.fromkeys(range(start, start + num_envs), largest)
            indices = rng.integers(len(expected), size=4).astype(np.int32)
            priorities = np.float32(0.1 * t * rng.normal(size=4))
            state = update(state, indices, priorities)
            new: dict[int, float] = {}
            for index, priority in zip(indices.tolist(), scaled(priorities), strict=True):
                new[index] = max(priority, new.get(index, 0))
            expected |= new
            largest = max(largest, *new.values())
        leaves = np.zeros(state.tree.leaves.size)
        leaves[list(expected)] = list(expected.values())
        np.testing.assert_allclose(state.tree.leaves, leaves, rtol=1e-5)
        np.testing.assert_allclose(state.max_priority, largest, rtol=1e-5)
        assert_sums_are_fresh(state.tree)

    def test_new_entries_have_the_largest_so_far(self):
        replay, add, update = compiled_replay(1, 7)
        state = add(replay.init(step_of(1)), step_of(1))
        assert state.tree.leaves[0] == 1
        state = update(state, jnp.zeros(4, jnp.int32), jnp.full(4, 0.3))
        state = add(state, step_of(1))
        np.testing.assert_allclose(state.tree.leaves[:2], [scaled(0.3), 1], rtol=1e-6)
        state = update(state, jnp.zeros(4, jnp.int32), jnp.full(4, -2.7))
        state = update(state, jnp.zeros(4, jnp.int32), jnp.full(4, 0.1))
        state = add(state, step_of(1))
        expected = [scaled(0.1), 1, scaled(2.7)]
        np.testing.assert_allclose(state.tree.leaves[:3], expected, rtol=1e-6)

    def test_what_is_overwritten_is_forgotten(self):
        replay, add, update = compiled_replay(3, 5)
        state = filled(replay, 3, 5)
        state = update(state, jnp.arange(4), jnp.array([0.0, 0.1, 0.2, 0.3]))
        state = add(state, step_of(3))
        expected = [1, 1, 1, scaled(0.3), 1]
        np.testing.assert_allclose(state.tree.leaves[:5], expected, rtol=1e-6)
        assert_sums_are_fresh(state.tree)

    def test_of_several_for_one_entry_the_largest_stays(self):
        replay, _, update = compiled_replay(3, 5)
        state = update(
            filled(replay, 3, 5), jnp.array([7, 7, 2, 7]), jnp.array([1.0, 3.0, 0.5, 2.0])
        )
        np.testing.assert_allclose(
            state.tree.leaves[jnp.array([7, 2])], scaled([3.0, 0.5]), rtol=1e-6
        )
        assert_sums_are_fresh(state.tree)


class TestSums:
    @pytest.mark.parametrize(
        "num_updates", [100_000, pytest.param(10_000_000, marks=pytest.mark.slow)]
    )
    def test_after_many_updates(self, num_updates):
        """Of all magnitudes, with adds in between, and some indices that come twice."""
        num_envs, max_rows, num_indices = 3, 333, 8
        replay = prioritised_replay(num_envs * max_rows, num_indices)

        def body(t, carry):
            state, key = carry
            key, index_key, key_of_priorities = jax.random.split(key, 3)
            indices = jax.random.randint(index_key, (num_indices,), 0, num_envs * max_rows)
            priorities = jnp.exp(5 * jax.random.normal(key_of_priorities, (num_indices,)))
            state = replay.update(replay.add(state, step_of(num_envs)), indices, priorities)
            return state, key

        run = jax.jit(lambda state, key: jax.lax.fori_loop(0, num_updates, body, (state, key))[0])
        state = run(filled(replay, num_envs, max_rows), jax.random.key(0))
        assert len(np.unique(state.tree.leaves)) > 500
        assert_sums_are_fresh(state.tree)


class TestContract:
    def test_check_replay(self):
        testing.check_replay(prioritised_replay, jax.random.key(0))

    @pytest.mark.slow
    def test_check_replay_of_several_steps(self):
        def make_replay(*sizes):
            return n_step_replay(prioritised_replay(*sizes), 3)

        testing.check_replay(make_replay, jax.random.key(0), n_step=3)

    def test_windows_are_those_of_the_uniform_replay(self):
        replay = n_step_replay(prioritised_replay(20, 512), 3)
        uniform = n_step_replay(uniform_replay(20, 512), 3)
        key = jax.random.key(0)
        sample = jax.jit(replay.sample)(filled(replay, 2, 13), key)
        other = jax.jit(uniform.sample)(filled(uniform, 2, 13), key)
        rows = [
            {
                int(index): [np.asarray(x[i]).tolist() for x in jax.tree.leaves(s.window)]
                for i, index in enumerate(s.indices)
            }
            for s in (sample, other)
        ]
        assert len(rows[0]) == 20
        assert rows[0] == rows[1]

    def test_vmapped_over_runs_as_each_alone(self):
        replay = prioritised_replay(130, 16)
        axes = run_axes(jax.eval_shape(replay.init, step_of(10)))

        def run(state, scale, key):
            for t, sample_key in enumerate(jax.random.split(key, 3)):
                state = replay.add(state, step_of(10, 1.0 * t))
                sample = replay.sample(state, sample_key)
                state = replay.update(
                    state, sample.indices, scale * (sample.window.reward[:, 0] + 0.1)
                )
            return state, sample

        start = filled(replay, 10, 11)
        scales, keys = jnp.array([0.1, 1.0, 10.0]), jax.random.split(jax.random.key(0), 3)
        starts = jax.tree.map(
            lambda axis, part: (
                part if axis is None else jax.tree.map(lambda x: jnp.stack([x] * 3), part)
            ),
            axes,
            start,
            is_leaf=lambda axis: axis is None,
        )
        over_runs = jax.vmap(run, in_axes=(axes, 0, 0), out_axes=(axes, 0))
        states, samples = jax.jit(over_runs)(starts, scales, keys)
        alone = jax.jit(run)
        for i in range(3):
            state, sample = alone(start, scales[i], keys[i])
            np.testing.assert_array_equal(samples.indices[i], sample.indices)
            np.testing.assert_allclose(samples.probabilities[i], sample.probabilities, rtol=1e-5)
            np.testing.assert_allclose(states.tree.leaves[i], state.tree.leaves, rtol=1e-5)
            assert_sums_are_fresh(jax.tree.map(lambda x, i=i: x[i], states.tree))
        assert len(np.unique(states.max_priority)) == 3

    def test_an_empty_replay_says_so(self):
        replay = prioritised_replay(8, 4)
        with pytest.raises(ValueError, match="holds no transition to sample: add some first"):
            replay.sample(replay.init(step_of(4)), jax.random.key(0))

    def test_counts_that_are_not_positive(self):
        with pytest.raises(ValueError, match=r"batch_size \(0\) must be at least 1"):
            prioritised_replay(8, 0)
