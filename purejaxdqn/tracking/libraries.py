"""Writes a sweep's curves with the libraries that show them, each imported where it is opened."""

import contextlib
import contextvars
import functools
import hashlib
import importlib
import io
import json
import os
import shutil
import subprocess
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.checks import ConfigError
from purejaxdqn.tracking.registry import PROJECT, Evaluated, Opened, Tracker, join_lines

ID_FILE = "tracking_id"
_MAX_FOLDER = 200  # characters of a folder's name; file systems take 255 bytes
_MAX_NAME = 128  # characters of a name or a group of Weights & Biases
_FLUSH_SECONDS = 1.0  # between writes to the disk by W&B; a killed process loses the rest
_FINISH_SECONDS = 60.0  # to wait for uploads to W&B; the disk keeps what is not sent by then


class TrackedRun(NamedTuple):
    """Names one run, so that a library tells it from other runs and finds it again."""

    swept: dict[str, Any]  # the settings that the sweep varies, with this run's values
    label: dict[str, Any]  # these, and the seed
    # Such as "learning_rate=0.001,discount=0.9", which can name a file; empty if nothing is swept.
    setting: str
    group: str  # names all seeds of the setting
    name: str
    group_key: str  # names the group in characters that every library accepts
    key: str  # names the run in such characters


def _name_run(sweep: str, sweep_id: str, label: Mapping[str, Any]) -> TrackedRun:
    """Names a run by its label: its swept settings and its "seed"."""
    label = {name: x.item() if isinstance(x, np.generic) else x for name, x in label.items()}
    swept = {name: x for name, x in label.items() if name != "seed"}
    quoted = {name: urllib.parse.quote(str(value), safe="") for name, value in swept.items()}
    setting = ",".join(f"{name}={value}" for name, value in quoted.items())
    group, path = (f"{sweep}/{setting}", f"{setting}/") if setting else (sweep, "")
    path += f"seed_{label['seed']}"
    keys = [f"{sweep_id}-{_hash(text)}" for text in (group, path)]
    return TrackedRun(swept, label, setting, group, f"{sweep}/{path}", *keys)


def forget(folder: Path) -> None:
    """Lets the next sweep in a folder begin new curves, as when its results are replaced."""
    (folder / ID_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


class Curves(NamedTuple):
    """Writes the curves of one run into one library."""

    # That an earlier process wrote; -1 if none did, or where the library drops repeated steps.
    last_step: int
    write: Callable[[int, dict[str, float]], Any]  # (environment step, values)
    close: Callable[[bool], Any]  # (failed)


@contextlib.contextmanager
def track_runs(
    folder: Path,
    open_run: Callable[[TrackedRun], Curves],
    close_groups: Callable[[bool], None] = lambda failed: None,
) -> Iterator[Tracker]:
    """Makes a tracker that opens each run of a folder's sweep at its first evaluation.

    A run is closed at the first evaluation without it, or at the end, and the groups after all.
    """

    @functools.cache
    def identify() -> str:
        id_file = folder / ID_FILE  # moves with the sweep
        if not id_file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            id_file.write_text(uuid.uuid4().hex[:8] + "\n")
        return id_file.read_text().strip()

    def name_run(label: Mapping[str, Any]) -> TrackedRun:
        return _name_run(f"{folder.resolve().name}-{identify()}", identify(), label)

    open_runs: dict[str, Curves] = {}

    def close(keys: set[str], failed: bool) -> None:
        with contextlib.ExitStack() as stack:  # closes all of them, also when one fails
            for key in keys:
                stack.callback(open_runs.pop(key).close, failed)

    def track(event: Evaluated) -> None:
        runs = [name_run(label) for label in event.labels]
        close({*open_runs} - {run.key for run in runs}, failed=False)
        columns = {"training_return": event.training_return, **event.metrics}
        columns["greedy_return"] = event.episode_return.mean(axis=1, dtype=np.float64)
        for at, run in enumerate(runs):
            if run.key not in open_runs:
                open_runs[run.key] = open_run(run)
            if event.step > open_runs[run.key].last_step:
                known = {name: float(x[at]) for name, x in columns.items() if not np.isnan(x[at])}
                open_runs[run.key].write(event.step, known)

    failed = True
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: close_groups(failed))
        stack.callback(lambda: close({*open_runs}, failed))
        yield track
        failed = False


