"""Makes the functions of one run, and compiles them: vmapped on each device, sharded over all."""

import dataclasses
import functools
import inspect
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purejaxdqn.runtime.devices import Plan, available_cores, compiler_options
from purejaxdqn.runtime.interrupts import finish_first
from purejaxdqn.runtime.random_keys import make_key, wrap_key_data
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.diagnostics import diagnose, known_values
from purejaxdqn.training.evaluation import EpisodeStats, cap_of, evaluate
from purejaxdqn.training.loop import Experiment, Train, Trained
from purejaxdqn.training.schedules import Changing
from purejaxdqn.training.settings import RunConfig, record_reads
from purejaxdqn.types import Array, ArrayTree, ConfigError, Params, TrainState, run_axes

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
    key = make_key(seed)
    training_key, evaluation_key = jax.random.split(key)
    # The split took 0 and 1: folding in 2 gives a third stream of its own.
    return training_key, evaluation_key, jax.random.fold_in(key, 2)


class OneRun(NamedTuple):
    """The functions of one run, to be traced, with the shapes of their arguments.

    They are those of `Programs` without the axis of slots; a chunk takes `num_iterations [1]`.
    `diagnose` raises `ConfigError` if the training run has no `probe`.
    """

    config: RunConfig  # with a shape for each traced setting
    state: TrainState  # as shapes
    init: Callable[..., TrainState]
    chunk: Callable[..., Trained]
    evaluate: Callable[..., EpisodeStats]
    diagnose: Callable[..., dict[str, Array]]
    begin_anew: Callable[..., TrainState]
    read: frozenset[str]  # settings by name that init and chunk depend on
    train: Train  # as it was made in tracing, to look at

    @property
    def env(self) -> Any:
        """The environment."""
        return self.train.env


def make_run_functions(experiment: Experiment, config: RunConfig) -> OneRun:
    """Makes the functions of a run, which take the traced settings as arguments.

    Settings that are constants in the program would give other bits, so floats must stay arguments.
    Their values in `config` do not matter. The experiment, `config -> Train`, is called in tracing.

    Raises:
      ConfigError: if the experiment is no function of settings that makes a `Train`, or needs the
        value of a traced setting.
    """
    name = f"experiment ({getattr(experiment, '__qualname__', repr(experiment)):.60})"
    try:
        inspect.signature(experiment).bind(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} must be a function of the settings alone, such as dqn: {error}"
        ) from error

    made: list[Train] = []

    def make_train(config: RunConfig) -> Train:
        train = experiment(config)
        if not isinstance(train, Train):
            raise ConfigError(f"{name} must make a Train, as dqn does, and made {train!r:.60}")
        made.append(train)
        return train

    def init(config: RunConfig, seed: Array) -> TrainState:
        return make_train(config).init(run_keys(seed)[0])

    def chunk(config: RunConfig, state: TrainState, num_iterations: Array) -> Trained:
        return make_train(config).chunk(state, num_iterations[0], max_iterations_of(config))

    def evaluate_run(
        config: RunConfig, state: TrainState, seed: Array, step: Array
    ) -> EpisodeStats:
        train = make_train(config)
        key = jax.random.fold_in(run_keys(seed)[1], step)
        env, policy = train.env.in_evaluation(state.env_state), train.policy(state.learner.params)
        return evaluate(policy, env, key, config.eval_episodes, cap_of(config, env))

    def diagnose_run(
        config: RunConfig, state: TrainState, params_before: Params, seed: Array, step: Array
    ) -> dict[str, Array]:
        train = make_train(config)
        if train.probe is None:
            raise ConfigError(
                "diagnostics (True) need a training run with a probe: give its Train one, as "
                "dqn does, or leave diagnostics False"
            )
        key = jax.random.fold_in(run_keys(seed)[2], step)
        env = train.env.in_evaluation(state.env_state)
        return diagnose(train.probe, env, state, params_before, key, cap_of(config, env))

    anew = functools.partial(_begin_anew, experiment)
    own = [_explaining(config, x) for x in (init, chunk, evaluate_run, diagnose_run, anew)]
    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), np.float32), config)
    read_by_init, state = trace_reads(own[0], shapes, SEED)
    read_by_chunk, _ = trace_reads(own[1], shapes, state, COUNTS)
    return OneRun._make((shapes, state, *own, read_by_init | read_by_chunk, made[0]))


def _begin_anew(experiment: Experiment, config: RunConfig, state: TrainState) -> TrainState:
    anew = experiment(config).begin_anew
    assert anew is not None, "it is asked only where there is one"
    return anew(state)


def make_traced(experiment: Experiment, config: RunConfig) -> tuple[set[str], Train]:
    """Makes a `Train` in tracing, only to look at; also names the settings that this reads."""
    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), np.float32), config)
    made: list[Train] = []
    with record_reads() as read:
        jax.eval_shape(lambda traced: made.append(experiment(traced)), shapes)
    return read, made[0]


