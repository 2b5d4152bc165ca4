"""Environments, CartPole above all, against `gymnasium.make`."""

import dataclasses
import functools
import warnings
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purejaxdqn import environments
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.environments import CartPoleState, step_and_reset
from purejaxdqn.environments.cartpole import THETA_THRESHOLD, X_THRESHOLD, cartpole
from purejaxdqn.types import ConfigError

NAMES = ("CartPole-v0", "CartPole-v1")
NUM_EPISODES = 1_000
CARTPOLE = environments.make("CartPole-v1")


def gymnasium_make(name: str) -> gymnasium.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CartPole-v0 is out of date
        return gymnasium.make(name, disable_env_checker=True)


class Play(NamedTuple):
    """What gymnasium did, one row a step; states are float64 `[N, 4]`."""

    state: np.ndarray
    num_steps: np.ndarray  # of the episode, before the step
    action: np.ndarray
    next_state: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


@functools.cache
def record(name: str, play: str) -> Play:
    """1,000 episodes of random play, or of a good linear policy with some random actions."""
    env = gymnasium_make(name)
    rng = np.random.default_rng(0)
    draws = rng.random((600_000, 2)).tolist()
    probability_of_random = 1.0 if play == "random" else 0.3
    rows: list[tuple[Any, ...]] = []
    for episode in range(NUM_EPISODES):
        env.reset(seed=episode)
        state = env.unwrapped.state  # type: ignore[attr-defined]
        num_steps, ended = 0, False
        while not ended:
            x, x_dot, theta, theta_dot = state.tolist()
            explore, choice = draws[len(rows)]
            if explore < probability_of_random:
                action = int(choice < 0.5)
            else:
                action = int(0.1 * x + 0.2 * x_dot + theta + 0.5 * theta_dot > 0)
            obs, reward, terminated, truncated, _ = env.step(action)
            next_state = env.unwrapped.state  # type: ignore[attr-defined]
            rows.append((state, num_steps, action, next_state, obs, reward, terminated, truncated))
            state, num_steps, ended = next_state, num_steps + 1, terminated or truncated
    return Play(*map(np.array, zip(*rows, strict=True)))


def state_from(values: Any, num_steps: Any) -> CartPoleState:
    x, x_dot, theta, theta_dot = values
    return CartPoleState(x, x_dot, theta, theta_dot, num_steps)


def step_all(name: str, play: Play, dtype: Any) -> tuple[CartPoleState, Any]:
    """Our step from each of gymnasium's states."""
    env = environments.make(name)

    @jax.jit
    @jax.vmap
    def step(state, num_steps, action):
        return env.step(jax.random.key(0), state_from(state, num_steps), action)

    return jax.tree.map(
        np.asarray,
        step(
            jnp.asarray(play.state, dtype),
            jnp.asarray(play.num_steps, jnp.int32),
            jnp.asarray(play.action, jnp.int32),
        ),
    )


def on_threshold(play: Play) -> np.ndarray:
    """Where float32 may round to the other side."""
    x, _, theta, _ = np.abs(play.next_state).T
    return (np.abs(x - X_THRESHOLD) < 1e-6) | (np.abs(theta - THETA_THRESHOLD) < 1e-6)


