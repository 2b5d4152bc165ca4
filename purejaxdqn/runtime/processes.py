"""Lets several processes, on one machine or many, share one sweep (`jax.distributed`).

Each process trains its own batches on its own devices, and none waits for another before the end.
"""

import itertools
import pickle
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from purejaxdqn.checks import ConfigError
from purejaxdqn.runtime.addresses import check_processes

T = TypeVar("T")

_meetings = itertools.count()


def join_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Connects this process to those that share its sweep; to be called before JAX starts.

    At the coordinator, such as "10.0.0.1:8476", process 0 can be reached; "auto" takes this and the
    rest from Slurm, Open MPI or a TPU. With None the process stays alone.

    Raises:
      ConfigError: for arguments that are wrong or exclude each other, before anything is waited
        for; or where process 0 cannot be reached.
    """
    check_processes(coordinator, num_processes, process_id)
    if coordinator is None:
        return
    options: dict[str, Any] = {"num_processes": num_processes, "process_id": process_id}
    if coordinator != "auto":
        options["coordinator_address"] = coordinator
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"the processes do not find each other (coordinator {coordinator!r}): {first_line}"
        ) from error


def is_first_process() -> bool:
    """Tells whether this process writes the results; a process that is alone does."""
    return jax.process_index() == 0


def is_assigned_here(batch: int) -> bool:
    """Tells whether this process trains the batch of that number."""
    return batch % jax.process_count() == jax.process_index()


def run_on_first_process(action: Callable[[], T]) -> T:
    """Runs an action in the first process alone, and returns its result, or raises, in all."""
    outcomes: list[Any] = run_on_every_process(lambda: action() if is_first_process() else None)
    return outcomes[0]


def run_on_every_process(action: Callable[[], T]) -> list[T]:
    """Runs an action in each process, and returns all results in every process.

    A `ConfigError` or `OSError` in any of them is raised in all: else the others would wait.
    """
    if jax.process_count() == 1:
        return [action()]
    outcome: Any
    try:
        outcome = action()
    except (ConfigError, OSError) as error:
        outcome = error
    outcomes: list[T] = gather(outcome)
    for one in outcomes:
        if isinstance(one, Exception):
            raise one
    return outcomes


def gather(value: T) -> list[T]:
    """Collects a value from each process, and returns all of them in every process, to the bit."""
    if jax.process_count() == 1:
        return [value]
    _wait_for_all()
    # As bytes: arrays would be rounded to JAX's own types. Pickle ignores what comes after its end.
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    length = process_allgather(np.array([len(content)], np.int32)).max()
    rows = process_allgather(np.pad(content, (0, length - len(content))))
    return [pickle.loads(np.asarray(row).tobytes()) for row in rows]


def _wait_for_all() -> None:
    """Waits until every process has come here: JAX's own collectives give up after half an hour."""
    from orbax.checkpoint import multihost

    wait = multihost.get_barrier_sync_fn()
    failures: list[Exception] = []

    def meet(name: str) -> None:
        try:
            wait(key=name, timeout_ms=2**31 - 1)  # 24 days, the longest
        except Exception as error:
            failures.append(error)

    # Python handles signals in the main thread alone, and not while that thread itself waits here.
    waiting = threading.Thread(target=meet, args=[f"purejaxdqn-{next(_meetings)}"], daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(0.1)
    if failures:
        raise failures[0]
