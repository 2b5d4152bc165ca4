"""Begins a sweep in its folder, or resumes the one that was begun there if it is the same."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.runtime.processes import run_on_every_process, run_on_first_process
from purejaxdqn.storage import provenance, results
from purejaxdqn.sweep.design import Design, find_common
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.plan import SweepPlan
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import config_to_json
from purejaxdqn.types import ConfigError


class OpenSweep(NamedTuple):
    """A sweep that is about to be trained, in a `folder` that is locked; None keeps nothing.

    `request` is everything that its numbers depend on, as JSON holds it. `attrs` say in the dataset
    how it is trained, and what happened before.
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
    experiment: Experiment, design: Design, plan: Callable[..., SweepPlan], options: SweepOptions
) -> Iterator[OpenSweep]:
    """Plans a sweep, and locks its folder within the block.

    `plan(width=width)` lays the design out, with None at a width that it chooses. What cannot be
    kept or resumed is refused before anything is compiled.
    """
    width, resume, output = options.runs_per_batch, options.resume, options.output
    total_steps = sum(run.config.total_steps for run in design.runs)
    bar = SweepProgress(total_steps, enabled=options.progress)
    with contextlib.ExitStack() as stack:
        history: dict[str, Any] = {"begun": provenance.current_time()}
        folder = None
        if output is not None:
            folder = SweepFolder(output, bar.message)
            run_on_first_process(lambda: results.prepare_output(output, options.overwrite, resume))
            run_on_first_process(folder.lock)
            stack.callback(folder.unlock)
            if width is None and resume:
                width = run_on_first_process(folder.read_width)
        planned = _plan_alike(design, plan, width)
        request = _describe(experiment, planned, options)
        if folder is not None:
            history = run_on_first_process(
                lambda: begin_or_resume(folder, request, resume, bar.message)
            )
        attrs = {"seed_mode": options.seed_mode, **history}
        yield OpenSweep(experiment, planned, options, request, folder, bar, attrs)


def _plan_alike(design: Design, plan: Callable[..., SweepPlan], width: int | None) -> SweepPlan:
    """Plans the same batches in each process, of a width that all processes have room for."""
    if jax.process_count() > 1:
        plans = run_on_every_process(lambda: (design, plan(width=width).width))
        for process, (other, _) in enumerate(plans):
            if other != plans[0][0]:
                raise ConfigError(
                    f"process {process} was given another design than process 0: give all "
                    "processes the same settings and seeds"
                )
        width = min(width for _, width in plans)
    return plan(width=width)


def _describe(experiment: Experiment, plan: SweepPlan, options: SweepOptions) -> dict[str, Any]:
    """Describes everything that the numbers of a sweep depend on, as JSON holds it."""
    settings = {}
    for point in plan.design.points:
        labels = ", ".join(f"{name}={value}" for name, value in point.labels.items())
        settings[labels] = json.loads(config_to_json(point.config))
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


def begin_or_resume(
    folder: SweepFolder,
    request: dict[str, Any],
    resume: bool,
    say: Callable[[str], None],
    what: str = "sweep",
) -> dict[str, Any]:
    """Begins a sweep in a folder, or resumes it there; refuses another sweep, and lone results.

    `request` is as in `OpenSweep`; `say` takes warnings, and messages call the sweep `what`.
    Returns attributes that say what happened before.
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
    lines = find_differences({**begun, "settings": None}, {**request, "settings": None})
    # Each point of a sweep has its own settings: those that all points share are compared once.
    shared = [
        find_common([x for x in settings.values() if isinstance(x, dict)] or [settings])
        for settings in (begun.get("settings", {}), request["settings"])
    ]
    for name, value in shared[0].items():
        if name in shared[1] and name not in {**axes, **now}:
            lines += find_differences(value, shared[1][name], f"settings.{name}")
    if [*axes] != [*now] and {*axes} == {*now}:
        lines += find_differences([*axes], [*now], "order of the axes")
    return lines or find_differences(begun.get("settings"), request["settings"], "settings")


def note_changes(
    folder: SweepFolder, versions: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Warns if a part of a sweep is trained with other `versions`, and notes that in its folder.

    Returns the attribute `not_bitwise`, with all changes so far; no attribute without any.
    """
    lines = find_differences(folder.read_begun()["made_with"], versions)
    for line in lines:
        say(f"warning: what is trained from here on may have other bits: {line}")
    changed = folder.note_changes(lines)
    return {"not_bitwise": json.dumps(changed)} if changed else {}


_NOTHING = object()  # where JSON has no value, not even null


def find_differences(begun: Any, request: Any, name: str = "") -> list[str]:
    """Lists where two JSON values differ, such as "seeds: [0, 1] there, [0, 2] now"."""
    if isinstance(begun, dict) and isinstance(request, dict):
        lines = []
        for key in {**begun, **request}:
            values = (begun.get(key, _NOTHING), request.get(key, _NOTHING))
            lines += find_differences(*values, f"{name}.{key}" if name else key)
        return lines
    if begun == request:
        return []
    texts = ["nothing" if x is _NOTHING else json.dumps(x) for x in (begun, request)]
    there, now = (text if len(text) <= 60 else f"{text[:57]}..." for text in texts)
    return [f"{name}: {there} there, {now} now"]
