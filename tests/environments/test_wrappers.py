"""Wrappers: by hand, beside gymnasium's own, around each other, and in training."""

import dataclasses
import functools
import itertools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import wrappers as theirs
from gymnasium.wrappers.utils import RunningMeanStd
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn import dqn, environments, networks, pqn
from purejaxdqn.environments import Environment, naming, step_and_reset, wrappers
from purejaxdqn.storage import results
from purejaxdqn.sweep.run import SweepInterrupted, run_sweep
from purejaxdqn.testing import check_environment
from purejaxdqn.testing.stacks import check_stacks
from purejaxdqn.training.diagnostics import value_bias
from purejaxdqn.types import BATCH, ConfigError, TimeStep
from tiny import TINY, TINY_PQN, assert_same_dataset

KEY, LIMIT = jax.random.key(0), 6
SIDE_BY_SIDE = np.random.default_rng(0).integers(0, 2, (20, 3))  # actions


def observe(x, num_steps):
    return jnp.stack([x, 3 * x, num_steps.astype(x.dtype)])


def reset(key, start=None):
    x = jax.random.uniform(key, (), minval=-0.5, maxval=0.5) if start is None else start
    state = (jnp.asarray(x, float), jnp.int32(0))
    return state, observe(*state)


def step(key, state, action):
    """A walk to the left or to the right, which ends beyond 1; each step is paid by where it is."""
    x, num_steps = state[0] + jnp.where(action == 1, 0.375, -0.375), state[1] + 1
    timestep = TimeStep(observe(x, num_steps), 3 * x, jnp.abs(x) > 1, num_steps >= LIMIT)
    return (x, num_steps), timestep


def draw(state):
    return jnp.broadcast_to((100 * state[0]).astype(jnp.uint8), (2, 2, 3))


SPACE = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
WALK = Environment("Walk-v0", reset, step, 2, SPACE, 5.0, LIMIT, render=draw)
# Each episode alike, and one that is never cut.
ALIKE = WALK._replace(reset=functools.partial(reset, start=0.25))


def step_for_ever(key, state, action):
    state, timestep = step(key, state, action)
    return state, timestep._replace(terminated=jnp.bool(False), truncated=jnp.bool(False))


ENDLESS = ALIKE._replace(step=step_for_ever, max_steps=None)
VALUES: dict[str, Any] = {
    "time_limit": 4,
    "sticky_actions": 0.25,
    "scale_reward": 0.5,
    "clip_reward": 1.0,
    "mask_observation": (1,),
    "stack_frames": 2,
    "normalize_observations": True,
}


def wrap(env: Environment, *names: str) -> Environment:
    for name in names:
        env = getattr(wrappers, name)(env, VALUES[name])
    return env


def image(dtype: Any, shape: tuple[int, ...] = (2, 3, 2)) -> Environment:
    """Images of what the walk shows."""
    top = 1 if dtype == np.bool_ else 255
    ramp = np.arange(1, 1 + np.prod(shape)).reshape(shape)

    def show(obs):
        return ((jnp.abs(obs[0]) * 10).astype(jnp.int32) * ramp % (top + 1)).astype(dtype)

    def show_first(key):
        state, obs = reset(key)
        return state, show(obs)

    def show_next(key, state, action):
        state, timestep = step(key, state, action)
        return state, timestep._replace(obs=show(timestep.obs))

    space = gymnasium.spaces.Box(0, top, shape, dtype)
    return WALK._replace(reset=show_first, step=show_next, observation_space=space)


def play(env, actions, num_envs=1):
    """Plays `actions` `[T]` as the training loop does: rows of what was acted on and answered."""
    step_all = jax.vmap(functools.partial(step_and_reset, env), axis_name=BATCH)

    def one_step(carry, xs):
        state, obs = carry
        key, action = xs
        keys = jax.random.split(key, num_envs)
        state, next_obs, timestep = step_all(keys, state, jnp.full(num_envs, action))
        return (state, next_obs), (obs, timestep, state)

    @jax.jit
    def run(key):
        keys = jax.random.split(key, len(actions) + 1)
        start = jax.vmap(env.reset)(jax.random.split(keys[0], num_envs))
        return jax.lax.scan(one_step, start, (keys[1:], jnp.asarray(actions, jnp.int32)))[1]

    return jax.tree.map(np.asarray, run(KEY))


