"""Runs so small that they take no time: a test changes of these settings what it is about."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.types import Step

TINY = DQNConfig(
    total_steps=480,
    num_envs=4,
    steps_per_update=4,
    prefill_steps=80,
    replay_capacity=120,
    batch_size=16,
    hidden_sizes=(8,),
    target_period=5,
    eval_interval=200,
    eval_episodes=3,
)
TINY_PQN = PQNConfig(
    total_steps=480,
    num_envs=4,
    num_steps=10,
    num_epochs=2,
    num_minibatches=5,
    hidden_sizes=(8,),
    eval_interval=240,
    eval_episodes=3,
)


@functools.cache
def compiled(experiment, config, as_users_have_it=False):
    """Returns `init` and `chunk` of a training run, which compile where they are first called.

    At the level of the suite, what is read beside may change the order in which numbers are added.
    """
    train = experiment(config)
    options = {"xla_backend_optimization_level": 3} if as_users_have_it else None
    chunk = jax.jit(train.chunk, static_argnums=2, compiler_options=options)
    return jax.jit(train.init), chunk


def bits(tree):
    """Returns every leaf's bytes, typed keys included."""
    return [
        np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ).tobytes()
        for x in jax.tree.leaves(tree)
    ]


def step_of(num_envs: int, number: Any = 0.0) -> Step:
    """A step whose observations and rewards are a number."""
    obs, flag = jnp.full((num_envs, 2), number), jnp.zeros(num_envs, bool)
    action, reward = jnp.zeros(num_envs, jnp.int32), jnp.full(num_envs, number)
    return Step(obs, action, reward, flag, flag, obs)


def assert_same_dataset(one, other):
    """Compares every variable of two datasets, to the bit."""
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        a, b = one[name].values, other[name].values
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert (a == b).all() if a.dtype.kind == "U" else a.tobytes() == b.tobytes(), name


# Scores of seeds: whole numbers, so that permuting, shifting and doubling them rounds nothing.
whole_scores = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=15)


def limits(interval):
    """Returns both ends of an interval that has them."""
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high
