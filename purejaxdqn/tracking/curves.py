"""Names a sweep's runs and opens a curve for each: what the trackers of all libraries share."""

import contextlib
import hashlib
import importlib
import math
import shutil
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.tracking.registry import Evaluated, Tracker, join_lines
from purejaxdqn.types import ConfigError

ID_FILE = "tracking_id"


class TrackedRun(NamedTuple):
    """Names one run, so that a library tells it from other runs and finds it again.

    `swept` are the settings that the sweep varies, with this run's values, and `label` has the seed
    too. `setting` is text such as "learning_rate=0.001,discount=0.9", which can name a file; it is
    empty where the sweep varies nothing. `group` names all seeds of the setting, `name` the run.
    `group_key` and `key` do so in characters that every library accepts.
    """

    swept: dict[str, Any]
    seed: int
    label: dict[str, Any]
    setting: str
    group: str
    name: str
    group_key: str
    key: str


def _name_run(sweep: str, sweep_id: str, label: Mapping[str, Any]) -> TrackedRun:
    """Names a run by its label: its swept settings and its "seed"."""
    numbers = {name: x.item() if isinstance(x, np.generic) else x for name, x in label.items()}
    seed = int(numbers.pop("seed"))
    quoted = {name: urllib.parse.quote(str(value), safe="") for name, value in numbers.items()}
    setting = ",".join(f"{name}={value}" for name, value in quoted.items())
    group, path = (f"{sweep}/{setting}", f"{setting}/") if numbers else (sweep, "")
    path += f"seed_{seed}"
    keys = [f"{sweep_id}-{_hash(text)}" for text in (group, path)]
    label = {**numbers, "seed": seed}
    return TrackedRun(numbers, seed, label, setting, group, f"{sweep}/{path}", *keys)


def forget(folder: Path) -> None:
    """Lets the next sweep in a folder begin new curves, as when its results are replaced."""
    (folder / ID_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


class Curves(NamedTuple):
    """Writes the curves of one run into one library: `write(step, values)`, `close(failed)`.

    `last_step` is the last environment step that an earlier process wrote; -1 if none did, or where
    the library itself drops repeated steps.
    """

    last_step: int
    write: Callable[[int, dict[str, float]], Any]
    close: Callable[[bool], Any]


@contextlib.contextmanager
def track_runs(
    folder: Path,
    open_run: Callable[[TrackedRun], Curves],
    close_groups: Callable[[bool], None] = lambda failed: None,
) -> Iterator[Tracker]:
    """Makes a tracker that opens each run of a folder's sweep at its first evaluation.

    A run is closed at the first evaluation without it, or at the end, and the groups after all.
    """
    id_file = folder / ID_FILE  # moves with the sweep
    if not id_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        id_file.write_text(uuid.uuid4().hex[:8] + "\n")
    sweep_id = id_file.read_text().strip()
    sweep = f"{folder.resolve().name}-{sweep_id}"
    open_runs: dict[str, Curves] = {}

    def close(keys: list[str], failed: bool) -> None:
        with contextlib.ExitStack() as stack:  # closes all of them, also when one fails
            for key in keys:
                stack.callback(open_runs.pop(key).close, failed)

    def track(event: Evaluated) -> None:
        named = [_name_run(sweep, sweep_id, label) for label in event.labels]
        runs = {run.key: (run, at) for at, run in enumerate(named)}
        close([key for key in open_runs if key not in runs], failed=False)
        for key, (run, at) in runs.items():
            if key not in open_runs:
                open_runs[key] = open_run(run)
            if event.step > open_runs[key].last_step:
                open_runs[key].write(event.step, _known_values(event, at))

    failed = True
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: close_groups(failed))
        stack.callback(lambda: close([*open_runs], failed))
        yield track
        failed = False


def _known_values(event: Evaluated, at: int) -> dict[str, float]:
    """Returns one run's numbers by name, without those that are NaN."""
    columns = {"training_return": event.training_return, **event.metrics}
    values = {name: float(column[at]) for name, column in columns.items()}
    values["greedy_return"] = float(event.episode_return[at].mean(dtype=np.float64))
    return {name: value for name, value in values.items() if not math.isnan(value)}


def import_library(name: str) -> ModuleType:
    """Imports a tracker's library, named as its extra, or says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the tracker {name!r} needs a library that cannot be imported ({join_lines(error)}): "
            f'pip install "purejaxdqn[{name}]"'
        ) from error


def shorten(text: str, length: int) -> str:
    """Cuts a text to at most `length` characters; different texts stay different."""
    digest = _hash(text)
    return text if len(text) <= length else f"{text[: length - len(digest) - 1]}~{digest}"


def _hash(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()
