"""Plays of the original MinAtar games, with the random numbers that they used.

The original (`minatar`, under the GPL) is played and watched here, never read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest


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
            rows.append((is_first, action, draws, float(reward), ended, env.state()))
            is_first = False
    is_first, action, draws, reward, terminated, obs = zip(*rows, strict=True)
    return Play(
        np.array(is_first),
        np.array(action, np.int32),
        jax.tree.map(lambda *x: np.array(x), *draws),
        np.array(reward, np.float32),
        np.array(terminated),
        np.array(obs),
        first_obs,
    )


def assert_follows(game: Any, play: Play) -> None:
    """Plays the same in a `Game` of ours: every observation, reward and end must be equal."""
    start = game.reset(jax.random.key(0))
    np.testing.assert_array_equal(game.observe(start), play.first_obs)

    def one_step(state: Any, row: Play) -> tuple[Any, Any]:
        state = jax.tree.map(lambda a, b: jnp.where(row.is_first, a, b), start, state)
        state, reward, terminated = game.advance(state, row.action, row.draws)
        is_same = (game.observe(state) == row.obs).all()
        return state, (is_same, reward, terminated)

    @jax.jit
    def follow(rows: Play) -> Any:
        return jax.lax.scan(one_step, start, rows)[1]

    rows = play._replace(first_obs=np.zeros(len(play.action)))
    is_same, reward, terminated = follow(rows)
    np.testing.assert_array_equal(reward, play.reward)
    np.testing.assert_array_equal(terminated, play.terminated)
    assert np.all(is_same), f"the first observation that differs is of step {np.argmin(is_same)}"
