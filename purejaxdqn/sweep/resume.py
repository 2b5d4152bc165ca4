"""Begins a sweep in its folder, or resumes the one that was begun there if it is the same."""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from purejaxdqn import agents, environments, tracking
from purejaxdqn.engine.programs import make_traced
from purejaxdqn.engine.progress import SweepProgress
from purejaxdqn.runtime.processes import run_on_every_process, run_on_first_process
from purejaxdqn.storage import provenance, results
from purejaxdqn.storage.fingerprint import FORMAT, find_unseen, fingerprint, keep_common
from purejaxdqn.sweep.design import Design, find_common
from purejaxdqn.sweep.folder import SweepFolder, find_differences
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.plan import SweepPlan, plan_sweep
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import RunConfig, config_from_json, config_to_json
from purejaxdqn.types import ConfigError

# What older fingerprints call otherwise.
_MOVED = {"purejaxdqn.environments.cartpole.": "purejaxdqn.environments.classic_control.cartpole."}


class OpenSweep(NamedTuple):
    """A sweep that is about to be trained."""

    experiment: Experiment
    plan: SweepPlan
    options: SweepOptions
    request: dict[str, Any]  # everything that its numbers depend on, as JSON holds it
    folder: SweepFolder | None  # locked; None keeps nothing
    bar: SweepProgress
    attrs: dict[str, Any]  # of the dataset: how it is trained, and what happened before


@contextlib.contextmanager
def open_sweep(
    experiment: Experiment,
    design: Design,
    options: SweepOptions,
    devices: Sequence[jax.Device],
    num_devices: int,
) -> Iterator[OpenSweep]:
    """Plans a sweep on these devices, of `num_devices` that share it, and locks its folder.

    What cannot be kept or resumed is refused before anything is compiled.
    """
    width, resume, output = options.runs_per_batch, options.resume, options.output
    total_steps = sum(run.config.total_steps for run in design.runs)
    bar = SweepProgress(total_steps, enabled=options.progress)
    with contextlib.ExitStack() as stack:
        history: dict[str, Any] = {"begun": provenance.current_time()}
        folder = None
        if output is not None:
            folder = SweepFolder(output, bar.message)
            stack.callback(folder.unlock)
            check = functools.partial(results.check_output, output, options.overwrite, resume)
            run_on_first_process(check)
            if folder.is_there():  # else it is made once nothing more is refused
                run_on_first_process(folder.lock)
            if width is None and resume:
                width = run_on_first_process(folder.read_asked).get("width")
        budget = options.memory_budget
        plan = functools.partial(plan_sweep, experiment, design, devices, budget, num_devices)
        waiting = stack.enter_context(contextlib.ExitStack())
        waiting.enter_context(bar.waiting("tracing the programs"))
        if jax.process_count() > 1:  # all plan the same batches, of a width that each has room for
            plans = run_on_every_process(lambda: (design, plan(width).width))
            for process, (other, _) in enumerate(plans):
                if other != plans[0][0]:
                    raise ConfigError(
                        f"process {process} was given another design than process 0: give all "
                        "processes the same settings and seeds"
                    )
            width = min(width for _, width in plans)
        planned = plan(width)
        request = _describe(experiment, planned, options)
        if folder is not None:
            for part in find_unseen(request["code"], "code"):
                bar.message(f"warning: a change of {part} would go unnoticed when this is resumed")
            run_on_first_process(folder.lock)
            run_on_first_process(check)  # again: no other process can write there now
            history = run_on_first_process(lambda: begin_or_resume(folder, request, resume))
            if options.overwrite:
                run_on_first_process(lambda: tracking.forget(folder.output))
        waiting.close()
        history |= {"seed_mode": options.seed_mode, "code": json.dumps(request["code"])}
        yield OpenSweep(experiment, planned, options, request, folder, bar, history)


def _describe(experiment: Experiment, plan: SweepPlan, options: SweepOptions) -> dict[str, Any]:
    """Describes everything that the numbers of a sweep depend on, as JSON holds it."""
    settings, design = {}, plan.design
    for point in design.points:
        labels = ", ".join(f"{name}={value}" for name, value in point.labels.items())
        settings[labels] = json.loads(config_to_json(point.config))
    if len(settings) == 1:
        (settings,) = settings.values()
    code = describe_code(experiment, [point.config for point in design.points])
    runs = {"axes": design.axes, "seeds": list(design.seeds), "width": plan.width}
    how = {"seed_mode": options.seed_mode, "diagnostics": options.diagnostics}
    request = provenance.to_jsonable({"code": code, **runs, **how, "settings": settings})
    return json.loads(json.dumps(request))


