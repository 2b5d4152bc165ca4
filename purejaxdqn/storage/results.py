"""Results on disk: one netCDF file per sweep, labelled, with everything needed to run it again."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import xarray as xr

from purejaxdqn.runtime.interrupts import undisturbed
from purejaxdqn.types import ConfigError

FILE_NAME = "results.nc"
CHECKPOINT = "checkpoint"  # the folder beside it of what a sweep needs to go on
LOCK = "lock"  # in that folder: held while a process works there
_PROBE_BYTES = 2**20  # to find out why a file cannot be written
_PACKAGES = ("purejaxdqn", "jax", "jaxlib", "flax", "optax", "gymnasium", "numpy", "xarray")


def provenance(settings: Mapping[str, Any], experiment: Any) -> dict[str, Any]:
    """What a reader needs to run the same again, as attributes that netCDF can hold.

    Args:
      settings: by name, those that all runs have in common.
      experiment: the function that was trained, recorded by name, or a `functools.partial` of it.

    Returns:
      `config` (JSON of the settings), `experiment`, `experiment_arguments` (JSON of the names of
      what the partial passes, which goes before the config), `command`, `date`, `versions` (JSON),
      `git_commit`, `python`, `platform` and `processor`.
    """
    return {
        "config": json.dumps(jsonable(dict(settings)), allow_nan=False),
        **experiment_names(experiment),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "date": now(),
        "host": platform.node(),
        "platform": platform.platform(),
        **_made_with(),
    }


def now() -> str:
    """The time, as attributes have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def experiment_names(experiment: Any) -> dict[str, str]:
    """`experiment` and `experiment_arguments`, as in `provenance`."""
    function, arguments = experiment, {}
    if isinstance(experiment, functools.partial):  # of what was passed in place of config's parts
        function = experiment.func
        arguments = {f"argument {i}": _name(part) for i, part in enumerate(experiment.args)}
        arguments |= {name: _name(part) for name, part in sorted(experiment.keywords.items())}
    return {"experiment": _name(function), "experiment_arguments": json.dumps(arguments)}


@functools.cache
def _made_with() -> dict[str, str]:
    """What other bits may come from: `versions` (JSON), `git_commit`, `python`, `processor`."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": json.dumps(versions),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "processor": _processor_name(),
    }


def made_with() -> dict[str, Any]:
    """What other bits may come from: versions, git commit, Python, kind of processor."""
    known = _made_with()
    return {**known, "versions": json.loads(known["versions"])}


def jsonable(value: Any) -> Any:
    """`value` with infinite and undefined numbers as the strings that `float` reads back.

    JSON has no such numbers, nor NumPy's. Dataclasses become dictionaries.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {name: jsonable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _name(value: Any) -> str:
    if isinstance(value, functools.partial):
        parts = [_name(value.func), *map(_name, value.args)]
        parts += [f"{name}={_name(part)}" for name, part in value.keywords.items()]
        return f"partial({', '.join(parts)})"
    if isinstance(value, tuple) and hasattr(value, "name"):  # an Environment
        return str(value.name)
    qualified = getattr(value, "__qualname__", None)
    if qualified:
        return f"{value.__module__}.{qualified}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # which is another one in each process


def _git_commit() -> str:
    """The commit of the code in use; "-dirty" if it was changed, "unknown" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    # A virtual environment may lie in another project's checkout, whose commit says nothing.
    is_tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (is_tracked, describe):
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_flags(overwrite: bool, resume: bool) -> None:
    """Refuses to go on with what is to be replaced.

    Raises:
      ConfigError: if both are asked for.
    """
    if overwrite and resume:
        raise ConfigError(
            "resume (True) and overwrite (True) exclude each other: --resume goes on with what is "
            "there, --overwrite starts again"
        )


def prepare_output(folder: Path, overwrite: bool = False, resume: bool = False) -> Path:
    """Makes an output folder, and makes sure before a long run that results can be written there.

    Args:
      folder: made with its parents where it does not exist.
      overwrite: whether results that lie there may be replaced.
      resume: whether the sweep that was begun there is to go on.

    Returns:
      The folder.

    Raises:
      ConfigError: if it cannot be written; if it holds results, or a sweep that was begun, and is
        neither to be overwritten nor resumed; if it is to be both; or if it is to be overwritten
        while another process works there.
    """
    check_flags(overwrite, resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the output folder {folder} cannot be written ({error.strerror}): choose another "
            "with --output"
        ) from error
    for path, is_right in (
        (folder / CHECKPOINT, Path.is_dir),
        (folder / CHECKPOINT / LOCK, Path.is_file),
        (folder / FILE_NAME, Path.is_file),
    ):
        if path.exists() and not is_right(path):
            raise ConfigError(f"{path} is in the way: choose another folder with --output")
    begun = (folder / CHECKPOINT / "sweep").exists()
    if (begun or (folder / FILE_NAME).exists()) and not (overwrite or resume):
        what = "results" if (folder / FILE_NAME).exists() else "a sweep that was begun"
        raise ConfigError(
            f"the output folder {folder} already holds {what}: choose another with --output, "
            f"{'go on with --resume, ' if begun else ''}or start again with --overwrite"
        )
    if overwrite and (folder / CHECKPOINT / LOCK).exists():
        # Before anything is dropped there, such as the curves of a sweep that is still running.
        lock = filelock.FileLock(folder / CHECKPOINT / LOCK)
        claim(lock, folder)
        lock.release()
    return folder


def claim(lock: filelock.BaseFileLock, folder: Path) -> None:
    """Takes the lock of an output folder.

    Raises:
      ConfigError: if another process has it.
    """
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(
            f"another process is writing to {folder} now: wait until it has ended, or choose "
            "another folder with --output"
        ) from None


def save(dataset: xr.Dataset, folder: Path, file_name: str = FILE_NAME) -> Path:
    """Writes `results.nc`, or a file of another name, into a folder, all of it or nothing.

    A kill or a full disk leaves the file before it intact.

    Args:
      dataset: what `run_sweep` returned.
      folder: an existing folder.
      file_name: what it is called there.

    Returns:
      The file's path.

    Raises:
      OSError: if it cannot be written.
    """
    path = folder / file_name
    with replacing(path) as temporary:
        dataset.to_netcdf(temporary, engine="netcdf4")
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file that takes the place of another once it is written: all of it or nothing.

    Signals are heard after that.

    Args:
      path: of the file to be replaced, or to be made.

    Yields:
      Where to write it, with the same suffix.

    Raises:
      OSError: if it cannot be written; the message names it, and says why.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with undisturbed():
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # the latter is what netCDF makes of a full disk
            reason = why_not_writable(path.parent) or getattr(error, "strerror", None) or error
            raise OSError(f"{path} cannot be written: {reason}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def half_written(path: Path) -> Iterator[Path]:
    """What killed processes have left where they were `replacing` a file."""
    return path.parent.glob(f".{path.stem}.*{path.suffix}")


def why_not_writable(folder: Path) -> str | None:
    """What the system says to a file in a folder; netCDF calls a full disk a lack of permission."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.strerror
    return None


def save_or_rescue(dataset: xr.Dataset, folder: Path) -> Path:
    """`save`, and where the folder cannot take it, into a new temporary folder, with a warning.

    Finished results are hours of work: a full disk must not cost them.

    Raises:
      OSError: if neither can be written.
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
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    try:
        with xr.open_dataset(path) as dataset:
            return dataset.load()
    except FileNotFoundError:
        raise
    except Exception as error:  # of any kind, for a damaged file
        raise OSError(
            f"{path} cannot be read as results: it is empty, damaged or something else"
        ) from error