def trace_reads(
    function: Callable[..., Any], config: RunConfig, *args: ArrayTree
) -> tuple[frozenset[str], ArrayTree]:
    """Traces a function of settings, and finds those by name that its results depend on.

    Static settings count where Python reads them, traced ones where the program uses them.

    Returns:
      These names, and the function's results as shapes.
    """
    changing = {name: x for name, x in vars(config).items() if isinstance(x, Changing)}
    starts: dict[str, Any] = {name: x.start for name, x in changing.items()}
    if starts:
        jax.eval_shape(function, config, *args)  # refuses an experiment that follows no schedules
        config = dataclasses.replace(config, **starts)  # of which numbers are read in their place
    with record_reads() as read:
        closed, results = jax.make_jaxpr(function, return_shape=True)(config, *args)
    _, is_used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    traced = [name for name, one in settings_of(type(config)).items() if one.is_traced]
    used = [name for name, used in zip(traced, is_used, strict=False) if used]
    return frozenset(read - {*traced} | {*used}), results


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


# ------------------------------------------------------------------------------ a round of runs

# An array has an entry for each run (0), one for each device, which all of its runs share
# (_PER_DEVICE), or one that all runs share (None).
Axis = int | str | None
_PER_DEVICE = "device"
_Argument = tuple[ArrayTree, ArrayTree]  # its axes, a prefix of its shapes in one run


class Programs(NamedTuple):
    """The compiled programs of a round of runs, one in each slot.

    Arrays have a leading axis of slots, sharded over the devices.
    """

    init: Callable[..., TrainState]  # of (config, seeds [slots])
    # Of (config, TrainState, num_iterations [devices]): the state is donated. A device without a
    # run gets 0 iterations.
    chunk: Callable[..., Trained]
    # Of (config, TrainState, seeds [slots], step []): of greedy episodes [slots, N].
    evaluate: Callable[..., EpisodeStats]
    # Of (config, TrainState, params before, seeds [slots], step []): diagnostics [slots] by name.
    diagnose: Callable[..., dict[str, Array]] | None  # None if it was not asked for
    # Of (config, TrainState), which is donated: begins new episodes. None where that is not needed,
    # or cannot be done
    begin_anew: Callable[..., TrainState] | None
    plan: Plan  # how the runs are laid out
    mesh: Mesh
    state: TrainState  # as shapes, with their shardings
    round_bytes: int  # on all devices while a round trains or is evaluated, by XLA; 0 if unknown
    compile_seconds: float  # of tracing, lowering and compiling
    max_steps: int  # of an evaluation's episode
    # Of a discount: the optimal values [S, A] of a small task, for diagnostics; None without both
    optimal_values: Callable[[float], np.ndarray] | None = None

    def place(self, values: ArrayTree) -> ArrayTree:
        """Puts host arrays with one entry per slot, or per device, onto the devices."""
        return jax.device_put(values, NamedSharding(self.mesh, _spec(0)))

    def split(self, tree: ArrayTree) -> list[list[np.ndarray]]:
        """Copies a `TrainState` or weights to a list of host arrays for each device.

        On a CPU these share the memory of the devices: read them before it is donated.
        """
        arrays = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]
        shards = [{shard.device: shard.data for shard in x.addressable_shards} for x in arrays]
        return [[np.asarray(of[device]) for of in shards] for device in self.mesh.devices]

    def join(self, by_device: Sequence[list[np.ndarray]], weights_only: bool = False) -> ArrayTree:
        """Puts the lists of `split`, of as many devices or fewer, back; empties them on the way."""
        tree = self.state.learner.params if weights_only else self.state
        leaves, structure = jax.tree.flatten(tree)
        joined = []
        for leaf in leaves:
            shards = []
            for device, host in itertools.zip_longest(self.mesh.devices, by_device):
                if host is not None:  # a device without a run takes the arrays of another
                    part = host.pop(0)  # so that not all arrays are in memory twice
                # Without the copy, NumPy's memory would stay beside the state that trains.
                shards.append(jax.device_put(part, device, may_alias=False).block_until_ready())
            del part
            shape = (*leaf.shape, *shards[0].shape[leaf.ndim :])  # the data of a key has an axis
            data = jax.make_array_from_single_device_arrays(shape, leaf.sharding, shards)
            joined.append(wrap_key_data(data) if _is_key(leaf) else data)
        return jax.tree.unflatten(structure, joined)