def describe_code(experiment: Experiment, configs: Sequence[RunConfig]) -> dict[str, Any]:
    """Fingerprints all code that trains these settings, with the agents and environments they name.

    The experiment, or each agent's for `agents.train`, the classes of the settings, and the
    environments that their `env` names, but where the experiment brings its own; see
    `purejaxdqn.storage.fingerprint`.
    """
    parts: dict[str, Any] = {} if experiment is agents.train else {"experiment": experiment}
    # A sweep has many configs, and few kinds of them.
    for config in {(type(c), c.agent, c.env): c for c in configs}.values():
        if experiment is agents.train:
            parts[f"agent {config.agent}"] = agents.experiment_of(config)
        parts[f"class {type(config).__name__}"] = type(config)
        if "env" in make_traced(experiment, config)[0]:
            env = environments.make(config.env)._asdict()
            # One is only checked, and gymnasium writes it anew each version; films see the other.
            del env["observation_space"], env["render"]
            # In this order, fields that are new are told from others that stand elsewhere now.
            parts[f"env {config.env}"] = dict(sorted(env.items()))
    return {name: fingerprint(part) for name, part in parts.items()} | {"format": FORMAT}


def list_code(experiment: Experiment, configs: Iterable[RunConfig]) -> list[Any]:
    """Lists what trains these settings: the experiments of agents, and the settings' classes."""
    if experiment is not agents.train:
        return [*map(type, configs)]
    return [part for one in configs for part in (agents.experiment_of(one), type(one))]


def compare_code(then: Any, now: Any) -> tuple[Any, Any]:
    """Prepares two answers of `describe_code` for a comparison: an older one says less."""
    if then.get("format") == now.get("format"):
        return then, now
    text = json.dumps({name: part for name, part in then.items() if name != "format"})
    for old, new in _MOVED.items():
        text = text.replace(old, new)
    return keep_common(json.loads(text), now)


def begin_or_resume(
    folder: SweepFolder, request: dict[str, Any], resume: bool, what: str = "sweep"
) -> dict[str, Any]:
    """Begins a sweep in a folder, or resumes it there; refuses another sweep.

    `request` is as in `OpenSweep`; messages call the sweep `what`. Returns attributes that say what
    happened before.
    """
    versions = provenance.collect_versions()
    if not (resume and folder.is_begun()):
        now = provenance.current_time()
        folder.clean()
        folder.begin({"asked": request, "made_with": versions, "begun": now})
        return {"begun": now}
    begun = folder.read_begun()
    if lines := _compare(begun["asked"], request):
        shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise ConfigError(
            f"the {what} in {folder.output} was begun with other code or settings ({shown}): "
            "resume with the same, choose another folder with --output, or start again with "
            "--overwrite"
        )
    folder.clean()
    return {"begun": begun.get("begun", "unknown"), **folder.note_changes(versions)}


def _compare(begun: dict[str, Any], request: dict[str, Any]) -> list[str]:
    """Lists where the sweep that was begun differs from the one asked for now, in few lines."""
    axes, now = begun.get("axes", {}), request.get("axes", {})
    begun = {**begun, "settings": _complete(begun.get("settings"))}
    code = compare_code(begun.get("code", {}), request["code"])
    begun, request = {**begun, "code": code[0]}, {**request, "code": code[1]}
    lines = find_differences({**begun, "settings": None}, {**request, "settings": None})
    # Each point of a sweep has its own settings: those that all points share are compared once.
    shared = [
        find_common([x for x in settings.values() if isinstance(x, dict)] or [settings])
        for settings in (begun["settings"], request["settings"])
    ]
    for name, value in shared[0].items():
        if name in shared[1] and name not in {**axes, **now}:
            lines += find_differences(value, shared[1][name], f"settings.{name}")
    if [*axes] != [*now] and {*axes} == {*now}:
        lines += find_differences([*axes], [*now], "order of the axes")
    return lines or find_differences(begun["settings"], request["settings"], "settings")


def _complete(settings: Any) -> Any:
    """Gives settings, of each point or of all, the defaults of those that came since they began."""
    if not isinstance(settings, dict):
        return {}
    if "kind" not in settings:
        return {labels: _complete(one) for labels, one in settings.items()}
    with contextlib.suppress(ConfigError):  # what is unknown now differs, and is told as it is
        return json.loads(config_to_json(config_from_json(json.dumps(settings))))
    return settings
