"""Replays that keep the newest frame of each observation, against those that keep it whole."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn import dqn, environments
from purejaxdqn.replay import (
    n_step_replay,
    prioritised_replay,
    sequence_replay,
    uniform_replay,
)
from purejaxdqn.types import Replay, Step, run_axes
from tiny import TINY

NUM_ADDS, NUM_STEPS = 30, 4
MAKE: dict[str, Callable[..., Replay]] = {
    "uniform": uniform_replay,
    "prioritised": prioritised_replay,
}


class Layout(NamedTuple):
    """What is fixed when a replay is compiled."""

    num_envs: int
    max_rows: int
    time_limit: int | None
    frames: int
    frame: tuple[int, ...]
    dtype: Any = np.float32


LAYOUTS = [
    Layout(1, 1, 1, 4, (2, 2, 1), np.uint8),
    Layout(2, 2, 1, 4, (1,)),
    Layout(3, 9, 1, 2, (2, 3, 2), np.uint8),
    Layout(2, 7, 3, 5, (2,)),
    Layout(1, 12, 5, 3, (2, 2, 3), np.bool_),
    Layout(2, 40, 1, 4, (2, 1, 1), np.uint8),
    Layout(2, 5, None, 3, (3,), np.bool_),
]


def make_steps(layout: Layout, share: float, longest_zero: float, cut_at: int, seed: int) -> Step:
    """Steps `[NUM_ADDS, E, ...]` of stacked random frames, with ends of every kind.

    Before the first frame of an episode stands 0, or that frame again. All episodes that go on
    are cut after `cut_at` steps, which the flags do not say.
    """
    rng = np.random.default_rng(seed)
    num_envs, _, time_limit, frames, frame, dtype = layout
    shape = (NUM_ADDS, num_envs)
    terminated, truncated = rng.random((2, *shape)) < share
    last = np.full(num_envs, -NUM_ADDS)
    for t in range(NUM_ADDS):
        truncated[t] &= time_limit is not None and t - last >= time_limit
        last = np.where(truncated[t], t, last)

    def draw() -> np.ndarray:
        # Few numbers, so that many frames are alike, or 0.
        new = rng.integers(0, 3, frame) if rng.random() > longest_zero else np.zeros(frame)
        return new.astype(dtype)

    obs, next_obs = np.zeros((2, *shape, *frame[:-1], frames * frame[-1]), dtype)
    for env in range(num_envs):
        stack: list[np.ndarray] = []
        for t in range(NUM_ADDS):
            if not stack:
                new = draw()
                fill = np.zeros_like(new) if rng.random() < 0.5 else new
                stack = [fill] * (frames - 1) + [new]
            obs[t, env] = np.concatenate(stack, axis=-1)
            stack = [*stack[1:], draw()]
            next_obs[t, env] = np.concatenate(stack, axis=-1)
            if terminated[t, env] or truncated[t, env] or t + 1 == cut_at:
                stack = []
    numbers = np.arange(np.prod(shape)).reshape(shape)
    columns = obs, numbers.astype(np.int32), numbers.astype(np.float32), terminated, truncated
    return Step._make((*columns, next_obs, {"number": numbers}))


@functools.cache
def both(kind: str, layout: Layout) -> Callable[..., Any]:
    """`(steps, num_adds, cut_at) -> windows` of all entries: kept whole, and newest frames."""
    num_envs, max_rows, time_limit, frames = layout[:4]
    sizes = (num_envs * max_rows, 4, time_limit)
    replays = [MAKE[kind](*sizes), MAKE[kind](*sizes, frames=frames)]

    def read(replay: Replay, steps: Step, num_adds: Any, cut_at: Any) -> Any:
        state: Any = replay.init(jax.tree.map(lambda x: x[0], steps))

        def add(t: Any, state: Any) -> Any:
            state = replay.add(state, jax.tree.map(lambda x: x[t], steps))
            if replay.cut is None:
                return state
            return jax.lax.cond(t + 1 == cut_at, replay.cut, lambda state: state, state)

        state = jax.lax.fori_loop(0, num_adds, add, state)
        read_one: Any = replay.window_at
        indices = jnp.arange(num_envs * max_rows)
        lengths = (1, NUM_STEPS)
        windows = [jax.vmap(lambda i, n=n: read_one(state, i, n))(indices) for n in lengths]
        trajectories = sequence_replay(replay, NUM_STEPS).sample(state, jax.random.key(1))
        return windows, (n_step_replay(replay, 3).sample(state, jax.random.key(0)), trajectories)

    options: Any = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda *args: [read(x, *args) for x in replays], compiler_options=options)


def assert_same(found: Any, wanted: Any) -> None:
    """To the bit, but for what lies behind a window, or behind a termination."""
    inside = wanted.is_inside
    terminates = (wanted.terminated & inside).any(axis=1)
    np.testing.assert_array_equal(found.obs, wanted.obs)
    np.testing.assert_array_equal(found.next_obs[~terminates], wanted.next_obs[~terminates])
    np.testing.assert_array_equal(found.observations[inside], wanted.observations[inside])
    assert found.obs.dtype == found.observations.dtype == found.next_obs.dtype == wanted.obs.dtype
    for name in ("action", "reward", "terminated", "truncated", "is_inside"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@settings(max_examples=60)
@given(
    kind=st.sampled_from(list(MAKE)),
    layout=st.sampled_from(LAYOUTS),
    num_adds=st.integers(1, NUM_ADDS),
    share=st.sampled_from([0.0, 0.05, 0.2, 0.7, 1.0]),
    zeros=st.sampled_from([0.0, 0.3, 1.0]),
    cut_at=st.integers(0, NUM_ADDS),
    seed=st.integers(0, 2**31 - 1),
)
def test_each_observation_is_what_was_acted_on(kind, layout, num_adds, share, zeros, cut_at, seed):
    cut_at = cut_at if layout.time_limit == 1 else 0
    steps = make_steps(layout, share, zeros, cut_at, seed)
    whole, stacked = both(kind, layout)(steps, jnp.int32(num_adds), jnp.int32(cut_at))
    num_held = min(num_adds, layout.max_rows) * layout.num_envs
    for found, wanted in zip(stacked[0], whole[0], strict=True):
        held = [jax.tree.map(lambda x: np.asarray(x)[:num_held], x) for x in (found, wanted)]
        assert_same(*held)
        # The replay that keeps all is right itself.
        true = steps.obs.reshape(-1, *held[0].obs.shape[1:])[held[0].action[:, 0]]
        np.testing.assert_array_equal(held[0].obs, true)
    for found, wanted in zip(stacked[1], whole[1], strict=True):
        np.testing.assert_array_equal(found.indices, wanted.indices)
        assert_same(*(jax.tree.map(np.asarray, x.window) for x in (found, wanted)))


def types_of(num_envs: int, *obs: int) -> Step:
    """What `init` is given, of images."""
    column = functools.partial(jax.ShapeDtypeStruct, (num_envs,))
    image = jax.ShapeDtypeStruct((num_envs, *obs), jnp.uint8)
    columns = column(jnp.int32), column(jnp.float32), column(bool), column(bool)
    return Step._make((image, *columns, image, {}))


@pytest.mark.parametrize("time_limit", [None, 1, 50])
def test_memory_is_that_of_the_newest_frames(time_limit):
    def num_bytes(**how: Any) -> int:
        replay = uniform_replay(1_000, 32, time_limit, **how)
        state = jax.eval_shape(replay.init, types_of(1, 84, 84, 4))
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))

    assert num_bytes(frames=4) / num_bytes() < 0.254


def test_rows_are_written_in_place_and_read_where_they_lie(compile_as_user):
    """Of several runs side by side."""
    capacity = 4_000
    replay = uniform_replay(capacity, 32, 1, frames=4)
    steps = types_of(2, 10, 10, 4)
    state = jax.eval_shape(replay.init, steps)
    axes = run_axes(state)

    def several(x: Any) -> Any:
        return jax.ShapeDtypeStruct((3, *x.shape), x.dtype)

    states = jax.tree.map(lambda x, axis: several(x) if axis == 0 else x, state, axes)
    add = jax.vmap(replay.add, in_axes=(axes, 0), out_axes=axes)

    def add_all(states: Any, steps: Any) -> Any:
        return jax.lax.scan(lambda states, step: (add(states, step), None), states, steps)[0]

    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((6, 3, *x.shape), x.dtype), steps)
    adds = compile_as_user(jax.jit(add_all, donate_argnums=0).lower(states, many))
    key = jax.eval_shape(lambda: jax.random.key(0))
    sample = compile_as_user(jax.jit(replay.sample).lower(state, key))
    for program in (adds, sample):
        assert program.memory_analysis().temp_size_in_bytes < 200_000
    assert not re.search(r"\bscatter\(", adds.as_text())
    assert not re.search(r"\[3,\d{4},2[,\]]\S* copy\(", adds.as_text())


@pytest.mark.parametrize("obs", [(), (6,), (8, 8, 3)])
def test_observations_that_are_no_such_stacks_are_refused(obs):
    with pytest.raises(ValueError, match=r"frames \(4\) must divide the last axis of obs"):
        jax.eval_shape(uniform_replay(8, 4, frames=4).init, types_of(2, *obs))


@pytest.mark.parametrize("prioritised", [False, True])
def test_training_is_that_of_whole_observations(prioritised):
    """To the bit in what is kept; weights may differ by how XLA adds up what it reads."""
    config = dataclasses.replace(TINY, prioritised=prioritised, replay_capacity=48, n_step=3)
    env = environments.make("Catch-bsuite?time_limit=5&stack_frames=3")  # without rounding
    states, windows = [], []
    for one in (env, env._replace(frames=1)):
        train: Any = dqn(config, env=one)
        state = jax.jit(train.init)(jax.random.key(0))
        state = jax.jit(train.chunk, static_argnums=2)(state, jnp.int32(40), 40)[0]
        read: Any = (prioritised_replay if prioritised else uniform_replay)(
            48, 4, one.truncation_interval, frames=one.frames
        ).window_at
        windows.append(jax.vmap(lambda i, s=state, r=read: r(s.replay, i, 3))(jnp.arange(48)))
        states.append(state)
    rings = [getattr(state.replay, "replay", state.replay) for state in states]
    assert [ring.obs.shape[-1] for ring in rings] == [1, 3]
    assert_same(*jax.tree.map(np.asarray, windows))
    learners = [state.learner for state in states]
    assert learners[0].num_updates > 0
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, *jax.tree.map(np.asarray, learners))
