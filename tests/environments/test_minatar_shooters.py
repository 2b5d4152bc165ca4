"""Seaquest and Space Invaders against the original, which plays with the same random numbers."""

import functools
from typing import Any

import numpy as np
import pytest

from purejaxdqn.environments.minatar import seaquest, space_invaders
from purejaxdqn.environments.minatar.common import DOWN, FIRE, LEFT, NOOP, RIGHT, UP, Game
from tests.minatar_plays import assert_follows, record

RULES = {"seaquest": seaquest, "space_invaders": space_invaders}
CHANNELS = {"seaquest": 10, "space_invaders": 6}


@functools.cache
def game_of(name: str, *, difficulty_ramping: bool = True) -> Game:
    rules = RULES[name]
    advance = functools.partial(rules.advance, difficulty_ramping=difficulty_ramping)
    return Game(rules.reset, rules.draw, advance, rules.observe, CHANNELS[name], ())


def random_play(game: Any, rng: np.random.Generator) -> int:
    return int(rng.integers(6))


def will_be_hit(game: Any) -> bool:
    """Tells whether a shot now would meet an alien, as they march."""
    aliens, direction, timer = game.alien_map, game.alien_dir, game.alien_move_timer
    for row in range(8, -1, -1):
        if timer == 0:
            at_edge = aliens[:, 9 if direction > 0 else 0].any()
            aliens = np.roll(aliens, *((1, 0) if at_edge else (direction, 1)))
            direction = -direction if at_edge else direction
            timer = min(int(aliens.sum()), game.enemy_move_interval)
        timer -= 1
        if aliens[row, game.pos]:
            return True
    return False


def careful_cannon(game: Any, rng: np.random.Generator) -> int:
    """Steps out of the way of bullets, and shoots where an alien will be."""
    falling = game.e_bullet_map[7:9].any(0)
    position = game.pos
    free = [c for c in (position, position - 1, position + 1) if 0 <= c < 10 and not falling[c]]
    if not free or rng.random() < 0.01:
        return int(rng.integers(6))
    if position in free and game.shot_timer == 0 and will_be_hit(game):
        return FIRE
    columns = np.flatnonzero(game.alien_map.any(0))
    target = columns[np.argmin(np.abs(columns - position))] + 2 * game.alien_dir
    to = min(free, key=lambda c: abs(c - target))
    return NOOP if to == position else RIGHT if to > position else LEFT


def careful_submarine(game: Any, rng: np.random.Generator) -> int:
    """Keeps out of the way, collects divers, shoots, and surfaces in time or with six divers."""
    x, y, threats = game.sub_x, game.sub_y, set()
    for enemy_x, enemy_y, to_right, *_ in (*game.e_fish, *game.e_subs, *game.e_bullets):
        ahead = 1 if to_right else -1
        threats |= {(enemy_x, enemy_y), (enemy_x + ahead, enemy_y)}
    threats |= {(e[0] + (2 if e[2] else -2), e[1]) for e in game.e_subs}
    moves = {NOOP: (x, y), LEFT: (x - 1, y), RIGHT: (x + 1, y), UP: (x, y - 1), DOWN: (x, y + 1)}
    lowest = 0 if game.diver_count != 0 else 1
    safe = {
        action
        for action, (to_x, to_y) in moves.items()
        if 0 <= to_x < 10 and min(lowest, y) <= to_y < 9 and (to_x, to_y) not in threats
    }
    if not safe or rng.random() < 0.01:
        return int(rng.integers(6))
    enemies = [*game.e_fish, *game.e_subs]
    is_ahead = any(e[1] == y and (e[0] > x) == game.sub_or and e[0] != x for e in enemies)
    if NOOP in safe and game.shot_timer == 0 and is_ahead:
        return FIRE
    must_surface = game.diver_count == 6 or game.oxygen < 15 + y or game.diver_count < 0
    if must_surface and game.diver_count != 0 and UP in safe and y > 0:
        return UP
    # Where to: the nearest diver, else the row of an enemy.
    near = [*game.divers, *enemies] or [(5, 5)]
    goal = min(near, key=lambda e: abs(e[0] - x) + abs(e[1] - y) + 5 * (e in enemies))
    if goal in enemies and goal[1] == y and (goal[0] > x) != game.sub_or:
        wanted = RIGHT if goal[0] > x else LEFT  # turns
        return wanted if wanted in safe else min(safe)
    ranked = sorted(safe, key=lambda a: abs(moves[a][0] - goal[0]) + abs(moves[a][1] - goal[1]))
    return ranked[0]


def nothing(before: dict[str, Any], given: list[tuple[str, Any]]) -> None:
    assert not given


def seaquest_draws(before: dict[str, Any], given: list[tuple[str, Any]]) -> seaquest.Draws:
    """Reads what came: an enemy's side, kind and row, and then a diver's side and row."""
    values = iter(given)

    def below(limit: float) -> bool:
        method, value = next(values)
        assert method == "rand"
        return value < limit

    def row() -> int:
        method, value = next(values)
        assert method == "randint"
        assert 1 <= value < 9
        return value

    enemy: tuple[Any, ...] = (False, 1, False)
    diver: tuple[Any, ...] = (False, 1)
    if before["e_spawn_timer"] == 0:
        to_right, is_submarine = below(1 / 2), below(1 / 3)
        enemy = (to_right, row(), is_submarine)
    if before["d_spawn_timer"] == 0:
        diver = (below(1 / 2), row())
    assert next(values, None) is None
    return seaquest.Draws(*enemy, *diver)


DRAWS = {"seaquest": seaquest_draws, "space_invaders": nothing}
GOOD = {"seaquest": careful_submarine, "space_invaders": careful_cannon}


def play(name: str, policy: str, num_episodes: int, **options: Any) -> Any:
    choose = random_play if policy == "random" else GOOD[name]
    return record(name, choose, DRAWS[name], num_episodes, **options)


class TestAgainstTheOriginal:
    @pytest.mark.parametrize("name", RULES)
    def test_it_follows_random_play(self, name):
        played = play(name, "random", 200)
        assert played.reward.sum() > 10
        assert_follows(game_of(name), played)

    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("num_episodes", [6, pytest.param(200, marks=pytest.mark.slow)])
    def test_it_follows_good_play(self, name, num_episodes):
        played = play(name, "good", num_episodes)
        returns = np.add.reduceat(played.reward, np.flatnonzero(played.is_first))
        print(f"\n{name}: mean return {returns.mean():.1f}, {len(played.reward)} steps")
        # What is to be compared is there: six divers were brought home, or a wave was cleared.
        assert (returns.max() > 24) if name == "space_invaders" else (played.reward.max() > 5)
        assert_follows(game_of(name), played)

    @pytest.mark.parametrize("name", RULES)
    def test_it_follows_without_ramping(self, name):
        played = play(name, "good", 2, difficulty_ramping=False)
        assert_follows(game_of(name, difficulty_ramping=False), played)
