"""The uniform replay against a list in Python, and what it costs."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from purejaxdqn.replay import uniform_replay
from purejaxdqn.replay.uniform import UniformReplayState, _draw_different_indices, _draw_indices
from purejaxdqn.types import Sample, Step, run_axes

MAX_ADDS = 40
BATCH_SIZE = 1_024  # so large that every entry of a small ring is in it, but once in 10^7


class Layout(NamedTuple):
    """What is fixed when a replay is compiled."""

    num_envs: int
    max_rows: int
    time_limit: int


LAYOUTS = [
    *[Layout(1, 2, 1), Layout(1, 2, 7), Layout(1, 12, 1), Layout(1, 12, 7), Layout(1, 5, 2)],
    *[Layout(2, 3, 3), Layout(2, 7, 3), Layout(2, 8, 4), Layout(3, 4, 5), Layout(3, 9, 6)],
    *[Layout(3, 10, 2), Layout(4, 2, 2), Layout(4, 6, 1), Layout(4, 11, 5), Layout(4, 12, 4)],
]


def make_steps(layout: Layout, terminated: np.ndarray, wants_truncation: np.ndarray) -> Step:
    """Steps `[MAX_ADDS, E, ...]` of numbered observations, truncated as the time limit lets it."""
    shape = (MAX_ADDS, layout.num_envs)
    truncated = np.zeros(shape, bool)
    last = np.full(layout.num_envs, -layout.time_limit)
    for t in range(MAX_ADDS):
        truncated[t] = wants_truncation[t] & (t - last >= layout.time_limit)
        last = np.where(truncated[t], t, last)
    number = np.arange(1, 2 * np.prod(shape) + 1, dtype=np.float32).reshape(2, *shape)
    following = np.concatenate([number[0, 1:], number[1, -1:]])
    next_number = np.where(terminated | truncated, number[1], following)

    def obs(number):
        return np.stack([number, -number], axis=-1)

    action = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    fields = (obs(number[0]), action, -number[0] / 4, terminated, truncated, obs(next_number))
    return Step._make((*fields, {}))


@functools.cache
def compiled(layout: Layout) -> Callable[..., Sample]:
    """`(steps, num_adds, key) -> Sample`, from a ring in which NaN marks what is unwritten."""
    replay = uniform_replay(
        layout.max_rows * layout.num_envs,
        BATCH_SIZE,
        layout.time_limit,
    )

    @jax.jit
    def run(steps, num_adds, key):
        state = replay.init(jax.tree.map(lambda x: x[0], steps))
        nan = jnp.float32(jnp.nan)
        state = state.replace(
            obs=jnp.full_like(state.obs, nan),
            reward=jnp.full_like(state.reward, nan),
        )

        def add(t, state):
            return replay.add(state, jax.tree.map(lambda x: x[t], steps))

        return replay.sample(jax.lax.fori_loop(0, num_adds, add, state), key)

    return run


probabilities = st.sampled_from([0.0, 0.1, 0.5, 1.0])


class TestAgainstAList:
    @settings(max_examples=200)
    @given(
        layout=st.sampled_from(LAYOUTS),
        num_adds=st.integers(1, MAX_ADDS),
        termination=probabilities,
        truncation=probabilities,
        seed=st.integers(0, 2**31 - 1),
    )
    def test_every_entry(self, layout, num_adds, termination, truncation, seed):
        draws = np.random.default_rng(seed).random((2, MAX_ADDS, layout.num_envs))
        steps = make_steps(layout, draws[0] < termination, draws[1] < truncation)
        self.check(layout, steps, num_adds, seed)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_as_many_truncations_as_can_be(self, layout):
        """Also at the same step as a termination, wherever the seams of ring and blocks lie."""
        everywhere = np.ones((MAX_ADDS, layout.num_envs), bool)
        for first in range(min(layout.time_limit, 3)):
            late = everywhere & (np.arange(MAX_ADDS) >= first)[:, np.newaxis]
            for num_adds in (
                1,
                layout.max_rows - 1,
                layout.max_rows,
                layout.max_rows + 1,
                MAX_ADDS,
            ):
                self.check(layout, make_steps(layout, ~everywhere, late), num_adds, seed=num_adds)
            self.check(layout, make_steps(layout, everywhere, late), MAX_ADDS, seed=1)

    def check(self, layout, steps, num_adds, seed):
        num_envs, max_rows = layout.num_envs, layout.max_rows
        sample = compiled(layout)(steps, jnp.int32(num_adds), jax.random.key(seed))
        sample = jax.tree.map(np.asarray, sample)
        # The list: what was added, as it was, the oldest dropped.
        kept = [(t, env) for t in range(num_adds) for env in range(num_envs)]
        kept = kept[-max_rows * num_envs :]
        indices = {(t % max_rows) * num_envs + env: (t, env) for t, env in kept}
        assert set(sample.indices.tolist()) == set(indices)
        np.testing.assert_allclose(sample.probabilities, 1 / len(kept), rtol=1e-6)

        at = tuple(np.array([indices[index] for index in sample.indices.tolist()]).T)
        window = sample.window
        np.testing.assert_array_equal(window.obs, steps.obs[at])
        for name in ("action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(window, name)[:, 0], getattr(steps, name)[at])
        assert window.is_inside.shape == (len(at[0]), 1)
        assert window.is_inside.all()
        # What follows a terminal state counts for nothing, but 0 * NaN would be NaN.
        assert np.isfinite(window.next_obs).all()
        goes_on = ~steps.terminated[at] | steps.truncated[at]
        np.testing.assert_array_equal(window.next_obs[goes_on], steps.next_obs[at][goes_on])


different_indices = jax.jit(_draw_different_indices, static_argnums=1)


class TestSampling:
    @pytest.mark.parametrize("num_adds", [7, 10, 23])
    def test_uniform(self, num_adds):
        """Not full, just full, and written over."""
        layout = Layout(3, 10, 2)
        nothing = np.zeros((MAX_ADDS, 3), bool)
        steps = make_steps(layout, nothing, nothing)
        keys = jax.random.split(jax.random.key(num_adds), 60)
        draw = jax.vmap(compiled(layout), in_axes=(None, None, 0))
        indices = np.asarray(draw(steps, jnp.int32(num_adds), keys).indices).ravel()
        counts = np.bincount(indices)
        assert len(counts) == 3 * min(num_adds, 10)
        assert stats.chisquare(counts).pvalue > 1e-3
        # Draws that follow each other are independent.
        pairs = np.bincount(indices[0::2] * len(counts) + indices[1::2], minlength=len(counts) ** 2)
        assert stats.chisquare(pairs).pvalue > 1e-3

    @given(bound=st.integers(1, 2**31 - 1), seed=st.integers(0, 2**31 - 1))
    @settings(max_examples=100)
    def test_indices_are_the_high_half_of_the_product(self, bound, seed):
        key = jax.random.key(seed)
        bits = np.asarray(jax.random.bits(key, (64,), jnp.uint32)).tolist()
        indices = jax.jit(_draw_indices, static_argnums=1)(key, 64, jnp.int32(bound))
        assert indices.dtype == jnp.int32
        assert indices.tolist() == [(number * bound) >> 32 for number in bits]

    @given(
        num=st.integers(1, 40),
        more=st.integers(0, 100) | st.integers(0, 2**31 - 41),
        seed=st.integers(0, 2**31 - 1),
    )
    @settings(max_examples=100)
    def test_without_replacement_is_the_beginning_of_a_shuffle(self, num, more, seed):
        key, bound = jax.random.key(seed), num + more
        bits = np.asarray(jax.random.bits(key, (num,), jnp.uint32)).tolist()
        shuffled: dict[int, int] = {}  # only what was moved
        expected = []
        for i, number in enumerate(bits):
            partner = i + (number * (bound - i) >> 32)
            expected.append(shuffled.get(partner, partner))
            shuffled[partner] = shuffled.get(i, i)
        indices = different_indices(key, num, jnp.int32(bound)).tolist()
        assert indices == expected
        assert len(set(indices)) == num

    def test_without_replacement_every_sequence_is_as_likely(self):
        keys = jax.random.split(jax.random.key(0), 12_000)
        draw = jax.jit(jax.vmap(lambda key: _draw_different_indices(key, 3, jnp.int32(5))))
        codes = np.asarray(draw(keys)) @ [25, 5, 1]
        counts = np.unique(codes, return_counts=True)[1]
        assert len(counts) == 5 * 4 * 3
        assert stats.chisquare(counts).pvalue > 1e-3

    @pytest.mark.parametrize(("with_replacement", "least"), [(True, 1), (False, 4)])
    def test_a_replay_that_holds_too_little_says_so(self, with_replacement, least):
        replay = uniform_replay(8, 4, with_replacement=with_replacement)
        nothing = np.zeros((MAX_ADDS, 1), bool)
        steps = make_steps(Layout(1, 8, 1), nothing, nothing)
        state = replay.init(jax.tree.map(lambda x: x[0], steps))
        for held in range(least):
            message = rf"holds {held} transitions and a sample needs at least {least}: add more"
            with pytest.raises(ValueError, match=message):
                replay.sample(state, jax.random.key(0))
            state = replay.add(state, jax.tree.map(lambda x, t=held: x[t], steps))
        indices = replay.sample(state, jax.random.key(0)).indices.tolist()
        assert set(indices) <= set(range(least))
        assert with_replacement or len(set(indices)) == 4

    def test_update_changes_nothing(self):
        replay = uniform_replay(8, 4)
        layout = Layout(2, 4, 1)
        nothing = np.zeros((MAX_ADDS, 2), bool)
        step = jax.tree.map(lambda x: jnp.asarray(x[0]), make_steps(layout, nothing, nothing))
        state = replay.add(replay.init(step), step)
        updated = replay.update(state, jnp.arange(4), jnp.ones(4))
        assert all(x is y for x, y in zip(*map(jax.tree.leaves, (state, updated)), strict=True))


def step_types(num_envs: int, obs_shape: tuple[int, ...], obs_dtype: Any) -> Step:
    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((num_envs, *shape), dtype)

    obs, flag = array(obs_dtype, *obs_shape), array(jnp.bool)
    return Step._make((obs, array(jnp.int32), array(jnp.float32), flag, flag, obs, {}))


def num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class TestMemory:
    @pytest.mark.parametrize(
        ("obs_shape", "obs_dtype"), [((4,), jnp.float32), ((84, 84, 4), jnp.uint8)]
    )
    def test_each_observation_is_kept_once(self, obs_shape, obs_dtype):
        replay = uniform_replay(10_000, 32, time_limit=500)
        step = step_types(10, obs_shape, obs_dtype)
        state = jax.eval_shape(replay.init, step)
        one_copy = 1_000 * num_bytes(step[:5])  # all but next_obs
        assert one_copy <= num_bytes(state) <= 1.15 * one_copy

    def test_observations_keep_their_dtype(self):
        replay = uniform_replay(20, 6, time_limit=3)
        step = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), step_types(2, (3, 3), jnp.uint8))
        state = replay.init(step)
        for _ in range(4):
            state = replay.add(state, step)
        assert state.obs.dtype == jnp.uint8
        window = replay.sample(state, jax.random.key(0)).window
        assert window.obs.dtype == window.next_obs.dtype == jnp.uint8
        assert window.next_obs.shape == (6, 3, 3)


NUM_RUNS, NUM_ADDS = 3, 50


def lower_adds(shared_counters: bool) -> tuple[Any, Any]:
    """Many adds in a loop, for several runs at once, with the state donated."""
    replay = uniform_replay(100_000, 32, time_limit=500)
    step = step_types(10, (4,), jnp.float32)
    state = jax.eval_shape(replay.init, step)
    axes = run_axes(state) if shared_counters else 0

    def add_all(state, steps):
        return jax.lax.scan(lambda state, step: (replay.add(state, step), None), state, steps)[0]

    def batched(axis, x):
        shape = x.shape if axis is None else (NUM_RUNS, *x.shape)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    if shared_counters:
        states = jax.tree.map(lambda x, axis: batched(axis, x), state, axes)
    else:
        states = jax.tree.map(lambda x: batched(0, x), state)
    steps = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((NUM_RUNS, NUM_ADDS, *x.shape), x.dtype), step
    )
    over_runs = jax.vmap(add_all, in_axes=(axes, 0), out_axes=axes)
    return jax.jit(over_runs, donate_argnums=0).lower(states, steps), states


class TestCost:
    def test_add_writes_in_place(self, compile_as_user):
        lowered, states = lower_adds(shared_counters=True)
        program = compile_as_user(lowered)
        memory = program.memory_analysis()
        assert memory.alias_size_in_bytes >= num_bytes(states)
        # Room for the steps of the loop, but for no array of the ring.
        assert memory.temp_size_in_bytes < NUM_RUNS * 100_000
        text = program.as_text()
        assert not re.search(r"\bscatter\(", text)
        assert not re.search(r"\[3,10\d{3},10[,\]]\S* copy\(", text)

    def test_that_would_show(self, compile_as_user):
        """With a counter in each run, the same writes are scatters."""
        lowered, _ = lower_adds(shared_counters=False)
        assert re.search(r"\bscatter\(", compile_as_user(lowered).as_text())

    @pytest.mark.parametrize("with_replacement", [True, False])
    def test_a_sample_costs_the_batch_and_not_the_capacity(self, with_replacement, compile_as_user):
        def compiled_sample(capacity):
            replay = uniform_replay(capacity, 32, 500, with_replacement)
            state = jax.eval_shape(replay.init, step_types(10, (4,), jnp.float32))
            key = jax.eval_shape(lambda: jax.random.key(0))
            return compile_as_user(jax.jit(replay.sample).lower(state, key))

        small, large = compiled_sample(1_000), compiled_sample(1_000_000)
        assert large.cost_analysis()["flops"] <= 1.01 * small.cost_analysis()["flops"]
        temporary = [x.memory_analysis().temp_size_in_bytes for x in (small, large)]
        assert temporary[1] <= 1.01 * temporary[0]
        # The ring is read where it lies: no instruction makes an array of its size.
        for dims, opcode in re.findall(r"= \w+\[([\d,]+)\]\S* ([\w-]+)\(", large.as_text()):
            size = np.prod([int(dim) for dim in dims.split(",")])
            assert size < 1_000 or opcode in ("parameter", "bitcast"), (dims, opcode)

    def test_counters_are_shared_by_the_runs_of_a_batch(self):
        state = jax.eval_shape(uniform_replay(20, 4).init, step_types(2, (4,), jnp.float32))
        axes = run_axes(state)
        shared = {"insert_row", "num_rows", "block", "row_in_block"}
        for field in UniformReplayState.__dataclass_fields__:
            nothing: Any = {"extras": {}, "num_before": None, "begins": None}.get(field, 0)
            assert getattr(axes, field) == (None if field in shared else nothing)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, 4, 1), r"capacity \(0\) must be at least 1"),
            ((8, -1, 1), r"batch_size \(-1\) must be at least 1"),
            ((8, 4, 0), r"time_limit \(0\) must be at least 1"),
            ((8, 4, 1, True, 0), r"frames \(0\) must be at least 1"),
            ((8, 9, 1, False), r"batch_size \(9\) must be at most capacity \(8\)"),
        ],
    )
    def test_counts_that_are_not_positive(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            uniform_replay(*arguments)

    def test_a_capacity_that_is_no_multiple_of_the_environments(self):
        replay = uniform_replay(10, 4)
        with pytest.raises(ValueError, match=r"capacity \(10\) .* environments \(3\), such as 9"):
            jax.eval_shape(replay.init, step_types(3, (4,), jnp.float32))
