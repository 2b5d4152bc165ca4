"""Seaquest and Space Invaders against the original, which plays with the same random numbers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purejaxdqn.environments.minatar import seaquest, space_invaders
from purejaxdqn.environments.minatar.common import DOWN, FIRE, LEFT, NOOP, RIGHT, UP, Game
from purejaxdqn.testing import check_environment
from tests.minatar_plays import CHUNK, NUM_LANES, Recorder, assert_follows, follower, record

MAKERS: dict[str, Any] = {
    "seaquest": seaquest.seaquest,
    "space_invaders": space_invaders.space_invaders,
}
RULES: dict[str, Any] = {"seaquest": seaquest, "space_invaders": space_invaders}
CHANNELS = {"seaquest": 10, "space_invaders": 6}


@functools.cache
def game_of(name: str, *, difficulty_ramping: bool = True) -> Game:
    rules = RULES[name]
    advance = functools.partial(rules.advance, difficulty_ramping=difficulty_ramping)
    return Game(rules.reset, rules.draw, advance, rules.observe, CHANNELS[name], ())


@functools.cache
def advance_of(name: str) -> Any:
    """Compiles one step of one game, quickly."""
    return jax.jit(game_of(name).advance, compiler_options={"xla_backend_optimization_level": 0})


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


def scatter_things(game: Any, rng: np.random.Generator) -> None:
    """Sets the original to a state with many things in two rows, as late in an episode."""
    number = lambda *limits: int(rng.integers(*limits))  # noqa: E731
    game.e_spawn_speed = number(1, 21)
    game.ramp_index = 20 - game.e_spawn_speed
    game.move_speed = max(2, 5 - game.ramp_index // 2)
    game.sub_x, game.sub_y, game.sub_or = number(1, 9), number(0, 5), number(2) == 1
    game.surface = game.sub_y == 0 and number(2) == 1
    game.oxygen, game.diver_count = number(0, 201) * number(2), number(-2, 7)
    game.e_spawn_timer, game.d_spawn_timer = number(2), number(1, 30)
    goes_right = {2: number(2) == 1, 3: number(2) == 1}
    # In one cell, the first that came is the next to move, and no two move in one step.
    cells = {(number(game.move_speed), number(10), number(2, 4)) for _ in range(12)}
    for timer, x, y in sorted(cells):
        if number(2):
            game.e_fish.append([x, y, goes_right[y], timer])
        else:
            game.e_subs.append([x, y, goes_right[y], timer, number(3)])
    game.f_bullets = [[number(10), y, number(2) == 1] for y in (2, 3)]
    # Nothing but a bullet's own first step leads to where the submarine is.
    game.f_bullets = [b for b in game.f_bullets if abs(b[0] - game.sub_x) > 2]
    game.e_bullets = [[number(10), number(2, 4), number(2) == 1] for _ in range(2)]
    game.divers = [[number(10), number(2, 4), number(2) == 1, number(6)] for _ in range(number(3))]
    game.shot_timer = 1 if len(game.f_bullets) == 2 else number(2)


def state_of(game: Any) -> seaquest.SeaquestState:
    """Reads a state of ours off the original's."""

    def swimmers(things: list[Any], slots: int) -> seaquest.Swimmers:
        empty = [[0, -1, False, 0]] * (slots - len(things))
        rows = [*empty, *([*thing, 0][:4] for thing in things)]
        column, row, to_right, timer = (np.array(x, np.int32) for x in zip(*rows, strict=True))
        return seaquest.Swimmers(*map(jnp.asarray, (row, column, to_right == 1, timer)))

    enemies, num_others = [*game.e_fish, *game.e_subs], 30 - len(game.e_subs)
    bullets = np.zeros((2, 10), np.int32)
    for x, y, to_right in game.e_bullets:
        bullets[int(to_right), y] |= 1 << x
    facts = {
        "row": game.sub_y,
        "column": game.sub_x,
        "oxygen": game.oxygen,
        "num_divers": game.diver_count,
        "shot_timer": game.shot_timer,
        "enemy_timer": game.e_spawn_timer,
        "enemy_interval": game.e_spawn_speed,
        "diver_timer": game.d_spawn_timer,
        "submarine_timer": [0] * num_others + [sub[4] for sub in game.e_subs],
    }
    return submarine(
        **{name: np.array(value, np.int32) for name, value in facts.items()},
        to_right=bool(game.sub_or),
        is_surfaced=bool(game.surface),
        is_submarine=np.arange(30) >= num_others,
        bullets_to_left=bullets[0],
        bullets_to_right=bullets[1],
    ).replace(  # type: ignore[attr-defined]
        bullets=swimmers(game.f_bullets, 2),
        divers=swimmers(game.divers, 2),
        enemies=swimmers(enemies, 30),
    )


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
        # What is to be compared is there: a wave was cleared, or six divers were brought home, and
        # the difficulty rose until enemies came at every step.
        if name == "space_invaders":
            assert returns.max() > 24
        else:
            assert played.reward.max() > 5
            assert played.obs[..., 5:7].sum((1, 2, 3)).max() >= 15
        assert_follows(game_of(name), played)

    @pytest.mark.parametrize("name", RULES)
    def test_it_follows_without_ramping(self, name):
        played = play(name, "good", 2, difficulty_ramping=False)
        assert_follows(game_of(name, difficulty_ramping=False), played)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_seaquest_follows_from_any_state(self, seed):
        minatar, rng = pytest.importorskip("minatar"), np.random.default_rng(seed)
        env, recorder = minatar.Environment("seaquest", sticky_action_prob=0), Recorder(seed)
        env.env.random = recorder
        rows = []
        for _ in range(NUM_LANES):
            env.reset()
            scatter_things(env.env, rng)
            before, state, action = dict(vars(env.env)), state_of(env.env), int(rng.integers(6))
            recorder.given.clear()
            reward, ended = env.act(action)
            draws = seaquest_draws(before, recorder.given)
            rows.append((state, (np.int32(action), draws, env.state()), float(reward), ended))
        state, told, reward, ended = jax.tree.map(lambda *x: np.stack(x), *rows)
        repeated = jax.tree.map(lambda x: np.broadcast_to(x, (CHUNK, *x.shape)), told)
        found = [x[0] for x in follower(game_of("seaquest"))(state, repeated)[1]]
        assert np.sum(reward) > 10
        assert 10 < np.sum(ended) < 190
        for ours, theirs in zip(found, (True, reward, ended), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", RULES)
    def test_same_returns_of_random_play(self, name):
        env, num_steps = MAKERS[name](f"{name}-v0", sticky_actions=0.0), 500
        theirs = play(name, "random", 4_000, max_steps=num_steps, seed=1, keeps_obs=False)
        starts = np.flatnonzero(theirs.is_first)
        expected = np.add.reduceat(theirs.reward, starts)
        expected_lengths = np.diff([*starts, len(theirs.reward)])
        returns, lengths = random_returns(env, 4_000, num_steps)
        print(f"\n{name}: {expected.mean():.3f} and {returns.mean():.3f} in random play")
        assert stats.ks_2samp(lengths, expected_lengths).pvalue > 1e-3
        assert stats.ttest_ind(returns, expected).pvalue > 1e-3
        assert stats.ks_2samp(returns, expected).pvalue > 1e-3


def random_returns(env: Any, num_episodes: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The return and the length of each of our own episodes of random play."""

    @jax.jit
    @jax.vmap
    def play(key):
        def one_step(carry, key):
            state, running = carry
            act_key, step_key = jax.random.split(key)
            action = jax.random.randint(act_key, (), 0, env.num_actions)
            state, timestep = env.step(step_key, state, action)
            row = (jnp.where(running, timestep.reward, 0.0), running)
            return (state, running & ~timestep.terminated), row

        start = (env.reset(key)[0], jnp.bool(True))
        rewards, ran = jax.lax.scan(one_step, start, jax.random.split(key, num_steps))[1]
        return rewards.sum(), ran.sum()

    found = play(jax.random.split(jax.random.key(0), num_episodes))
    return np.asarray(found[0]), np.asarray(found[1])


def submarine(**changes: Any) -> seaquest.SeaquestState:
    """A game of Seaquest in which some facts are others than at the start."""
    changed: dict[str, Any] = {name: jnp.asarray(value) for name, value in changes.items()}
    return dataclasses.replace(seaquest.reset(), **changed)


def no_draws() -> seaquest.Draws:
    row = jnp.ones((), jnp.int32)
    return seaquest.Draws(jnp.bool(False), row, jnp.bool(False), jnp.bool(False), row)


class TestSeaquest:
    def test_draws_come_as_often_as_they_should(self):
        keys = jax.random.split(jax.random.key(0), 20_000)
        draws = jax.tree.map(np.asarray, jax.jit(jax.vmap(seaquest.draw))(keys))
        for rows in (draws.enemy_row, draws.diver_row):
            counts = np.bincount(rows, minlength=9)
            assert counts[0] == 0
            assert stats.chisquare(counts[1:]).pvalue > 1e-3
        for flags, p in (
            (draws.enemy_to_right, 1 / 2),
            (draws.diver_to_right, 1 / 2),
            (draws.is_submarine, 1 / 3),
        ):
            assert stats.binomtest(int(flags.sum()), len(keys), p).pvalue > 1e-3
        # Each is drawn apart from the others.
        assert np.abs(np.corrcoef(np.array(draws, float)) - np.eye(5)).max() < 0.03

    @pytest.mark.parametrize(
        ("num_divers", "reward", "left", "terminated"),
        [
            (0, 0, 0, True),
            (1, 0, 0, False),
            (5, 0, 4, False),
            (6, 5, -1, False),
            (-1, 0, -2, False),
        ],
    )
    def test_surfacing(self, num_divers, reward, left, terminated):
        before = submarine(row=1, oxygen=109, num_divers=num_divers, is_surfaced=False)
        game = game_of("seaquest")
        state, found, ended = advance_of("seaquest")(before, jnp.int32(UP), no_draws())
        assert (found, state.num_divers, ended) == (reward, left, terminated)
        assert state.oxygen == (109 if terminated else 200)
        assert state.enemy_interval == (20 if terminated else 19)
        gauge = game.observe(state)[9, :, 8]
        np.testing.assert_array_equal(np.flatnonzero(gauge), range(9 - max(left, 0), 9))

    def test_oxygen_lasts_for_200_steps_under_water(self):
        state = submarine(enemy_timer=999, diver_timer=999)
        for step in range(202):
            state, _, ended = advance_of("seaquest")(state, jnp.int32(DOWN), no_draws())
            assert ended == (step >= 200)

    def test_an_enemy_that_meets_its_like_on_the_way_does_not_come(self):
        draws = no_draws()._replace(enemy_row=jnp.int32(4))
        state = submarine(enemy_timer=0)
        advance = advance_of("seaquest")
        state, *_ = advance(state, jnp.int32(NOOP), draws)
        assert [int(x) for x in state.enemies.row if x >= 0] == [4]
        for to_right, rows in ((True, [4]), (False, [4, 4])):
            both = draws._replace(enemy_to_right=jnp.bool(to_right))
            ready = dataclasses.replace(state, enemy_timer=jnp.int32(0))
            again, *_ = advance(ready, jnp.int32(NOOP), both)
            assert [int(x) for x in again.enemies.row if x >= 0] == rows

    def test_there_is_room_for_all_enemies(self):
        # One comes each step, in one row and as fast as they get, and none is ever overwritten.
        state = submarine(enemy_timer=0, enemy_interval=1)
        most = 0
        for step in range(80):
            slot = int(state.next_slot)
            old = int(state.enemies.row[slot]), int(state.enemies.column[slot])
            # What stands in the next slot is gone, or leaves the screen in this very step.
            assert old[0] == -1 or (old[1] == 0 and state.enemies.timer[slot] == 0), step
            state, *_ = advance_of("seaquest")(state, jnp.int32(NOOP), no_draws())
            most = max(most, int((state.enemies.row >= 0).sum()))
        assert most == seaquest.MAX_ENEMIES - 1


class TestSpaceInvaders:
    def test_another_wave_marches_faster(self):
        state = space_invaders.reset()
        aliens, bullets = np.zeros((2, 10), np.int32)
        aliens[3], bullets[4] = 1 << 5, 1 << 5
        changed = {"aliens": jnp.asarray(aliens), "bullets": jnp.asarray(bullets)}
        state = dataclasses.replace(state, **changed)
        for ramping, interval in ((True, 11), (False, 12)):
            game = game_of("space_invaders", difficulty_ramping=ramping)
            after, reward, ended = game.advance(state, jnp.int32(NOOP), None)
            found = (float(reward), bool(ended), int(after.march_interval))
            assert found == (1, False, interval)
            screen = np.asarray(game.observe(after))
            assert screen[..., 1].sum() == 24
            assert screen[:4, 2:8, 1].all()


class TestEnvironments:
    @pytest.mark.parametrize(
        ("name", "version", "settings"),
        [
            ("space_invaders", "v1", {"time_limit": 30, "difficulty_ramping": False}),
            *(
                pytest.param(name, version, settings, marks=pytest.mark.slow)
                for name in RULES
                for version, settings in (("v0", {}), ("v1", {"sticky_actions": 0.0}))
            ),
        ],
    )
    def test_the_contract_holds(self, name, version, settings):
        env = MAKERS[name](f"{name}-{version}", **settings)
        assert env.num_actions == (6 if version == "v0" or name == "seaquest" else 4)
        assert env.max_steps == settings.get("time_limit")
        check_environment(env, jax.random.key(0), random_reset=False)

    @pytest.mark.parametrize("name", RULES)
    def test_the_minimal_actions_are_those_of_the_original(self, name):
        minatar = pytest.importorskip("minatar")
        env = MAKERS[name](f"{name}-v1")
        assert env.num_actions == len(minatar.Environment(name).minimal_action_set())
        state, _ = env.reset(jax.random.key(0))
        assert env.render is not None
        assert env.render(state).shape == (160, 160, 3)
