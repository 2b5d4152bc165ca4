"""Keeps the results of a sweep in one netCDF file, `results.nc`, in an output folder.

Folders and paths are checked without the libraries that read the file, which take their time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from purejaxdqn.checks import ConfigError
from purejaxdqn.storage.files import replace_file
from purejaxdqn.storage.provenance import current_time

if TYPE_CHECKING:
    import xarray as xr

FILE_NAME = "results.nc"
CHECKPOINT = "checkpoint"  # the folder beside it of what a sweep needs to resume
LOCK = "lock"  # in that folder: held while a process works there
FORMAT = 1  # of the results file; another number here means that older versions cannot read it
_MAGIC = (b"\x89HDF\r\n\x1a\n", b"CDF")  # how the formats of netCDF begin
_FACTS = "purejaxdqn"  # the attribute of the file, not of the dataset, with its format and digests


def prepare_output(folder: Path, overwrite: bool = False, resume: bool = False) -> Path:
    """Makes an output folder, once `check_output` has found that results can be written there.

    Raises:
      ConfigError: as `check_output`; or if it is to be overwritten while another process works
        there.
    """
    check_output(folder, overwrite, resume)
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite and (folder / CHECKPOINT / LOCK).exists():
        # Before anything is dropped there, such as the curves of a sweep that is still running.
        lock = filelock.FileLock(folder / CHECKPOINT / LOCK)
        acquire_lock(lock, folder)
        release_lock(lock)
    return folder


def check_output(folder: Path, overwrite: bool = False, resume: bool = False) -> None:
    """Makes sure before a long run that results can be written to a folder; makes nothing there.

    Raises:
      ConfigError: if it cannot be written, or made where it is not there yet; if it holds results,
        or a sweep that was begun, and is neither to be overwritten nor resumed; or if nothing is
        there from which a resumed sweep could go on.
    """
    kept, file = folder / CHECKPOINT, folder / FILE_NAME
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        tempfile.TemporaryFile(dir=nearest).close()
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        raise ConfigError(
            f"the output folder {folder} cannot be written ({getattr(error, 'strerror', error)}): "
            "choose another with --output"
        ) from error
    for path, is_right in ((kept, Path.is_dir), (kept / LOCK, Path.is_file), (file, Path.is_file)):
        if path.exists() and not is_right(path):
            raise ConfigError(f"{path} is in the way: choose another folder with --output")
    below = (folder / "study.db", kept, *kept.glob("*"), *kept.glob("*/*"))
    if link := next((path for path in below if path.is_symlink()), None):
        raise ConfigError(
            f"{link} is a link, which may lead out of {folder}: put what is meant there"
        )
    begun = (kept / "sweep").exists()
    if resume and file.exists() and not begun:
        raise ConfigError(
            f"{folder} holds results, but no checkpoint to go on from: choose another folder with "
            "--output, or start again with --overwrite"
        )
    if (begun or file.exists()) and not (overwrite or resume):
        raise ConfigError(
            f"the output folder {folder} already holds "
            f"{'results' if file.exists() else 'a sweep that was begun'}: choose another with "
            f"--output, {'go on with --resume, ' if begun else ''}or start again with --overwrite"
        )


class Locked(ConfigError):
    """Another process has the lock of an output folder."""


def acquire_lock(lock: filelock.BaseFileLock, folder: Path) -> None:
    """Acquires the lock of an output folder, and notes in it who has it.

    Raises:
      Locked: if another process has it, which it names.
      ConfigError: if the disk knows no locks.
    """
    path = Path(lock.lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise Locked(
            f"another process is writing to {folder} now{_name_holder(path)}: wait until it has "
            "ended, or choose another folder with --output"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise ConfigError(
            f"{path} cannot be locked ({getattr(error, 'strerror', None) or error}): choose a "
            "folder on another disk with --output"
        ) from error
    if not isinstance(lock, filelock.SoftFileLock):  # whose content is its own
        holder = {"pid": os.getpid(), "host": platform.node(), "since": current_time()}
        holder["command"] = shlex.join(sys.argv)
        with contextlib.suppress(OSError):  # no sweep fails for that
            path.write_text(json.dumps(holder))


def release_lock(lock: filelock.BaseFileLock) -> None:
    """Releases the lock of an output folder, in which nobody is noted any more."""
    with contextlib.suppress(OSError):
        if lock.is_locked and not isinstance(lock, filelock.SoftFileLock):
            os.truncate(lock.lock_file, 0)
    with contextlib.suppress(OSError):  # such as of a network folder that is gone
        lock.release()


def _name_holder(path: Path) -> str:
    """Names the process that has noted itself in a lock, unless it is one that has ended since."""
    import psutil

    try:
        holder = json.loads(path.read_text())
        pid, host, since, command = (holder[n] for n in ("pid", "host", "since", "command"))
        if host == platform.node() and not psutil.pid_exists(pid):
            return ""
    except (OSError, ValueError, KeyError, TypeError):  # it is being written, or another version's
        return ""
    return f" (process {pid} on {host}, since {since}: {str(command)[:200]!r})"


def save(dataset: xr.Dataset, folder: Path) -> Path:
    """Writes a dataset into a folder, all or nothing, and returns the file's path.

    The folder of a sweep keeps a copy, first, from which `load` makes a damaged file again.

    Raises:
      OSError: if it cannot be written.
    """
    facts = {"format": FORMAT, "sha256": _digests(dataset)}
    arrays = {name: x for name, x in dataset.variables.items() if x.size and x.ndim}
    numbers = [name for name, x in arrays.items() if x.dtype.kind in "iufb"]
    encoding = {name: {"fletcher32": True} for name in numbers}  # other readers see it too
    marked = dataset.assign_attrs({_FACTS: json.dumps(facts)})
    for place in (folder / CHECKPOINT, folder):
        if place == folder or place.is_dir():
            with replace_file(place / FILE_NAME) as temporary:
                marked.to_netcdf(temporary, engine="netcdf4", encoding=encoding)
    return folder / FILE_NAME


def _digests(dataset: xr.Dataset) -> dict[str, str]:
    """Digests each variable and coordinate, and all attributes together, as they are read back."""

    def of_attributes(attrs: dict[Any, Any]) -> str:
        known = {str(k): np.ravel(v).tolist() for k, v in attrs.items() if k != _FACTS}
        return json.dumps(known, sort_keys=True, default=str)

    digests = {"the attributes": of_attributes(dataset.attrs).encode()}
    for name, variable in dataset.variables.items():
        values = variable.values
        is_text = values.dtype.kind in "OU"  # files know only one kind of text
        kind = "text" if is_text else values.dtype.str
        content = json.dumps(values.tolist()).encode() if is_text else values.tobytes()
        head = f"{variable.dims} {values.shape} {kind} {of_attributes(variable.attrs)}"
        digests[str(name)] = head.encode() + content
    return {name: hashlib.sha256(content).hexdigest() for name, content in digests.items()}


def save_or_rescue(dataset: xr.Dataset, folder: Path) -> Path:
    """Saves a dataset; where the folder cannot take it, into a new temporary one, with a warning.

    Finished results are hours of work, which a full disk must not cost.
    """
    try:
        return save(dataset, folder)
    except OSError as error:
        place = Path(tempfile.mkdtemp(prefix="purejaxdqn-"))
        try:
            rescued = save(dataset, place)
        except OSError:
            place.rmdir()
            raise error from None
        warnings.warn(
            f"{folder} could not take the results ({error}): they are in {rescued}", stacklevel=2
        )
        return rescued


def load(path: Path | str, restore: bool = False) -> xr.Dataset:
    """Reads a results file, or the one in a folder, wholly into memory, and verifies every byte.

    With `restore`, a file that is damaged or missing is first made again, from the copy that the
    folder of its sweep keeps. Variables that others have added to the file are not in that copy.

    Raises:
      ConfigError: for what is no path, and for a file that something else or another version wrote.
      FileNotFoundError: if there is none.
      OSError: if the file is damaged: what is, and whether and how it can be made again.
    """
    is_path = isinstance(path, (str, os.PathLike)) and str(path) and "\0" not in str(path)
    if not is_path:
        raise ConfigError(f"path ({path!r:.60}) must be a results file or its folder")
    path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    try:
        return _read(path)
    except OSError as error:
        kept = path.parent / CHECKPOINT
        if path.name != FILE_NAME or isinstance(error, PermissionError) or not kept.is_dir():
            raise
        remedy = "the same command, of a sweep with --resume, makes it again from what is finished"
        try:
            copy = _read(kept / FILE_NAME)
        except (OSError, ConfigError):
            lacks = f"{error}; {kept} has no copy that is whole: {remedy}"
            raise type(error)(lacks) from error
        if restore:
            save(copy, path.parent)
            return copy
        how = f"purejaxdqn restore {path.parent}, or load(..., restore=True), puts it back"
        raise type(error)(f"{error}; {kept} has a copy that is whole: {how}") from error


def _read(path: Path) -> xr.Dataset:
    """Reads and verifies a results file, as `load` does."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if not path.is_file():
        raise OSError(f"{path} is no file")
    content, damaged = path.read_bytes(), []
    nothing = f"{path} cannot be read as results: it is empty, damaged or something else"
    if not content.startswith(_MAGIC):
        raise OSError(nothing)
    import netCDF4
    import xarray as xr

    try:
        # HDF5 never lets go of a damaged file that it has opened, even if that is made again.
        store = xr.backends.NetCDF4DataStore(netCDF4.Dataset(path, memory=content))
        with xr.open_dataset(store) as dataset:
            digests = _read_digests(dataset, path)
            for name, variable in dataset.variables.items():
                try:
                    variable.load()
                except Exception:  # of any kind, for damaged bytes
                    damaged.append(str(name))
    except ConfigError:
        raise
    except Exception as error:
        raise OSError(nothing) from error
    if digests is not None and not damaged:
        now = _digests(dataset)  # with variables that a user has added
        damaged = [name for name, digest in digests.items() if digest != now.get(name)]
    if damaged:
        shown = ", ".join(damaged)
        raise OSError(f"{path} is damaged ({shown}): its bytes are not those that were written")
    return dataset.drop_encoding()


def _read_digests(dataset: xr.Dataset, path: Path) -> dict[str, str] | None:
    """Takes the digests out of a dataset; None for versions without; refuses other formats."""
    has_checksums = any(x.encoding.get("fletcher32") for x in dataset.variables.values())
    if _FACTS not in dataset.attrs and not has_checksums:
        if not {"versions", "status"} & {*dataset.attrs}:
            raise ConfigError(f"{path} is no results file: purejaxdqn did not write it")
        return None
    try:
        known = json.loads(dataset.attrs.pop(_FACTS))
        version, digests = known["format"], {**known["sha256"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"the digests": ""}  # what no digest can be
    if version != FORMAT:
        raise ConfigError(
            f"{path} has format {version!r:.60}, and this version of purejaxdqn reads {FORMAT}: "
            "read it with the version that wrote it"
        )
    return digests
