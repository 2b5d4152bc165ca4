"""Writes a sweep's curves to MLflow, in the sweep's folder or on a server."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from purejaxdqn.tracking.curves import Curves, TrackedRun, import_library, track_runs
from purejaxdqn.tracking.registry import PROJECT, Tracker


@contextlib.contextmanager
def open_mlflow(folder: Path, project: str, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Writes an MLflow run per setting, and below it one per seed; see `open_tracker`.

    They go to `folder/mlflow/mlflow.db`, or to the server that the environment variable
    `MLFLOW_TRACKING_URI` names.
    """
    import_library("mlflow")
    from mlflow.entities import Metric

    client, experiment = _open_experiment(folder, project)
    start = functools.partial(_start_run, client, experiment)
    groups: dict[str, str] = {}

    def open_run(run: TrackedRun) -> Curves:
        if run.group not in groups:
            settings = {**config, **run.swept}
            groups[run.group], _ = start(run.group_key, run.group, settings, {})
        parent = {"mlflow.parentRunId": groups[run.group]}
        run_id, last_step = start(run.key, run.name, {**config, **run.label}, parent)

        def write(step: int, values: dict[str, float]) -> None:
            now = int(time.time() * 1000)
            client.log_batch(run_id, [Metric(name, x, now, step) for name, x in values.items()])

        return Curves(last_step, write, close=lambda failed: end(run_id, failed))

    def end(run_id: str, failed: bool) -> None:
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    failed = True
    try:
        with track_runs(folder, open_run) as tracker:
            yield tracker
        failed = False
    finally:
        for run_id in groups.values():
            end(run_id, failed)


def _open_experiment(folder: Path, project: str) -> tuple[Any, str]:
    """Returns a client, and the id of the project's experiment, which is made where missing."""
    from mlflow import MlflowClient

    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:
        home = (folder / "mlflow").resolve()
        home.mkdir(parents=True, exist_ok=True)
        uri, artifacts = f"sqlite:///{home / 'mlflow.db'}", (home / "artifacts").as_uri()
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(project)
    return client, found.experiment_id if found else client.create_experiment(project, artifacts)


def _start_run(
    client: Any,
    experiment: str,
    key: str,
    name: str,
    settings: Mapping[str, Any],
    tags: Mapping[str, str],
) -> tuple[str, int]:
    """Finds a run by its key, or makes it; returns its id and the last step of its curves."""
    from mlflow.entities import Param

    same = client.search_runs([experiment], f"tags.`{PROJECT}.run` = '{key}'", max_results=1)
    if same:
        run_id = same[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        points = client.get_metric_history(run_id, "greedy_return")
        return run_id, max((point.step for point in points), default=-1)
    tags = {f"{PROJECT}.run": key, **tags}
    run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    client.log_batch(run_id, params=[Param(name, str(x)) for name, x in settings.items()])
    return run_id, -1