class TestAgainstGymnasium:
    @pytest.mark.parametrize("play_name", ["random", "good"])
    @pytest.mark.parametrize("name", NAMES)
    def test_single_steps(self, name, play_name):
        play = record(name, play_name)
        max_steps = environments.make(name).max_steps
        assert max_steps is not None
        assert np.sum(play.num_steps == 0) == NUM_EPISODES
        # The play must reach what it is to be compared on: falls, and with good play time limits.
        assert play.terminated.sum() > 50
        assert (play.truncated.sum() > 500) == (play_name == "good")
        assert np.all(play.num_steps[play.truncated] == max_steps - 1)

        state, timestep = step_all(name, play, jnp.float32)
        assert timestep.obs.dtype == timestep.reward.dtype == np.float32
        assert np.abs(timestep.obs - play.next_state).max() < 1e-6
        assert np.abs(timestep.obs - play.obs).max() < 1e-6
        np.testing.assert_array_equal(timestep.reward, play.reward)
        np.testing.assert_array_equal(state.num_steps, play.num_steps + 1)
        np.testing.assert_array_equal(timestep.truncated, play.truncated)
        excluded = on_threshold(play)
        print(f"\n{name}, {play_name} play: {len(excluded)} steps, {excluded.sum()} on a threshold")
        assert excluded.mean() < 1e-3
        np.testing.assert_array_equal(timestep.terminated[~excluded], play.terminated[~excluded])

        with jax.enable_x64(True):
            state, timestep = step_all(name, play, jnp.float64)
        assert timestep.obs.dtype == np.float64
        assert np.abs(timestep.obs - play.next_state).max() < 1e-14
        np.testing.assert_array_equal(timestep.terminated, play.terminated)
        np.testing.assert_array_equal(timestep.truncated, play.truncated)

    def test_same_mean_return_in_closed_loop(self):
        name, num_policies = "CartPole-v1", 2_000
        env, reference = environments.make(name), gymnasium_make(name)
        # Gains of the right sign, so that some policies fall at once and others never do.
        weights = np.abs(np.random.default_rng(0).normal(size=(num_policies, 4)))
        starts = np.zeros((num_policies, 4))
        returns = np.zeros(num_policies)
        for i, (w_x, w_x_dot, w_theta, w_theta_dot) in enumerate(weights.tolist()):
            obs, _ = reference.reset(seed=i)
            starts[i] = reference.unwrapped.state  # type: ignore[attr-defined]
            ended = False
            while not ended:
                x, x_dot, theta, theta_dot = obs.tolist()
                action = int(
                    w_x * x + w_x_dot * x_dot + w_theta * theta + w_theta_dot * theta_dot > 0
                )
                obs, reward, terminated, truncated, _ = reference.step(action)
                returns[i] += reward
                ended = terminated or truncated

        @jax.jit
        @jax.vmap
        def play(weights, start):
            def one_step(carry, _):
                state, obs, running, total = carry
                state, timestep = env.step(jax.random.key(0), state, jnp.int32(weights @ obs > 0))
                total += jnp.where(running, timestep.reward, 0.0)
                running &= ~(timestep.terminated | timestep.truncated)
                return (state, timestep.obs, running, total), None

            carry = (state_from(start, jnp.int32(0)), start, jnp.bool(True), jnp.float32(0))
            return jax.lax.scan(one_step, carry, length=500)[0][3]

        ours = np.asarray(play(weights.astype(np.float32), starts.astype(np.float32)))
        print(f"\nmean returns: gymnasium {returns.mean():.3f}, ours {ours.mean():.3f}")
        assert 100 < returns.mean() < 400
        assert ours.mean() == pytest.approx(returns.mean(), rel=0.005)

    @pytest.mark.parametrize("name", NAMES)
    def test_same_description(self, name):
        env, reference = environments.make(name), gymnasium_make(name)
        assert reference.spec is not None
        assert env.name == name
        assert env.max_steps == reference.spec.max_episode_steps
        assert env.threshold == reference.spec.reward_threshold
        assert env.observation_space == reference.observation_space
        assert env.action_space == reference.action_space
        assert env.num_actions == 2


