"""Keeps arrays on disk as checkpoints: written wholly or not at all, and checked when read.

A checkpoint is a folder. The file `arrays` has the bytes of one array after another: a disk takes
one file sooner than many. `manifest.json` has a SHA-256 of the rest of this file, and then JSON:
the shape, type and SHA-256 of each array, and the caller's `facts`.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purejaxdqn.storage.files import TEMPORARY, sync

MANIFEST, ARRAYS = "manifest.json", "arrays"


class CheckpointDamaged(Exception):
    """What is read is not what was written; the message says what is wrong with it."""


def write(folder: Path, arrays: Sequence[np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays, and facts that JSON can hold, over what lies there, or raises `OSError`."""
    temporary = _name_temporary(folder)
    try:
        temporary.mkdir(parents=True)
        described = []
        with open(temporary / ARRAYS, "wb") as file:
            for array in arrays:
                content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                file.write(content)
                digest = hashlib.sha256(content).hexdigest()
                described.append([array.shape, array.dtype.str, digest])
        text = json.dumps({"arrays": described, "facts": facts}, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (temporary / MANIFEST).write_bytes(f"{digest}\n{text}\n".encode())
        for path in (temporary / ARRAYS, temporary / MANIFEST, temporary):
            sync(path)
        remove(folder)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(f"{folder} cannot be written: {error.strerror or error}") from error
        raise


def remove(folder: Path) -> None:
    """Removes a checkpoint, or a folder of them, in one moment: no reader finds a part of it."""
    temporary = _name_temporary(folder)
    with contextlib.suppress(OSError):
        folder.rename(temporary)
        shutil.rmtree(temporary)


def _name_temporary(folder: Path) -> Path:
    own = f"{TEMPORARY}{folder.name}.{platform.node()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    return folder.with_name(own)


def read(
    folder: Path, wanted: Callable[[dict[str, Any]], Sequence[int]] | None = None
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Reads the arrays and the facts of a checkpoint as they were written, to the bit.

    `wanted(facts)` gives the indices of the arrays to read; all by default. Others are not touched.
    Anything that is not as it was written raises `CheckpointDamaged`.
    """
    content = read_manifest(folder)
    numbers = wanted(content["facts"]) if wanted else range(len(content["arrays"]))
    sizes = [np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype, _ in content["arrays"]]
    ends = [0, *itertools.accumulate(sizes)]

    def read_arrays(path: Path) -> list[np.ndarray]:
        size = path.stat().st_size
        if size != ends[-1]:
            known = f"{size:,} bytes where there were {ends[-1]:,}"
            raise CheckpointDamaged(f"{ARRAYS} is not what was written: {known}")
        return [np.fromfile(path, np.uint8, sizes[i], offset=ends[i]) for i in numbers]

    arrays = []
    for number, array in zip(numbers, _read_file(folder / ARRAYS, read_arrays), strict=True):
        shape, dtype, digest = content["arrays"][number]
        if hashlib.sha256(array.data).hexdigest() != digest:
            raise CheckpointDamaged(f"array {number} is not what was written")
        arrays.append(array.view(dtype).reshape(shape))
    return arrays, content["facts"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint alone, as `read` does: `arrays` and `facts`."""
    digest, _, text = (
        _read_file(folder / MANIFEST, Path.read_bytes).removesuffix(b"\n").partition(b"\n")
    )
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise CheckpointDamaged(f"{MANIFEST} is not what was written")
    try:
        facts = json.loads(text)
        if not (isinstance(facts["arrays"], list) and isinstance(facts["facts"], dict)):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointDamaged(f"{MANIFEST} is not what this package writes") from error
    return facts


def _read_file(path: Path, read: Callable[[Path], Any]) -> Any:
    """Reads a file of the checkpoint itself: no link, pipe or device in its place."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OSError(errno.EINVAL, "it is no file")
        return read(path)
    except OSError as error:
        raise CheckpointDamaged(f"{path.name} cannot be read ({error.strerror})") from error