class Walk(gymnasium.Env):
    """`ALIKE` as an environment of gymnasium, without its time limit."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def _observe(self):
        return np.array([self.x, 3 * self.x, self.num_steps], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.num_steps = 0.25, 0
        return self._observe(), {}

    def step(self, action):
        self.x += 0.375 if action == 1 else -0.375
        self.num_steps += 1
        return self._observe(), 3 * self.x, abs(self.x) > 1, False, {}


def play_theirs(env, actions):
    rows, (obs, _) = [], env.reset()
    for action in actions:
        next_obs, *answer, _ = env.step(action)
        rows.append((obs, next_obs, *answer))
        obs = env.reset()[0] if answer[1] or answer[2] else next_obs
    return [np.array(column) for column in zip(*rows, strict=True)]


ACTIONS = np.random.default_rng(0).integers(0, 2, 60)


@pytest.mark.parametrize(
    ("name", "value", "wrapper"),
    [
        ("time_limit", 4, functools.partial(theirs.TimeLimit, max_episode_steps=4)),
        ("time_limit", 1, functools.partial(theirs.TimeLimit, max_episode_steps=1)),
        ("time_limit", 99, lambda env: env),
        ("stack_frames", 3, functools.partial(theirs.FrameStackObservation, stack_size=3)),
        ("clip_reward", 1.5, lambda env: theirs.ClipReward(env, -1.5, 1.5)),
        ("scale_reward", 0.5, lambda env: theirs.TransformReward(env, lambda x: float(x) / 2)),
    ],
)
def test_they_are_gymnasiums(name, value, wrapper):
    ours = play(getattr(wrappers, name)(ALIKE, value), ACTIONS)
    obs, next_obs, reward, terminated, truncated = play_theirs(
        wrapper(theirs.TimeLimit(Walk(), LIMIT)), ACTIONS
    )
    flat = (len(ACTIONS), -1)
    np.testing.assert_allclose(ours[0][:, 0], obs.reshape(flat), rtol=1e-6)
    np.testing.assert_allclose(ours[1].obs[:, 0], next_obs.reshape(flat), rtol=1e-6)
    np.testing.assert_allclose(ours[1].reward[:, 0], reward, rtol=1e-6)
    np.testing.assert_array_equal(ours[1].terminated[:, 0], terminated)
    np.testing.assert_array_equal(ours[1].truncated[:, 0], truncated)
    assert (terminated | truncated).any()


class TestTimeLimit:
    def test_without_a_limit_before(self):
        env = wrappers.time_limit(ENDLESS, 4)
        assert (env.max_steps, env.truncation_interval, env.threshold) == (4, 4, None)
        _, timestep, _ = play(env, ACTIONS[:12])
        np.testing.assert_array_equal(np.flatnonzero(timestep.truncated), [3, 7, 11])
        state, _ = env.reset(KEY)
        for i in range(6):  # and it stays True
            state, timestep = env.step(KEY, state, jnp.int32(0))
            assert bool(timestep.truncated) == (i >= 3)

    @pytest.mark.parametrize("limit", [LIMIT, LIMIT + 1, 10**6])
    def test_a_larger_one_changes_nothing(self, limit):
        env = wrappers.time_limit(WALK, limit)
        assert env == WALK._replace(name=f"Walk-v0?time_limit={limit}")

    def test_what_is_cut_early_still_is(self):
        early = ENDLESS._replace(truncates_early=True)
        env = wrappers.time_limit(early, 4)
        assert (env.max_steps, env.truncation_interval) == (4, 1)

    def test_what_resets_by_itself_is_cut_by_itself_or_not_at_all(self):
        with pytest.raises(ConfigError, match="set the limit where it is made, such as gymnasium:"):
            wrappers.time_limit(WALK._replace(is_host=True), 4)
        own = WALK._replace(step_and_reset=lambda key, state, action: (state, state, state))
        with pytest.raises(ConfigError, match=r"step_and_reset of Walk-v0 .* 4 argument"):
            wrappers.time_limit(own, 4)

    def test_around_statistics_that_outlive_an_episode(self):
        names = ("time_limit", "normalize_observations")
        inner, outer = (play(wrap(WALK, *order), ACTIONS, 3) for order in (names, names[::-1]))
        for one, other in zip(inner[1], outer[1], strict=True):
            np.testing.assert_array_equal(one, other)
        assert inner[1].truncated.sum() > 10


class TestStickyActions:
    def test_a_last_action_is_taken_for_ever_but_not_into_the_next_episode(self):
        actions = [1, 0, 0, 0, 0, 0] * 3
        obs, timestep, _ = play(wrappers.sticky_actions(ENDLESS, 1), actions)
        assert (np.diff(timestep.obs[:, 0, 0]) > 0).all()
        limited = wrappers.sticky_actions(wrappers.time_limit(ENDLESS, 3), 1)
        obs, timestep, _ = play(limited, actions)
        moves = np.sign(timestep.obs[:, 0, 0] - obs[:, 0, 0])
        np.testing.assert_array_equal(moves, [1, 1, 1, -1, -1, -1] * 3)

    def test_how_often_it_is(self):
        """The last action that was *taken* counts, as in gymnasium."""
        actions, probability = np.arange(20) % 2, 0.25
        obs, timestep, _ = play(wrappers.sticky_actions(ENDLESS, probability), actions, 500)
        taken = timestep.obs[..., 0] > obs[..., 0]
        env = theirs.StickyAction(theirs.TimeLimit(Walk(), 99), probability)
        env.reset(seed=0)
        seen = []
        for action in np.tile(actions, 100):
            env.step(action)
            seen.append(env.last_action)
        theirs_taken = np.array(seen).reshape(100, 20).T
        for found in (taken[1:], theirs_taken[1:]):
            repeated = (found != (actions[1:, np.newaxis] == 1)).mean()
            # The chosen one differs from the last taken one, if the step before was no repetition.
            assert repeated == pytest.approx(probability / (1 + probability), abs=0.02)
        assert (taken[0] == actions[0]).all()

    def test_none_is_the_same_to_the_bit(self):
        assert wrappers.sticky_actions(WALK, 0) == WALK._replace(name="Walk-v0?sticky_actions=0.0")

    def test_what_is_no_longer_legal_is_not_taken_again(self):
        # To the right only where it is not far on the right.
        legal = ENDLESS._replace(legal_actions=lambda obs: jnp.stack([obs[0] < 9, obs[0] < 0.5]))
        env = wrappers.sticky_actions(legal, 1)
        _, timestep, _ = play(env, [1, 0, 0, 0])
        np.testing.assert_allclose(timestep.obs[:, 0, 0], [0.625, 0.25, -0.125, -0.5])


class TestRewards:
    @pytest.mark.parametrize("name", ["scale_reward", "clip_reward"])
    def test_evaluations_play_for_the_tasks_own(self, name):
        env = wrap(ALIKE, name)
        states, _ = jax.vmap(env.reset)(jax.random.split(KEY, 2))
        evaluated = env.in_evaluation(states)
        assert env.threshold == evaluated.threshold == 5.0
        assert evaluated.step is ALIKE.step
        assert evaluated.reward_in_training is not None
        change = {"scale_reward": lambda x: x / 2, "clip_reward": lambda x: np.clip(x, -1, 1)}[name]
        rewards = jnp.array([-3.0, -0.5, 0.25, 3.0])
        np.testing.assert_array_equal(evaluated.reward_in_training(rewards), change(rewards))

    def test_the_first_one_named_is_the_first_to_change(self):
        env = wrap(wrap(ALIKE, "scale_reward"), "clip_reward")
        states, _ = jax.vmap(env.reset)(jax.random.split(KEY, 2))
        learned = env.in_evaluation(states).reward_in_training
        assert learned is not None
        np.testing.assert_array_equal(learned(jnp.array([1.0, 3.0])), [0.5, 1.0])

    def test_values_are_compared_with_what_was_learned_from(self):
        network = networks.value_network(2, (4,))
        params = network.init(KEY, jnp.zeros(3))
        env = wrap(WALK, "scale_reward")
        states, _ = jax.vmap(env.reset)(jax.random.split(KEY, 2))
        measure = functools.partial(value_bias, network, params)
        learned, evaluated, plain = (
            float(jax.jit(lambda key, x=x: measure(x, 0.5, key, 4))(KEY))
            for x in (env, env.in_evaluation(states), WALK)
        )
        assert learned == pytest.approx(evaluated)
        assert learned != pytest.approx(plain)

    def test_a_table_is_scaled_with_them(self):
        @dataclasses.dataclass
        class Table:
            reward: np.ndarray

            def _replace(self, reward):
                return Table(reward)

        env = WALK._replace(tabular=lambda: Table(np.array([1.0, -np.inf])))
        tabular = wrappers.scale_reward(env, 0.25).tabular
        assert tabular is not None
        np.testing.assert_array_equal(tabular().reward, [0.25, -np.inf])
        for name in set(VALUES) - {"scale_reward"}:
            assert wrap(env, name).tabular is None or name == "sticky_actions", name


class TestObservations:
    @given(st.sets(st.integers(0, 2), min_size=1))
    @settings(max_examples=7)
    def test_masked_positions_are_0_and_others_as_they_were(self, hidden):
        env = wrappers.mask_observation(ALIKE, sorted(hidden))
        _, obs = env.reset(KEY)
        _, timestep = env.step(KEY, env.reset(KEY)[0], jnp.int32(1))
        shown = [i not in hidden for i in range(3)]
        np.testing.assert_array_equal(obs, [0.25, 0.75, 0] * np.array(shown))
        np.testing.assert_array_equal(timestep.obs, [0.625, 1.875, 1] * np.array(shown))
        np.testing.assert_array_equal(env.observation_space.high, 9 * np.array(shown))

    @pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
    def test_images_keep_their_dtype(self, dtype):
        plain = image(dtype)
        env = wrappers.mask_observation(plain, [1])
        assert env.observation_space.dtype == dtype
        first, shown = (np.asarray(x.reset(KEY)[1]) for x in (plain, env))
        np.testing.assert_array_equal(shown, first * np.array([1, 0]).astype(dtype))
        assert shown.dtype == dtype
        stacked = wrappers.stack_frames(plain, 3)
        assert stacked.observation_space.shape == (2, 3, 6)
        assert stacked.observation_space.dtype == stacked.reset(KEY)[1].dtype == dtype
        np.testing.assert_array_equal(stacked.reset(KEY)[1], np.concatenate([first] * 3, axis=-1))

    def test_stacks_are_told_as_long_as_they_are_some(self):
        stacked = wrappers.stack_frames(WALK, 3)
        assert (WALK.frames, stacked.frames) == (1, 3)
        keep = [name for name in VALUES if wrap(stacked, name).frames == 3]
        assert keep == ["time_limit", "sticky_actions", "scale_reward", "clip_reward"]
        assert wrap(stacked, "stack_frames").frames == 2

    @pytest.mark.parametrize("frames", [0, 2.0, 4])
    def test_frames_that_are_none_are_found(self, frames):
        with pytest.raises(AssertionError, match=r"frames is .* whole number that divides"):
            check_stacks(wrappers.stack_frames(WALK, 3)._replace(frames=frames), KEY, SIDE_BY_SIDE)

    def test_stacks_that_no_replay_can_make_are_found(self):
        stacked = wrappers.stack_frames(WALK, 3)
        check_stacks(stacked, KEY, SIDE_BY_SIDE)

        def newest_first(key, state, action):
            state, timestep = stacked.step(key, state, action)
            return state, timestep._replace(obs=jnp.roll(timestep.obs, 3))

        for env, rule in (
            (WALK, "at the begin"),
            (wrappers.mask_observation(stacked, [0]), "at the begin"),
            (stacked._replace(step=newest_first), "the newest"),
        ):
            with pytest.raises(AssertionError, match=f"frames is 3, but .*{rule}"):
                check_stacks(env._replace(frames=3), KEY, SIDE_BY_SIDE)

    def test_an_image_without_channels_gets_some(self):
        env = wrappers.stack_frames(image(np.uint8, (2, 3)), 4)
        assert env.observation_space.shape == (2, 3, 4)
        obs, timestep, _ = play(env, [1, 0, 1])
        np.testing.assert_array_equal(obs[1, 0, ..., :-1], obs[0, 0, ..., 1:])
        np.testing.assert_array_equal(obs[1:], timestep.obs[:-1])

    @pytest.mark.parametrize("shape", [(3,), (2, 3)])
    def test_legal_actions_are_those_of_the_newest(self, shape):
        env = WALK if len(shape) == 1 else image(np.uint8, shape)
        legal = env._replace(legal_actions=lambda obs: jnp.stack([obs.ravel()[0] > 0, True]))
        stacked = wrappers.stack_frames(legal, 2)
        assert stacked.legal_actions is not None
        stack = np.ones(stacked.observation_space.shape)
        np.testing.assert_array_equal(stacked.legal_actions(jnp.asarray(stack)), [True, True])
        stack[..., -1 if len(shape) == 2 else slice(-3, None)] = 0
        np.testing.assert_array_equal(stacked.legal_actions(jnp.asarray(stack)), [False, True])

    @pytest.mark.parametrize("name", ["mask_observation", "normalize_observations"])
    def test_what_hides_legal_actions_is_refused(self, name):
        legal = WALK._replace(legal_actions=lambda obs: obs[:2] > 0)
        with pytest.raises(ConfigError, match="reads in observations which actions are legal"):
            wrap(legal, name)

    def test_films_show_the_state_within(self):
        for name in set(VALUES) - {"normalize_observations"}:
            env = wrap(WALK, name)
            state, _ = env.reset(KEY)
            assert env.render is not None
            np.testing.assert_array_equal(env.render(state), draw(WALK.reset(KEY)[0]))


class TestNormalizeObservations:
    def test_as_gymnasium_within_an_episode(self):
        endless = theirs.NormalizeObservation(theirs.TimeLimit(Walk(), 99))
        rows, (obs, _) = [], endless.reset()
        for action in ACTIONS[:20]:
            rows.append(obs)
            obs, *_ = endless.step(action)
        ours, _, _ = play(wrappers.normalize_observations(ENDLESS), ACTIONS[:20])
        np.testing.assert_allclose(ours[:, 0], np.clip(rows, -10, 10), rtol=2e-3, atol=2e-3)

    def test_all_environments_of_a_run_share_what_each_acts_on(self):
        num_envs = 3
        plain, _, _ = play(WALK, ACTIONS, num_envs)  # [T, E, 3]
        shown, timestep, state = play(wrappers.normalize_observations(WALK), ACTIONS, num_envs)
        known = RunningMeanStd(shape=(3,))
        known.update(plain[0, :1])
        for t in range(1, len(ACTIONS)):
            known.update(plain[t])
            memory = jax.tree.map(lambda x, t=t: x[t - 1], state.memory)
            np.testing.assert_allclose(memory.mean[0], known.mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(memory.variance[0], known.var, rtol=1e-5, atol=1e-6)
            wanted = (plain[t] - known.mean) / np.sqrt(known.var + 1e-8)
            np.testing.assert_allclose(shown[t], np.clip(wanted, -10, 10), rtol=1e-4, atol=1e-4)
        assert (timestep.terminated | timestep.truncated).sum() > 20  # over episodes
        for leaf in jax.tree.leaves(state.memory):
            np.testing.assert_array_equal(leaf, np.repeat(leaf[:, :1], num_envs, axis=1))
        np.testing.assert_array_equal(state.memory.count[:, 0], 1 + 3 * np.arange(1, 61))

    def test_evaluations_play_with_those_of_their_moment(self):
        env = wrappers.normalize_observations(WALK)
        _, _, state = play(env, ACTIONS, 3)
        last = jax.tree.map(lambda x: x[-1], state)
        evaluated = env.in_evaluation(last)
        inner, obs = evaluated.reset(KEY)
        mean, variance = last.memory.mean[0], last.memory.variance[0]
        for action in (0, 1, 0):
            inner, timestep = evaluated.step(KEY, inner, jnp.int32(action))
            wanted = (observe(*inner.inner) - mean) / np.sqrt(variance + 1e-8)
            np.testing.assert_allclose(timestep.obs, np.clip(wanted, -10, 10), rtol=1e-5)
        np.testing.assert_allclose(obs, (WALK.reset(KEY)[1] - mean) / np.sqrt(variance), rtol=1e-4)
        assert evaluated.render is not None
        assert env.render is None  # it would show what no policy has seen

    def test_a_long_run_is_not_rounded_away(self):
        rng = np.random.default_rng(0)
        obs = jnp.asarray(rng.normal(50, 3, (4, 1)), jnp.float32)
        start = wrappers.Statistics(jnp.int32(2**30), obs.mean(0), obs.var(0))
        add = functools.partial(jax.lax.fori_loop, 0, 10_000, lambda _, x: wrappers._count(x, obs))
        end = jax.jit(add)(start)
        np.testing.assert_allclose(end.mean, start.mean, rtol=1e-6)
        np.testing.assert_allclose(end.variance, start.variance, rtol=1e-6)
        assert int(end.count) == 2**30 + 40_000

    def test_off_is_as_if_it_were_not_there(self):
        off = wrappers.normalize_observations(WALK, False)
        assert off == WALK._replace(name="Walk-v0?normalize_observations=0")


class TestContract:
    @pytest.mark.parametrize("name", VALUES)
    def test_each_keeps_it(self, name):
        check_environment(wrap(WALK, name), KEY)

    def test_all_of_them_together_do(self):
        env = wrap(WALK, *VALUES)
        check_environment(env, KEY)
        assert env.name == (
            "Walk-v0?time_limit=4&sticky_actions=0.25&scale_reward=0.5&clip_reward=1.0"
            "&mask_observation=1&stack_frames=2&normalize_observations=1"
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("pair", itertools.permutations(VALUES, 2), ids="-".join)
    def test_each_pair_does(self, pair):
        check_environment(wrap(WALK, *pair), KEY)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
    @pytest.mark.parametrize("name", VALUES)
    def test_each_does_around_images(self, name, dtype):
        check_environment(wrap(image(dtype), name), KEY)


class TestValues:
    def test_the_names_are_those_that_a_name_may_have(self):
        assert set(VALUES) == set(naming.WRAPPERS)
        for name, value in VALUES.items():
            env = wrap(WALK, name)
            setting, text = env.name.removeprefix("Walk-v0?").split("=")
            assert setting == name
            assert naming.WRAPPERS[name].read(text) == value

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("time_limit", x) for x in (0, -1, 2.5, True, None, "many", 2**31, jnp.zeros(2))),
            *(("sticky_actions", x) for x in (-0.1, 1.1, float("nan"), True, None, "often")),
            *(("scale_reward", x) for x in (0, -1.0, float("inf"), 1e30, 1e-30, None)),
            *(("clip_reward", x) for x in (0, -1, float("inf"), float("nan"), (1, 2))),
            *(("mask_observation", x) for x in ((), (3,), (-1,), (1, 1), 0.5, (0.5,), None)),
            *(("stack_frames", x) for x in (0, -1, 1.5, 10**6, True)),
            *(("normalize_observations", x) for x in (2, None, "yes", 0.5)),
        ],
    )
    def test_bad_ones_are_refused_in_a_line(self, name, value):
        with pytest.raises(ConfigError, match=rf"{name} \(.*\) must be") as caught:
            getattr(wrappers, name)(WALK, value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", VALUES)
    def test_what_is_no_environment_is_refused(self, name):
        with pytest.raises(ConfigError, match=r"env \('CartPole-v1'\) must be an Environment"):
            getattr(wrappers, name)("CartPole-v1", VALUES[name])

    def test_an_observation_of_one_number_has_no_places(self):
        scalar = WALK._replace(observation_space=gymnasium.spaces.Box(0, 1, (), np.float32))
        for name in ("mask_observation", "stack_frames"):
            with pytest.raises(ConfigError, match="as observations of Walk-v0 have"):
                wrap(scalar, name)

    def test_from_a_name(self):
        env = environments.make("CartPole-v1?time_limit=50&mask_observation=1,3&stack_frames=2")
        assert env.name == "CartPole-v1?time_limit=50&mask_observation=1,3&stack_frames=2"
        assert env.max_steps == 50
        _, obs = env.reset(KEY)
        assert (np.asarray(obs) != 0).tolist() == 4 * [True, False]


ALL = (
    "CartPole-v0?time_limit=30&sticky_actions=0.1&scale_reward=0.5&clip_reward=1"
    "&mask_observation=1&stack_frames=2&normalize_observations=1"
)


class TestTraining:
    def test_goes_on_to_the_bit(self, tmp_path):
        config = dataclasses.replace(TINY, env=ALL)
        run: Any = functools.partial(run_sweep, dqn, config, range(2), progress=False)
        whole = run()
        assert (whole.dataset.evaluation_return >= 1).all()  # not halved
        assert (whole.dataset.evaluation_return <= 30).all()
        assert float(whole.dataset.training_return.max()) <= 15  # halved
        seen = []

        def interrupt(event):
            seen.append(event)
            if len(seen) == 2:
                raise KeyboardInterrupt

        with pytest.raises(SweepInterrupted):
            run(output=tmp_path, on_evaluation=interrupt, checkpoint_seconds=0)
        again = run(output=tmp_path, resume=True)
        assert_same_dataset(again.dataset, whole.dataset)
        assert results.load(tmp_path).attrs["status"] == "finished"

    @pytest.mark.slow
    @pytest.mark.parametrize("setting", ALL.partition("?")[2].split("&"))
    @pytest.mark.parametrize("kind", ["dqn", "pqn"])
    def test_with_each(self, kind, setting):
        experiment, config = {"dqn": (dqn, TINY), "pqn": (pqn, TINY_PQN)}[kind]
        config = dataclasses.replace(config, env=f"CartPole-v0?{setting}")  # type: ignore[type-var]
        result = run_sweep(experiment, config, range(2), progress=False)  # type: ignore[arg-type]
        assert np.isfinite(result.dataset.evaluation_return).all()