class TestCartPole:
    def test_one_step_by_hand(self):
        env = environments.make("CartPole-v1")
        start = state_from(jnp.zeros(4), jnp.int32(0))
        _, timestep = env.step(jax.random.key(0), start, jnp.int32(1))
        push = 10 / 1.1
        theta_acc = -push / (0.5 * (4 / 3 - 0.1 / 1.1))
        x_acc = push - 0.05 * theta_acc / 1.1
        np.testing.assert_allclose(timestep.obs, [0, 0.02 * x_acc, 0, 0.02 * theta_acc], rtol=1e-6)
        _, left = env.step(jax.random.key(0), start, jnp.int32(0))
        np.testing.assert_array_equal(left.obs, -timestep.obs)

    def test_falling_at_the_time_limit_is_both(self):
        env = environments.make("CartPole-v0")
        for theta, falls in ((0.0, False), (0.3, True)):
            for num_steps, is_late in ((198, False), (199, True), (200, True)):
                state = state_from(jnp.array([0, 0, theta, 0]), jnp.int32(num_steps))
                _, timestep = env.step(jax.random.key(0), state, jnp.int32(0))
                assert bool(timestep.terminated) == falls
                assert bool(timestep.truncated) == is_late

    def test_reset_is_uniform(self):
        env = environments.make("CartPole-v1")
        state, obs = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2_000))
        values = np.asarray(obs)
        for i, name in enumerate(("x", "x_dot", "theta", "theta_dot")):
            np.testing.assert_array_equal(values[:, i], getattr(state, name))
            assert stats.kstest(values[:, i], stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-3
        assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.1
        assert not np.any(state.num_steps)


class TestStepAndReset:
    def test_keeps_the_last_observation_and_starts_anew(self):
        env = environments.make("CartPole-v1")
        num_envs, num_steps = 4, 600

        @jax.jit
        def play(key):
            def one_step(carry, key):
                state, obs = carry
                act_key, env_key = jax.random.split(key)
                keys = jax.random.split(env_key, num_envs)
                # Mostly balanced, so that falls and time limits both happen.
                action = jnp.int32(obs @ jnp.array([0.1, 0.2, 1.0, 0.5]) > 0)
                random = jax.random.bernoulli(act_key, jnp.array([0.0, 0.0, 0.5, 0.5]))
                action = jnp.where(random, 1 - action, action)
                next_state, next_obs, timestep = jax.vmap(functools.partial(step_and_reset, env))(
                    keys, state, action
                )
                plain = jax.vmap(env.step)(jax.random.split(act_key, num_envs), state, action)
                row = (next_state.num_steps, next_obs, timestep, plain)
                return (next_state, next_obs), row

            start_key, key = jax.random.split(key)
            start = jax.vmap(env.reset)(jax.random.split(start_key, num_envs))
            return jax.lax.scan(one_step, start, jax.random.split(key, num_steps))[1]

        count, obs, timestep, (plain_state, plain) = jax.tree.map(
            np.asarray, play(jax.random.key(1))
        )
        assert timestep.terminated.sum() > 3
        assert timestep.truncated.sum() >= 2
        for ours, expected in zip(timestep, plain, strict=True):
            np.testing.assert_array_equal(ours, expected)
        ended = timestep.terminated | timestep.truncated
        np.testing.assert_array_equal(obs[~ended], timestep.obs[~ended])
        assert np.abs(obs[ended]).max() <= 0.05
        assert np.abs(timestep.obs[timestep.terminated]).max(axis=1).min() > 0.2
        assert not count[ended].any()
        np.testing.assert_array_equal(count[~ended], plain_state.num_steps[~ended])
        # Each new episode starts somewhere else.
        assert len(np.unique(obs[ended], axis=0)) == ended.sum()


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(environments, "_ENVIRONMENTS", {})
    monkeypatch.setattr(environments, "_TASKS", {})


def make_mine():
    return environments.Environment(**{**CARTPOLE._asdict(), "name": "Mine-v0"})


def define_again(result=None):
    """A function as `make_mine`, by module and name, as a notebook's cell defines it anew."""

    def make():
        return result

    make.__module__, make.__qualname__ = make_mine.__module__, make_mine.__qualname__
    return make


class TestRegistry:
    def test_cartpole_is_registered_with_both_time_limits(self):
        assert environments.names() == NAMES
        assert [environments.make(name).name for name in NAMES] == list(NAMES)

    def test_unknown_names_are_refused_with_the_nearest(self):
        for name, nearest in ("Cartpole-v1", "CartPole-v1"), ("Pong", "CartPole-v0, CartPole-v1"):
            words = rf"environment \('{name}'\) must be one of {nearest}"
            with pytest.raises(ConfigError, match=words):
                environments.make(name)

    def test_an_environment_of_ones_own_is_made_by_its_name(self, empty_registry):
        environments.register("Mine-v0", make_mine)
        assert environments.names() == ("Mine-v0",)
        assert environments.make("Mine-v0").name == "Mine-v0"
        assert environments.make("Mine-v0").max_steps == CARTPOLE.max_steps
        dataclasses.replace(DQNConfig(), env="Mine-v0").validate()

    @pytest.mark.parametrize("name", [None, 3, "", ("Mine-v0",)])
    def test_what_is_no_name_is_refused(self, name, empty_registry):
        with pytest.raises(ConfigError, match="must be a name, such as 'My-v0'"):
            environments.register(name, make_mine)
        assert environments.names() == ()

    def test_what_is_no_function_is_refused(self, empty_registry):
        with pytest.raises(ConfigError, match="must be a function without arguments"):
            environments.register("Mine-v0", make_mine())
        assert environments.names() == ()

    def test_a_function_that_is_defined_again_takes_the_place_of_the_first(self, empty_registry):
        environments.register("Mine-v0", make_mine)
        environments.register("Mine-v0", make_mine)
        other = make_mine()._replace(max_steps=7)
        environments.register("Mine-v0", define_again(other))
        assert environments.make("Mine-v0") is other

    @pytest.mark.parametrize(
        "other",
        [
            record,
            lambda: make_mine(),
            functools.partial(make_mine),
            functools.partial(define_again, make_mine()),
        ],
    )
    @pytest.mark.parametrize("first", [make_mine, lambda: None, functools.partial(define_again)])
    def test_a_name_that_another_function_has_is_refused(self, first, other, empty_registry):
        environments.register("Mine-v0", first)
        with pytest.raises(ConfigError, match="'Mine-v0' is registered already: choose another"):
            environments.register("Mine-v0", other)
        environments.register("Mine-v0", first)

    def test_a_name_of_the_package_stays_what_it_is(self):
        with pytest.raises(ConfigError, match="'CartPole-v1' is registered already"):
            environments.register("CartPole-v1", functools.partial(cartpole, "CartPole-v1", 9, 1.0))
        assert environments.make("CartPole-v1").max_steps == 500

    def test_a_function_that_makes_something_else_is_refused(self, empty_registry):
        environments.register("Mine-v0", lambda: tuple(make_mine()))  # type: ignore[arg-type,return-value]
        with pytest.raises(ConfigError, match=r"'Mine-v0' must make an Environment, and made \("):
            environments.make("Mine-v0")

    def test_an_environment_of_another_name_is_refused(self, empty_registry):
        environments.register("Yours-v0", make_mine)
        with pytest.raises(ConfigError, match="as 'Yours-v0' is named 'Mine-v0': both must be"):
            environments.make("Yours-v0")


@pytest.mark.parametrize("name", environments._TASKS)
def test_what_a_list_says_of_the_package_s_own_is_what_they_are(name):
    env = environments.make(name)
    assert environments.describe(name) == environments.facts_of(env)
