"""The n-step wrapper against episodes kept as lists, around every kind of replay."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.replay import (
    n_step_replay,
    n_step_transition,
    prioritised_replay,
    uniform_replay,
)
from purejaxdqn.types import ConfigError, Replay, Sample, Step, Transition
from tiny import step_of

DISCOUNT = 0.9
MAX_ADDS = 48


class Layout(NamedTuple):
    """What is fixed when a replay is compiled."""

    num_envs: int
    max_rows: int
    time_limit: int

    @property
    def n_steps(self) -> list[int]:
        """Two of 1 to 10, others for other numbers of rows: all ten would take long to compile."""
        return [1 + (self.max_rows + k) % 10 for k in (0, 5)]


# Every number of rows from one to half of the steps, so that each seam is passed; the other two
# numbers go through theirs beside it.
LAYOUTS = [
    Layout(1 + rows % 5, rows, (1, 2, 3, 5, 7, 11, 20)[rows % 7])
    for rows in range(1, MAX_ADDS // 2 + 1)
]


class Episode(NamedTuple):
    """One episode, alone; `rewards[k]` lies between `obs[k]` and `obs[k + 1]`."""

    obs: list[float]
    rewards: list[float]
    terminated: bool
    truncated: bool


def make_episodes(layout: Layout, ends: tuple[str, ...], longest: int, seed: int) -> list[Any]:
    """Episodes of 1 to `longest` steps, one after another, for each environment; MAX_ADDS steps.

    How one ends is drawn from `ends`; the time limit cuts an environment off at most so often. The
    last one goes on. No two observations or rewards are the same.
    """
    rng = np.random.default_rng(seed)
    numbers = iter(rng.permutation(2 * MAX_ADDS * layout.num_envs) + 1.0)
    rewards = iter(rng.normal(size=MAX_ADDS * layout.num_envs))
    environments: list[list[Episode]] = []
    for _ in range(layout.num_envs):
        episodes: list[Episode] = []
        num_steps, last_truncation = 0, -layout.time_limit
        while num_steps < MAX_ADDS:
            length = min(int(rng.integers(1, longest + 1)), MAX_ADDS - num_steps)
            num_steps += length
            end = str(rng.choice(ends)) if num_steps < MAX_ADDS else ""
            truncated = "truncated" in end and num_steps - last_truncation >= layout.time_limit
            last_truncation = num_steps if truncated else last_truncation
            terminated = "terminated" in end or (end != "" and not truncated)
            obs = [next(numbers) for _ in range(length + 1)]
            episodes.append(
                Episode(obs, [next(rewards) for _ in range(length)], terminated, truncated)
            )
        environments.append(episodes)
    return environments


def make_steps(environments: list[Any]) -> Step:
    """The same as a replay sees it: steps `[MAX_ADDS, E, ...]` of all environments."""

    def column(episodes: list[Episode]) -> list[tuple[Any, ...]]:
        return [
            (e.obs[k], e.rewards[k], *(is_last and x for x in e[2:]), e.obs[k + 1])
            for e in episodes
            for k in range(len(e.rewards))
            for is_last in [k + 1 == len(e.rewards)]
        ]

    columns = [column(episodes) for episodes in environments]
    obs, reward, terminated, truncated, next_obs = np.moveaxis(np.array(columns), 2, 0).swapaxes(
        1, 2
    )
    action = np.arange(obs.size, dtype=np.int32).reshape(obs.shape)
    flags = terminated.astype(bool), truncated.astype(bool)

    def pair(x: np.ndarray) -> np.ndarray:
        return np.stack([x, -x], axis=-1).astype(np.float32)

    return Step._make((pair(obs), action, reward.astype(np.float32), *flags, pair(next_obs), {}))


def brute_force(episode: Episode, start: int, num_added: int, n_step: int) -> tuple[float, ...]:
    """Reward, discount and next observation, from an episode of which so many steps were added."""
    rewards = episode.rewards[start : min(start + n_step, num_added)]
    end = start + len(rewards)
    terminates = episode.terminated and end == len(episode.rewards)
    reward = sum(DISCOUNT**k * reward for k, reward in enumerate(rewards))
    return reward, 0.0 if terminates else DISCOUNT ** len(rewards), episode.obs[end]


def expected_transitions(
    environments: list[Any], max_rows: int, num_adds: int, n_step: int
) -> dict[int, tuple[float, ...]]:
    """`index: (obs_tm1, a_tm1, r_t, discount_t, obs_t)` of all that a full ring still holds."""
    expected = {}
    num_envs = len(environments)
    for env, episodes in enumerate(environments):
        t = 0
        for episode in episodes:
            for start in range(len(episode.rewards)):
                if num_adds - max_rows <= t + start < num_adds:
                    action = (t + start) * num_envs + env
                    window = brute_force(episode, start, num_adds - t, n_step)
                    index = (t + start) % max_rows * num_envs + env
                    expected[index] = (episode.obs[start], action, *window)
            t += len(episode.rewards)
    return expected


def assert_transitions(transition: Transition, expected: list[tuple[float, ...]]) -> None:
    """Exact but for what sums and powers round; also where obs_t is that of a terminal state."""
    obs_tm1, a_tm1, r_t, discount_t, obs_t = (np.array(x) for x in zip(*expected, strict=True))
    np.testing.assert_array_equal(transition.obs_tm1, np.stack([obs_tm1, -obs_tm1], axis=1))
    np.testing.assert_array_equal(transition.a_tm1, a_tm1)
    np.testing.assert_allclose(transition.r_t, r_t, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(transition.discount_t, discount_t, rtol=1e-5)
    # Behind a termination nothing counts, but 0 * NaN would be NaN.
    assert np.isfinite(transition.obs_t).all()
    goes_on = discount_t > 0
    following = np.stack([obs_t, -obs_t], axis=1)
    np.testing.assert_array_equal(transition.obs_t[goes_on], following[goes_on])


def transitions_of(sample: Sample) -> Transition:
    return jax.vmap(functools.partial(n_step_transition, discount=DISCOUNT))(sample.window)


def filled(replay: Replay, steps: Step, num_adds: Any) -> Any:
    """The state after so many steps, where NaN marks what is unwritten."""
    state: Any = replay.init(jax.tree.map(lambda x: x[0], steps))
    ring = getattr(state, "replay", state)
    nan = {name: jnp.full_like(getattr(ring, name), jnp.nan) for name in ("obs", "reward")}
    ring = ring.replace(**nan)
    state = state.replace(replay=ring) if hasattr(state, "replay") else ring

    def add(t, state):
        return replay.add(state, jax.tree.map(lambda x: x[t], steps))

    return jax.lax.fori_loop(0, num_adds, add, state)


# Compiled soon, not fast: there is little to compute.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def whole_ring(layout: Layout) -> Replay:
    """A replay of one's own, which gives every place of the ring, written or not."""
    num_envs, max_rows, time_limit = layout
    replay = uniform_replay(num_envs * max_rows, 1, time_limit)
    window_at = replay.window_at
    assert window_at is not None

    def sample(state: Any, key: Any) -> Sample:
        del key
        indices = jnp.arange(num_envs * max_rows)
        windows = jax.vmap(lambda index: window_at(state, index, 1))(indices)
        return Sample(windows, indices, jnp.ones(num_envs * max_rows))

    return replay._replace(sample=sample)


