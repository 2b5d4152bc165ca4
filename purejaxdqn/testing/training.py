"""Checks a training run: on probe environments whose values are known, and over seeds."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from purejaxdqn.agents.dqn.dqn import DQNConfig, Train, dqn
from purejaxdqn.environments import Environment
from purejaxdqn.networks import value_network
from purejaxdqn.testing.report import Check, Report, attempt, expect, print_and_raise, unprinted
from purejaxdqn.testing.tabular import probes
from purejaxdqn.types import Array, TimeStep, TrainState

_NUM_SEEDS = 3
_NUM_ITERATIONS = 2_503  # a prime: a count that begins anew from time to time is not 0 in the end
_WATCHED_STEPS = 40
_REMEDY = "split every key from the one that init is given"


@print_and_raise
def check_training(
    experiment: Callable[..., Train] = dqn, config: DQNConfig | None = None
) -> Report:
    """Trains on five probes whose values are known, prints a table, and raises if a row failed.

    It finds mistakes that a loss cannot see: a time limit that is learned as a death, gamma where
    gamma to the n belongs, windows that reach across episodes, a terminal transition that
    bootstraps, seeds or environments that share a stream of random numbers. The network is a table,
    so that learned values are exact. Whether the loss is sound, `check_loss` says. The counters of
    the state must be true at the end. An `optimizer` of the experiment's own, a keyword of
    `functools.partial`, is asked in a run of its own whether it leads to the known values.

    It returns and raises as `check_loss`.

    Args:
      experiment: `(config, env=, network=, optimizer=) -> Train`, such as `dqn`, or
        `functools.partial(dqn, loss_fn=mine)` for a loss of action values that converges to the
        optimal ones.
      config: of its settings those that say how transitions are made are kept: num_envs, n_step,
        prioritised, sample_with_replacement and penalty. By default n_step is 3.
    """
    given = config or DQNConfig(n_step=3)
    config = _shorten(given)
    name = getattr(experiment, "__qualname__", None) or repr(experiment)
    network = value_network(probes.NUM_ACTIONS, ())
    learned: list[Any] = []

    def make(env: Environment) -> Train:
        return experiment(config, env=env, network=network, optimizer=optax.sgd)

    def values_of(state: TrainState) -> np.ndarray:
        params = state.learner.params
        values = jax.vmap(lambda obs: network.action_values(network.apply(params, obs)))
        return np.asarray(values(jnp.eye(probes.NUM_OBS)), np.float64)

    def learn() -> str:
        _, state = _run(make(probes.make_probe_environment()), config.num_iterations)
        learned.extend([values_of(state), state])
        return f"{config.total_steps} steps"

    def check_optimizer() -> str | None:
        if "optimizer" not in getattr(experiment, "keywords", {}):
            return None
        ends = ("learning_rate", "learning_rate_end_fraction", "max_grad_norm")
        own = dataclasses.replace(config, **{x: getattr(given, x) for x in ends})
        train = experiment(own, env=probes.make_probe_environment(), network=network)
        return probes.check_approach(*map(values_of, _run(train, config.num_iterations)))

    checks = [attempt("trains", learn)]
    if learned:
        values, state = learned
        why = "gradient steps are fewer than were taken: what resets their count is not judged"
        checks.append(attempt("counters", _check_counters, config, state, why_not=why))
        checks += _check_streams(make) + probes.check_probes(values, config.n_step)
        why = "plain gradient descent stands in its place: it is no keyword of a partial"
        checks.append(attempt("the optimizer", check_optimizer, why_not=why))
    return Report(name, tuple(checks))


training_report = unprinted(check_training)


def _run(train: Train, num_iterations: int) -> tuple[TrainState, TrainState]:
    """Trains; returns the states before and after."""
    state = jax.jit(train.init)(jax.random.key(0))
    chunk = jax.jit(train.chunk, static_argnums=2)
    return state, chunk(state, jnp.int32(num_iterations), num_iterations)[0]


def _shorten(config: DQNConfig) -> DQNConfig:
    """Makes a short run that learns tables exactly, with transitions made as `config` has them."""
    num_envs = config.num_envs
    prefill = num_envs * max(math.ceil(400 / num_envs), _WATCHED_STEPS)
    settings = dataclasses.replace(
        config,
        total_steps=prefill + _NUM_ITERATIONS * num_envs,
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
        discount=probes.DISCOUNT,
        learning_rate=1.0,
        learning_rate_end_fraction=0.2,
        max_grad_norm=float("inf"),
        target_period=10,
        target_step_size=1.0,
        epsilon_schedule="linear",
        epsilon_start=1.0,
        epsilon_end=1.0,
        eval_interval=prefill + _NUM_ITERATIONS * num_envs,
    )
    settings.validate()
    return settings


def _check_counters(config: DQNConfig, state: TrainState) -> str | None:
    """Checks the counters at the end of a run; None where those of gradient steps began anew."""
    steps, updates = int(state.num_steps), int(state.learner.num_updates)
    right = config.total_steps, config.num_iterations * config.updates_per_iteration
    wrong = (
        f"after {right[0]} environment steps and {right[1]} gradient steps num_steps is {steps} "
        f"and num_updates {updates}: schedules read them, so that each step must count one"
    )
    expect(steps == right[0] and 0 < updates <= right[1], f"{steps}, {updates}", wrong)
    return f"{steps}, {updates}" if updates == right[1] else None


def _make_watched_environment() -> Environment:
    """Makes an endless episode that records every action `[T]`, and a draw from every key."""
    obs, never = jnp.ones(probes.NUM_OBS), jnp.zeros((), bool)

    def reset(key: Array) -> tuple[tuple[Array, ...], Array]:
        nothing, start = jnp.zeros(_WATCHED_STEPS), jax.random.uniform(key)
        return (start, nothing, nothing, jnp.zeros((), jnp.int32)), obs

    def step(key: Array, state: tuple[Array, ...], action: Array) -> tuple[Any, TimeStep]:
        start, noise, actions, at = state
        noise = noise.at[at].set(jax.random.uniform(key), mode="drop")
        actions = actions.at[at].set(action, mode="drop")
        return (start, noise, actions, at + 1), TimeStep(obs, jnp.ones(()), never, never)

    return probes.make_probe_environment()._replace(reset=reset, step=step, max_steps=1_000_000)


def _check_streams(make: Callable[[Environment], Train]) -> list[Check]:
    """Checks that seeds, and the environments of a seed, have streams of their own."""
    init = jax.jit(make(_make_watched_environment()).init)
    states = [init(jax.random.key(seed)) for seed in range(_NUM_SEEDS)]
    watched = zip(*(state.env_state for state in states), strict=True)
    starts, noise, actions, _ = map(np.concatenate, watched)

    def check_weights() -> str:
        weights = [ravel_pytree(state.learner.params)[0] for state in states]
        same = any(np.array_equal(*pair) for pair in itertools.combinations(weights, 2))
        wrong = "seeds share a stream: different keys give the same initial weights"
        return expect(not same, "equal" if same else "differ", f"{wrong}; {_REMEDY}")

    def check_noise() -> str:
        _compare_lanes("first states", starts[:, np.newaxis])
        alike = max(1 - len(np.unique(lane)) / len(lane) for lane in noise)
        wrong = "the key of an environment's step is the same at each step: split a new one"
        expect(alike < 0.5, f"{alike:.0%} alike", wrong)
        return _compare_lanes("draws in the environment", noise)

    return [
        attempt("streams: initial weights", check_weights),
        attempt("streams: actions", _compare_lanes, "actions", actions, 0.95),
        attempt("streams: environments", check_noise),
    ]


def _compare_lanes(what: str, values: np.ndarray, most: float = 0.5) -> str:
    """Fails where lanes `[seeds * environments, entries]` agree in more than a share of entries."""
    lanes = itertools.combinations(range(len(values)), 2)
    share, *pair = max((float((values[i] == values[j]).mean()), i, j) for i, j in lanes)
    (seed, env), (other, other_env) = (divmod(lane, len(values) // _NUM_SEEDS) for lane in pair)
    who = f"seeds {seed} and {other} share a stream (environments {env} and {other_env})"
    if seed == other:
        who = f"environments {env} and {other_env} of a seed share a stream"
    rule = f"{_REMEDY}, once for each use and each environment"
    wrong = f"{who}: {share:.0%} of their {what} are the same; {rule}"
    return expect(share <= most, f"{share:.0%} alike", wrong)
