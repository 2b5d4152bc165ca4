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

from purejaxdqn.engine.run import COUNT, SEED, make_run_functions, max_iterations_of
from purejaxdqn.runtime.devices import Plan, compiler_options
from purejaxdqn.training.loop import ChunkOutputs, Experiment
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import Array, ArrayTree, Params, TrainState, run_axes

# 0: an array has an entry for each run.
# _PER_DEVICE: it has an entry for each device.
# None: all runs share it.
Axis = int | str | None

_SHARED = PartitionSpec()
_PER_RUN = PartitionSpec("runs")
_PER_DEVICE = "device"  # an axis with an entry for each device, which all of its runs share


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
      place: puts a host array with one entry per slot onto the devices.
      split: `TrainState or weights -> a list of host arrays for each device`. On a CPU these share
        the memory of the devices: read them before it is donated.
      join: `(lists, weights_only=False) -> TrainState or weights`; puts the lists of `split` back,
        for as many devices or fewer. It empties the lists as it goes, so that not all arrays are in
        memory twice.
      plan: how the runs are laid out.
      max_iterations: the most iterations that a chunk can run.
      round_bytes: bytes on all devices while a round trains or is evaluated, from XLA's own
        analysis; 0 if it has none.
      compile_seconds: seconds of tracing, lowering and compiling.
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


def compile_programs(
    experiment: Experiment,
    config: RunConfig,
    plan: Plan,
    devices: Sequence[jax.Device],
    diagnostics: bool = False,
) -> Programs:
    """Compiles initialisation, training and evaluation for one round of a plan, each on its own.

    Diagnostics are one more program, and leave the others as they are.

    Args:
      experiment: as in `make_run_functions`.
      config: as in `make_run_functions`.
      plan: how the runs are laid out.
      devices: at least `plan.num_devices`.
      diagnostics: whether to compile them too.

    Returns:
      The `Programs`.

    Raises:
      ConfigError: as `make_run_functions`, and for diagnostics of a training run without a `probe`.
    """
    start = time.perf_counter()
    run = make_run_functions(experiment, config)
    config_shapes, state, params = run.config, run.state, run.state.learner.params
    axes = run_axes(state)
    mesh = Mesh(np.array(devices[: plan.num_devices]), ("runs",))
    with ThreadPoolExecutor() as pool:
        compiler = _Compiler(mesh, plan, pool)
        # The quick ones to trace come first: what one of them refuses is refused before compiling.
        args: tuple[ArrayTree, ...] = (config_shapes, params, SEED, COUNT)
        beside = [compiler.start(run.evaluate, (0, 0, 0, None), 0, args)]
        if diagnostics:
            args = (config_shapes, state, params, SEED, COUNT)
            beside.append(compiler.start(run.diagnose, (0, axes, 0, 0, None), 0, args))
        args = (config_shapes, state, COUNT)
        chunk = compiler.start(run.chunk, (0, axes, _PER_DEVICE), (axes, 0), args, donate_argnums=1)
        init = compiler.start(run.init, (0, 0), axes, (config_shapes, SEED))
    device_bytes = _device_bytes(chunk.result(), [program.result() for program in beside])
    layout = _Layout(mesh, plan, state, axes)
    return Programs(
        init=init.result(),
        chunk=chunk.result(),
        evaluate=beside[0].result(),
        diagnose=beside[1].result() if diagnostics else None,
        place=lambda values: jax.device_put(values, NamedSharding(mesh, _PER_RUN)),
        split=layout.split,
        join=layout.join,
        plan=plan,
        max_iterations=max_iterations_of(config),
        round_bytes=plan.num_devices * device_bytes,
        compile_seconds=time.perf_counter() - start,
    )


class _Compiler:
    """Compiles functions of one run for all slots of a round, several at the same time."""

    def __init__(self, mesh: Mesh, plan: Plan, pool: ThreadPoolExecutor) -> None:
        self._mesh, self._plan, self._pool = mesh, plan, pool

    def start(
        self,
        of_run: Callable[..., Any],
        in_axes: tuple[Any, ...],
        out_axes: Any,
        args: tuple[Any, ...],
        **options: Any,
    ) -> Future[jax.stages.Compiled]:
        """Traces a function now, and lets XLA compile it while the next one is traced.

        Args:
          of_run: the function of one run.
          in_axes: a prefix of `args`, which axis each has over the runs.
          out_axes: the same of the outputs.
          args: their shapes in one run.
          **options: for `jax.jit`.
        """
        over_runs = jax.shard_map(
            _on_device(of_run, self._plan.width, in_axes, out_axes),
            mesh=self._mesh,
            in_specs=_map_axes(_spec, in_axes),
            out_specs=_map_axes(_spec, out_axes),
            check_vma=False,
        )
        lowered = jax.jit(over_runs, **options).lower(*self._add_axes(in_axes, args))
        return self._pool.submit(lowered.compile, compiler_options=compiler_options())

    def _add_axes(self, axes: ArrayTree, tree: ArrayTree) -> ArrayTree:
        """Adds the axes of a round to the shapes of one run, with their shardings."""
        plan = self._plan
        lengths = {None: (), 0: (plan.slots_per_round,), _PER_DEVICE: (plan.num_devices,)}

        def add(axis: Axis, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape, sharding = (*lengths[axis], *x.shape), NamedSharding(self._mesh, _spec(axis))
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        return _map_axes(lambda axis, part: jax.tree.map(lambda x: add(axis, x), part), axes, tree)


def _device_bytes(chunk: jax.stages.Compiled, beside: Sequence[jax.stages.Compiled]) -> int:
    """Computes the most bytes that a device holds, in a chunk or in a program beside its state.

    Returns 0 if XLA has no analysis.
    """
    sizes: list[Any] = [program.memory_analysis() for program in (chunk, *beside)]
    if None in sizes:
        return 0
    state: int = sizes[0].argument_size_in_bytes
    return state + max(
        size.output_size_in_bytes - size.alias_size_in_bytes + size.temp_size_in_bytes
        for size in sizes
    )


class _Layout:
    """Moves the arrays of a round between the shards on the devices and lists on the host."""

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
                if host is not None:  # a device without a run takes any arrays of the right shape
                    part = host.pop(0)
                # Without the copy, NumPy's memory would stay beside the state that trains.
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
    """Maps `run` over the `width` runs of one device; a single run is not batched at all."""
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
    """Calls `jax.tree.map` over a prefix of axes, in which None is a value of its own."""
    return jax.tree.map(function, axes, *trees, is_leaf=lambda axis: axis is None)
