"""What the prioritised replay costs, and where it writes."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.replay import n_step_replay, n_step_transition, prioritised_replay
from purejaxdqn.replay.prioritised import make_sum_tree
from purejaxdqn.types import run_axes
from tiny import step_of

NUM_RUNS, CAPACITY = 3, 1_000_000


def lower_loop(learns: bool, n_step: int) -> Any:
    """Adds, and samples and updates between them, for several runs at once, state donated."""
    replay = prioritised_replay(CAPACITY, 128, time_limit=500)
    replay = n_step_replay(replay, n_step)
    to_transition = functools.partial(n_step_transition, discount=0.9)
    state = jax.eval_shape(replay.init, step_of(10))
    axes = run_axes(state)

    def body(t, carry):
        state, metric, key = carry
        state = replay.add(state, step_of(10, metric))
        if learns:
            key, sample_key = jax.random.split(key)
            sample = replay.sample(state, sample_key)
            transition = jax.vmap(to_transition)(sample.window)
            td_errors = transition.r_t - transition.obs_tm1.sum(axis=1)
            # Nothing of an update depends on what is done with the probabilities.
            metric += (td_errors / sample.probabilities).sum()
            state = replay.update(state, sample.indices, td_errors)
        return state, metric, key

    def run(state, metric, key):
        return jax.lax.fori_loop(0, 50, body, (state, metric, key))

    def batched(axis, part):
        if axis is None:
            return part
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((NUM_RUNS, *x.shape), x.dtype), part)

    states = jax.tree.map(batched, axes, state, is_leaf=lambda axis: axis is None)
    metrics = jax.ShapeDtypeStruct((NUM_RUNS,), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), NUM_RUNS))
    over_runs = jax.vmap(run, in_axes=(axes, 0, 0), out_axes=(axes, 0, 0))
    return jax.jit(over_runs, donate_argnums=0).lower(states, metrics, keys)


class TestCost:
    @pytest.mark.parametrize(("learns", "n_step"), [(False, 1), (True, 1), (True, 3)])
    def test_everything_is_written_in_place(self, learns, n_step, compile_as_user):
        program = compile_as_user(lower_loop(learns, n_step))
        text = program.as_text()
        if not learns:
            assert not re.search(r"\bscatter\(", text)
        for dims in re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", text):
            assert np.prod([int(dim) for dim in dims.split(",")]) < CAPACITY / 10, dims
        # Room for a few batches of blocks, but not for the leaves of one run.
        assert program.memory_analysis().temp_size_in_bytes < 4 * CAPACITY

    def test_an_update_costs_the_batch_and_not_its_square(self, compile_as_user):
        """No instruction makes an array that grows faster than the batch's blocks of leaves."""
        batch_size = 1_024
        replay = prioritised_replay(100_000, batch_size, 500)
        state = jax.eval_shape(replay.init, step_of(10))
        indices = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        priorities = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
        update = jax.jit(replay.update, donate_argnums=0)
        memory = compile_as_user(update.lower(state, indices, priorities)).memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 4 * batch_size * (state.tree.block_size + 50)

    def test_a_sample_looks_at_few_leaves(self, compile_as_user):
        """No instruction makes an array as large as the tree."""
        replay = prioritised_replay(CAPACITY, 32, 500)
        state = jax.eval_shape(replay.init, step_of(10))
        key = jax.eval_shape(lambda: jax.random.key(0))
        text = compile_as_user(jax.jit(replay.sample).lower(state, key)).as_text() or ""
        for dims, opcode in re.findall(r"= \w+\[([\d,]+)\]\S* ([\w-]+)\(", text):
            size = np.prod([int(dim) for dim in dims.split(",")])
            assert size <= 10_000 or opcode in ("parameter", "bitcast"), (dims, opcode)

    def test_the_tree_is_little_larger_than_the_ring(self):
        capacities = [17, 64, 65, 97, 100, 101, 729, 1_000, 1_331]
        for capacity in [*capacities, 10_000, 100_000, 123_456, 1_000_000]:
            size = jax.eval_shape(functools.partial(make_sum_tree, capacity)).leaves.size
            assert capacity <= size <= capacity + 6 * capacity ** (2 / 3)
