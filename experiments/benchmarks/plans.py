"""What a sweep says beforehand that it will take, beside what it then takes: memory and time.

    python experiments/benchmarks/plans.py
    python experiments/benchmarks/plans.py --agents dqn --num-runs 8 --kinds warm --rounds 3 --json

Each case is a process of its own that calls `run_sweep`: cold (no compiled program in the cache),
warm (all of them), or resumed (going on after a SIGTERM midway; programs in the cache). Memory is
the most that the process had from its start, compiling included, until it has its results: as the
plan says it, and as the operating system has counted it (children count if they had more). Time is
what was left when the plan was shown: as it says, and until the results were there. "Under 1 s" is
a bound, so that 1 s stands for whatever took less. Networks and replays are those of each agent;
runs are short.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from throughput import print_rows

from purejaxdqn import agents
from purejaxdqn.cli.exits import run_script
from purejaxdqn.runtime.console import make_console
from purejaxdqn.training.settings import RunConfig, config_from_json, config_to_json
from purejaxdqn.types import ConfigError

KINDS = ("cold", "warm", "resumed")
_UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "s": 1, "min": 60, "h": 3600}
_PLAN = re.compile(r"memory up to ([\d.,]+) (\w+).* (?:about|under) ([\d.]+) (s|min|h)\b")


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    agents: tuple[str, ...] = ("dqn", "rainbow", "iqn", "pqn")
    """Named agents."""
    num_runs: tuple[int, ...] = (1, 8, 64, 500)
    """Seeds of a sweep."""
    kinds: tuple[str, ...] = KINDS
    """Of cold, warm and resumed."""
    folders: tuple[bool, ...] = (False, True)
    """Without an output folder, with one; a resumed sweep has one."""
    total_steps: int = 100_000
    """Environment steps of all runs together that are learned from, at least 64 updates a run."""
    config: str = "{}"
    """Other settings of the agents, as JSON."""
    options: str = "{}"
    """Other options of the sweep, as JSON."""
    rounds: int = 1
    """Processes per case, of which the one with the worst plan of memory is reported."""
    processor_time: bool = False
    """Count processor time, in the plan too: other work on the machine changes it little."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""
    worker: str | None = None
    """Train one case, JSON, in this process; what the benchmark calls itself."""


