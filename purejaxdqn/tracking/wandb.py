"""Writes a sweep's curves to Weights & Biases, online or into files to be sent later."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from purejaxdqn.tracking.curves import Curves, TrackedRun, import_library, shorten, track_runs
from purejaxdqn.tracking.registry import Tracker, join_lines
from purejaxdqn.types import ConfigError

_MAX_NAME = 128  # characters of a name or a group
_FLUSH_SECONDS = 1.0  # between writes to the disk; a killed process loses the rest
_FINISH_SECONDS = 60.0  # to wait for uploads at the end; the disk keeps what is not sent by then


@contextlib.contextmanager
def open_wandb(
    folder: Path, project: str, config: Mapping[str, Any], *, offline: bool = False
) -> Iterator[Tracker]:
    """Writes a Weights & Biases run per seed, with the setting as its group; see `open_tracker`.

    Offline it writes files only, which `wandb sync` in the folder sends later. The environment
    variable `WANDB_MODE` can ask for the same.

    Raises:
      ConfigError: if the library is not installed, or nobody is logged in.
    """
    library = import_library("wandb")
    mode = "offline" if offline else os.environ.get("WANDB_MODE", "online")
    if mode == "online":
        _log_in(library)
    # One process trains all runs: its console output and its load belong to none of them.
    settings = library.Settings(
        project=project,
        reinit="create_new",
        console="off",
        silent=True,
        x_disable_stats=True,
        x_transaction_log_flush_interval=_FLUSH_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )

    def open_run(run: TrackedRun) -> Curves:
        wandb_run = library.init(
            dir=str(folder),
            id=run.key,
            name=shorten(run.name, _MAX_NAME),
            group=shorten(run.group, _MAX_NAME),
            config={**config, **run.label},
            allow_val_change=True,
            mode=mode,
            resume="allow",
            settings=settings,
        )
        # No server knows of offline files, and `wandb sync` would move a repeated step.
        last_step = _offline_step(wandb_run) if mode == "offline" else wandb_run.starting_step - 1

        def write(step: int, values: dict[str, float]) -> None:
            wandb_run.log(values, step=step, commit=True)

        return Curves(last_step, write, close=lambda failed: wandb_run.finish(int(failed)))

    with track_runs(folder, open_run) as tracker:
        yield tracker


def _log_in(library: ModuleType) -> None:
    """Logs in to Weights & Biases, or refuses where that fails."""
    why = "no login was chosen"
    try:
        if library.login():
            return
    except library.errors.Error as error:
        why = join_lines(error)
    raise ConfigError(
        f"Weights & Biases cannot log in ({why}): run 'wandb login', or choose the tracker "
        "'wandb-offline' and send its files later with 'wandb sync'"
    )


def _offline_step(run: Any) -> int:
    """Returns the last step that earlier processes wrote of a run; -1 if they wrote none."""
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
