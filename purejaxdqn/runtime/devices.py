"""Puts every core to work: one XLA device on each CPU core, or the accelerators there are.

Small matrix products lose more to handing work between threads than they gain, so many runs train
fastest with one single-threaded device per core. `use_every_core` comes before JAX has started.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from purejaxdqn.types import ConfigError

_FLAGS = {
    "xla_cpu_multi_thread_eigen": "false",
    # Loops over little data, such as the generator's, become one call instead of many small ones.
    "xla_backend_extra_options": "xla_cpu_small_while_loop_byte_threshold=65536",
}
_OPTIMIZATION_LEVEL = "xla_backend_optimization_level"
# XLA compiles a program for a lone device by another path, which rounds differently.
_MIN_CPU_DEVICES = 2
_MOST_RUNS = 8  # of a program on one core: more gain nothing
# Of one size on all machines, since the width decides on the bits: between a second and a third
# level of today's.
_CACHE_BYTES = 10_000_000
# Of glibc's `mallopt`: an option's number, and bytes. By default threads keep what they have freed,
# in blocks of up to 32 MB. The second one keeps what is smaller from going back at each call, with
# which training would take half as long again.
_MALLOC_OPTIONS = {"MALLOC_MMAP_THRESHOLD_": (-3, 2**22), "MALLOC_TRIM_THRESHOLD_": (-1, 2**28)}


def available_cores() -> int:
    """Counts the CPU cores that this process may use (its affinity, not the machine's size)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_every_core(num_cpu_devices: int | None = None) -> list[jax.Device]:
    """Puts one single-threaded XLA device on each CPU core; accelerators are preferred to the CPU.

    It also turns on JAX's compilation cache on disk in `$XDG_CACHE_HOME/purejaxdqn` (usually
    `~/.cache/purejaxdqn`), unless one is set: the second run of an experiment compiles in a
    fraction of the time. And it has glibc give large blocks that are freed back to the system,
    unless the environment sets glibc's thresholds.

    Returns:
      The devices that computations will run on. On the CPU these are `num_cpu_devices`, by default
      one for each available core, and at least two: a run has the same bits on one core as on many.

    Raises:
      ConfigError: if `num_cpu_devices` is below 1.
      RuntimeError: if JAX has already started with other CPU devices, which cannot be changed.
    """
    wanted = available_cores() if num_cpu_devices is None else num_cpu_devices
    if wanted < 1:
        raise ConfigError(
            f"num_cpu_devices ({wanted}) must be at least 1; leave it out for one per core"
        )
    wanted = max(wanted, _MIN_CPU_DEVICES)
    _use_compilation_cache()
    _give_back_large_blocks()
    flags = os.environ.get("XLA_FLAGS", "")
    try:
        if "xla_force_host_platform_device_count" not in flags:  # else the user has chosen
            jax.config.update("jax_num_cpu_devices", wanted)
        ours = [f"--{name}={value}" for name, value in _FLAGS.items() if name not in flags]
        os.environ["XLA_FLAGS"] = " ".join([flags, *ours]).strip()
    except RuntimeError as error:
        # JAX has started. That is fine if it has what is wanted, or computes elsewhere anyway.
        if jax.default_backend() == "cpu" and jax.local_device_count("cpu") != wanted:
            raise RuntimeError(
                "use_every_core() came too late: JAX has already started with "
                f"{jax.local_device_count('cpu')} CPU device(s) where {wanted} were wanted, and "
                "cannot change that. Call purejaxdqn.runtime.devices.use_every_core() at the top "
                "of the script, before the first JAX computation (jax.devices(), "
                "jax.random.key(...) and jnp.zeros(...) count as one)."
            ) from error
    return jax.local_devices()


def ensure_devices() -> list[jax.Device]:
    """Calls `use_every_core`; where that is too late, warns and returns the devices there are."""
    try:
        return use_every_core()
    except RuntimeError as error:
        # A deliberate choice of several devices needs no warning.
        if jax.local_device_count() == 1:
            warnings.warn(f"only one core will work. {error}", RuntimeWarning, stacklevel=3)
        return jax.local_devices()


def _use_compilation_cache() -> None:
    # JAX's types leave its options out.
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    # Programs fit one kind of processor: a home shared by several kinds keeps them apart.
    cpuinfo = Path("/proc/cpuinfo")
    lines = {*cpuinfo.read_text().splitlines()} if cpuinfo.exists() else set()
    kind = sorted(line for line in lines if line.startswith(("flags", "Features", "model name")))
    processor = "".join([platform.machine(), platform.processor(), *kind])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "purejaxdqn")
    folder = home / f"xla-{hashlib.sha256(processor.encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written costs compile time, no more
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _give_back_large_blocks() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc alone
    if mallopt is not None and not _MALLOC_OPTIONS.keys() & os.environ.keys():
        for option, size in _MALLOC_OPTIONS.values():
            mallopt(option, size)


