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
COUNTS = jax.ShapeDtypeStruct((1,), np.int32)  # the part of one device

_CHUNK_STEPS = 20_000  # of one run, for which a chunk's outputs have room


class Run(NamedTuple):
    """One run of an experiment: its settings and its seed."""

    seed: int  # from 0 to 2**32 - 1
    config: RunConfig
    labels: Mapping[str, Label]  # the swept settings and the seed, as the results show them


def max_iterations_of(config: RunConfig) -> int:
    """Computes how many iterations a chunk can run: its outputs have room for so many."""
    return max(1, min(_CHUNK_STEPS // config.steps_per_update, config.num_iterations))


def run_keys(seed: Array) -> tuple[Array, Array, Array]:
    """Makes the keys `[]` of a run for training, evaluation and diagnostics from its seed."""
    key = jax.random.key(seed)
    training_key, evaluation_key = jax.random.split(key)
    # The split took 0 and 1: folding in 2 gives a third stream of its own.
    return training_key, evaluation_key, jax.random.fold_in(key, 2)


class OneRun(NamedTuple):
    """The functions of one run, to be traced, with the shapes of their arguments.

    They are those of `Programs` without the axis of slots; a chunk takes `num_iterations [1]`.
    `diagnose` raises `ConfigError` if the training run has no `probe`.
    """

    init: Callable[..., TrainState]
    chunk: Callable[..., tuple[TrainState, ChunkOutputs]]
    evaluate: Callable[..., Array]
    diagnose: Callable[..., dict[str, Array]]
    config: RunConfig  # with a shape for each traced setting
    state: TrainState  # as shapes


def make_run_functions(experiment: Experiment, config: RunConfig) -> OneRun:
    """Makes the functions of a run, which take the traced settings as arguments.

    Settings that are constants in the program would give other bits, so floats must stay arguments.

    Args:
      experiment: `config -> Train`, called inside the traced functions.
      config: the settings; the values of the traced ones do not matter here.

    Raises:
      ConfigError: if the experiment needs the value of a traced setting.
    """
    explaining = functools.partial(_explaining, config)

    @explaining
    def init(config: RunConfig, seed: Array) -> TrainState:
        training_key, _, _ = run_keys(seed)
        return experiment(config).init(training_key)

    @explaining
    def chunk(
        config: RunConfig, state: TrainState, num_iterations: Array
    ) -> tuple[TrainState, ChunkOutputs]:
        return experiment(config).chunk(state, num_iterations[0], max_iterations_of(config))

    @explaining
    def evaluate_run(config: RunConfig, params: Params, seed: Array, step: Array) -> Array:
        train = experiment(config)
        _, key, _ = run_keys(seed)
        key = jax.random.fold_in(key, step)
        return evaluate(train.policy(params), train.env, key, config.eval_episodes).episode_return

    @explaining
    def diagnose_run(
        config: RunConfig, state: TrainState, params_before: Params, seed: Array, step: Array
    ) -> dict[str, Array]:
        train = experiment(config)
        if train.probe is None:
            raise ConfigError(
                "diagnostics (True) need a training run with a probe: give its Train one, as "
                "make_train of DQN does, or leave diagnostics False"
            )
        _, _, key = run_keys(seed)
        key = jax.random.fold_in(key, step)
        return diagnose(train.probe, train.env, state, params_before, key)

    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), np.float32), config)
    state = jax.eval_shape(init, shapes, SEED)
    jax.eval_shape(chunk, shapes, state, COUNTS)
    return OneRun(init, chunk, evaluate_run, diagnose_run, shapes, state)


_NEEDS_A_VALUE = (  # raised by JAX if Python asks for the value of an argument
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _explaining(config: RunConfig, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function name the traced setting for whose value it asks."""

    @functools.wraps(function)
    def call(traced: RunConfig, *args: Any) -> Any:
        def asks_for(name: str) -> bool:
            try:
                function(dataclasses.replace(config, **{name: getattr(traced, name)}), *args)
            except _NEEDS_A_VALUE:
                return True
            return False

        try:
            return function(traced, *args)
        except _NEEDS_A_VALUE as error:
            for setting in settings_of(type(config)).values():
                if setting.is_traced and asks_for(setting.name):
                    raise ConfigError(
                        f"the experiment needs the value of {setting.name} while it is traced, but "
                        "it is an argument of the compiled program, which has no value yet: "
                        "compute with it, as with jnp.where, or declare it static, such as "
                        f"{setting.name}: float = setting({setting.default!r}, help, static=True)"
                    ) from error
            raise

    return call
