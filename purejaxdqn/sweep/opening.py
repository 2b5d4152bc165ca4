"""How a sweep begins: what it was asked for, its plan, and the folder that it goes on in."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from purejaxdqn.engine.programs import Experiment
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.runtime import processes as distributed
from purejaxdqn.storage import results
from purejaxdqn.sweep import design
from purejaxdqn.sweep.design import Design
from purejaxdqn.sweep.folder import SweepFolder, differences
from purejaxdqn.sweep.plan import SweepPlan
from purejaxdqn.training.settings_text import config_to_json
from purejaxdqn.types import ConfigError

SeedMode = Literal["vmap", "map"]


class Opened(NamedTuple):
    """A sweep that is about to be trained.

    Attributes:
      plan: the runs, laid out.
      asked: all that its numbers hang on, as the folder has it.
      folder: where everything is kept, and claimed; None keeps nothing.
      bar: to show progress.
      attrs: of the dataset: how it is trained, and what happened before.
    """

    plan: SweepPlan
    asked: dict[str, Any]
    folder: SweepFolder | None
    bar: SweepProgress
    attrs: dict[str, Any]


@contextlib.contextmanager
def opened(
    experiment: Experiment,
    design: Design,
    plan: Callable[[int | None], SweepPlan],
    *,
    width: int | None,
    seed_mode: SeedMode,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    checkpoint_seconds: float | None,
    progress: bool,
    diagnostics: bool,
) -> Iterator[Opened]:
    """Checks what a sweep was asked for, plans it, and claims its folder for as long as it takes.

    Args:
      experiment: see `run_design`, as for all that is not explained here.
      design: the runs.
      plan: lays them out at a width, or at one that it chooses.
      width: runs per batch.
      seed_mode: "vmap" or "map".
      output: a folder.
      resume: whether to go on.
      overwrite: whether to start again.
      checkpoint_seconds: between two checkpoints.
      progress: whether to show any.
      diagnostics: whether to look inside the learner.

    Yields:
      The `Opened` sweep.

    Raises:
      ConfigError: for what cannot be kept, before anything is compiled.
    """
    width = width_of(seed_mode, width)
    check_checkpoint_seconds(checkpoint_seconds)
    if (resume or overwrite) and output is None:
        name = "resume" if resume else "overwrite"
        raise ConfigError(f"{name} (True) needs an output folder: give output")
    bar = SweepProgress(_total_steps(design), enabled=progress)
    folder = None if output is None else SweepFolder(Path(output), bar.message)
    with contextlib.ExitStack() as stack:
        history: dict[str, Any] = {"begun": results.now()}
        if folder is not None:
            distributed.first(lambda: results.prepare_output(folder.output, overwrite, resume))
            distributed.first(folder.lock)
            stack.callback(folder.unlock)
            if width is None:
                width = distributed.first(lambda: _width_begun(folder, resume))
        planned = plan(width)
        asked = _asked_for(experiment, planned, seed_mode, diagnostics)
        if folder is not None:
            history = distributed.first(lambda: open_folder(folder, asked, resume, bar.message))
        yield Opened(planned, asked, folder, bar, {"seed_mode": seed_mode, **history})


def _total_steps(design: Design) -> int:
    return sum(run.config.total_steps for run in design.runs)


def width_of(seed_mode: SeedMode, width: int | None) -> int | None:
    """The runs per device program that a mode and a wish ask for; None leaves the choice open."""
    if seed_mode not in ("vmap", "map"):
        raise ConfigError(f"seed_mode ({seed_mode!r}) must be 'vmap' or 'map'")
    if seed_mode == "map" and width not in (None, 1):
        raise ConfigError(f"width ({width}) must be 1 with seed_mode 'map': leave it out")
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise ConfigError(f"width ({width!r}) must be at least 1, and a whole number")
    return 1 if seed_mode == "map" else width


def check_checkpoint_seconds(seconds: float | None) -> None:
    """Refuses what is no time between two checkpoints."""
    is_number = isinstance(seconds, (int, float, np.number)) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 <= seconds < math.inf):
        raise ConfigError(
            f"checkpoint_seconds ({seconds!r}) must be at least 0 and finite, such as 60"
        )


def _asked_for(
    experiment: Experiment, plan: SweepPlan, seed_mode: SeedMode, diagnostics: bool
) -> dict[str, Any]:
    """All that the numbers of a sweep hang on, as JSON holds it."""
    settings = {
        ", ".join(f"{name}={value}" for name, value in setting.labels.items()): json.loads(
            config_to_json(setting.config)
        )
        for setting in plan.design.settings
    }
    if len(settings) == 1:
        (settings,) = settings.values()
    asked = {
        **results.experiment_names(experiment),
        "axes": plan.design.axes,
        "seeds": list(plan.design.seeds),
        "width": plan.width,
        "seed_mode": seed_mode,
        "diagnostics": diagnostics,
        "settings": settings,
    }
    return json.loads(json.dumps(results.jsonable(asked)))


def _width_begun(folder: SweepFolder, resume: bool) -> int | None:
    """The width of the sweep that goes on in a folder."""
    if not (resume and folder.is_begun()):
        return None
    width: int = folder.begun()["asked"]["width"]
    return width


def open_folder(
    folder: SweepFolder,
    asked: dict[str, Any],
    resume: bool,
    say: Callable[[str], None],
    what: str = "sweep",
) -> dict[str, Any]:
    """Begins a sweep in a folder, or makes sure that the one begun there is the same.

    Args:
      folder: of the sweep.
      asked: all that its numbers hang on, as JSON holds it.
      resume: whether to go on with what was begun there.
      say: takes warnings.
      what: it is called in messages.

    Returns:
      Attributes that say what happened before.
    """
    made_with = results.made_with()
    if not (resume and folder.is_begun()):
        if resume and (folder.output / results.FILE_NAME).exists():
            raise ConfigError(
                f"{folder.output} holds results, but no checkpoint to go on from: choose another "
                "folder with --output, or start again with --overwrite"
            )
        now = results.now()
        folder.begin({"asked": asked, "made_with": made_with, "begun": now})
        return {"begun": now}
    begun = folder.begun()
    if lines := _what_differs(begun["asked"], asked):
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise ConfigError(
            f"the {what} in {folder.output} was begun with other settings ({shown}): resume with "
            "the same ones, choose another folder with --output, or start again with --overwrite"
        )
    return {"begun": begun.get("begun", "unknown"), **note_changes(folder, made_with, say)}


def _what_differs(begun: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """What a sweep was asked for, there and now, in as few lines as can be."""
    axes, now = begun.get("axes", {}), asked.get("axes", {})
    # Each setting has its own: what all of them share comes first, and is said once.
    shared, shared_now = _shared(begun.get("settings", {})), _shared(asked["settings"])
    both = [name for name in shared if name in shared_now and name not in {**axes, **now}]
    lines = differences(
        {**begun, "settings": {name: shared[name] for name in both}},
        {**asked, "settings": {name: shared_now[name] for name in both}},
    )
    if [*axes] != [*now] and {*axes} == {*now}:
        lines += differences([*axes], [*now], "order of the axes")
    return lines or differences(begun.get("settings"), asked["settings"], "settings")


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are the same in all points of a sweep; of one point, all."""
    points = [one for one in settings.values() if isinstance(one, dict)] or [settings]
    return design.common(points)


def note_changes(
    folder: SweepFolder, made_with: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Keeps what a part of a sweep is made with, where other bits may come of it.

    Args:
      folder: of the sweep.
      made_with: what `results.made_with` gives where that part is trained.
      say: takes warnings.

    Returns:
      Attributes that say what was different so far.
    """
    known = folder.changes()
    for line in differences(folder.begun()["made_with"], made_with):
        say(f"warning: what is trained from here on may have other bits: {line}")
        if line not in known:
            folder.note_change(line)
    changed = folder.changes()
    return {"not_bitwise": json.dumps(changed)} if changed else {}