def _import_library(name: str) -> ModuleType:
    """Imports a tracker's library, named as its extra, or says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the tracker {name!r} needs a library that cannot be imported ({join_lines(error)}): "
            f'pip install "purejaxdqn[{name}]"'
        ) from error


def _shorten(text: str, length: int) -> str:
    """Cuts a text to at most `length` characters; different texts stay different."""
    digest = _hash(text)
    return text if len(text) <= length else f"{text[: length - len(digest) - 1]}~{digest}"


def _hash(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()


def open_tensorboard(folder: Path, project: str, config: Mapping[str, Any]) -> Opened:
    """Writes event files to `folder/tensorboard/<setting>/seed_<seed>`; see `open_tracker`.

    The settings are those of the HParams dashboard, which groups the seeds of a setting.
    """
    del project  # event files belong to their folder
    _import_library("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def open_run(run: TrackedRun) -> Curves:
        group = folder / "tensorboard" / _shorten(run.setting, _MAX_FOLDER)
        path = group / f"seed_{run.label['seed']}"
        is_resumed = path.exists()
        _await_later_name(path)
        writer = EventFileWriter(str(path))

        def add(**content: Any) -> None:
            writer.add_event(Event(wall_time=time.time(), **content))

        if not is_resumed:
            settings = {**config, **run.swept}
            kept = (bool, int, float, str)
            hparams = {key: x if isinstance(x, kept) else str(x) for key, x in settings.items()}
            add(summary=hparams_pb(hparams, trial_id=run.group))

        def write(step: int, values: dict[str, float]) -> None:
            nonlocal is_resumed
            if is_resumed:  # readers then drop what an earlier process wrote from this step on
                add(step=step, session_log=SessionLog(status=SessionLog.START))
                is_resumed = False
            points = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
            add(step=step, summary=Summary(value=points))
            writer.flush()

        return Curves(-1, write, lambda failed: writer.close())

    return track_runs(folder, open_run)


def _await_later_name(path: Path) -> None:
    """Waits until a new event file's name sorts last: it begins with the second of its start."""
    seconds = [int(file.name.split(".")[3]) for file in path.glob("events.out.tfevents.*")]
    if int(time.time()) in seconds:
        time.sleep(1 - time.time() % 1)


def open_wandb(
    folder: Path, project: str, config: Mapping[str, Any], *, offline: bool = False
) -> Opened:
    """Writes a Weights & Biases run per seed, with the setting as its group; see `open_tracker`.

    Offline it writes files only, which `wandb sync` in the folder sends later. The environment
    variable `WANDB_MODE` can ask for the same. Online somebody must be logged in.
    """
    library = _import_library("wandb")
    mode = "offline" if offline else os.environ.get("WANDB_MODE", "online")
    if mode == "online":
        _log_in(library)
    # One process trains all runs: its console output and its load belong to none of them.
    quiet = {"console": "off", "silent": True, "x_disable_stats": True}
    waits = {"x_transaction_log_flush_interval": _FLUSH_SECONDS, "finish_timeout": _FINISH_SECONDS}
    settings = library.Settings(project=project, reinit="create_new", **quiet, **waits)
    options = {"dir": str(folder), "mode": mode, "resume": "allow", "allow_val_change": True}

    def open_run(run: TrackedRun) -> Curves:
        name, group = (_shorten(text, _MAX_NAME) for text in (run.name, run.group))
        names = {"id": run.key, "name": name, "group": group, "config": {**config, **run.label}}
        wandb_run = library.init(settings=settings, **names, **options)
        return Curves(
            # No server knows of offline files, and `wandb sync` would move a repeated step.
            _offline_step(wandb_run) if mode == "offline" else wandb_run.starting_step - 1,
            lambda step, values: wandb_run.log(values, step=step, commit=True),
            lambda failed: wandb_run.finish(int(failed)),
        )

    return track_runs(folder, open_run)


def _log_in(library: ModuleType) -> None:
    """Logs in to Weights & Biases, or refuses where that fails."""
    try:
        why = "" if library.login() else "no login was chosen"
    except library.errors.Error as error:
        why = join_lines(error)
    if why:
        raise ConfigError(
            f"Weights & Biases cannot log in ({why}): run 'wandb login', or choose the tracker "
            "'wandb-offline' and send its files later with 'wandb sync'"
        )


