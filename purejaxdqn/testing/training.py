"""Checks a training run: on probe environments whose values are known, and over seeds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from purejaxdqn.agents.dqn.dqn import DQNConfig, Train, dqn
from purejaxdqn.environments import Environment
from purejaxdqn.networks import value_network
from purejaxdqn.testing.report import (
    Check,
    Report,
    attempt,
    expect,
    print_and_raise,
    without_printing,
)
from purejaxdqn.testing.tabular.probe_environment import (
    NUM_ACTIONS,
    NUM_OBS,
    make_probe_environment,
)
from purejaxdqn.testing.tabular.probe_values import check_probes
from purejaxdqn.types import Array, TimeStep

_DISCOUNT = 0.9
_NUM_SEEDS = 3
_WATCHED_STEPS = 40


@print_and_raise
def check_training(
    experiment: Callable[..., Train] = dqn, config: DQNConfig | None = None
) -> Report:
    """Trains on five probes whose values are known, prints a table, and raises if a row failed.

    It finds mistakes that a loss cannot see: a time limit that is learned as a death, gamma where
    gamma to the n belongs, windows that reach across episodes, a terminal transition that
    bootstraps, seeds or environments that share a stream of random numbers. The network is a table,
    so that learned values are exact. Whether the loss is sound, `check_loss` says.

    `training_report` has the same arguments, and neither prints nor raises.

    Args:
      experiment: `(config, env=, network=, optimizer=) -> Train`, such as `dqn`, or
        `functools.partial(dqn, loss_fn=mine)` for a loss of action values that converges to the
        optimal ones.
      config: of its settings those that say how transitions are made are kept: num_envs, n_step,
        prioritised, sample_with_replacement and penalty. By default n_step is 3.

    Returns:
      The `Report`, all of whose rows passed.

    Raises:
      CheckError: an AssertionError with the message of every failure; its `report` has the rows.
    """
    config = _shorten(config or DQNConfig(n_step=3))
    name = getattr(experiment, "__qualname__", None) or repr(experiment)
    network = value_network(NUM_ACTIONS, ())
    trained: list[Any] = []

    def make(env: Environment) -> Train:
        return experiment(config, env=env, network=network, optimizer=optax.sgd)

    def learn() -> str:
        train = make(make_probe_environment())
        state = jax.jit(train.init)(jax.random.key(0))
        chunk = jax.jit(train.chunk, static_argnums=2)
        state, _ = chunk(state, jnp.int32(config.num_iterations), config.num_iterations)
        trained.append(state.learner.params)
        return f"{config.total_steps} steps"

    checks = [attempt("trains", learn)]
    if not trained:
        return Report(name, tuple(checks))
    checks += _check_streams(make)
    outputs = jax.vmap(network.apply, in_axes=(None, 0))(trained[0], jnp.eye(NUM_OBS))
    learned = np.asarray(jax.vmap(network.action_values)(outputs), np.float64)
    return Report(name, (*checks, *check_probes(learned, _DISCOUNT, config.n_step)))


training_report = without_printing(check_training)


def _shorten(config: DQNConfig) -> DQNConfig:
    """Makes a short run that learns tables exactly, with transitions made as `config` has them."""
    num_envs = config.num_envs
    prefill = num_envs * math.ceil(max(400, _WATCHED_STEPS * num_envs) / num_envs)
    settings = dataclasses.replace(
        config,
        total_steps=prefill + 2_500 * num_envs,
        steps_per_update=num_envs,
        updates_per_iteration=1,
        prefill_steps=prefill,
        replay_capacity=num_envs * math.ceil(2_000 / num_envs),
        batch_size=64,
        representation="values",
        td_error="q_learning",
        munchausen=False,
        dueling=False,
        noisy=False,
        discount=_DISCOUNT,
        learning_rate=1.0,
        learning_rate_end_fraction=0.2,
        max_grad_norm=float("inf"),
        target_period=10,
        target_step_size=1.0,
        epsilon_schedule="linear",
        epsilon_start=1.0,
        epsilon_end=1.0,
        eval_interval=prefill + 2_500 * num_envs,
    )
    settings.validate()
    return settings


# ------------------------------------------------------------------------------------------- seeds


@flax.struct.dataclass
class WatchedState:
    """The random numbers that an environment was given: `start` `[]`, `noise`, `action` `[T]`."""

    start: Array
    noise: Array
    action: Array
    num_steps: Array


def _make_watched_environment() -> Environment:
    """Makes an endless episode that records every action, and a draw from every key."""

    def reset(key: Array) -> tuple[WatchedState, Array]:
        nothing = jnp.zeros(_WATCHED_STEPS)
        start = jax.random.uniform(key)
        return WatchedState(start, nothing, nothing, jnp.zeros((), jnp.int32)), jnp.ones(NUM_OBS)

    def step(key: Array, state: WatchedState, action: Array) -> tuple[WatchedState, TimeStep]:
        at = state.num_steps
        state = WatchedState(
            state.start,
            state.noise.at[at].set(jax.random.uniform(key), mode="drop"),
            state.action.at[at].set(action, mode="drop"),
            at + 1,
        )
        never = jnp.zeros((), bool)
        return state, TimeStep(jnp.ones(NUM_OBS), jnp.ones(()), never, never)

    return make_probe_environment()._replace(reset=reset, step=step, max_steps=1_000_000)


def _check_streams(make: Callable[[Environment], Train]) -> list[Check]:
    """Checks that seeds, and the environments of a seed, have streams of their own."""
    init = jax.jit(make(_make_watched_environment()).init)
    states = [init(jax.random.key(seed)) for seed in range(_NUM_SEEDS)]
    watched = jax.tree.map(lambda *x: np.stack(x), *(state.env_state for state in states))
    num_envs = watched.start.shape[1]
    lanes = jax.tree.map(lambda x: x.reshape(_NUM_SEEDS * num_envs, *x.shape[2:]), watched)

    def check_weights() -> str:
        leaves = [jax.tree.leaves(state.learner.params) for state in states]
        same = any(
            all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))
            for one, other in itertools.combinations(leaves, 2)
        )
        return expect(
            not same,
            "equal" if same else "differ",
            "seeds share a stream: different keys give the same initial weights; derive every key "
            "from the one that init is given",
        )

    def check_actions() -> str:
        return _compare_lanes("actions", lanes.action, 0.95, num_envs)

    def check_noise() -> str:
        _compare_lanes("first states", lanes.start[:, np.newaxis], 0.5, num_envs)
        for lane in lanes.noise:
            alike = 1 - len(np.unique(lane)) / len(lane)
            expect(
                alike < 0.5,
                f"{alike:.0%} alike",
                "the key of an environment's step is the same at each step: split a new one",
            )
        return _compare_lanes("draws in the environment", lanes.noise, 0.5, num_envs)

    return [
        attempt("streams: initial weights", check_weights),
        attempt("streams: actions", check_actions),
        attempt("streams: environments", check_noise),
    ]


def _compare_lanes(what: str, values: np.ndarray, most: float, num_envs: int) -> str:
    """Fails where two lanes agree in more than a share `most` of their entries.

    Args:
      what: names the entries in the message.
      values: `[lanes, entries]`, the environments of a seed side by side.
      most: above it, a share of equal entries is no chance.
      num_envs: lanes of a seed.
    """
    alike = {
        pair: float((values[pair[0]] == values[pair[1]]).mean())
        for pair in itertools.combinations(range(len(values)), 2)
    }
    pair = max(alike, key=alike.__getitem__)
    highest = alike[pair]
    (seed, env), (other, other_env) = (divmod(lane, num_envs) for lane in pair)
    who = (
        f"environments {env} and {other_env} of a seed share a stream"
        if seed == other
        else f"seeds {seed} and {other} share a stream (environments {env} and {other_env})"
    )
    return expect(
        highest <= most,
        f"{highest:.0%} alike",
        f"{who}: {highest:.0%} of their {what} are the same; split every key from the one that "
        "init is given, once for each use and each environment",
    )