@functools.cache
def every_window(layout: Layout) -> Callable[..., list[Transition]]:
    """`(steps, num_adds) -> transitions` of the whole ring, for each of `n_steps`."""
    replay = whole_ring(layout)

    @quick_jit
    def run(steps, num_adds):
        state = filled(replay, steps, num_adds)
        key = jax.random.key(0)
        samples = [n_step_replay(replay, n).sample(state, key) for n in layout.n_steps]
        return [transitions_of(sample) for sample in samples]

    return run


MAKE_REPLAY: dict[str, Callable[..., Replay]] = {
    "uniform": uniform_replay,
    "distinct": functools.partial(uniform_replay, with_replacement=False),
    "prioritised": prioritised_replay,
}


@functools.cache
def drawn(kind: str, layout: Layout, n_step: int) -> Callable[..., Any]:
    """`(steps, num_adds, key) -> (sample, transitions)` of the wrapped one and the wrapper."""
    num_envs, max_rows, time_limit = layout
    replay = MAKE_REPLAY[kind](num_envs * max_rows, 8, time_limit)
    wrapped = n_step_replay(replay, n_step)

    @quick_jit
    def run(steps, num_adds, key):
        keys = jax.random.split(key, 3)
        state = filled(wrapped, steps, num_adds)
        # Errors of all magnitudes, so that the tree has something to say.
        indices = wrapped.sample(state, keys[0]).indices
        state = wrapped.update(state, indices, jnp.exp(3 * jax.random.normal(keys[1], (8,))))
        samples = replay.sample(state, keys[2]), wrapped.sample(state, keys[2])
        return [(sample, transitions_of(sample)) for sample in samples]

    return run


ends = st.sampled_from(
    [("terminated",), ("truncated",), ("terminated and truncated",), ("terminated", "truncated")]
)
lengths, seeds = st.sampled_from([1, 2, 3, 5, 10, 20]), st.integers(0, 2**31 - 1)


