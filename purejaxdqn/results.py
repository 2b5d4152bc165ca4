"""Results on disk: one netCDF file per sweep, labelled, with everything needed to run it again."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import xarray as xr

from purejaxdqn.types import ConfigError

FILE_NAME = "results.nc"
_PACKAGES = ("purejaxdqn", "jax", "jaxlib", "flax", "optax", "gymnasium", "numpy", "xarray")


def provenance(config: Any, experiment: Any) -> dict[str, Any]:
    """What a reader needs to run the same again, as attributes that netCDF can hold.

    Args:
      config: the settings, a dataclass.
      experiment: the function that was trained; recorded by name.

    Returns:
      `config` (JSON of every setting), `experiment`, `command`, `date`, `versions` (JSON),
      `git_commit`, `python`, `platform` and `processor`.
    """
    function = getattr(experiment, "func", experiment)  # the function inside a functools.partial
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "config": json.dumps(dataclasses.asdict(config)),
        "experiment": f"{function.__module__}.{getattr(function, '__qualname__', function)}",
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": json.dumps(versions),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor_name(),
    }


def _git_commit() -> str:
    """The commit of the code in use; "-dirty" if it was changed, "unknown" outside a checkout."""
    folder = Path(__file__).parent
    try:
        describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def prepare_output(folder: Path, overwrite: bool = False) -> Path:
    """Makes an output folder, and makes sure before a long run that results can be written there.

    Args:
      folder: made with its parents where it does not exist.
      overwrite: whether results that lie there may be replaced.

    Returns:
      The folder.

    Raises:
      ConfigError: if it cannot be written, or holds results already and `overwrite` is False.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"the output folder {folder} cannot be written ({error.strerror}): choose another "
            "with --output"
        ) from error
    if (folder / FILE_NAME).exists() and not overwrite:
        raise ConfigError(
            f"the output folder {folder} already holds results: choose another with --output, or "
            "replace them with --overwrite"
        )
    return folder


def save(dataset: xr.Dataset, folder: Path) -> Path:
    """Writes `results.nc` into a folder, all of it or nothing.

    A kill or a full disk leaves the file before it intact.

    Args:
      dataset: what `run_sweep` returned.
      folder: an existing folder.

    Returns:
      The file's path.

    Raises:
      OSError: if it cannot be written.
    """
    path = folder / FILE_NAME
    temporary = folder / f".{FILE_NAME}.{os.getpid()}"
    try:
        dataset.to_netcdf(temporary, engine="netcdf4")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


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
    """Reads a results file, or the one in a folder, wholly into memory."""
    path = Path(path)
    with xr.open_dataset(path / FILE_NAME if path.is_dir() else path) as dataset:
        return dataset.load()
