"""Records with what code, settings, versions and machine results were made, as JSON and text."""

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purejaxdqn.storage.fingerprint import WITH_EVERY_RESULT, find_file, strip_address

_LONGEST = 200  # characters of a value's name


def collect_provenance(
    settings: Mapping[str, Any], experiment: Any, code: Any = None
) -> dict[str, Any]:
    """Collects what a reader needs to run the same again, as attributes that netCDF can hold.

    These are `config` (JSON of the settings, those that all runs share), `command`, `date`, `host`,
    `platform`, `experiment_git_commit` (of the file in which something of the experiment, or of
    the `code` that it chooses, is the user's; or of the script), and the entries of
    `name_experiment` and `collect_versions`, `versions` as JSON.
    """
    versions = collect_versions()
    main = getattr(sys.modules["__main__"], "__file__", None)
    place = find_file([experiment, code]) or (Path(main) if main else None)
    return {
        "config": json.dumps(to_jsonable(dict(settings)), allow_nan=False),
        **name_experiment(experiment),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "date": current_time(),
        "host": platform.node(),
        "platform": platform.platform(),
        "experiment_git_commit": "unknown" if place is None else _git_commit(place),
        **versions,
        "versions": json.dumps(versions["versions"]),
    }


def current_time() -> str:
    """Returns the date and time in UTC, as attributes have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def name_experiment(experiment: Any) -> dict[str, str]:
    """Names a function, and what a `functools.partial` passes to it before the config.

    `experiment` is its dotted name, and `experiment_arguments` is JSON of names by argument.
    """
    arguments = {}
    if isinstance(experiment, functools.partial):
        arguments = {f"argument {i}": _name(part) for i, part in enumerate(experiment.args)}
        arguments |= {name: _name(part) for name, part in sorted(experiment.keywords.items())}
        experiment = experiment.func
    return {"experiment": _name(experiment), "experiment_arguments": json.dumps(arguments)}


@functools.cache
def collect_versions() -> dict[str, Any]:
    """Collects what may change the bits of a result, once; the answer must not be changed.

    These are `versions` (of packages, by name), `git_commit`, `python` and `processor`.
    """
    versions = {}
    for package in WITH_EVERY_RESULT:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text()
        if model := re.search(r"^model name.*?:(.*)$", cpuinfo, re.MULTILINE):
            processor = model[1].strip()
    code = {"git_commit": _git_commit(Path(__file__)), "python": platform.python_version()}
    return {"versions": versions, **code, "processor": processor}


def to_jsonable(value: Any) -> Any:
    """Replaces what JSON does not have: dataclasses, NumPy's numbers, infinite and undefined ones.

    The last become strings that `float` reads back.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {name: to_jsonable(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _name(value: Any) -> str:
    if isinstance(value, functools.partial):
        parts = [_name(value.func), *map(_name, value.args)]
        parts += [f"{name}={_name(part)}" for name, part in value.keywords.items()]
        return f"partial({', '.join(parts)})"
    if isinstance(value, tuple) and hasattr(value, "name"):  # an Environment
        return str(value.name)
    if qualified := getattr(value, "__qualname__", None):
        return strip_address(f"{value.__module__}.{qualified}")
    text = strip_address(repr(value))  # of weights it is long, and their fingerprint tells more
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


@functools.cache
def _git_commit(place: Path) -> str:
    """Returns the commit of a file; "-dirty" if anything changed, "unknown" outside a checkout."""
    git = ["git", "-C", str(place.parent)]
    # A virtual environment may lie in another project's checkout, whose commit says nothing.
    is_tracked = [*git, "ls-files", "--error-unmatch", place.name]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (is_tracked, describe):
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
