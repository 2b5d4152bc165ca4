"""Keeps the results of a sweep in one netCDF file, `results.nc`, in an output folder."""

import hashlib
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import filelock
import netCDF4
import numpy as np
import xarray as xr

from purejaxdqn.storage.files import replace_file
from purejaxdqn.types import ConfigError

FILE_NAME = "results.nc"
CHECKPOINT = "checkpoint"  # the folder beside it of what a sweep needs to resume
LOCK = "lock"  # in that folder: held while a process works there
FORMAT = 1  # of the results file; another number here means that older versions cannot read it
_FACTS = "purejaxdqn"  # the attribute of the file, not of the dataset, with its format and digests


def prepare_output(folder: Path, overwrite: bool = False, resume: bool = False) -> Path:
    """Makes an output folder, and makes sure before a long run that results can be written there.

    Raises:
      ConfigError: if it cannot be written; if it holds results, or a sweep that was begun, and is
        neither to be overwritten nor resumed; or if it is to be overwritten while another process
        works there.
    """
    kept, file = folder / CHECKPOINT, folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"the output folder {folder} cannot be written ({error.strerror}): choose another "
            "with --output"
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
    if (begun or file.exists()) and not (overwrite or resume):
        raise ConfigError(
            f"the output folder {folder} already holds "
            f"{'results' if file.exists() else 'a sweep that was begun'}: choose another with "
            f"--output, {'go on with --resume, ' if begun else ''}or start again with --overwrite"
        )
    if overwrite and (kept / LOCK).exists():
        # Before anything is dropped there, such as the curves of a sweep that is still running.
        lock = filelock.FileLock(kept / LOCK)
        acquire_lock(lock, folder)
        lock.release()
    return folder


def acquire_lock(lock: filelock.BaseFileLock, folder: Path) -> None:
    """Acquires the lock of an output folder; a `ConfigError` says that another process has it."""
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(
            f"another process is writing to {folder} now: wait until it has ended, or choose "
            "another folder with --output"
        ) from None


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
        rescued = save(dataset, Path(tempfile.mkdtemp(prefix="purejaxdqn-")))
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
        raise OSError(
            f"{path} cannot be read as results: it is empty, damaged or something else"
        ) from error
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