def _offline_step(run: Any) -> int:
    """Returns the last step that earlier processes wrote of a run; -1 if they wrote none."""
    from wandb.util import get_core_path

    # What the command `wandb leet inspect --summary --json` runs.
    inspect = [get_core_path(), "leet", "inspect", "--summary", "--json", "--no-observability"]
    steps = [-1]
    for path in Path(run.settings.wandb_dir).glob(f"offline-run-*/run-{run.id}.wandb"):
        command = [*inspect, "--run-file", str(path), str(path.parent.parent)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        step = json.loads(answer.stdout)["step"]
        steps += [] if step is None else [step]
    return max(steps)


def open_trackio(folder: Path, project: str, config: Mapping[str, Any]) -> Opened:
    """Writes a Trackio run per seed, with the setting as its group; see `open_tracker`.

    They go where Trackio keeps all its projects: see the environment variables `TRACKIO_DIR` and
    `TRACKIO_SPACE_ID`.
    """
    library = _import_library("trackio")
    options = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}

    def quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Drops what a call prints, because a program may read standard output."""
        with contextlib.redirect_stdout(io.StringIO()):
            return call(*args, **kwargs)

    def open_run(run: TrackedRun) -> Curves:
        names = {"name": run.name, "group": run.group, "config": {**config, **run.label}}
        # In a context of its own, as `init` ends the run before it.
        alone = contextvars.Context().run
        trackio_run = quietly(alone, library.init, project, **names, **options)
        return Curves(
            getattr(trackio_run, "_next_step", 0) - 1,  # no public name tells it
            lambda step, values: trackio_run.log(values, step=step),
            lambda failed: quietly(trackio_run.finish),
        )

    return track_runs(folder, open_run)


def _open_experiment(folder: Path, project: str) -> tuple[Any, str]:
    """Opens MLflow's experiment, or makes it; returns its client and its id."""
    from mlflow import MlflowClient

    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        home = (folder / "mlflow").resolve()
        home.mkdir(parents=True, exist_ok=True)
        uri, artifacts = f"sqlite:///{home / 'mlflow.db'}", (home / "artifacts").as_uri()
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(project)
    return client, found.experiment_id if found else client.create_experiment(project, artifacts)


def open_mlflow(folder: Path, project: str, config: Mapping[str, Any]) -> Opened:
    """Writes an MLflow run per setting, and below it one per seed; see `open_tracker`.

    They go to `folder/mlflow/mlflow.db`, or to the server that the environment variable
    `MLFLOW_TRACKING_URI` names.
    """
    _import_library("mlflow")
    from mlflow.entities import Metric, Param

    connect = functools.cache(lambda: _open_experiment(folder, project))
    if os.environ.get("MLFLOW_TRACKING_URI"):  # files are made once something is trained
        connect()  # refuses a server that does not answer
    groups: dict[str, str] = {}

    def start(key: str, name: str, settings: Mapping[str, Any], **tags: str) -> tuple[str, int]:
        """Finds a run by its key, or makes it; returns its id and the last step of its curves."""
        client, experiment = connect()
        same = client.search_runs([experiment], f"tags.`{PROJECT}.run` = '{key}'", max_results=1)
        if same:
            run_id = same[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            points = client.get_metric_history(run_id, "greedy_return")
            return run_id, max((point.step for point in points), default=-1)
        tags[f"{PROJECT}.run"] = key
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        params = [Param(name, str(x)) for name, x in {**config, **settings}.items()]
        client.log_batch(run_id, params=params)
        return run_id, -1

    def end(run_id: str, failed: bool) -> None:
        connect()[0].set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def open_run(run: TrackedRun) -> Curves:
        if run.group not in groups:
            groups[run.group], _ = start(run.group_key, run.group, run.swept)
        parent = {"mlflow.parentRunId": groups[run.group]}
        run_id, last_step = start(run.key, run.name, run.label, **parent)

        def write(step: int, values: dict[str, float]) -> None:
            now = int(time.time() * 1000)
            connect()[0].log_batch(
                run_id, [Metric(name, x, now, step) for name, x in values.items()]
            )

        return Curves(last_step, write, lambda failed: end(run_id, failed))

    def end_groups(failed: bool) -> None:
        for run_id in groups.values():
            end(run_id, failed)

    return track_runs(folder, open_run, end_groups)
