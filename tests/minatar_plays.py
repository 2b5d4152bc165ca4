"""Plays of the original MinAtar games, with the random numbers that they used.

The original (`minatar`, under the GPL) is played and watched here, never read.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

NUM_LANES, CHUNK = 200, 64


class Recorder:
    """Stands in for the original's random numbers, and remembers what it gave."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.given: list[tuple[str, Any]] = []  # (method, value) of one step

    def _give(self, method: str, value: Any) -> Any:
        self.given.append((method, value))
        return value

    def rand(self) -> float:
        return self._give("rand", self.rng.random())

    def randint(self, low: int, high: int) -> int:
        return self._give("randint", int(self.rng.integers(low, high)))

    def choice(self, options: Any) -> Any:
        return self._give("choice", options[self.rng.integers(len(options))])


class Play(NamedTuple):
    """What the original did, one row a step."""

    is_first: np.ndarray  # [T] bool, whether an episode begins before the step
    action: np.ndarray  # [T] int32
    draws: Any  # [T, ...] of a pytree
    reward: np.ndarray  # [T] float32
    terminated: np.ndarray  # [T] bool
    obs: np.ndarray  # [T, 10, 10, C] bool, after the step
    first_obs: np.ndarray  # [10, 10, C] bool


def record(
    game: str,
    policy: Callable[[Any, np.random.Generator], int],
    read_draws: Callable[[Any, list[tuple[str, Any]]], Any],
    num_episodes: int,
    *,
    max_steps: int = 1_000,
    difficulty_ramping: bool = True,
    seed: int = 0,
    keeps_obs: bool = True,
) -> Play:
    """Plays episodes of a policy `(the original's game, rng) -> action`; `max_steps` cuts them.

    `read_draws` makes the draws of one step of what the original's random numbers were, in order,
    and of the game before the step.
    """
    minatar = pytest.importorskip("minatar")
    env = minatar.Environment(game, sticky_action_prob=0, difficulty_ramping=difficulty_ramping)
    original, recorder = env.env, Recorder(seed)
    original.random = recorder
    rng = np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    for _ in range(num_episodes):
        recorder.given.clear()
        env.reset()
        first_obs, is_first, ended, start = env.state(), True, False, len(rows)
        while not ended and len(rows) < start + max_steps:
            action = policy(original, rng)
            before = dict(vars(original))
            reward, ended = env.act(action)
            draws = read_draws(before, recorder.given)
            recorder.given.clear()
            obs = env.state() if keeps_obs else None
            rows.append((is_first, action, draws, float(reward), ended, obs))
            is_first = False
    columns = list(zip(*rows, strict=True))
    return Play(
        np.array(columns[0]),
        np.array(columns[1], np.int32),
        jax.tree.map(lambda *x: np.array(x), *columns[2]),
        np.array(columns[3], np.float32),
        np.array(columns[4]),
        np.array(columns[5]),
        first_obs,
    )


@functools.cache
def follower(game: Any) -> Callable[..., Any]:
    """Compiles `CHUNK` steps of `NUM_LANES` episodes of a `Game` of ours, side by side."""

    def one_step(state: Any, row: Any) -> tuple[Any, Any]:
        action, draws, obs = row
        state, reward, terminated = jax.vmap(game.advance)(state, action, draws)
        is_same = (jax.vmap(game.observe)(state) == obs).all((1, 2, 3))
        return state, (is_same, reward, terminated)

    steps = functools.partial(jax.lax.scan, one_step)
    return jax.jit(steps, compiler_options={"xla_backend_optimization_level": 1})


def assert_follows(game: Any, play: Play) -> None:
    """Plays the same in a `Game` of ours: every observation, reward and end must be equal."""
    start = game.reset(jax.random.key(0))
    np.testing.assert_array_equal(game.observe(start), play.first_obs)
    starts = np.flatnonzero(play.is_first)
    assert len(starts) <= NUM_LANES
    lengths = np.diff([*starts, len(play.is_first)])
    num_steps = -(-lengths.max() // CHUNK) * CHUNK
    # Where each step of each episode stands, [T, lanes]; the last one again behind an episode.
    at = starts + np.minimum(np.arange(num_steps)[:, np.newaxis], lengths - 1)
    at = np.pad(at, ((0, 0), (0, NUM_LANES - len(starts))))
    is_inside = np.arange(num_steps)[:, np.newaxis] < np.pad(lengths, (0, NUM_LANES - len(starts)))
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (NUM_LANES, *x.shape)), start)
    for first in range(0, num_steps, CHUNK):
        rows = at[first : first + CHUNK]
        told = jax.tree.map(lambda x, rows=rows: x[rows], (play.action, play.draws, play.obs))
        state, found = follower(game)(state, told)
        expected = (True, play.reward[rows], play.terminated[rows])
        names = ("observation", "reward", "end")
        for name, ours, theirs in zip(names, found, expected, strict=True):
            wrong = (np.asarray(ours) != theirs) & is_inside[first : first + CHUNK]
            assert not wrong.any(), (
                f"{name} of (step, episode) {np.argwhere(wrong)[0] + (first, 0)}"
            )
