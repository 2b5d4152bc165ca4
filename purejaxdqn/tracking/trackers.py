"""Curves of a sweep in TensorBoard, Weights & Biases, Trackio or MLflow.

A tracker is a function that receives each evaluation on the host, between compiled chunks. Every
run (one seed at one setting) is a curve of its own, and the seeds of a setting are grouped in the
way of each library. A sweep that is resumed in the same folder goes on with the same curves.
"""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import functools
import hashlib
import importlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.types import ConfigError

ID_FILE = "tracking_id"
PROJECT = "purejaxdqn"
_MAX_NAME = 128  # characters, of a name or a group in Weights & Biases
_MAX_FOLDER = 200  # characters; file systems take 255 bytes
_FLUSH_SECONDS = 1.0  # between writes to the disk; a killed process loses the rest
_FINISH_SECONDS = 60.0  # to wait for uploads at the end; what is missing lies on disk


class Evaluated(NamedTuple):
    """One evaluation of the runs that are training, as it comes.

    Attributes:
      step: environment steps of each run so far.
      runs: `[n]` which runs these are, counted over the grid with the seeds running fastest.
      labels: `[n]` each run's swept settings by name, and its "seed"; numbers, bools or strings.
      episode_return: `[n, N]` greedy returns.
      training_return: `[n]` mean return of the training episodes that ended since the evaluation
        before; NaN if none.
      metrics: `[n]` each, the learner's metrics by name; NaN where there is none.
    """

    step: int
    runs: np.ndarray
    labels: list[dict[str, Any]]
    episode_return: np.ndarray
    training_return: np.ndarray
    metrics: dict[str, np.ndarray]


Tracker = Callable[[Evaluated], None]
"""Receives one evaluation of the runs that are training."""


@contextlib.contextmanager
def open_tracker(
    name: str, folder: Path, *, project: str = PROJECT, config: Mapping[str, Any]
) -> Iterator[Tracker]:
    """A tracker by its name, for one sweep; it never stops that sweep.

    The first error in it becomes one `RuntimeWarning`, and it is off from there on.

    Args:
      name: one of `TRACKERS`.
      folder: of the sweep's results. What is tracked belongs to it: a tracker that is opened on
        it again goes on with the same curves (`forget` ends that).
      project: under which Weights & Biases, Trackio and MLflow (as an experiment) list the sweep.
      config: settings by name that all runs share, kept wherever the library has a place for them.

    Yields:
      The tracker.

    Raises:
      ConfigError: before anything is trained, if there is no such tracker, its library is not
        installed, or it cannot be opened.
    """
    check_name(name)
    manager = TRACKERS[name](folder, project, config)
    try:
        tracker = manager.__enter__()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the tracker {name!r} cannot be opened ({_one_line(error)}): mend that, or do without"
        ) from error
    raised: tuple[Any, Any, Any] = (None, None, None)
    try:
        yield safely(tracker, name)
    except BaseException:
        raised = sys.exc_info()
        raise
    finally:
        try:
            manager.__exit__(*raised)
        except Exception as error:
            if error is not raised[1]:
                _warn(f"the tracker {name!r} could not be closed ({_one_line(error)})")


def check_name(name: str) -> None:
    """Refuses the name of a tracker that there is not."""
    if name not in TRACKERS:
        nearest = difflib.get_close_matches(name, TRACKERS, n=3)
        raise ConfigError(f"tracker ({name!r}) must be one of {', '.join(nearest or TRACKERS)}")


def safely(tracker: Tracker, name: str) -> Tracker:
    """A tracker whose first error becomes a `RuntimeWarning`, and that is off from there on.

    Off, because a server that does not answer would delay every later evaluation too.
    """
    is_on = True

    def track(event: Evaluated) -> None:
        nonlocal is_on
        if not is_on:
            return
        try:
            tracker(event)
        except Exception as error:
            is_on = False
            what = f"failed at step {event.step} and is off from here on"
            _warn(f"the tracker {name!r} {what} ({_one_line(error)})")

    return track