class TestAgainstEpisodes:
    @settings(max_examples=1_000)
    @given(
        layout=st.sampled_from(LAYOUTS),
        num_adds=st.integers(1, MAX_ADDS),
        which_n=st.integers(0, 1),
        ends=ends,
        longest=lengths,
        seed=seeds,
    )
    def test_every_entry_of_a_ring(self, layout, num_adds, which_n, ends, longest, seed):
        environments = make_episodes(layout, ends, longest, seed)
        transitions = every_window(layout)(make_steps(environments), jnp.int32(num_adds))
        transition = jax.tree.map(np.asarray, transitions[which_n])
        n_step = layout.n_steps[which_n]
        expected = expected_transitions(environments, layout.max_rows, num_adds, n_step)
        assert len(expected) == min(num_adds, layout.max_rows) * layout.num_envs
        held = np.array(list(expected))
        assert_transitions(jax.tree.map(lambda x: x[held], transition), list(expected.values()))

    @settings(max_examples=200)
    @given(
        layout_and_n=st.sampled_from([(Layout(2, 13, 1), 10), (Layout(3, 8, 6), 4)]),
        kind=st.sampled_from(list(MAKE_REPLAY)),
        num_adds=st.integers(8, MAX_ADDS),
        ends=ends,
        longest=lengths,
        seed=seeds,
    )
    def test_what_any_replay_draws(self, layout_and_n, kind, num_adds, ends, longest, seed):
        layout, n_step = layout_and_n
        environments = make_episodes(layout, ends, longest, seed)
        key = jax.random.key(seed)
        samples = drawn(kind, layout, n_step)(make_steps(environments), jnp.int32(num_adds), key)
        one_step, several = jax.tree.map(np.asarray, samples)
        np.testing.assert_array_equal(several[0].indices, one_step[0].indices)
        np.testing.assert_array_equal(several[0].probabilities, one_step[0].probabilities)
        for (sample, transitions), n in ((one_step, 1), (several, n_step)):
            expected = expected_transitions(environments, layout.max_rows, num_adds, n)
            at_indices = [expected[index] for index in sample.indices.tolist()]
            assert_transitions(transitions, at_indices)


class TestComposition:
    @pytest.fixture(scope="class")
    def steps(self):
        episodes = make_episodes(Layout(2, 8, 3), ("terminated", "truncated"), 10, 0)
        return jax.tree.map(jnp.asarray, make_steps(episodes))

    @pytest.mark.parametrize("kind", MAKE_REPLAY)
    def test_one_step_changes_nothing(self, kind, steps):
        replay = MAKE_REPLAY[kind](16, 8, 3)
        state, key = filled(replay, steps, 11), jax.random.key(1)
        samples = [jax.jit(r.sample)(state, key) for r in (replay, n_step_replay(replay, 1))]
        leaves = [[np.asarray(x).tobytes() for x in jax.tree.leaves(s)] for s in samples]
        assert len(leaves[0]) == 10
        assert leaves[0] == leaves[1]

    @pytest.mark.parametrize("kind", MAKE_REPLAY)
    def test_everything_but_sample_is_the_wrapped_one_s(self, kind):
        replay = MAKE_REPLAY[kind](16, 8, 3)
        wrapped = n_step_replay(replay, 3)
        assert wrapped._replace(sample=replay.sample) == replay

    def test_the_outermost_says_how_many(self, steps):
        replay = uniform_replay(16, 8, 3)
        state, key = filled(replay, steps, 11), jax.random.key(1)
        twice = n_step_replay(n_step_replay(replay, 7), 2)
        samples = [jax.jit(r.sample)(state, key) for r in (twice, n_step_replay(replay, 2))]
        np.testing.assert_array_equal(*(s.window.reward for s in samples))

    @pytest.mark.parametrize("kind", MAKE_REPLAY)
    def test_compiled_the_wrapped_one_reads_no_observation(self, kind, steps, compile_as_user):
        """What its own transitions would have cost is gone from the program."""
        replay = MAKE_REPLAY[kind](16, 8, 3)
        state, key = filled(replay, steps, 11), jax.random.key(1)

        def num_gathers(replay):
            to_transitions = jax.jit(lambda *args: transitions_of(replay.sample(*args)))
            text = compile_as_user(to_transitions.lower(state, key)).as_text() or ""
            return text.count(" gather(")

        assert num_gathers(n_step_replay(replay, 3)) == num_gathers(replay) > 0


class TestBadInput:
    @pytest.mark.parametrize("n_step", [0, -3])
    def test_less_than_one_step(self, n_step):
        with pytest.raises(ConfigError, match=rf"n_step \({n_step}\) must be at least 1"):
            n_step_replay(uniform_replay(8, 4), n_step)

    def test_a_replay_of_four_functions(self):
        """It is whole without the fifth, until it is wrapped."""
        own = Replay(*uniform_replay(8, 4)[:4])
        with pytest.raises(ConfigError, match=r"n_step \(3\) needs .* window_at, which this"):
            n_step_replay(own, 3)

    def test_a_replay_that_holds_nothing_says_so(self):
        replay = n_step_replay(uniform_replay(8, 4), 3)
        state = replay.init(step_of(1))
        with pytest.raises(ValueError, match="holds 0 transitions"):
            replay.sample(state, jax.random.key(0))