def make_config(agent: str, num_runs: int, args: Args) -> RunConfig:
    """The settings of an agent, for so few steps that all runs have about the wanted number."""
    given = json.loads(args.config)
    sizes = {n: tuple(v) for n, v in given.items() if isinstance(v, list)}
    own = agents.configure(agent=agent, **given | sizes)
    wished = args.total_steps // num_runs // own.steps_per_update
    quarter = max(16, wished // 4) * own.steps_per_update  # between two evaluations
    total = own.prefill_steps + 4 * quarter
    return dataclasses.replace(own, total_steps=total, eval_interval=quarter)


def train(case: dict[str, Any]) -> dict[str, float]:
    """Trains one case in this process, and counts its memory, and its time from its plan on."""
    import resource

    from purejaxdqn.engine.memory import peak_bytes
    from purejaxdqn.engine.progress import SweepProgress
    from purejaxdqn.sweep.run import run_sweep

    if case["processor_time"]:
        time.perf_counter = time.process_time
    config, say, shown = config_from_json(case["config"]), SweepProgress.message, [0.0]

    def note_plan(bar: SweepProgress, text: str) -> None:
        say(bar, text)
        if _PLAN.search(text):
            shown.append(time.perf_counter())

    SweepProgress.message = note_plan  # type: ignore[assignment, method-assign]
    run_sweep(agents.train, config, range(case["runs"]), **case["options"])
    seconds = time.perf_counter() - shown[-1]
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": max(peak_bytes(), children)}


def start(case: dict[str, Any], cache: Path, stop_after: int | None = None) -> dict[str, Any]:
    """Trains a case in a process of its own, and returns its plan beside what it took.

    With `stop_after` it is stopped once it has shown so many evaluations, and nothing is returned.
    """
    command = [sys.executable, __file__, "--worker", json.dumps(case)]
    kept = {name: x for name, x in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = kept | {"XDG_CACHE_HOME": str(cache)}
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    told, num_evaluations = "", 0
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            told += line
            if "greedy return" in line:
                num_evaluations += 1
                if num_evaluations == stop_after:
                    process.send_signal(signal.SIGTERM)
        answer = process.stdout.read()
    if stop_after is not None:
        if "interrupted" not in told:
            raise RuntimeError(f"the sweep was not stopped midway:\n{told}")
        return {}
    planned = _PLAN.search(told)
    is_resumed = "going on at step" in told or "finished already" in told  # under way, or after
    if process.returncode or not planned or is_resumed != case["options"].get("resume", False):
        raise RuntimeError(f"the sweep failed, or showed no plan:\n{told}")
    memory, unit, seconds, time_unit = planned.groups()
    return {
        "planned_bytes": float(memory.replace(",", "")) * _UNITS[unit],
        "planned_seconds": float(seconds) * _UNITS[time_unit],
        "is_bound": "should take under" in planned[0],
        **json.loads(answer.splitlines()[-1]),
    }


def make_case(agent: str, num_runs: int, args: Args, **options: Any) -> dict[str, Any]:
    """A sweep as JSON has it."""
    config = config_to_json(make_config(agent, num_runs, args))
    case = {"config": config, "runs": num_runs, "options": json.loads(args.options) | options}
    return {**case, "processor_time": args.processor_time}


def measure(
    agent: str, num_runs: int, kind: str, kept: bool, args: Args, cache: Path
) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"output": f"{folder}/sweep"} if kept else {}
        if kind == "resumed":
            case = make_case(agent, num_runs, args, **options)
            start(case, cache, stop_after=max(2, 5 * num_runs // 32))
            options["resume"] = True
        measured = start(make_case(agent, num_runs, args, **options), cache)
    if measured.pop("is_bound"):
        measured["seconds"] = max(measured["seconds"], measured["planned_seconds"])
    memory = measured["peak_bytes"] / measured["planned_bytes"]
    seconds = measured["seconds"] / measured["planned_seconds"]
    row = {"agent": agent, "runs": num_runs, "kind": kind, "folder": "yes" if kept else "no"}
    return {**row, **measured, "memory": memory, "time": seconds}


def measure_sweep(agent: str, num_runs: int, args: Args, console: Console) -> list[dict[str, Any]]:
    """The rows of one sweep: the first cold one fills the cache of those that follow."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        caches = Path(folder)
        if "cold" not in args.kinds:
            start(make_case(agent, num_runs, args), caches / "0", stop_after=1)
        kinds = [kind for kind in KINDS if kind in args.kinds]
        cases = [(kind, kept) for kind in kinds for kept in args.folders]
        for kind, kept in cases:
            if kind == "resumed" and not kept:
                continue
            found = []
            for _ in range(args.rounds):
                cache = caches / "0"
                if kind == "cold":  # one after the first starts in another, empty one
                    cache = caches / str(len([*caches.iterdir()]))
                found.append(measure(agent, num_runs, kind, kept, args, cache))
            rows.append(max(found, key=lambda row: abs(row["memory"] - 1)))
            console.print("  ".join(_show(rows[-1]).values()))
    return rows


COLUMNS = {
    "agent": "{agent}",
    "runs": "{runs}",
    "kind": "{kind}",
    "folder": "{folder}",
    "planned MB": "{planned_bytes:,.0f}",
    "peak MB": "{peak_bytes:,.0f}",
    "peak / planned": "{memory:.3f}",
    "planned s": "{planned_seconds:.1f}",
    "took s": "{seconds:.1f}",
    "took / planned": "{time:.2f}",
}


def _show(row: dict[str, Any]) -> dict[str, str]:
    shown = row | {name: row[name] / 1e6 for name in ("planned_bytes", "peak_bytes")}
    return {name: text.format(**shown) for name, text in COLUMNS.items()}


def main(args: Args) -> None:
    if args.worker is not None:
        print(json.dumps(train(json.loads(args.worker))))
        return
    if unknown := [kind for kind in args.kinds if kind not in KINDS]:
        raise ConfigError(f"kinds {unknown} must be of {', '.join(KINDS)}")
    if args.rounds < 1 or min(args.num_runs, default=0) < 1:
        raise ConfigError("rounds and num_runs must be at least 1")
    for agent in args.agents:
        make_config(agent, max(args.num_runs), args).validate()
    console, rows = make_console(stderr=True), []
    for agent in args.agents:
        for num_runs in args.num_runs:
            rows += measure_sweep(agent, num_runs, args, console)
    columns = {name: f"{{{name}}}" for name in COLUMNS}
    print_rows([_show(row) for row in rows], "what a plan says, and what it takes", columns)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    run_script(main, Args)
