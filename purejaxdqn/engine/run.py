"""Says what one run of any experiment is, and makes its functions, which `programs` compiles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.diagnostics import diagnose
from purejaxdqn.training.evaluation import evaluate
from purejaxdqn.training.loop import ChunkOutputs, Experiment
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import Array, ConfigError, Params, TrainState

Label = float | int | bool | str  # a coordinate of the results

SEED = jax.ShapeDtypeStruct((), np.uint32)
COUNT = jax.ShapeDtypeStruct((), np.int32)  # of steps or iterations

_CHUNK_STEPS = 20_000  # of one run, for which a chunk's outputs have room


class Run(NamedTuple):
    """One run of an experiment: its settings and its seed.

    Attributes:
      seed: from 0 to 2**32 - 1.
      config: all settings.
      labels: the swept settings and the seed by name, with values as the results show them.
    """

    seed: int
    config: RunConfig
    labels: Mapping[str, Label]


def max_iterations_of(config: RunConfig) -> int:
    """Computes how many iterations a chunk can run: its outputs have room for so many."""
    return max(1, min(_CHUNK_STEPS // config.steps_per_update, config.num_iterations))


class RunKeys(NamedTuple):
    """The PRNG keys `[]` of a run, one for each purpose."""

    training: Array
    evaluation: Array
    diagnostics: Array


def run_keys(seed: Array) -> RunKeys:
    """Makes the keys of a run from its seed."""
    key = jax.random.key(seed)
    training_key, evaluation_key = jax.random.split(key)
    # The split took 0 and 1: folding in 2 gives a third stream of its own.
    return RunKeys(training_key, evaluation_key, jax.random.fold_in(key, 2))


class OneRun(NamedTuple):
    """The functions of one run, to be traced, with the shapes of their arguments.

    Attributes:
      init: `(config, seed) -> TrainState`.
      chunk: `(config, TrainState, num_iterations [1]) -> (TrainState, ChunkOutputs)`.
      evaluate: `(config, params, seed, step) -> episode returns [N]`.
      diagnose: `(config, TrainState, params before, seed, step) -> diagnostics` by name.
      config: the settings, with a shape for each traced one.
      state: the shapes of the state that `init` makes.
    """

    init: Callable[[RunConfig, Array], TrainState]
    chunk: Callable[[RunConfig, TrainState, Array], tuple[TrainState, ChunkOutputs]]
    evaluate: Callable[[RunConfig, Params, Array, Array], Array]
    diagnose: Callable[..., dict[str, Array]]
    config: RunConfig
    state: TrainState


def make_run_functions(experiment: Experiment, config: RunConfig) -> OneRun:
    """Makes the functions of a run, which take the traced settings as arguments.

    Settings that are constants in the program would give other bits, so floats must stay arguments.

    Args:
      experiment: `config -> Train`, called inside the traced functions.
      config: the settings; the values of the traced ones do not matter here.

    Returns:
      The functions; `diagnose` raises `ConfigError` if the training run has no `probe`.

    Raises:
      ConfigError: if the experiment needs the value of a traced setting.
    """
    max_iterations = max_iterations_of(config)

    def init(config: RunConfig, seed: Array) -> TrainState:
        return experiment(config).init(run_keys(seed).training)

    def chunk(
        config: RunConfig, state: TrainState, num_iterations: Array
    ) -> tuple[TrainState, ChunkOutputs]:
        return experiment(config).chunk(state, num_iterations[0], max_iterations)

    def evaluate_run(config: RunConfig, params: Params, seed: Array, step: Array) -> Array:
        train = experiment(config)
        key = jax.random.fold_in(run_keys(seed).evaluation, step)
        return evaluate(train.policy(params), train.env, key, config.eval_episodes).episode_return

    def diagnose_run(
        config: RunConfig, state: TrainState, params_before: Params, seed: Array, step: Array
    ) -> dict[str, Array]:
        train = experiment(config)
        if train.probe is None:
            raise ConfigError(
                "diagnostics (True) need a training run with a probe: give its Train one, as "
                "dqn does, or leave diagnostics False"
            )
        key = jax.random.fold_in(run_keys(seed).diagnostics, step)
        return diagnose(train.probe, train.env, state, params_before, key)

    def start(config: RunConfig, seed: Array) -> None:
        """Does once all that a run does."""
        state, _ = chunk(config, init(config, seed), jax.numpy.ones(1, np.int32))
        params, step = state.learner.params, state.num_steps
        evaluate_run(config, params, seed, step)
        if experiment(config).probe is not None:
            diagnose_run(config, state, params, seed, step)

    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), np.float32), config)
    explain = functools.partial(_explaining, start=start, config=config)
    state = jax.eval_shape(explain(init), shapes, SEED)
    jax.eval_shape(explain(chunk), shapes, state, jax.ShapeDtypeStruct((1,), COUNT.dtype))
    return OneRun(
        explain(init), explain(chunk), explain(evaluate_run), explain(diagnose_run), shapes, state
    )


_NEEDS_A_VALUE = (  # raised by JAX if Python asks for the value of an argument
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _explaining(
    function: Callable[..., Any], start: Callable[[RunConfig, Array], None], config: RunConfig
) -> Callable[..., Any]:
    """Makes a function name the traced setting for whose value it asks."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except _NEEDS_A_VALUE as error:
            raise _explain(error, start, config) from error

    return call


def _explain(
    error: Exception, start: Callable[[RunConfig, Array], None], config: RunConfig
) -> Exception:
    """Makes an error that names the traced setting for whose value an experiment asks."""

    def asks_for(name: str) -> bool:
        def start_with(value: Array, seed: Array) -> None:
            start(dataclasses.replace(config, **{name: value}), seed)  # type: ignore[arg-type]

        try:
            jax.eval_shape(start_with, jax.ShapeDtypeStruct((), np.float32), SEED)
        except _NEEDS_A_VALUE:
            return True
        return False

    for setting in settings_of(type(config)).values():
        if setting.is_traced and asks_for(setting.name):
            return ConfigError(
                f"the experiment needs the value of {setting.name} while it is traced, but it is "
                "an argument of the compiled program, which has no value yet: compute with it, as "
                "with jnp.where, or declare it static, such as "
                f"{setting.name}: float = setting({setting.default!r}, help, static=True)"
            )
    return error
