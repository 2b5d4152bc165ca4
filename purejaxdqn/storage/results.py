"""Keeps the results of a sweep in one netCDF file, `results.nc`, in an output folder."""

import tempfile
import warnings
from pathlib import Path

import filelock
import xarray as xr

from purejaxdqn.storage.files import replace_file
from purejaxdqn.types import ConfigError

FILE_NAME = "results.nc"
CHECKPOINT = "checkpoint"  # the folder beside it of what a sweep needs to resume
LOCK = "lock"  # in that folder: held while a process works there


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
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the output folder {folder} cannot be written ({error.strerror}): choose another "
            "with --output"
        ) from error
    expected = {kept: Path.is_dir, kept / LOCK: Path.is_file, file: Path.is_file}
    for path, is_right in expected.items():
        if path.exists() and not is_right(path):
            raise ConfigError(f"{path} is in the way: choose another folder with --output")
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

    Raises:
      OSError: if it cannot be written.
    """
    path = folder / FILE_NAME
    with replace_file(path) as temporary:
        dataset.to_netcdf(temporary, engine="netcdf4")
    return path


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


def load(path: Path) -> xr.Dataset:
    """Reads a results file, or the one in a folder, wholly into memory.

    Raises:
      FileNotFoundError: if there is none.
      OSError: if it cannot be read as one.
    """
    path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    try:
        with xr.open_dataset(path) as dataset:
            return dataset.load()
    except FileNotFoundError:
        raise
    except Exception as error:  # of any kind, for a damaged file
        raise OSError(
            f"{path} cannot be read as results: it is empty, damaged or something else"
        ) from error
