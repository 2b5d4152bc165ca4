"""Writes a sweep's curves to Trackio, which keeps them on this machine or in a Space."""

from __future__ import annotations

import contextlib
import contextvars
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from purejaxdqn.tracking.curves import Curves, TrackedRun, import_library, track_runs
from purejaxdqn.tracking.registry import Tracker


@contextlib.contextmanager
def open_trackio(folder: Path, project: str, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Writes a Trackio run per seed, with the setting as its group; see `open_tracker`.

    They go where Trackio keeps all its projects: see the environment variables `TRACKIO_DIR` and
    `TRACKIO_SPACE_ID`.
    """
    library = import_library("trackio")

    def open_run(run: TrackedRun) -> Curves:
        def init() -> Any:
            return library.init(
                project,
                name=run.name,
                group=run.group,
                config={**config, **run.label},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

        # In a context of its own, as `init` ends the run before it. What it prints is dropped,
        # because a program may read standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            trackio_run = contextvars.Context().run(init)
        last_step = getattr(trackio_run, "_next_step", 0) - 1  # no public name tells it

        def write(step: int, values: dict[str, float]) -> None:
            trackio_run.log(values, step=step)

        def close(failed: bool) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                trackio_run.finish()

        return Curves(last_step, write, close)

    with track_runs(folder, open_run) as tracker:
        yield tracker
