"""Experiments as compiled programs for a round of runs: vmapped on a device, sharded over all."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purejaxdqn.runtime.devices import Plan, compiler_options
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.diagnostics import diagnose
from purejaxdqn.training.evaluation import evaluate
from purejaxdqn.training.loop import ChunkOutputs, Train
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import Array, ArrayTree, ConfigError, Params, TrainState, run_axes

Experiment = Callable[[Any], Train]  # of a `RunConfig`, or of one of its kinds
Axis = int | str | None  # 0: an entry per run; None: the same in all; or _PER_DEVICE

SEED = jax.ShapeDtypeStruct((), np.uint32)
COUNT = jax.ShapeDtypeStruct((), np.int32)  # of steps or iterations

_CHUNK_STEPS = 20_000  # room for the outputs of a chunk, in environment steps of one run
_SHARED = PartitionSpec()
_PER_RUN = PartitionSpec("runs")
_PER_DEVICE = "device"  # an axis that the devices share out, and the runs of a device do not


def max_iterations_of(config: RunConfig) -> int:
    """The most iterations that a chunk can run; its outputs have room for so many."""
    return max(1, min(_CHUNK_STEPS // config.steps_per_update, config.num_iterations))


class Programs(NamedTuple):
    """A training run over a round of slots, compiled.

    Arrays have a leading axis of slots, sharded over the devices.

    Attributes:
      init: `(config, seeds [slots]) -> TrainState`.
      chunk: `(config, TrainState, num_iterations [devices]) -> (TrainState, ChunkOutputs)`; the
        state is donated. A device without a run gets 0 iterations.
      evaluate: `(config, params, seeds [slots], step []) -> episode returns [slots, N]`.
      diagnose: `(config, TrainState, params before, seeds [slots], step []) -> diagnostics
        [slots]` by name; None where nobody asked for it. The state is not donated.
      place: puts a host array with one entry per slot onto the devices.
      split: `TrainState or weights -> a list of host arrays for each device`, whatever their
        structure. On a CPU they are the devices' own memory: to be read before it is donated.
      join: what `split` gave, for as many devices or fewer, back onto the devices;
        `(lists, weights_only=False)`. Empties the lists on the way, so that not all of it is in
        memory twice.
      plan: how the runs are laid out.
      max_iterations: the most iterations a chunk can run.
      round_bytes: on the devices, while a round trains or is evaluated, as XLA has laid it out; 0
        where it does not say.
      compile_seconds: tracing, lowering and compiling.
    """

    init: Callable[[RunConfig, Array], TrainState]
    chunk: Callable[[RunConfig, TrainState, Array], tuple[TrainState, ChunkOutputs]]
    evaluate: Callable[[RunConfig, Params, Array, np.int32], Array]
    diagnose: Callable[..., dict[str, Array]] | None
    place: Callable[[np.ndarray], Array]
    split: Callable[[ArrayTree], list[list[np.ndarray]]]
    join: Callable[..., ArrayTree]
    plan: Plan
    max_iterations: int
    round_bytes: int
    compile_seconds: float


def run_keys(seed: Array) -> tuple[Array, Array, Array]:
    """The PRNG keys of a run: for its training, for its evaluations, and for its diagnostics."""
    key = jax.random.key(seed)
    training_key, evaluation_key = jax.random.split(key)
    # A split counts from 0: that number 2 would be the third of it keeps the streams apart.
    return training_key, evaluation_key, jax.random.fold_in(key, 2)


class OneRun(NamedTuple):
    """The functions of one run, to be traced, and the shapes of what they take.

    Attributes:
      init: `(config, seed) -> TrainState`.
      chunk: `(config, TrainState, num_iterations [1]) -> (TrainState, ChunkOutputs)`.
      evaluate: `(config, params, seed, step) -> episode returns [N]`.
      diagnose: `(config, TrainState, params before, seed, step) -> diagnostics` by name.
      config: the settings, with a shape for each traced one.
      state: what `init` gives, as shapes.
    """

    init: Callable[[RunConfig, Array], TrainState]
    chunk: Callable[[RunConfig, TrainState, Array], tuple[TrainState, ChunkOutputs]]
    evaluate: Callable[[RunConfig, Params, Array, Array], Array]
    diagnose: Callable[..., dict[str, Array]]
    config: RunConfig
    state: TrainState


def one_run(experiment: Experiment, config: RunConfig) -> OneRun:
    """Gives the functions of a run whose traced settings are arguments.

    As constants in the program, the same settings would give other bits.

    Args:
      experiment: `config -> Train`, called inside the traced functions.
      config: the settings; the values of the traced ones do not matter here.

    Returns:
      The functions, whose `diagnose` raises `ConfigError` where the training run has no `probe`.

    Raises:
      ConfigError: if the experiment needs the value of a traced setting.
    """
    max_iterations = max_iterations_of(config)

    def init(config: RunConfig, seed: Array) -> TrainState:
        return experiment(config).init(run_keys(seed)[0])

    def chunk(
        config: RunConfig, state: TrainState, num_iterations: Array
    ) -> tuple[TrainState, ChunkOutputs]:
        return experiment(config).chunk(state, num_iterations[0], max_iterations)

    def evaluate_run(config: RunConfig, params: Params, seed: Array, step: Array) -> Array:
        train = experiment(config)
        key = jax.random.fold_in(run_keys(seed)[1], step)
        return evaluate(train.policy(params), train.env, key, config.eval_episodes).episode_return

    def diagnose_run(
        config: RunConfig, state: TrainState, params_before: Params, seed: Array, step: Array
    ) -> dict[str, Array]:
        train = experiment(config)
        if train.probe is None:
            raise ConfigError(
                "diagnostics (True) need a training run with a probe: give its Train one, as "
                "make_train of DQN does, or leave diagnostics False"
            )
        key = jax.random.fold_in(run_keys(seed)[2], step)
        return diagnose(train.probe, train.env, state, params_before, key)

    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), np.float32), config)
    try:
        state = jax.eval_shape(init, shapes, SEED)
        jax.eval_shape(chunk, shapes, state, jax.ShapeDtypeStruct((1,), COUNT.dtype))
    except _NEEDS_A_VALUE as error:
        raise _explained(error, experiment, config) from error
    return OneRun(init, chunk, evaluate_run, diagnose_run, shapes, state)


_NEEDS_A_VALUE = (  # what JAX raises where Python asks for the value of an argument
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _explained(error: Exception, experiment: Experiment, config: RunConfig) -> Exception:
    """Makes an error of JAX one that names the traced settings whose values are asked for."""

    def asks_for(name: str) -> bool:
        def start(value: Array, seed: Array) -> Any:
            train = experiment(dataclasses.replace(config, **{name: value}))  # type: ignore[arg-type]
            return train.chunk(train.init(run_keys(seed)[0]), jax.numpy.int32(1), 1)

        try:
            jax.eval_shape(start, jax.ShapeDtypeStruct((), np.float32), SEED)
        except _NEEDS_A_VALUE:
            return True
        return False

    traced = [one for one in settings_of(type(config)).values() if one.is_traced]
    for setting in traced:
        if asks_for(setting.name):
            return ConfigError(
                f"the experiment needs the value of {setting.name} while it is traced, but it is "
                "an argument of the compiled program, which has no value yet: compute with it, as "
                "with jnp.where, or declare it static, such as "
                f"{setting.name}: float = setting({setting.default!r}, help, static=True)"
            )
    return error


def compile_programs(
    experiment: Experiment,
    config: RunConfig,
    plan: Plan,
    devices: Sequence[jax.Device],
    diagnostics: bool = False,
) -> Programs:
    """Compiles initialisation, training and evaluation for one round of a plan, each on its own.

    Diagnostics are one more program: those that train and evaluate are the same with and without.

    Args:
      experiment: `config -> Train`, called inside the traced functions.
      config: the settings; the values of the traced ones do not matter here.
      plan: how the runs are laid out.
      devices: at least `plan.num_devices`.
      diagnostics: whether to compile those too.

    Returns:
      The `Programs`.

    Raises:
      ConfigError: for diagnostics of a training run that has no `probe`.
    """
    start = time.perf_counter()
    mesh = Mesh(np.array(devices[: plan.num_devices]), ("runs",))
    run = one_run(experiment, config)

    def abstract(axes: ArrayTree, tree: ArrayTree) -> ArrayTree:
        """Shapes with their shardings."""
        lengths = {None: (), 0: (plan.slots_per_round,), _PER_DEVICE: (plan.num_devices,)}

        def leaf(axis: Axis, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = (*lengths[axis], *x.shape)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(mesh, _spec(axis)))

        return _map_axes(lambda axis, part: jax.tree.map(lambda x: leaf(axis, x), part), axes, tree)

    def compile_later(
        of_run: Callable[..., Any],
        in_axes: tuple[Any, ...],
        out_axes: Any,
        *args: Any,
        **options: Any,
    ) -> Future[jax.stages.Compiled]:
        """Traces now; XLA then compiles outside Python's lock, while the next one is traced."""
        over_runs = jax.shard_map(
            _on_device(of_run, plan.width, in_axes, out_axes),
            mesh=mesh,
            in_specs=_map_axes(_spec, in_axes),
            out_specs=_map_axes(_spec, out_axes),
            check_vma=False,
        )
        lowered = jax.jit(over_runs, **options).lower(*abstract(in_axes, args))
        return pool.submit(lowered.compile, compiler_options=compiler_options())

    config_shapes, state = run.config, run.state
    axes, params = run_axes(state), state.learner.params
    with ThreadPoolExecutor() as pool:
        chunk_program = compile_later(
            run.chunk,
            (0, axes, _PER_DEVICE),
            (axes, 0),
            config_shapes,
            state,
            COUNT,
            donate_argnums=1,
        )
        init_program = compile_later(run.init, (0, 0), axes, config_shapes, SEED)
        evaluate_program = compile_later(
            run.evaluate, (0, 0, 0, None), 0, config_shapes, params, SEED, COUNT
        )
        diagnose_program = None
        if diagnostics:
            diagnose_program = compile_later(
                run.diagnose, (0, axes, 0, 0, None), 0, config_shapes, state, params, SEED, COUNT
            )
    layout = _Layout(mesh, plan, state, axes)
    beside = [later.result() for later in (evaluate_program, diagnose_program) if later is not None]
    device_bytes = _device_bytes(chunk_program.result(), beside)
    return Programs(
        init=init_program.result(),
        chunk=chunk_program.result(),
        evaluate=evaluate_program.result(),
        diagnose=None if diagnose_program is None else diagnose_program.result(),
        place=lambda values: jax.device_put(values, NamedSharding(mesh, _PER_RUN)),
        split=layout.split,
        join=layout.join,
        plan=plan,
        max_iterations=max_iterations_of(config),
        round_bytes=plan.num_devices * device_bytes,
        compile_seconds=time.perf_counter() - start,
    )


