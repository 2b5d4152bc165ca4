"""Breakout, Freeway and Asterix against the original, whose random numbers ours are given."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from minatar import Environment as Original

from purejaxdqn.environments.minatar import asterix, breakout, common, freeway

MAKERS: dict[str, Any] = {
    "Asterix": asterix.asterix,
    "Breakout": breakout.breakout,
    "Freeway": freeway.freeway,
}
GAMES = sorted(MAKERS)


def make(game: str, version: str = "v0", **settings: Any) -> Any:
    return MAKERS[game](f"MinAtar/{game}-{version}", **settings)


class Recorder:
    """Stands in for the original's source of random numbers, and keeps what it gives."""

    def __init__(self, seed: int) -> None:
        self.source = np.random.RandomState(seed)
        self.drawn: list[Any] = []

    def rand(self, *args: int) -> Any:
        return self._keep(self.source.rand(*args))

    def randint(self, *args: int) -> Any:
        return self._keep(self.source.randint(*args))

    def _keep(self, values: Any) -> Any:
        self.drawn.append(np.copy(values))  # the original changes them in place
        return values

    def take(self) -> list[Any]:
        drawn, self.drawn = self.drawn, []
        return drawn


def signed(drawn: list[Any]) -> Any:
    return np.where(drawn[1] < 0.5, -drawn[0], drawn[0]) if drawn else np.ones(8, np.int32)


def draws_of(game: str, drawn: list[Any], num_free: int) -> Any:
    """What ours is given for what the original has drawn; nothing was drawn in most steps."""
    if game == "Breakout":
        return None
    if game == "Freeway":
        return np.asarray(signed(drawn), np.int32)
    side, gold, rank = [*drawn, *[0.0] * (3 - len(drawn))]
    choice = np.float32((rank + 0.5) / max(num_free, 1))
    return asterix.Draws(np.bool_(side < 0.5), np.bool_(gold < 1 / 3), choice)


def begin_of(game: str, drawn: list[Any]) -> Any:
    if game == "Breakout":
        return breakout.begin(bool(drawn[0]))
    if game == "Freeway":
        return freeway.begin(np.asarray(signed(drawn), np.int32))
    return asterix.reset()


def good_action(game: str, screen: np.ndarray) -> int:
    """Follows the ball; crosses the road; flees enemies, and else runs to gold."""
    if game == "Freeway":
        return common.UP
    if game == "Breakout":
        paddle, ball = (int(screen[..., i].any(0).argmax()) for i in (0, 1))
        return common.RIGHT if ball > paddle else common.LEFT if ball < paddle else common.NOOP
    (row, column), *_ = np.argwhere(screen[..., 0])
    feared, gold = set(), [(int(y), int(x)) for y, x in np.argwhere(screen[..., 3])]
    for y, x in np.argwhere(screen[..., 1]).tolist():
        goes_right = (x > 0 and screen[y, x - 1, 2]) or x == 0
        feared |= {(y, x), (y, x + 1 if goes_right else x - 1)}
    best = []
    for action, (down, right) in enumerate(((0, 0), (0, -1), (-1, 0), (0, 1), (1, 0))):
        cell = (min(max(row + down, 1), 8), min(max(column + right, 0), 9))
        way = min((abs(cell[0] - y) + abs(cell[1] - x) for y, x in gold), default=0)
        best.append((cell in feared, way, action))
    return min(best)[2]


class Play(NamedTuple):
    """What the original did, one row a step."""

    is_first: np.ndarray
    begin: Any  # of ours, the state in which the episode began
    action: np.ndarray
    draws: Any
    before: np.ndarray  # the observation, packed
    after: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


def record(game: str, good: bool, num_episodes: int, ramping: bool, most: int = 1_500) -> Play:
    """Plays at random, or well with some random actions; cuts episodes that go on for long."""
    original = Original(
        {"SpaceInvaders": "space_invaders"}.get(game, game.lower()),
        sticky_action_prob=0.0,
        difficulty_ramping=ramping,
    )
    original.env.random = source = Recorder(0)
    choices = np.random.default_rng(1)
    rows = []
    for episode in range(num_episodes):
        original.reset()
        begin, ended, num_steps = begin_of(game, source.take()), False, 0
        random = 1.0 if not good else (0.0, 0.1, 0.3)[episode % 3]
        screen = original.state()
        while not ended and (num_steps < most or game == "Freeway"):
            is_random = choices.random() < random
            action = int(choices.integers(6)) if is_random else good_action(game, screen)
            free = getattr(original.env, "entities", []).count(None)
            reward, ended = original.act(action)
            draws = draws_of(game, source.take(), free)
            before, screen = screen, original.state()
            packed = np.packbits(before), np.packbits(screen)
            rows.append(Play(num_steps == 0, begin, action, draws, *packed, reward, ended))
            num_steps += 1
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


@functools.cache
def replayer(game: str, ramping: bool) -> Any:
    def step(state: Any, row: Play) -> Any:
        state = jax.tree.map(lambda new, old: jnp.where(row.is_first, new, old), row.begin, state)
        before = jnp.packbits(module.observe(state))
        kwargs = {"difficulty_ramping": ramping} if game == "Asterix" else {}
        state, reward, terminated = module.advance(state, row.action, row.draws, **kwargs)
        return state, (before, jnp.packbits(module.observe(state)), reward, terminated)

    module: Any = {"Asterix": asterix, "Breakout": breakout, "Freeway": freeway}[game]
    return jax.jit(functools.partial(jax.lax.scan, step))


def assert_follows(game: str, good: bool, num_episodes: int, ramping: bool = True) -> Play:
    play = record(game, good, num_episodes, ramping)
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), play.begin)
    found = jax.tree.map(np.asarray, replayer(game, ramping)(start, play)[1])
    for ours, name in zip(found, ("before", "after", "reward", "terminated"), strict=True):
        np.testing.assert_array_equal(ours, getattr(play, name), err_msg=f"{game}: {name}")
    lengths = len(play.action) / play.is_first.sum()
    print(
        f"\n{game}, {'good' if good else 'random'}: {play.is_first.sum()} episodes of "
        f"{lengths:.0f} steps, {play.reward.sum()} points, {play.terminated.sum()} ends"
    )
    return play


class TestAgainstTheOriginal:
    @pytest.mark.parametrize("good", [False, True])
    @pytest.mark.parametrize("game", GAMES)
    def test_every_observation_reward_and_end(self, game, good):
        num_episodes = {"Freeway": 4, "Asterix": 40, "Breakout": 40}[game] if good else 200
        play = assert_follows(game, good, 4 if game == "Freeway" else num_episodes)
        # The play must reach what it is to be compared on.
        assert play.reward.sum() > {"Freeway": 40 * good, "Asterix": 50, "Breakout": 50}[game]
        assert play.terminated.sum() >= 4

    @pytest.mark.slow
    @pytest.mark.parametrize("good", [False, True])
    @pytest.mark.parametrize("game", GAMES)
    def test_200_episodes(self, game, good):
        assert_follows(game, good, 200)

    def test_without_ramping(self):
        assert_follows("Asterix", True, 20, ramping=False)
