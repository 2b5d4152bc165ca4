"""Names a sweep's runs and opens a curve for each: what the trackers of all libraries share."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import shutil
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.tracking.registry import Evaluated, Tracker, join_lines
from purejaxdqn.types import ConfigError

ID_FILE = "tracking_id"


class Run(NamedTuple):
    """Names one run, so that a library tells it from other runs and finds it again.

    Attributes:
      sweep_id: random text that is kept in the sweep's folder: it stays the same when the folder
        moves, and changes when the folder's content is deleted.
      sweep: the folder's name and the id.
      swept: the settings that the sweep varies, with this run's values.
      seed: the run's seed.
    """

    sweep_id: str
    sweep: str
    swept: dict[str, Any]
    seed: int

    @property
    def label(self) -> dict[str, Any]:
        """Returns the swept settings and the seed by name."""
        return {**self.swept, "seed": self.seed}

    @property
    def setting(self) -> str:
        """Returns text such as "learning_rate=0.001,discount=0.9", which can name a file.

        It is empty where the sweep varies no setting.
        """
        values = {name: urllib.parse.quote(str(x), safe="") for name, x in self.swept.items()}
        return ",".join(f"{name}={value}" for name, value in values.items())

    @property
    def path(self) -> str:
        """Returns text such as "learning_rate=0.001/seed_3"."""
        return f"{self.setting}/seed_{self.seed}" if self.swept else f"seed_{self.seed}"

    @property
    def group(self) -> str:
        """Returns the name of the group that holds all seeds of the run's setting."""
        return f"{self.sweep}/{self.setting}" if self.swept else self.sweep

    @property
    def name(self) -> str:
        """Returns the name under which a library lists the run."""
        return f"{self.sweep}/{self.path}"

    @property
    def key(self) -> str:
        """Returns an identifier of only those characters that every library accepts."""
        return f"{self.sweep_id}-{_hash(self.path)}"

    @property
    def group_key(self) -> str:
        """Returns the same for the run's group."""
        return f"{self.sweep_id}-{_hash(self.group)}"


def forget(folder: Path) -> None:
    """Lets the next sweep in a folder begin new curves, as when its results are replaced."""
    (folder / ID_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


class Curves(NamedTuple):
    """Writes the curves of one run into one library.

    Attributes:
      last_step: the last environment step that an earlier process wrote; -1 if none did, or where
        the library itself drops repeated steps.
      write: `(step, values by name) -> None`.
      close: `failed -> None`.
    """

    last_step: int
    write: Callable[[int, dict[str, float]], None]
    close: Callable[[bool], None]


@contextlib.contextmanager
def track_runs(folder: Path, open_run: Callable[[Run], Curves]) -> Iterator[Tracker]:
    """Makes a tracker that opens each run of a folder's sweep at its first evaluation.

    A run is closed at the first evaluation without it, or at the end.
    """
    sweep_id = _read_id(folder)
    sweep = f"{folder.resolve().name}-{sweep_id}"
    runs: dict[str, Curves] = {}

    def close(paths: list[str], failed: bool) -> None:
        with contextlib.ExitStack() as stack:  # closes all of them, also when one fails
            for path in paths:
                stack.callback(runs.pop(path).close, failed)

    def track(event: Evaluated) -> None:
        current = {}
        for at, label in enumerate(event.labels):
            swept = {name: _to_python(value) for name, value in label.items() if name != "seed"}
            run = Run(sweep_id, sweep, swept, int(label["seed"]))
            current[run.path] = run, _known_values(event, at)
        close([path for path in runs if path not in current], failed=False)
        for path, (run, values) in current.items():
            if path not in runs:
                runs[path] = open_run(run)
            if event.step > runs[path].last_step:
                runs[path].write(event.step, values)

    failed = True
    try:
        yield track
        failed = False
    finally:
        close(list(runs), failed)


def _read_id(folder: Path) -> str:
    """Reads the sweep's id from its folder; writes a new one where there is none."""
    path = folder / ID_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:8] + "\n")
    return path.read_text().strip()


def _known_values(event: Evaluated, at: int) -> dict[str, float]:
    """Returns one run's numbers by name, without those that are NaN."""
    columns = {"training_return": event.training_return, **event.metrics}
    values = {name: float(column[at]) for name, column in columns.items()}
    values["greedy_return"] = float(event.episode_return[at].mean(dtype=np.float64))
    return {name: value for name, value in values.items() if not math.isnan(value)}


def import_library(name: str) -> ModuleType:
    """Imports a tracker's library, which is named as the package's extra that installs it.

    Raises:
      ConfigError: if it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the tracker {name!r} needs a library that cannot be imported ({join_lines(error)}): "
            f'pip install "purejaxdqn[{name}]"'
        ) from error


def shorten(text: str, length: int) -> str:
    """Cuts a text to at most `length` characters; different texts stay different."""
    if len(text) <= length:
        return text
    digest = _hash(text)
    return f"{text[: length - len(digest) - 1]}~{digest}"


def _hash(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()


def _to_python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