def _device_bytes(chunk: jax.stages.Compiled, beside: Sequence[jax.stages.Compiled]) -> int:
    """The most that a device holds, in a chunk or in what runs beside its state; 0 if unknown."""
    sizes: list[Any] = [program.memory_analysis() for program in (chunk, *beside)]
    if None in sizes:
        return 0
    state: int = sizes[0].argument_size_in_bytes
    return state + max(
        size.output_size_in_bytes - size.alias_size_in_bytes + size.temp_size_in_bytes
        for size in sizes
    )


class _Layout:
    """Where the arrays of a round lie: between the devices' shards and lists of host arrays."""

    def __init__(self, mesh: Mesh, plan: Plan, state: ArrayTree, axes: ArrayTree) -> None:
        self._mesh, self._plan, self._state = mesh, plan, state
        spread = _map_axes(
            lambda axis, part: jax.tree.map(lambda _: _spec(axis), part), axes, state
        )
        self._specs = jax.tree.leaves(spread, is_leaf=lambda x: isinstance(x, PartitionSpec))

    def _parts(self, weights_only: bool) -> tuple[ArrayTree, list[PartitionSpec]]:
        if not weights_only:
            return self._state, self._specs
        params = self._state.learner.params
        return params, [_PER_RUN] * len(jax.tree.leaves(params))

    def split(self, tree: ArrayTree) -> list[list[np.ndarray]]:
        by_device: list[list[np.ndarray]] = [[] for _ in self._mesh.devices]
        for leaf in jax.tree.leaves(tree):
            data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
            shards = {shard.device: shard.data for shard in data.addressable_shards}
            for host, device in zip(by_device, self._mesh.devices, strict=True):
                host.append(np.asarray(shards[device]))
        return by_device

    def join(self, by_device: Sequence[list[np.ndarray]], weights_only: bool = False) -> Any:
        structure, specs = self._parts(weights_only)
        leaves = []
        for leaf, spec in zip(jax.tree.leaves(structure), specs, strict=True):
            shards: list[Array] = []
            for device, host in itertools.zip_longest(self._mesh.devices, by_device):
                if host is not None:  # else it stands still, on anything of the right shape
                    part = host.pop(0)
                # A copy: what NumPy shares would stay beside the one that is trained.
                shards.append(jax.device_put(part, device, may_alias=False).block_until_ready())
            del part
            shape = shards[0].shape
            if spec == _PER_RUN:
                shape = (self._plan.slots_per_round, *shape[1:])
            data = jax.make_array_from_single_device_arrays(
                shape, NamedSharding(self._mesh, spec), shards
            )
            leaves.append(jax.random.wrap_key_data(data) if _is_key(leaf) else data)
        return jax.tree.unflatten(jax.tree.structure(structure), leaves)


def _is_key(leaf: Any) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _on_device(
    run: Callable[..., Any], width: int, in_axes: tuple[Any, ...], out_axes: Any
) -> Callable[..., Any]:
    """`run` over the `width` runs of one device; a single one is not batched at all."""
    if width > 1:
        batched = _map_axes(lambda axis: None if axis == _PER_DEVICE else axis, in_axes)
        return jax.vmap(run, in_axes=batched, out_axes=out_axes)

    def index(axes: ArrayTree, tree: ArrayTree, at: Any) -> ArrayTree:
        def part(axis: Axis, subtree: ArrayTree) -> ArrayTree:
            return jax.tree.map(lambda x: x[at], subtree) if axis == 0 else subtree

        return _map_axes(part, axes, tree)

    return lambda *args: index(out_axes, run(*index(in_axes, args, 0)), None)


def _spec(axis: Axis) -> PartitionSpec:
    return _SHARED if axis is None else _PER_RUN


def _map_axes(function: Callable[..., Any], axes: ArrayTree, *trees: ArrayTree) -> ArrayTree:
    """`jax.tree.map` over a prefix of axes, in which None is a value of its own."""
    return jax.tree.map(function, axes, *trees, is_leaf=lambda axis: axis is None)
