"""Compiles any experiment for a round of runs: vmapped on each device, sharded over all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purejaxdqn.engine.run import COUNT, SEED, make_run_functions
from purejaxdqn.runtime.devices import Plan, compiler_options
from purejaxdqn.training.loop import ChunkOutputs, Experiment
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import Array, ArrayTree, TrainState, run_axes

# 0: an array has an entry for each run.
# _PER_DEVICE: it has an entry for each device, which all of its runs share.
# None: all runs share it.
Axis = int | str | None
_PER_DEVICE = "device"
_Argument = tuple[ArrayTree, ArrayTree]  # its axes, a prefix of its shapes in one run


class Programs(NamedTuple):
    """The compiled programs of a round of runs, one in each slot.

    Arrays have a leading axis of slots, sharded over the devices.

    Attributes:
      init: `(config, seeds [slots]) -> TrainState`.
      chunk: `(config, TrainState, num_iterations [devices]) -> (TrainState, ChunkOutputs)`; the
        state is donated. A device without a run gets 0 iterations.
      evaluate: `(config, params, seeds [slots], step []) -> episode returns [slots, N]`.
      diagnose: `(config, TrainState, params before, seeds [slots], step []) -> diagnostics
        [slots]` by name; None if it was not asked for. The state is not donated.
      round_bytes: bytes on all devices while a round trains or is evaluated, as XLA says; 0 if it
        does not.
    """

    init: Callable[..., TrainState]
    chunk: Callable[..., tuple[TrainState, ChunkOutputs]]
    evaluate: Callable[..., Array]
    diagnose: Callable[..., dict[str, Array]] | None
    plan: Plan  # how the runs are laid out
    mesh: Mesh
    state: TrainState  # as shapes, with their shardings
    round_bytes: int
    compile_seconds: float  # of tracing, lowering and compiling

    def place(self, values: np.ndarray) -> Array:
        """Puts a host array with one entry per slot, or per device, onto the devices."""
        return jax.device_put(values, NamedSharding(self.mesh, _spec(0)))

    def split(self, tree: ArrayTree) -> list[list[np.ndarray]]:
        """Copies a `TrainState` or weights to a list of host arrays for each device.

        On a CPU these share the memory of the devices: read them before it is donated.
        """
        arrays = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]
        shards = [{shard.device: shard.data for shard in x.addressable_shards} for x in arrays]
        return [[np.asarray(of[device]) for of in shards] for device in self.mesh.devices]

    def join(self, by_device: Sequence[list[np.ndarray]], weights_only: bool = False) -> ArrayTree:
        """Puts the lists of `split` back onto the devices, for as many of them or fewer.

        It empties the lists as it goes, so that not all arrays are in memory twice.
        """
        tree = self.state.learner.params if weights_only else self.state
        leaves, structure = jax.tree.flatten(tree)
        joined = []
        for leaf in leaves:
            shards: list[Array] = []
            for device, host in itertools.zip_longest(self.mesh.devices, by_device):
                if host is not None:  # a device without a run takes any arrays of the right shape
                    part = host.pop(0)
                # Without the copy, NumPy's memory would stay beside the state that trains.
                shards.append(jax.device_put(part, device, may_alias=False).block_until_ready())
            del part
            shape = (*leaf.shape, *shards[0].shape[leaf.ndim :])  # the data of a key has an axis
            data = jax.make_array_from_single_device_arrays(shape, leaf.sharding, shards)
            joined.append(jax.random.wrap_key_data(data) if _is_key(leaf) else data)
        return jax.tree.unflatten(structure, joined)


def compile_programs(
    experiment: Experiment,
    config: RunConfig,
    plan: Plan,
    devices: Sequence[jax.Device],
    diagnostics: bool = False,
) -> Programs:
    """Compiles initialisation, training and evaluation for one round of a plan, each on its own.

    Diagnostics are one more program, and leave the others as they are. `experiment` and `config`
    are as in `make_run_functions`; there must be at least as many `devices` as in the plan.

    Raises:
      ConfigError: as `make_run_functions`, and for diagnostics of a training run without a `probe`.
    """
    start = time.perf_counter()
    run = make_run_functions(experiment, config)
    axes = run_axes(run.state)
    mesh = Mesh(np.array(devices[: plan.num_devices]), ("runs",))
    configs, seeds, step, counts = (0, run.config), (0, SEED), (None, COUNT), (_PER_DEVICE, COUNT)
    state, params = (axes, run.state), (0, run.state.learner.params)
    with ThreadPoolExecutor() as pool:

        def begin(
            of_run: Callable[..., Any], out_axes: ArrayTree, *args: _Argument, **options: Any
        ) -> Future[jax.stages.Compiled]:
            """Traces a function now, and lets XLA compile it while the next one is traced."""
            lowered = _lower(of_run, out_axes, args, mesh, plan, **options)
            return pool.submit(lowered.compile, compiler_options=compiler_options())

        # The quick ones to trace come first: what one of them refuses is refused before compiling.
        beside = [begin(run.evaluate, 0, configs, params, seeds, step)]
        if diagnostics:
            beside.append(begin(run.diagnose, 0, configs, state, params, seeds, step))
        chunk = begin(run.chunk, (axes, 0), configs, state, counts, donate_argnums=1)
        init = begin(run.init, axes, configs, seeds)
    evaluate, *diagnose = (program.result() for program in beside)
    device_bytes = _device_bytes(chunk.result(), evaluate, *diagnose)
    return Programs(
        init=init.result(),
        chunk=chunk.result(),
        evaluate=evaluate,
        diagnose=diagnose[0] if diagnostics else None,
        plan=plan,
        mesh=mesh,
        state=_add_axes(*state, mesh, plan),
        round_bytes=plan.num_devices * device_bytes,
        compile_seconds=time.perf_counter() - start,
    )


def _lower(
    of_run: Callable[..., Any],
    out_axes: ArrayTree,
    args: Sequence[_Argument],
    mesh: Mesh,
    plan: Plan,
    **options: Any,
) -> jax.stages.Lowered:
    """Lowers a function of one run for all slots of a round."""
    in_axes = tuple(axes for axes, _ in args)
    over_runs = jax.shard_map(
        _on_device(of_run, plan.width, in_axes, out_axes),
        mesh=mesh,
        in_specs=_map_axes(_spec, in_axes),
        out_specs=_map_axes(_spec, out_axes),
        check_vma=False,
    )
    return jax.jit(over_runs, **options).lower(*(_add_axes(*arg, mesh, plan) for arg in args))


def _add_axes(axes: ArrayTree, tree: ArrayTree, mesh: Mesh, plan: Plan) -> ArrayTree:
    """Adds the axes of a round to the shapes of one run, with their shardings."""
    lengths = {None: (), 0: (plan.slots_per_round,), _PER_DEVICE: (plan.num_devices,)}

    def add(axis: Axis, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, _spec(axis))
        return jax.ShapeDtypeStruct((*lengths[axis], *x.shape), x.dtype, sharding=sharding)

    return _map_axes(lambda axis, part: jax.tree.map(lambda x: add(axis, x), part), axes, tree)


def _on_device(
    of_run: Callable[..., Any], width: int, in_axes: tuple[ArrayTree, ...], out_axes: ArrayTree
) -> Callable[..., Any]:
    """Maps a function over the `width` runs of one device; a single run is not batched at all."""
    if width > 1:
        batched = _map_axes(lambda axis: None if axis == _PER_DEVICE else axis, in_axes)
        return jax.vmap(of_run, in_axes=batched, out_axes=out_axes)

    def index(axes: ArrayTree, tree: ArrayTree, at: Any) -> ArrayTree:
        def part(axis: Axis, subtree: ArrayTree) -> ArrayTree:
            return jax.tree.map(lambda x: x[at], subtree) if axis == 0 else subtree

        return _map_axes(part, axes, tree)

    return lambda *args: index(out_axes, of_run(*index(in_axes, args, 0)), None)


def _device_bytes(*programs: jax.stages.Compiled) -> int:
    """Computes the most bytes that a device holds, in a chunk or in a program beside its state.

    The chunk comes first. Returns 0 if XLA has no analysis.
    """
    sizes: list[Any] = [program.memory_analysis() for program in programs]
    if None in sizes:
        return 0
    return sizes[0].argument_size_in_bytes + max(
        size.output_size_in_bytes - size.alias_size_in_bytes + size.temp_size_in_bytes
        for size in sizes
    )


def _is_key(leaf: Any) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _spec(axis: Axis) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec("runs")


def _map_axes(function: Callable[..., Any], axes: ArrayTree, *trees: ArrayTree) -> ArrayTree:
    """Calls `jax.tree.map` over a prefix of axes, in which None is a value of its own."""
    return jax.tree.map(function, axes, *trees, is_leaf=lambda axis: axis is None)
