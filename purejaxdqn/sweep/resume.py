"""Begins a sweep in its folder, or resumes the one that was begun there if it is the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.runtime.processes import run_on_first_process
from purejaxdqn.storage import provenance, results
from purejaxdqn.sweep import design
from purejaxdqn.sweep.design import Design
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.plan import SweepPlan
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings_text import config_to_json
from purejaxdqn.types import ConfigError


class OpenSweep(NamedTuple):
    """A sweep that is about to be trained.

    Attributes:
      experiment: `config -> Train`.
      plan: the runs, laid out.
      options: how they are trained and kept.
      request: what the sweep was asked to train: everything that its numbers depend on, as JSON
        holds it.
      folder: where everything is kept, locked for this process; None keeps nothing.
      bar: shows progress.
      attrs: attributes of the dataset: how it is trained, and what happened before.
    """

    experiment: Experiment
    plan: SweepPlan
    options: SweepOptions
    request: dict[str, Any]
    folder: SweepFolder | None
    bar: SweepProgress
    attrs: dict[str, Any]


@contextlib.contextmanager
def open_sweep(
    experiment: Experiment,
    design: Design,
    plan: Callable[..., SweepPlan],
    options: SweepOptions,
) -> Iterator[OpenSweep]:
    """Plans a sweep, and locks its folder within the block.

    Args:
      experiment: `config -> Train`.
      design: the runs.
      plan: lays the runs out at a `width`, or with None at one that it chooses.
      options: how to train and keep them.

    Yields:
      The `OpenSweep`.

    Raises:
      ConfigError: for what cannot be kept or resumed, before anything is compiled.
    """
    width, resume, output = options.runs_per_batch, options.resume, options.output
    total_steps = sum(run.config.total_steps for run in design.runs)
    bar = SweepProgress(total_steps, enabled=options.progress)
    folder = None if output is None else SweepFolder(output, bar.message)
    with contextlib.ExitStack() as stack:
        history: dict[str, Any] = {"begun": provenance.current_time()}
        if folder is not None:
            run_on_first_process(
                lambda: results.prepare_output(folder.output, options.overwrite, resume)
            )
            run_on_first_process(folder.lock)
            stack.callback(folder.unlock)
            if width is None:
                width = run_on_first_process(lambda: _read_width(folder, resume))
        planned = plan(width=width)
        request = _describe(experiment, planned, options)
        if folder is not None:
            history = run_on_first_process(
                lambda: begin_or_resume(folder, request, resume, bar.message)
            )
        attrs = {"seed_mode": options.seed_mode, **history}
        yield OpenSweep(experiment, planned, options, request, folder, bar, attrs)


def _describe(experiment: Experiment, plan: SweepPlan, options: SweepOptions) -> dict[str, Any]:
    """Describes everything that the numbers of a sweep depend on, as JSON holds it."""
    settings = {
        ", ".join(f"{name}={value}" for name, value in point.labels.items()): json.loads(
            config_to_json(point.config)
        )
        for point in plan.design.points
    }
    if len(settings) == 1:
        (settings,) = settings.values()
    request = {
        **provenance.name_experiment(experiment),
        "axes": plan.design.axes,
        "seeds": list(plan.design.seeds),
        "width": plan.width,
        "seed_mode": options.seed_mode,
        "diagnostics": options.diagnostics,
        "settings": settings,
    }
    return json.loads(json.dumps(provenance.to_jsonable(request)))


def _read_width(folder: SweepFolder, resume: bool) -> int | None:
    """Reads the width of the sweep that is to be resumed in a folder; None without one."""
    return folder.read_begun()["asked"]["width"] if resume and folder.is_begun() else None


def begin_or_resume(
    folder: SweepFolder,
    request: dict[str, Any],
    resume: bool,
    say: Callable[[str], None],
    what: str = "sweep",
) -> dict[str, Any]:
    """Begins a sweep in a folder, or makes sure that the one begun there is the same.

    Args:
      folder: of the sweep.
      request: see `OpenSweep`.
      resume: whether to resume what was begun there.
      say: takes warnings.
      what: its name in messages.

    Returns:
      Attributes that say what happened before.

    Raises:
      ConfigError: if another sweep was begun there, or results lie there without a sweep.
    """
    versions = provenance.collect_versions()
    if not (resume and folder.is_begun()):
        if resume and (folder.output / results.FILE_NAME).exists():
            raise ConfigError(
                f"{folder.output} holds results, but no checkpoint to go on from: choose another "
                "folder with --output, or start again with --overwrite"
            )
        now = provenance.current_time()
        folder.begin({"asked": request, "made_with": versions, "begun": now})
        return {"begun": now}
    begun = folder.read_begun()
    if lines := _compare(begun["asked"], request):
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise ConfigError(
            f"the {what} in {folder.output} was begun with other settings ({shown}): resume with "
            "the same ones, choose another folder with --output, or start again with --overwrite"
        )
    return {"begun": begun.get("begun", "unknown"), **note_changes(folder, versions, say)}


def _compare(begun: dict[str, Any], request: dict[str, Any]) -> list[str]:
    """Lists where the sweep that was begun differs from the one asked for now, in few lines."""
    axes, now = begun.get("axes", {}), request.get("axes", {})
    # Each point of a sweep has its own settings: those that all points share are compared once.
    shared, shared_now = _find_shared(begun.get("settings", {})), _find_shared(request["settings"])
    both = [name for name in shared if name in shared_now and name not in {**axes, **now}]
    lines = find_differences(
        {**begun, "settings": {name: shared[name] for name in both}},
        {**request, "settings": {name: shared_now[name] for name in both}},
    )
    if [*axes] != [*now] and {*axes} == {*now}:
        lines += find_differences([*axes], [*now], "order of the axes")
    return lines or find_differences(begun.get("settings"), request["settings"], "settings")


def _find_shared(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that are the same in all points of a sweep; of one point, all."""
    points = [one for one in settings.values() if isinstance(one, dict)] or [settings]
    return design.find_common(points)


def note_changes(
    folder: SweepFolder, versions: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Warns if a part of a sweep is trained with other versions, and notes that in its folder.

    Args:
      folder: of the sweep.
      versions: `provenance.collect_versions()` where that part is trained.
      say: takes warnings.

    Returns:
      The attribute `not_bitwise`, with all changes so far; no attribute without any.
    """
    known = folder.read_changes()
    for line in find_differences(folder.read_begun()["made_with"], versions):
        say(f"warning: what is trained from here on may have other bits: {line}")
        if line not in known:
            folder.note_change(line)
    changed = folder.read_changes()
    return {"not_bitwise": json.dumps(changed)} if changed else {}


_NOTHING = object()  # where JSON has no value, not even null


def find_differences(begun: Any, request: Any, name: str = "") -> list[str]:
    """Lists where two JSON values differ, such as "seeds: [0, 1] there, [0, 2] now"."""
    if isinstance(begun, dict) and isinstance(request, dict):
        return [
            line
            for key in {**begun, **request}
            for line in find_differences(
                begun.get(key, _NOTHING),
                request.get(key, _NOTHING),
                f"{name}.{key}" if name else key,
            )
        ]
    if begun == request:
        return []
    return [f"{name}: {_shorten(begun)} there, {_shorten(request)} now"]


def _shorten(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
