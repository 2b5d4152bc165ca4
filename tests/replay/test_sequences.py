"""Sequences: trajectories of any replay, checked against the steps that were added."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.replay import (
    independent_batches,
    make_trajectory,
    n_step_replay,
    n_step_transition,
    prioritised_replay,
    sequence_replay,
    uniform_replay,
)
from purejaxdqn.types import ConfigError, Replay, Step

NUM_ENVS, LENGTH, MAX_ROWS, TIME_LIMIT = 2, 4, 7, 3


def steps_of(num_steps, seed=0):
    """Steps `[T, E, ...]` of numbered observations; some end their episode, in each way."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(num_steps * NUM_ENVS, dtype=np.float32).reshape(num_steps, NUM_ENVS)
    terminated = rng.random(numbers.shape) < 0.2
    truncated = (np.arange(num_steps) % TIME_LIMIT == 2)[:, None] & (
        rng.random(numbers.shape) < 0.7
    )
    following = np.concatenate([numbers[1:], numbers[-1:] + NUM_ENVS])
    next_obs = np.where(terminated | truncated, -1 - numbers, following)
    fields: Any = (
        numbers[..., None],
        (numbers % 3).astype(np.int32),
        numbers / 2,
        terminated,
        truncated,
        next_obs[..., None],
        {"code": numbers.astype(np.int16)},
    )
    return Step(*fields)


@pytest.mark.parametrize("make", [uniform_replay, prioritised_replay])
@pytest.mark.parametrize("num_steps", [3, 7, 18])  # not full, full, and wrapped around
def test_trajectories_are_the_steps_that_were_added(make, num_steps):
    replay = sequence_replay(make(MAX_ROWS * NUM_ENVS, 64, TIME_LIMIT), LENGTH)
    steps = steps_of(num_steps)
    state = replay.init(jax.tree.map(lambda x: jnp.asarray(x[0]), steps))
    for t in range(num_steps):
        state = replay.add(state, jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), steps))
    windows = replay.sample(state, jax.random.key(0)).window
    assert replay.to_transition is make_trajectory
    trajectories = jax.vmap(make_trajectory, in_axes=(0, None))(windows, 0.9)
    assert trajectories.obs_tm1.shape == (64, LENGTH, 1)
    seen = set()
    for i in range(64):
        one = jax.tree.map(lambda x, i=i: np.asarray(x[i]), trajectories)
        start, env = divmod(int(one.obs_tm1[0, 0]), NUM_ENVS)
        seen.add((start, env))
        ends = (steps.terminated | steps.truncated)[start:, env]
        longest = int(ends.argmax()) + 1 if ends.any() else len(ends)
        own = slice(start, start + min(longest, LENGTH))
        num_valid = own.stop - own.start
        assert one.is_valid.tolist() == [k < num_valid for k in range(LENGTH)]
        assert start >= num_steps - MAX_ROWS
        for found, true in (
            (one.obs_tm1, steps.obs),
            (one.a_tm1, steps.action),
            (one.r_t, steps.reward),
            (one.discount_t, np.where(steps.terminated, 0.0, 0.9).astype(np.float32)),
            (one.truncated_t, steps.truncated),
            (one.extras["code"], steps.extras["code"]),
        ):
            np.testing.assert_array_equal(found[:num_valid], true[own, env])
        # Nothing bootstraps from what follows the end of an episode.
        goes_on = ~steps.terminated[own, env]
        obs_t = one.obs_t[:num_valid]
        np.testing.assert_array_equal(obs_t[goes_on], steps.next_obs[own, env][goes_on])
    assert len(seen) > NUM_ENVS


def test_extras_reach_transitions_of_several_steps():
    """They are those of the step that took the first action."""
    replay = n_step_replay(uniform_replay(14, 32, TIME_LIMIT), 3)
    steps = steps_of(7)
    state = replay.init(jax.tree.map(lambda x: jnp.asarray(x[0]), steps))
    for t in range(7):
        state = replay.add(state, jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), steps))
    windows = replay.sample(state, jax.random.key(0)).window
    transitions = jax.vmap(n_step_transition, in_axes=(0, None))(windows, 0.9)
    np.testing.assert_array_equal(transitions.extras["code"], transitions.obs_tm1[:, 0])
    assert transitions.extras["code"].dtype == jnp.int16
    cut = {int(x) for x in steps.obs[steps.truncated][:, 0]}
    last = np.where(transitions.obs_t[:, 0] < 0, -1 - transitions.obs_t[:, 0], -1)
    assert transitions.truncated_t is not None
    assert transitions.truncated_t.tolist() == [int(x) in cut for x in last]


def test_batches_are_drawn_each_for_itself():
    """Without replacement no batch has a step twice, and several batches have."""
    single = uniform_replay(14, 7, TIME_LIMIT, with_replacement=False)
    state = single.init(jax.tree.map(lambda x: jnp.asarray(x[0]), steps_of(1)))
    for t in range(7):
        state = single.add(state, jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), steps_of(7)))
    drawn = n_step_replay(independent_batches(single, 3), 2).sample(state, jax.random.key(3))
    assert drawn.window.reward.shape == (21, 2)
    assert drawn.probabilities.shape == (21,)
    batches = np.asarray(drawn.indices).reshape(3, 7)
    assert all(len({*batch}) == 7 for batch in batches)
    assert len({*batches.ravel()}) < 21
    assert len({tuple(sorted(batch)) for batch in batches}) == 3


class TestRefusals:
    @pytest.mark.parametrize("num_batches", [0, 1.5, True])
    def test_a_number_of_batches_that_is_none(self, num_batches):
        with pytest.raises(ConfigError, match=r"num_batches .* at least 1 and a whole number"):
            independent_batches(uniform_replay(8, 4), num_batches)

    @pytest.mark.parametrize("length", [0, -1])
    def test_a_length_that_is_none(self, length):
        with pytest.raises(ConfigError, match=rf"length \({length}\) must be at least 1"):
            sequence_replay(uniform_replay(8, 4), length)

    def test_a_replay_of_four_functions(self):
        with pytest.raises(ConfigError, match="must have window_at"):
            sequence_replay(Replay(*uniform_replay(8, 4)[:4]), 3)

    def test_sequences_of_several_steps_each(self):
        with pytest.raises(ConfigError, match=r"n_step \(2\).*set n_step to 1"):
            n_step_replay(sequence_replay(uniform_replay(8, 4), 3), 2)

    def test_windows_without_their_observations(self):
        replay = uniform_replay(8, 4)
        step = jax.tree.map(lambda x: jnp.asarray(x[0]), steps_of(1))
        state = replay.add(replay.init(step), step)
        assert replay.window_at is not None
        window = replay.window_at(state, jnp.int32(0), 2)
        with pytest.raises(ConfigError, match=r"observations, \[n, \*obs\]"):
            make_trajectory(window._replace(observations=None), 0.9)
