"""Keeps arrays on disk as checkpoints: written wholly or not at all, and checked when read.

A checkpoint is a folder. The files `arrays/0`, `arrays/1` and so on have the bytes of each array.
`manifest.json` has a SHA-256 of the rest of this file, and then JSON: the shape, type and SHA-256
of each array, and the caller's `facts`.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purejaxdqn.storage.files import TEMPORARY, sync

MANIFEST = "manifest.json"


class CheckpointDamaged(Exception):
    """What is read is not what was written; the message says what is wrong with it."""


def write(folder: Path, arrays: Sequence[np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays, and facts that JSON can hold, over what lies there, or raises `OSError`."""
    temporary = _name_temporary(folder)
    try:
        (temporary / "arrays").mkdir(parents=True)
        described = []
        for number, array in enumerate(arrays):
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            (temporary / "arrays" / str(number)).write_bytes(content)
            described.append([array.shape, array.dtype.str, hashlib.sha256(content).hexdigest()])
        text = json.dumps({"arrays": described, "facts": facts}, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (temporary / MANIFEST).write_bytes(f"{digest}\n{text}\n".encode())
        for path in (*temporary.rglob("*"), temporary):
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
    arrays = []
    for number in wanted(content["facts"]) if wanted else range(len(content["arrays"])):
        shape, dtype, digest = content["arrays"][number]
        path = folder / "arrays" / str(number)
        array = _read_file(path, lambda file: np.fromfile(file, np.uint8))
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
