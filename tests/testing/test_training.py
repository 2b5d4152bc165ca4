"""`check_training`: the package's own runs pass, and each mistake in a run is named."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.losses import bellman_loss, q_learning
from purejaxdqn.testing import CheckError, check_training, training_report


def changed_environment(**fields):
    """An experiment whose environments' answers are changed by `f(timestep)`."""

    def experiment(config, *, env, **parts):
        def step(key, state, action):
            state, timestep = env.step(key, state, action)
            return state, timestep._replace(**{n: f(timestep) for n, f in fields.items()})

        return dqn(config, env=env._replace(step=step), **parts)

    return experiment


def terminal_bootstraps(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    discount_t = jnp.where(discount_t > 0, discount_t, 0.9)
    return q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector)


def one_key_for_all(config, **parts):
    train = dqn(config, **parts)
    return train._replace(init=lambda key: train.init(jax.random.key(0)))


def one_key_for_weights(config, *, network, **parts):
    fixed = network._replace(init=lambda key, obs: network.init(jax.random.key(0), obs))
    return dqn(config, network=fixed, **parts)


def one_key_for_environments(config, *, env, **parts):
    def step(key, state, action):
        return env.step(jax.random.key(1), state, action)

    return dqn(config, env=env._replace(step=step), **parts)


def another_discount(config, **parts):
    return dqn(dataclasses.replace(config, discount=0.9**3), **parts)


def never_trains(config, **parts):
    train = dqn(config, **parts)
    return train._replace(chunk=lambda state, n, most: train.chunk(state, 0 * n, most))


def broken(config, **parts):
    raise ValueError("no such thing")


TRAININGS = {
    "death": (
        changed_environment(
            terminated=lambda t: t.terminated | t.truncated,
            truncated=lambda t: jnp.zeros((), bool),
        ),
        "time limit: .*is learned as a death",
    ),
    "no end": (
        functools.partial(dqn, loss_fn=bellman_loss(terminal_bootstraps)),
        "a terminal transition bootstraps",
    ),
    "windows across episodes": (
        changed_environment(
            truncated=lambda t: jnp.zeros((), bool), terminated=lambda t: jnp.zeros((), bool)
        ),
        "probe: ",
    ),
    "seeds": (one_key_for_all, r"seeds \d and \d share a stream"),
    "weights": (one_key_for_weights, "different keys give the same initial weights"),
    "environments": (one_key_for_environments, "same at each step|share a stream"),
    "another discount": (another_discount, "probe: time limit"),
    "nothing is learned": (never_trains, "probe: constant reward"),
    "an exception": (broken, "trains: raises ValueError: no such thing"),
}


@pytest.fixture(scope="module")
def small():
    return DQNConfig(n_step=3, num_envs=2)


def test_the_package_trains(small, capsys):
    assert check_training(config=small).passed
    assert "probe: time limit" in capsys.readouterr().out
    prioritised = dataclasses.replace(small, n_step=1, prioritised=True)
    assert training_report(config=prioritised).failures == ()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_mistake_in_a_training_run_is_named(name, small):
    experiment, pattern = TRAININGS[name]
    with pytest.raises(CheckError, match=pattern):
        check_training(experiment, small)