def forget(folder: Path) -> None:
    """Lets a new sweep in an old folder begin curves of its own, as when results are replaced."""
    (folder / ID_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


@contextlib.contextmanager
def tensorboard(folder: Path, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Writes event files to `folder/tensorboard/<setting>/seed_<seed>`.

    The hyper-parameters are those of the HParams dashboard, which groups the seeds of a setting.
    Opened as `open_tracker` describes, but errors are the caller's.
    """
    _library("tensorboard", "tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    sweep = _Sweep.of(folder)

    def open_run(run: _Run) -> _Curves:
        path = folder / "tensorboard" / _shorten(run.setting, _MAX_FOLDER) / f"seed_{run.seed}"
        is_resumed = path.exists()
        writer = EventFileWriter(str(path))
        if not is_resumed:
            settings = {name: _scalar(value) for name, value in {**config, **run.swept}.items()}
            summary = hparams_pb(settings, trial_id=sweep.group_of(run))
            writer.add_event(Event(wall_time=time.time(), summary=summary))

        def write(step: int, values: dict[str, float]) -> None:
            nonlocal is_resumed
            if is_resumed:  # readers then drop what an earlier process wrote from this step on
                start = SessionLog(status=SessionLog.START)
                writer.add_event(Event(wall_time=time.time(), step=step, session_log=start))
                is_resumed = False
            points = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
            summary = Summary(value=points)
            writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
            writer.flush()

        return _Curves(-1, write, close=lambda failed: writer.close())

    with _track_runs(open_run) as tracker:
        yield tracker


@contextlib.contextmanager
def wandb(
    folder: Path, project: str, config: Mapping[str, Any], *, offline: bool = False
) -> Iterator[Tracker]:
    """Writes a Weights & Biases run per seed, with the setting as its group.

    Offline, `wandb sync` in the folder sends them later; so it is too where the environment
    variable `WANDB_MODE` says so. Opened as `open_tracker` describes, but errors are the caller's.

    Raises:
      ConfigError: if the library is not installed, or nobody is logged in.
    """
    library = _library("wandb", "wandb")
    mode = "offline" if offline else os.environ.get("WANDB_MODE", "online")
    if mode == "online":
        why = "no login was chosen"
        try:
            is_in = library.login()
        except library.errors.Error as error:
            is_in, why = False, _one_line(error)
        if not is_in:
            raise ConfigError(
                f"Weights & Biases cannot log in ({why}): run 'wandb login', or choose the tracker "
                "'wandb-offline' and send its files later with 'wandb sync'"
            )
    # One process has all runs: its console and its load belong to none of them.
    settings = library.Settings(
        project=project,
        reinit="create_new",
        console="off",
        silent=True,
        x_disable_stats=True,
        x_transaction_log_flush_interval=_FLUSH_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )
    sweep = _Sweep.of(folder)

    def open_run(run: _Run) -> _Curves:
        wandb_run = library.init(
            dir=str(folder),
            id=sweep.key_of(run.path),
            name=_shorten(sweep.name_of(run), _MAX_NAME),
            group=_shorten(sweep.group_of(run), _MAX_NAME),
            config={**config, **run.label},
            allow_val_change=True,
            mode=mode,
            resume="allow",
            settings=settings,
        )
        # What was written offline no server knows, and `wandb sync` would move a repeated step.
        last_step = _offline_step(wandb_run) if mode == "offline" else wandb_run.starting_step - 1

        def write(step: int, values: dict[str, float]) -> None:
            wandb_run.log(values, step=step, commit=True)

        return _Curves(last_step, write, close=lambda failed: wandb_run.finish(int(failed)))

    with _track_runs(open_run) as tracker:
        yield tracker


def _offline_step(run: Any) -> int:
    """The last step that earlier processes wrote of a Weights & Biases run; -1 without any."""
    from wandb.util import get_core_path

    steps = [-1]
    for path in Path(run.settings.wandb_dir).glob(f"offline-run-*/run-{run.id}.wandb"):
        # What the command `wandb leet inspect --summary --json` runs.
        inspect = [get_core_path(), "leet", "inspect", "--summary", "--json", "--no-observability"]
        command = [*inspect, "--run-file", str(path), str(path.parent.parent)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        step = json.loads(answer.stdout)["step"]
        steps += [] if step is None else [step]
    return max(steps)


@contextlib.contextmanager
def trackio(folder: Path, project: str, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Writes a Trackio run per seed, with the setting as its group.

    They go where Trackio keeps all its projects: see the environment variables `TRACKIO_DIR` and
    `TRACKIO_SPACE_ID`. Opened as `open_tracker` describes, but errors are the caller's.
    """
    library = _library("trackio", "trackio")
    sweep = _Sweep.of(folder)

    def open_run(run: _Run) -> _Curves:
        def init() -> Any:
            return library.init(
                project,
                name=sweep.name_of(run),
                group=sweep.group_of(run),
                config={**config, **run.label},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

        # In a context of its own, as `init` ends the run before; quietly, as standard output may
        # be for a program to read.
        with contextlib.redirect_stdout(io.StringIO()):
            trackio_run = contextvars.Context().run(init)
        last_step = getattr(trackio_run, "_next_step", 0) - 1  # what it resumes from is not public

        def write(step: int, values: dict[str, float]) -> None:
            trackio_run.log(values, step=step)

        def close(failed: bool) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                trackio_run.finish()

        return _Curves(last_step, write, close)

    with _track_runs(open_run) as tracker:
        yield tracker


@contextlib.contextmanager
def mlflow(folder: Path, project: str, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Writes an MLflow run per setting, and beneath it one per seed.

    They go to `folder/mlflow/mlflow.db`, or to the server that the environment variable
    `MLFLOW_TRACKING_URI` names. Opened as `open_tracker` describes, but errors are the caller's.
    """
    library = _library("mlflow", "mlflow")
    from mlflow.entities import Metric, Param

    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        home = (folder / "mlflow").resolve()
        home.mkdir(parents=True, exist_ok=True)
        uri, artifacts = f"sqlite:///{home / 'mlflow.db'}", (home / "artifacts").as_uri()
    client = library.MlflowClient(uri)
    found = client.get_experiment_by_name(project)
    experiment = found.experiment_id if found else client.create_experiment(project, artifacts)
    sweep = _Sweep.of(folder)

    def start(
        key: str, name: str, settings: Mapping[str, Any], tags: dict[str, str]
    ) -> tuple[str, int]:
        """A run that is found by its key or made: its id, and the last step of its curves."""
        same = client.search_runs([experiment], f"tags.`{PROJECT}.run` = '{key}'", max_results=1)
        if same:
            run_id = same[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            points = client.get_metric_history(run_id, "greedy_return")
            return run_id, max((point.step for point in points), default=-1)
        tags = {f"{PROJECT}.run": key, **tags}
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        params = [Param(name, str(value)) for name, value in settings.items()]
        client.log_batch(run_id, params=params)
        return run_id, -1

    groups: dict[str, str] = {}

    def open_run(run: _Run) -> _Curves:
        group = sweep.group_of(run)
        if group not in groups:
            groups[group], _ = start(sweep.key_of(group), group, {**config, **run.swept}, {})
        parent = {"mlflow.parentRunId": groups[group]}
        settings = {**config, **run.label}
        run_id, last_step = start(sweep.key_of(run.path), sweep.name_of(run), settings, parent)

        def write(step: int, values: dict[str, float]) -> None:
            now = int(time.time() * 1000)
            client.log_batch(run_id, [Metric(name, x, now, step) for name, x in values.items()])

        return _Curves(last_step, write, close=lambda failed: end(run_id, failed))

    def end(run_id: str, failed: bool) -> None:
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    failed = True
    try:
        with _track_runs(open_run) as tracker:
            yield tracker
        failed = False
    finally:
        for run_id in groups.values():
            end(run_id, failed)


TRACKERS: dict[
    str, Callable[[Path, str, Mapping[str, Any]], contextlib.AbstractContextManager[Tracker]]
] = {
    "tensorboard": lambda folder, project, config: tensorboard(folder, config),
    "wandb": wandb,
    "wandb-offline": functools.partial(wandb, offline=True),
    "trackio": trackio,
    "mlflow": mlflow,
}
"""What opens each one: `(folder, project, config) -> context manager`."""


class _Run(NamedTuple):
    """A run as trackers name it.

    Attributes:
      swept: its swept settings.
      seed: its seed.
    """

    swept: dict[str, Any]
    seed: int

    @property
    def label(self) -> dict[str, Any]:
        return {**self.swept, "seed": self.seed}

    @property
    def setting(self) -> str:
        """Such as "learning_rate=0.001,discount=0.9", fit for a file's name; empty without any."""
        values = {name: urllib.parse.quote(str(x), safe="") for name, x in self.swept.items()}
        return ",".join(f"{name}={value}" for name, value in values.items())

    @property
    def path(self) -> str:
        return f"{self.setting}/seed_{self.seed}" if self.swept else f"seed_{self.seed}"


class _Sweep(NamedTuple):
    """What tells a sweep's runs from those of other sweeps in the same project.

    Attributes:
      id: kept in the folder, so that it is the same when the folder has moved, and another one
        when its content was deleted.
      name: the folder's name and the id.
    """

    id: str
    name: str

    @classmethod
    def of(cls, folder: Path) -> _Sweep:
        path = folder / ID_FILE
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(uuid.uuid4().hex[:8] + "\n")
        sweep_id = path.read_text().strip()
        return cls(sweep_id, f"{folder.resolve().name}-{sweep_id}")

    def group_of(self, run: _Run) -> str:
        return f"{self.name}/{run.setting}" if run.swept else self.name

    def name_of(self, run: _Run) -> str:
        return f"{self.name}/{run.path}"

    def key_of(self, text: str) -> str:
        """An identifier, of letters that every library takes."""
        return f"{self.id}-{_digest(text)}"


class _Curves(NamedTuple):
    """One run in a library, open.

    Attributes:
      last_step: in environment steps, of what an earlier process wrote; -1 if nothing, or where the
        library itself drops what is written again.
      write: `(step, values by name) -> None`.
      close: `failed -> None`.
    """

    last_step: int
    write: Callable[[int, dict[str, float]], None]
    close: Callable[[bool], None]


@contextlib.contextmanager
def _track_runs(open_run: Callable[[_Run], _Curves]) -> Iterator[Tracker]:
    """A tracker that opens each run when it is first heard of, and closes it after its round."""
    runs: dict[str, _Curves] = {}

    def close(paths: list[str], failed: bool) -> None:
        with contextlib.ExitStack() as stack:  # each of them, also where another one fails
            for path in paths:
                stack.callback(runs.pop(path).close, failed)

    def track(event: Evaluated) -> None:
        current = {}
        for at, label in enumerate(event.labels):
            swept = {name: _plain(value) for name, value in label.items() if name != "seed"}
            run = _Run(swept, int(label["seed"]))
            current[run.path] = run, _values(event, at)
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


def _values(event: Evaluated, at: int) -> dict[str, float]:
    """A run's numbers by name, without those that are not there."""
    columns = {"training_return": event.training_return, **event.metrics}
    values = {name: float(column[at]) for name, column in columns.items()}
    values["greedy_return"] = float(event.episode_return[at].mean(dtype=np.float64))
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _library(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the tracker {extra!r} needs a library that cannot be imported ({_one_line(error)}): "
            f'pip install "purejaxdqn[{extra}]"'
        ) from error


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _shorten(text: str, length: int) -> str:
    """At most so long, and still different for different texts."""
    if len(text) <= length:
        return text
    digest = _digest(text)
    return f"{text[: length - len(digest) - 1]}~{digest}"


def _digest(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
