"""Several processes, on one machine or many, that share one sweep (`jax.distributed`).

Each process trains its own batches on its own devices, and none waits for another before the end.
"""

from __future__ import annotations

import pickle
from typing import Any

import jax
import numpy as np


def is_first() -> bool:
    """Whether this process writes the results; the only one always does."""
    return jax.process_index() == 0


def mine(number: int) -> bool:
    """Whether the batch of this number is this process's."""
    return number % jax.process_count() == jax.process_index()


def wait(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """What each process has, given to each, bit for bit."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    # As bytes: arrays would be rounded to JAX's own types.
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(content)], np.int32)).ravel()
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(np.asarray(row)[:length].tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]
