"""Breakout, Freeway and Asterix against the original, whose random numbers ours are given."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from minatar import Environment as Original
from scipy import stats

from purejaxdqn import environments
from purejaxdqn.environments import step_and_reset, wrappers
from purejaxdqn.environments.minatar import asterix, breakout, common, freeway
from purejaxdqn.testing import check_environment
from purejaxdqn.types import ConfigError

GAMES = ("Asterix", "Breakout", "Freeway")
MODULES: dict[str, Any] = {"Asterix": asterix, "Breakout": breakout, "Freeway": freeway}


def make(game: str, version: str = "v0", **settings: Any) -> Any:
    return getattr(MODULES[game], game.lower())(f"MinAtar/{game}-{version}", **settings)


def ints(*values: Any) -> list[Any]:
    return list(np.array(values, np.int32))


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
    side, gold, rank = (*drawn, 0.0, 0.0, 0.0)[:3]
    choice = np.float32((rank + 0.5) / max(num_free, 1))
    return MODULES[game].Draws(np.bool_(side < 0.5), np.bool_(gold < 1 / 3), choice)


def begin_of(game: str, drawn: list[Any]) -> Any:
    if game == "Breakout":
        return MODULES[game].begin(bool(drawn[0]))
    if game == "Freeway":
        return MODULES[game].begin(np.asarray(signed(drawn), np.int32))
    return MODULES[game].reset()


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

    is_first: Any
    begin: Any  # of ours, the state in which the episode began
    action: Any
    draws: Any
    before: Any  # the observation, packed
    after: Any
    reward: Any
    terminated: Any


def record(game: str, good: bool, num_episodes: int, ramping: bool, most: int = 1_500) -> Play:
    """Plays at random, or well with some random actions; cuts episodes that go on for long."""
    original = Original(
        game.lower(),
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

    module = MODULES[game]
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
        num_episodes = 4 if game == "Freeway" else 30 if good else 200
        play = assert_follows(game, good, num_episodes)
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


def random_breakout(rng: np.random.Generator) -> tuple[dict[str, Any], Any]:
    bricks = rng.random((3, 10)) < rng.choice([0.0, 0.03, 0.5, 1.0])
    row, direction = int(rng.integers(9)), int(rng.integers(4))  # up left, up right, and down
    column, paddle, meets = int(rng.integers(10)), int(rng.integers(10)), bool(rng.integers(2))
    theirs = {
        "ball_y": row, "ball_x": column, "last_y": row, "last_x": column, "pos": paddle,
        "ball_dir": direction, "strike": meets,
        "brick_map": np.pad(bricks, ((1, 6), (0, 0))).astype(float),
    }  # fmt: skip
    down, right = 1 if direction > 1 else -1, 1 if direction in (1, 2) else -1
    numbers = ints(paddle, row, column, down, right, row, column)
    packed = np.packbits(bricks, bitorder="little").view(np.uint32)[0]
    ours = MODULES["Breakout"].BreakoutState(*numbers, packed, np.bool_(meets))
    return theirs, ours


def random_freeway(rng: np.random.Generator) -> tuple[dict[str, Any], Any]:
    columns, speeds = rng.integers(10, size=8), rng.integers(1, 6, 8) * rng.choice([-1, 1], 8)
    timers = rng.integers(np.abs(speeds) + 1)
    row, wait, clock = int(rng.integers(1, 10)), int(rng.integers(4)), int(rng.integers(5))
    cars = [[int(x) for x in car] for car in zip(columns, range(1, 9), timers, speeds, strict=True)]
    theirs = {"pos": row, "move_timer": wait, "terminate_timer": clock, "cars": cars}
    numbers = ints(row, wait, clock)
    return theirs, MODULES["Freeway"].FreewayState(*numbers, *ints(columns, timers, speeds))


def random_asterix(rng: np.random.Generator) -> tuple[dict[str, Any], Any]:
    here, gold, right = (rng.random((3, 8)) < [[rng.choice([0.3, 1.0])], [0.5], [0.5]]).tolist()
    columns = rng.integers(10, size=8).tolist()
    spawn, move, ramps = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(4))
    timers = {
        "spawn_timer": int(rng.integers(spawn)), "spawn_speed": spawn,
        "move_timer": int(rng.integers(move)), "move_speed": move,
        "ramp_timer": int(rng.integers(-1, 2)), "ramp_index": ramps,
    }  # fmt: skip
    row, column = int(rng.integers(1, 9)), int(rng.integers(10))
    things = [[columns[i], i + 1, right[i], gold[i]] if here[i] else None for i in range(8)]
    theirs = {"player_y": row, "player_x": column, "entities": things, **timers}
    kinds = np.array(here) * np.where(right, 1, -1) * np.where(gold, 2, 1)
    numbers = *ints(row, column), *ints(columns, kinds), *ints(*timers.values())
    return theirs, MODULES["Asterix"].AsterixState(*numbers)


class TestFromAnyState:
    """What play seldom reaches: the last of the ramp, the last brick, corners, full screens."""

    @pytest.mark.parametrize("game", GAMES)
    def test_three_steps(self, game):
        rng, source = np.random.default_rng(2), Recorder(3)
        original = Original(game.lower(), sticky_action_prob=0.0)
        original.env.random = source
        draw_state = {
            "Asterix": random_asterix, "Breakout": random_breakout, "Freeway": random_freeway
        }[game]  # fmt: skip
        rows = []
        for _ in range(3_000):
            theirs, state = draw_state(rng)
            vars(original.env).update(theirs, terminal=False)
            for step in range(3):
                free = getattr(original.env, "entities", []).count(None)
                before, action = original.state(), int(rng.integers(6))
                reward, ended = original.act(action)
                draws = draws_of(game, source.take(), free)
                packed = np.packbits(before), np.packbits(original.state())
                rows.append(Play(step == 0, state, action, draws, *packed, reward, ended))
                if ended:
                    break
        play = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        start = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), play.begin)
        found = jax.tree.map(np.asarray, replayer(game, True)(start, play)[1])
        for ours, name in zip(found, ("before", "after", "reward", "terminated"), strict=True):
            np.testing.assert_array_equal(ours, getattr(play, name), err_msg=name)
        assert min(play.reward.sum(), play.terminated.sum()) > 50


class TestDraws:
    def test_speeds_of_cars(self):
        speeds = np.asarray(jax.vmap(freeway.draw)(jax.random.split(jax.random.key(0), 5_000)))
        values, counts = np.unique(speeds, return_counts=True)
        np.testing.assert_array_equal(values, [-5, -4, -3, -2, -1, 1, 2, 3, 4, 5])
        assert stats.chisquare(counts).pvalue > 1e-3
        assert np.abs(np.corrcoef(speeds.T) - np.eye(8)).max() < 0.07

    def test_what_comes_and_where(self):
        state = (
            MODULES["Asterix"]
            .reset()
            .replace(spawn_timer=jnp.int32(0), kinds=jnp.int32(jnp.arange(8) % 3 == 0))
        )
        draws = jax.vmap(asterix.draw)(jax.random.split(jax.random.key(1), 6_000))
        step = jax.jit(jax.vmap(lambda draw: asterix.advance(state, jnp.int32(0), draw)[0]))
        after = jax.tree.map(np.asarray, step(draws))
        new = (after.kinds != 0) & (np.arange(8) % 3 != 0)
        np.testing.assert_array_equal(new.sum(1), 1)
        assert stats.chisquare(new.sum(0)[np.arange(8) % 3 != 0]).pvalue > 1e-3
        kinds, columns = after.kinds[new], after.columns[new]
        assert np.mean(kinds > 0) == pytest.approx(0.5, abs=0.03)
        np.testing.assert_array_equal(columns, np.where(kinds > 0, 0, 9))
        assert np.mean(np.abs(kinds) == 2) == pytest.approx(1 / 3, abs=0.03)
        assert abs(np.corrcoef(np.abs(kinds), columns)[0, 1]) < 0.05

    def test_sides_of_the_ball(self):
        begin = jax.vmap(breakout.reset)(jax.random.split(jax.random.key(2), 4_000))
        assert np.mean(begin.column == 0) == pytest.approx(0.5, abs=0.04)
        np.testing.assert_array_equal(begin.right, np.where(begin.column == 0, 1, -1))


def random_returns(env: Any, num_envs: int, num_steps: int) -> np.ndarray:
    """Returns of whole episodes of random play, one after another in each environment."""

    @jax.jit
    def play(key):
        def one_step(carry, key):
            state, total = carry
            action = jax.random.randint(key, (num_envs,), 0, env.num_actions)
            state, _, timestep = jax.vmap(functools.partial(step_and_reset, env))(
                jax.random.split(jax.random.fold_in(key, 1), num_envs), state, action
            )
            ended = timestep.terminated | timestep.truncated
            total += timestep.reward
            return (state, jnp.where(ended, 0, total)), (ended, total)

        state, _ = jax.vmap(env.reset)(jax.random.split(key, num_envs))
        carry = state, jnp.zeros(num_envs)
        return jax.lax.scan(one_step, carry, jax.random.split(key, num_steps))[1]

    ended, total = jax.tree.map(np.asarray, play(jax.random.key(3)))
    # As many of each environment, so that short episodes do not count more.
    least = ended.sum(0).min()
    assert least > 0
    return np.concatenate([total[ended[:, i], i][:least] for i in range(num_envs)])


class TestInClosedLoop:
    @pytest.mark.parametrize(("game", "num_episodes"), [("Asterix", 400), ("Breakout", 2_000)])
    def test_same_returns_of_random_play(self, game, num_episodes):
        env = make(game)
        original, rng = Original(game.lower()), np.random.default_rng(4)
        theirs = np.zeros(num_episodes)
        for episode in range(num_episodes):
            original.reset()
            ended = False
            while not ended:
                reward, ended = original.act(int(rng.integers(6)))
                theirs[episode] += reward
        ours = random_returns(env, 64, 800 if game == "Asterix" else 400)
        print(f"\n{game}: mean return {ours.mean():.3f}, of the original {theirs.mean():.3f}")
        assert len(ours) >= 64
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


class TestEnvironment:
    @pytest.mark.parametrize(
        ("game", "version", "settings"),
        [
            ("Breakout", "v1", {}),
            *(
                pytest.param(game, version, settings, marks=pytest.mark.slow)
                for game in GAMES
                for version in ("v0", "v1")
                for settings in ({}, {"sticky_actions": 0.0, "time_limit": 9})
            ),
        ],
    )
    def test_keeps_the_contract(self, game, version, settings):
        env = make(game, version, **settings)
        random_reset = game != "Asterix"
        check_environment(env, jax.random.key(0), random_reset=random_reset)

    @pytest.mark.parametrize("game", GAMES)
    def test_same_description(self, game):
        original = Original(game.lower())
        actions = original.minimal_action_set()
        for version, num_actions in (("v0", 6), ("v1", len(actions))):
            env = make(game, version, sticky_actions=0.0)
            assert env.name == f"MinAtar/{game}-{version}"
            assert list(env.observation_space.shape) == original.state_shape()
            assert env.observation_space.dtype == np.bool_
            assert (env.num_actions, env.max_steps, env.threshold) == (num_actions, None, None)
        # Each action is the original's of this number.
        key, given = jax.random.key(0), jnp.arange(len(actions))
        step = jax.jit(jax.vmap(env.step, (None, None, 0)))
        assert step(key, env.reset(key)[0], given)[0].last_action.tolist() == actions

    def test_sticky_actions_repeat_what_was_done(self):
        env = make("Asterix", "v0", sticky_actions=0.25)
        state, _ = env.reset(jax.random.key(0))
        assert int(state.last_action) == common.NOOP
        actions = jnp.asarray([1, 2, 3, 4] * 1_000, jnp.int32)

        def one_step(state, xs):
            state, _ = env.step(xs[0], state, xs[1])
            return state, state.last_action

        keys = jax.random.split(jax.random.key(1), len(actions))
        done = np.asarray(
            jax.jit(functools.partial(jax.lax.scan, one_step))(state, (keys, actions))[1]
        )
        before = np.concatenate([[0], done[:-1]])
        is_stuck = done != actions
        np.testing.assert_array_equal(done[is_stuck], before[is_stuck])
        assert is_stuck.mean() == pytest.approx(0.25, abs=0.03)

    def test_a_wrapper_may_cut_it(self):
        env = wrappers.time_limit(environments.make("MinAtar/Breakout-v1"), 5)
        check_environment(env, jax.random.key(0))

    def test_begins_anew_as_base_does(self):
        env = make("Breakout", time_limit=5)
        step, plain = (
            jax.jit(jax.vmap(functools.partial(step_and_reset, one)))
            for one in (env, env._replace(step_and_reset=None))
        )
        keys = jax.random.split(jax.random.key(0), (7, 4))
        state, _ = jax.vmap(env.reset)(keys[0])
        for key in keys[1:]:
            expected = plain(key, state, jnp.zeros(4, jnp.int32))
            jax.tree.map(
                np.testing.assert_array_equal, step(key, state, jnp.zeros(4, jnp.int32)), expected
            )
            state = expected[0]
        assert state.num_steps.tolist() == [1] * 4  # a new episode after 5 of 6 steps

    def test_freeway_ends_by_itself_in_the_step_after_its_clock_stands_at_0(self):
        env = make("Freeway")
        state, _ = env.reset(jax.random.key(0))
        for clock, ends in ((2, False), (1, False), (0, True)):
            late = state.replace(game=state.game.replace(clock=jnp.int32(clock)))
            timestep = env.step(jax.random.key(0), late, jnp.int32(0))[1]
            assert (bool(timestep.terminated), bool(timestep.truncated)) == (ends, False)

    @pytest.mark.parametrize("game", GAMES)
    def test_films_show_each_thing_in_its_channels_colour(self, game):
        env = make(game)
        state, obs = env.reset(jax.random.key(0))
        image = np.asarray(jax.jit(env.render)(state))
        assert image.shape == (160, 160, 3)
        assert image.dtype == np.uint8
        cells = image[8::16, 8::16]
        np.testing.assert_array_equal(image, cells.repeat(16, 0).repeat(16, 1))
        for row, column, channel in np.argwhere(obs):
            hidden = np.asarray(obs)[row, column, channel + 1 :].any()
            is_own = (cells[row, column] == common.PALETTE[1 + channel]).all()
            assert is_own != hidden
        empty = ~np.asarray(obs).any(-1)
        np.testing.assert_array_equal(cells[empty], [common.PALETTE[0]] * empty.sum())

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"sticky_actions": 1.5}, "sticky_actions (1.5) must be at least 0 and at most 1"),
            ({"time_limit": 0}, "time_limit (0) must be at least 1 and a whole number"),
            ({"version": "v7"}, "must be a name that ends in -v0 or -v1"),
        ],
    )
    def test_refuses(self, settings, words):
        with pytest.raises(ConfigError) as error:
            make("Breakout", **settings)
        assert words in str(error.value)