def compile_programs(
    experiment: Experiment,
    config: RunConfig,
    plan: Plan,
    devices: Sequence[jax.Device],
    diagnostics: bool = False,
    run: OneRun | None = None,
) -> Programs:
    """Compiles initialisation, training and evaluation for one round of a plan, each on its own.

    Diagnostics are one more program, and leave the others as they are. `experiment` and `config`
    are as in `make_run_functions`, and `run` is what that has made of them, where it was called
    before. There must be at least as many `devices` as in the plan.

    Raises:
      ConfigError: as `make_run_functions`, and for diagnostics of a training run without a `probe`.
    """
    start = time.perf_counter()
    run = run or make_run_functions(experiment, config)
    is_known = diagnostics and run.env.tabular is not None
    known = known_values(run.env.tabular()) if is_known else None
    state_axes = run_axes(run.state)
    mesh = Mesh(np.array(devices[: plan.num_devices]), ("runs",))
    configs, seeds, step, counts = (0, run.config), (0, SEED), (None, COUNT), (_PER_DEVICE, COUNT)
    state, params = (state_axes, run.state), (0, run.state.learner.params)
    # A thread that compiles cannot be stopped: Python would wait for it at its end.
    # More threads than cores only take the caches from each other.
    with finish_first(), ThreadPoolExecutor(available_cores()) as pool:

        def begin(of_run: Callable[..., Any], out: ArrayTree, *args: _Argument, **how: Any) -> Any:
            """Traces a function for all slots now, while XLA still compiles the one before."""
            axes = tuple(axes for axes, _ in args)
            on_device = _on_device(of_run, plan.width, axes, out)
            specs = {"in_specs": _map_axes(_spec, axes), "out_specs": _map_axes(_spec, out)}
            over_runs = jax.shard_map(on_device, mesh=mesh, check_vma=False, **specs)
            shapes = (_add_axes(*arg, mesh, plan) for arg in args)
            lowered = jax.jit(over_runs, **how).lower(*shapes)
            options = compiler_options(trains=of_run is run.chunk)
            return pool.submit(lowered.compile, compiler_options=options)

        # The quick ones to trace come first: what one of them refuses is refused before compiling.
        begun = {"evaluate": begin(run.evaluate, 0, configs, state, seeds, step)}
        if diagnostics:
            begun["diagnose"] = begin(run.diagnose, 0, configs, state, params, seeds, step)
        if run.env.is_host and run.train.begin_anew is not None:
            anew = (run.begin_anew, state_axes, configs, state)
            begun["begin_anew"] = begin(*anew, donate_argnums=1)
        begun["chunk"] = begin(run.chunk, (state_axes, 0), configs, state, counts, donate_argnums=1)
        begun["init"] = begin(run.init, state_axes, configs, seeds)
    compiled: dict[str, Any] = {name: program.result() for name, program in begun.items()}
    functions = {"diagnose": None, "begin_anew": None, **compiled, "plan": plan, "mesh": mesh}
    shapes, round_bytes = _add_axes(*state, mesh, plan), plan.num_devices * _device_bytes(compiled)
    functions |= {
        "round_bytes": round_bytes,
        "optimal_values": known,
        "max_steps": run.env.max_steps or config.eval_max_steps,
    }
    seconds = time.perf_counter() - start
    return Programs(**functions, state=shapes, compile_seconds=seconds)


def _add_axes(axes: ArrayTree, tree: ArrayTree, mesh: Mesh, plan: Plan) -> ArrayTree:
    """Adds the axes of a round to the shapes of one run, with their shardings."""
    lengths = {None: (), 0: (plan.slots_per_round,), _PER_DEVICE: (plan.num_devices,)}

    def add(axis: Axis, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, _spec(axis))
        return jax.ShapeDtypeStruct((*lengths[axis], *x.shape), x.dtype, sharding=sharding)

    return _map_axes(add, axes, tree)


def _on_device(
    of_run: Callable[..., Any], width: int, in_axes: tuple[ArrayTree, ...], out_axes: ArrayTree
) -> Callable[..., Any]:
    """Maps a function over the `width` runs of one device; a single run is not batched at all."""
    if width > 1:
        batched = _map_axes(lambda axis: None if axis == _PER_DEVICE else axis, in_axes)
        return jax.vmap(of_run, in_axes=batched, out_axes=out_axes)

    def index(axes: ArrayTree, tree: ArrayTree, at: Any) -> ArrayTree:
        return _map_axes(lambda axis, x: x[at] if axis == 0 else x, axes, tree)

    return lambda *args: index(out_axes, of_run(*index(in_axes, args, 0)), None)


def _device_bytes(compiled: Mapping[str, jax.stages.Compiled]) -> int:
    """Computes the most bytes on a device, in a chunk or beside its state; 0 if XLA cannot say."""
    sizes: dict[str, Any] = {name: one.memory_analysis() for name, one in compiled.items()}
    del sizes["init"]
    if None in sizes.values():
        return 0
    return sizes["chunk"].argument_size_in_bytes + max(
        size.output_size_in_bytes - size.alias_size_in_bytes + size.temp_size_in_bytes
        for size in sizes.values()
    )


def _is_key(leaf: Any) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _spec(axis: Axis) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec("runs")


def _map_axes(function: Callable[..., Any], axes: ArrayTree, *trees: ArrayTree) -> ArrayTree:
    """Calls a function of each axis and each leaf below it; None is an axis of its own."""

    def over_leaves(axis: Axis, *parts: ArrayTree) -> ArrayTree:
        one = functools.partial(function, axis)
        return jax.tree.map(one, *parts) if parts else one()

    return jax.tree.map(over_leaves, axes, *trees, is_leaf=lambda axis: axis is None)