class Plan(NamedTuple):
    """How runs are laid out: in `num_rounds` rounds, `num_devices` devices train `width` runs each.

    The same run at another width has other bits. Devices are two at least where there are two.
    """

    width: int
    num_devices: int
    num_rounds: int

    @property
    def slots_per_round(self) -> int:
        """The number of runs that train at the same time, padding included."""
        return self.width * self.num_devices

    def rounds(self, num_runs: int) -> list[np.ndarray]:
        """Lists which of `num_runs` runs train in each round; the last round may be smaller."""
        ends = np.arange(self.slots_per_round, num_runs, self.slots_per_round)
        return np.split(np.arange(num_runs), ends)


def make_plan(
    num_runs: int, num_devices: int, width: int | None = None, max_width: int = _MOST_RUNS
) -> Plan:
    """Lays out runs so that no device idles: 10 runs on 2 devices train 5 wide in one round.

    By default the width is chosen, of at most `max_width`; give it to repeat an earlier result.

    Raises:
      ConfigError: if a number is below 1.
    """
    for name, value in (("num_runs", num_runs), ("num_devices", num_devices), ("width", width)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} ({value}) must be at least 1")
    if width is None:
        num_rounds = math.ceil(num_runs / (num_devices * max_width))
        width = math.ceil(num_runs / (num_devices * num_rounds))
    num_batches = math.ceil(num_runs / width)
    used_devices = min(num_devices, max(num_batches, _MIN_CPU_DEVICES))
    return Plan(width, used_devices, math.ceil(num_batches / used_devices))


def choose_width(group_sizes: Sequence[int], num_devices: int, widest: int) -> int:
    """Chooses the runs per batch for which the devices are done soonest.

    The time of a round is taken to be a constant and a time for each run of a batch: of small runs
    as much again, and of larger ones, of which fewer are `widest`, more.
    """
    constant = min(widest / _MOST_RUNS, 1)

    def cost(width: int) -> float:
        rounds = sum(math.ceil(math.ceil(size / width) / num_devices) for size in group_sizes)
        return rounds * (constant + width)

    return min(range(widest, 0, -1), key=cost)


def compiler_options(trains: bool = True) -> dict[str, Any]:
    """Returns the options with which XLA compiles a program that trains, or one of the others."""
    if jax.default_backend() != "cpu":
        return {}
    # Splitting an operation between threads, when every core has runs of its own, costs time.
    options: dict[str, Any] = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
    if not trains and _OPTIMIZATION_LEVEL not in os.environ.get("XLA_FLAGS", ""):
        # Higher levels take LLVM twice as long, and gain nothing outside of the training loop.
        options[_OPTIMIZATION_LEVEL] = 1
    return options | {name: x for name, x in _QUICK_ON_CPU.items() if _is_known(name, x)}


_QUICK_ON_CPU = {
    # Libraries multiply matrices. What surrounds a product takes longer there than in XLA's loops.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    # With one thread for a program, an order that keeps data in the cache beats one for threads.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # LLVM takes half of a processor's vectors by default, for fear of a lower clock.
    "xla_cpu_prefer_vector_width": "512",
}


@functools.cache
def _is_known(name: str, value: str) -> bool:
    """Tells whether the installed XLA takes an option; names of such come and go."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def min_devices() -> int:
    """Returns the fewest devices that a program is compiled for, where there are so many."""
    return _MIN_CPU_DEVICES if jax.default_backend() == "cpu" else 1


def max_width(run_bytes: int = 0) -> int:
    """Returns the most runs per device program that are worth while on the devices there are.

    Args:
      run_bytes: what an update of a run reads and writes. Together these should stay in a core's
        cache, outside of which an update takes half as long again.
    """
    if jax.default_backend() != "cpu":
        return 128
    return max(1, min(_MOST_RUNS, _CACHE_BYTES // max(run_bytes, 1)))
