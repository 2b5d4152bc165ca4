"""Keeps arrays on disk as checkpoints: written wholly or not at all, and checked when read.

A checkpoint is a folder with two things in it:

    arrays/0, arrays/1 ...  the arrays, cut into pieces of at most 128 MiB, as Orbax writes them
    manifest.json           a SHA-256 of the rest of this file, and then JSON: the shape and type of
                            each array, the SHA-256 of each file, and the caller's `facts`

Orbax does not notice a flipped bit, and casts a wrong type without a word; the manifest does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxdqn.runtime.interrupts import defer_signals
from purejaxdqn.storage.files import explain_write_failure, sync

MANIFEST = "manifest.json"
TEMPORARY = ".writing-"  # begins the name of a folder that is not finished
_ARRAYS = "arrays"
_PART_BYTES = 2**27  # written at a time: Orbax copies what it writes
_SETTLE_SECONDS = 0.5  # without new files: then a failed write is taken to have ended
_MOST_SETTLE_SECONDS = 5.0  # to wait for its end


class CheckpointDamaged(Exception):
    """What is read is not what was written; the message says what is wrong with it."""


def write(folder: Path, arrays: Sequence[np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays, and facts that JSON can hold, in place of what lies there; or nothing.

    Raises:
      OSError: if it cannot be written.
    """
    own = f"{TEMPORARY}{folder.name}.{platform.node()}.{os.getpid()}"
    for failed in folder.parent.glob(f"{own}.*"):
        shutil.rmtree(failed, ignore_errors=True)
    # Never the same name twice: a failed write may go on for a while, see `_remove_late_files`.
    temporary = folder.with_name(f"{own}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        for number, part in enumerate(_cut_into_parts(arrays)):
            _save_arrays(temporary / _ARRAYS / str(number), part)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        content = {
            "arrays": [[list(x.shape), x.dtype.str] for x in arrays],
            "facts": facts,
            "sha256": {str(path.relative_to(temporary)): _sha256(path) for path in files},
        }
        text = json.dumps(content, allow_nan=False)
        manifest = temporary / MANIFEST
        manifest.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        for path in [*files, manifest]:
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if arrays:
            _remove_late_files(temporary)
        raise


def _remove_late_files(folder: Path) -> None:
    """Removes the files that TensorStore's threads still write after Orbax has raised an error.

    They make the folder again, for up to 50 ms as measured with four writers on two cores.
    """
    begun = gone = time.monotonic()
    while (now := time.monotonic()) < min(gone + _SETTLE_SECONDS, begun + _MOST_SETTLE_SECONDS):
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            gone = now
        time.sleep(0.01)


def estimate_write_memory(total: int) -> int:
    """Estimates the memory that it takes to write so many bytes; Orbax's own code included."""
    return 2**26 + min(total, _PART_BYTES)


def read(
    folder: Path, wanted: Callable[[dict[str, Any]], range] | None = None
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Reads the arrays and the facts of a checkpoint as they were written, to the bit.

    `wanted(facts)` gives the indices of the arrays to read; all by default. Others take no memory.
    Anything that is not as it was written raises `CheckpointDamaged`.
    """
    content = read_manifest(folder)
    for name, digest in content["sha256"].items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise CheckpointDamaged(f"{name} cannot be read ({error.strerror})") from error
        if found != digest:
            raise CheckpointDamaged(f"{name} is not what was written")
    arrays = [np.empty(shape, dtype) for shape, dtype in content["arrays"]]
    chosen = range(len(arrays)) if wanted is None else wanted(content["facts"])
    # The same cuts as when it was written, now of arrays to be filled.
    for number, part in enumerate(_cut_into_parts(arrays)):
        part = {name: x for name, x in part.items() if int(name.partition("-")[0]) in chosen}
        stored = _load_arrays(folder / _ARRAYS / str(number)) if part else {}
        for name, piece in part.items():
            if stored[name].dtype != piece.dtype:
                raise CheckpointDamaged(
                    f"array {name} is of type {stored[name].dtype} where {piece.dtype} was written"
                )
            piece[...] = stored[name]
    return [arrays[i] for i in chosen], content["facts"]


def _cut_into_parts(arrays: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Cuts arrays into flat views by name, and yields groups of at most 128 MiB."""
    part: dict[str, np.ndarray] = {}
    for i, array in enumerate(arrays):
        # Flat, because Orbax takes neither empty arrays nor those without an axis.
        flat, length = array.reshape(-1), _PART_BYTES // array.itemsize
        for begin in range(0, flat.size, length):
            piece = flat[begin : begin + length]
            if sum(x.nbytes for x in part.values()) + piece.nbytes > _PART_BYTES:
                yield part
                part = {}
            part[f"{i:05d}-{begin}"] = piece
    if part:
        yield part


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint alone, as `read` does: `arrays`, `facts` and `sha256`."""
    try:
        digest, _, text = (folder / MANIFEST).read_text().partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointDamaged(f"{MANIFEST} cannot be read ({error})") from error
    text = text.removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise CheckpointDamaged(f"{MANIFEST} is not what was written")
    return json.loads(text)


def _make_checkpointer() -> Any:
    # Imported here: it takes seconds, and only a sweep with a folder needs it.
    import orbax.checkpoint as ocp

    # It logs each step, and logs errors with a traceback beside raising them.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    own = jax.process_index()  # each process keeps its own runs
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _save_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    if jax.process_index() > 0:  # there Orbax leaves out NumPy's arrays without a word
        folder.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        return
    with defer_signals(), _make_checkpointer() as checkpointer:
        try:
            checkpointer.save(folder.resolve(), arrays)
        except (OSError, ValueError) as error:  # the latter is what TensorStore makes of any
            _silence_late_errors()
            reason = explain_write_failure(folder.parent) or str(error).partition("\n")[0]
            raise OSError(f"{folder} cannot be written: {reason}") from error


@functools.cache
def _silence_late_errors() -> None:
    """Keeps TensorStore from printing errors of a failed write's other parts long after it."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _load_arrays(folder: Path) -> dict[str, np.ndarray]:
    if files := [*folder.glob("*.npy")]:
        return {path.stem: np.load(path, allow_pickle=False) for path in files}
    with defer_signals(), _make_checkpointer() as checkpointer:
        try:
            return checkpointer.restore(folder.resolve())
        except Exception as error:  # the files are right, but Orbax cannot make sense of them
            raise CheckpointDamaged(f"its arrays cannot be read: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
