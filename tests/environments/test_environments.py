"""How environments are stepped, registered and described; each task has a file of its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import environments
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.environments import step_and_reset
from purejaxdqn.environments.classic_control.cartpole import cartpole
from purejaxdqn.types import ConfigError

CARTPOLE = environments.make("CartPole-v1")


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
    monkeypatch.setattr(environments, "TASKS", {})


def make_mine():
    return environments.Environment(**{**CARTPOLE._asdict(), "name": "Mine-v0"})


def define_again(result=None):
    """A function as `make_mine`, by module and name, as a notebook's cell defines it anew."""

    def make():
        return result

    make.__module__, make.__qualname__ = make_mine.__module__, make_mine.__qualname__
    return make


class TestRegistry:
    def test_the_package_s_own_are_registered(self):
        assert environments.names() == tuple(sorted(environments.TASKS))
        assert [environments.make(name).name for name in environments.names()] == [
            *environments.names()
        ]

    def test_unknown_names_are_refused_with_the_nearest(self):
        for name, nearest in ("Cartpole-v1", "CartPole-v1"), ("Pong", "Acrobot-v1, CartPole-v0"):
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
            define_again,
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


@pytest.mark.parametrize("name", environments.TASKS)
def test_what_a_list_says_of_the_package_s_own_is_what_they_are(name):
    env = environments.make(name)
    assert environments.describe(name) == environments.facts_of(env)
