"""Writes a sweep's curves as event files, which TensorBoard shows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from purejaxdqn.tracking.curves import Curves, TrackedRun, import_library, shorten, track_runs
from purejaxdqn.tracking.registry import Tracker

_MAX_FOLDER = 200  # characters; file systems take 255 bytes


@contextlib.contextmanager
def open_tensorboard(folder: Path, project: str, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Writes event files to `folder/tensorboard/<setting>/seed_<seed>`; see `open_tracker`.

    The settings are those of the HParams dashboard, which groups the seeds of a setting.
    """
    del project  # event files belong to their folder
    import_library("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def open_run(run: TrackedRun) -> Curves:
        path = folder / "tensorboard" / shorten(run.setting, _MAX_FOLDER) / f"seed_{run.seed}"
        is_resumed = path.exists()
        writer = EventFileWriter(str(path))

        def add(**content: Any) -> None:
            writer.add_event(Event(wall_time=time.time(), **content))

        if not is_resumed:
            settings = {name: _to_scalar(value) for name, value in {**config, **run.swept}.items()}
            add(summary=hparams_pb(settings, trial_id=run.group))

        def write(step: int, values: dict[str, float]) -> None:
            nonlocal is_resumed
            if is_resumed:  # readers then drop what an earlier process wrote from this step on
                add(step=step, session_log=SessionLog(status=SessionLog.START))
                is_resumed = False
            points = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
            add(step=step, summary=Summary(value=points))
            writer.flush()

        return Curves(-1, write, close=lambda failed: writer.close())

    with track_runs(folder, open_run) as tracker:
        yield tracker


def _to_scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
