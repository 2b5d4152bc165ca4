"""Speed of two other DQN implementations beside this package's, on the same settings and machine.

Measures environment steps per second on CartPole-v1 of rejax (pure JAX: all seeds at once under
jit(vmap(train))), of Stable-Baselines3 (PyTorch: one seed in one process) and of this package
(through throughput.py, beside this file). Everything runs on the CPU, one program at a time, in
rounds that take turns; medians over the rounds are printed with the ratio of this package to each.

The settings are throughput.py's: 10 environments, replay 10,000, batch 128, MLP 120-84, Adam
2.5e-4, squared error, discount 0.99, one update per 10 environment steps, hard target copy every
500 environment steps, prefill 10,000, no evaluation, 100,000 environment steps per seed, the
prefill among them. Compilation is not timed. Each peer's optimiser steps are counted, and a count
other than expected is an error. Where a peer cannot be given a setting, the output says so.

The peers get a virtual environment of their own, made on first use at the versions in
peers-constraints.txt: some 2 GB on disk, and a few minutes. A CPU build of torch suffices. What
pip takes by default on Linux is a CUDA build of several GB, which works too, its CUDA unused. For a
CPU build, point pip at one before the first run (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS or pip's
configuration file), as torch's installation page says.
"""

import dataclasses
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from purejaxdqn.runtime.console import make_console

FOLDER = Path(__file__).resolve().parent
REQUIREMENTS = ("rejax", "gymnax", "jax", "stable-baselines3", "torch")
SYSTEMS = {"package": "purejaxdqn", "rejax": "rejax", "sb3": "Stable-Baselines3"}
DEVIATIONS: dict[str, tuple[str, ...]] = {
    "package": (),
    "rejax": (
        "samples its batch without replacement, at a cost that grows with the capacity",
        "treats the time limit as termination (gymnax folds it into `done`)",
    ),
    "sb3": (
        "smooth L1 loss (Huber, threshold 1) in place of the squared error: no other on offer",
        "one seed, one process, one torch thread (more were slower): the other cores idle",
        "draws once per step of all 10 environments whether all of them explore or none",
        "computes the gradient's norm for clipping, though the limit is infinite",
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run of the throughput benchmark; steps and periods are environment steps of one seed."""

    env: str = "CartPole-v1"
    num_envs: int = 10
    replay_capacity: int = 10_000
    batch_size: int = 128
    hidden_sizes: tuple[int, ...] = (120, 84)
    learning_rate: float = 2.5e-4
    discount: float = 0.99
    steps_per_update: int = 10
    target_period: int = 500
    prefill: int = 10_000
    total_steps: int = 100_000
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_fraction: float = 0.5

    @property
    def num_updates(self) -> int:
        """Gradient updates of one seed."""
        return (self.total_steps - self.prefill) // self.steps_per_update


@dataclasses.dataclass(frozen=True)
class Options:
    rounds: int = 3
    """How often each system is measured; the table shows medians."""
    seeds: int = 8
    """Seeds trained at once by this package and by rejax. Stable-Baselines3 always trains one."""
    sb3_steps: int = Settings.total_steps
    """Environment steps of Stable-Baselines3's run. Fewer (30000, say) save time and flatter it:
    the prefill, which learns nothing, is then a larger share of the run."""
    venv: Path | None = None
    """The peers' virtual environment, made if it is not there: .venv-peers in the repository's root
    unless named."""
    systems: tuple[Literal["package", "rejax", "sb3"], ...] = ("package", "rejax", "sb3")
    """What to measure, in this order within a round. Ratios need the package."""
    json_line: Annotated[bool, tyro.conf.arg(name="json")] = False
    """End standard output with one line that holds every number as a JSON object."""


def deviations(options: Options, settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return, for each system, where its run is not the one that the settings ask for."""
    if options.sb3_steps == settings.total_steps:
        return DEVIATIONS
    shorter = f"{options.sb3_steps:,} environment steps in place of {settings.total_steps:,}"
    return DEVIATIONS | {"sb3": (shorter, *DEVIATIONS["sb3"])}


def check(options: Options, settings: Settings) -> None:
    """Raise ValueError, with the remedy, for options that cannot be run."""
    for name in ("rounds", "seeds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)}: must be at least 1")
    steps, num_envs = options.sb3_steps, settings.num_envs
    if steps <= settings.prefill or steps % num_envs:
        raise ValueError(
            f"--sb3-steps {steps}: must be a multiple of {num_envs} (the environments) above"
            f" {settings.prefill} (the prefill), such as {3 * settings.prefill}"
        )
    if not options.systems or len(set(options.systems)) < len(options.systems):
        raise ValueError(
            f"--systems {' '.join(options.systems)}: name one or more of {', '.join(SYSTEMS)},"
            " each once"
        )


def rejax_arguments(settings: Settings, num_seeds: int, seed: int) -> dict[str, Any]:
    """Return what peer_rejax.py takes.

    One of rejax's training iterations is one step of every environment and `num_epochs` updates, so
    the settings must ask for one update per `num_envs` steps.
    """
    create = {
        "env": settings.env,
        "agent_kwargs": {"activation": "relu"},
        "num_envs": settings.num_envs,
        "buffer_size": settings.replay_capacity,
        # It learns once the steps *exceed* this, as counted before the iteration's own steps.
        "fill_buffer": settings.prefill - 1,
        "batch_size": settings.batch_size,
        "num_epochs": 1,
        "learning_rate": settings.learning_rate,
        "gamma": settings.discount,
        # Environment steps. The new target is polyak * old + (1 - polyak) * online.
        "target_update_freq": settings.target_period,
        "polyak": 0.0,
        "ddqn": False,
        "eps_start": settings.epsilon_start,
        "eps_end": settings.epsilon_end,
        "exploration_fraction": settings.epsilon_fraction,
        "total_timesteps": settings.total_steps,
        # It evaluates after each so many steps; the worker makes that one evaluation a no-op.
        "eval_freq": settings.total_steps,
        "skip_initial_evaluation": True,
    }
    replace_agent = {"hidden_layer_sizes": settings.hidden_sizes}
    return {"create": create, "replace_agent": replace_agent, "num_seeds": num_seeds, "seed": seed}


def sb3_arguments(settings: Settings, seed: int) -> dict[str, Any]:
    """Return what peer_sb3.py takes."""
    dqn = {
        "learning_rate": settings.learning_rate,
        # Transitions of all environments together.
        "buffer_size": settings.replay_capacity,
        "learning_starts": settings.prefill,
        "batch_size": settings.batch_size,
        "gamma": settings.discount,
        # Counted in calls that step every environment once.
        "train_freq": settings.steps_per_update // settings.num_envs,
        "gradient_steps": 1,
        # Environment steps. A tau of 1 is a hard copy.
        "target_update_interval": settings.target_period,
        "tau": 1.0,
        "exploration_initial_eps": settings.epsilon_start,
        "exploration_final_eps": settings.epsilon_end,
        "exploration_fraction": settings.epsilon_fraction,
        "max_grad_norm": math.inf,
        "policy_kwargs": {"net_arch": settings.hidden_sizes},
        "seed": seed,
    }
    return {
        "dqn": dqn,
        "env": settings.env,
        "num_envs": settings.num_envs,
        "total_timesteps": settings.total_steps,
        # Products this small lose to the hand-over between threads.
        "num_threads": 1,
    }


def say(message: str) -> None:
    """Report progress on standard error, at once."""
    print(message, file=sys.stderr, flush=True)


def python_of(venv: Path) -> Path:
    """Return the path of a virtual environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def prepare_venv(folder: Path) -> None:
    """Make the peers' virtual environment, if it is not there or its pins have changed.

    Raises ValueError for a folder that is something else, and subprocess.CalledProcessError
    where the installation fails.
    """
    python = python_of(folder)
    constraints = FOLDER / "peers-constraints.txt"
    # Written last, so an installation that was cut short is taken up again.
    installed = folder / constraints.name
    if python.exists() and installed.exists() and installed.read_text() == constraints.read_text():
        say(f"peers: virtual environment {folder}")
        return
    if folder.exists() and not (folder / "pyvenv.cfg").exists():
        raise ValueError(
            f"--venv {folder}: exists and is no virtual environment; name a new folder"
        )
    say(f"peers: making the virtual environment {folder} (some 2 GB, a few minutes)")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, stdout=sys.stderr)
    install: list[str | Path] = [python, "-I", "-m", "pip", "install", "-c", constraints]
    say(f"peers: installing {', '.join(REQUIREMENTS)} at the versions in {constraints.name}")
    subprocess.run([*install, *REQUIREMENTS], check=True, stdout=sys.stderr)
    installed.write_text(constraints.read_text())


def run_json(command: list[str | Path]) -> dict[str, Any]:
    """Run a program on the CPU and read the last line it prints, a JSON object.

    JAX's and XLA's settings in the surrounding environment are left out: each system brings its
    own. Raises RuntimeError where the program fails; standard error says why.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment = kept | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    said = f"exit status {done.returncode} from {shlex.join(map(str, command))}"
    if done.returncode:
        raise RuntimeError(said)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise RuntimeError(f"{said}, whose last line is no JSON object") from None


def measure_peer(python: Path, script: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a worker in the peers' virtual environment, untouched by this one's search path."""
    return run_json([python, "-I", "-W", "ignore", FOLDER / script, json.dumps(arguments)])


def version_of(package: str) -> str:
    """Return the installed version of a package, or say that it runs from its source folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def measure_package(num_seeds: int) -> dict[str, Any]:
    """Measure this package once through throughput.py, and speak of it as the workers do."""
    flags = ["--worker", "package", "--num-seeds", str(num_seeds)]
    answer = run_json([sys.executable, FOLDER / "throughput.py", *flags])
    return {
        "steps_per_second": answer["steps_per_second"],
        "num_seeds": num_seeds,
        "versions": {name: version_of(name) for name in ("purejaxdqn", "jax")},
    }


def check_work(system: str, run: dict[str, Any], settings: Settings) -> None:
    """Raise RuntimeError if a run did not do the work that it is timed for."""
    for name, expected in (
        ("environment_steps", settings.total_steps),
        ("gradient_updates", settings.num_updates),
    ):
        # throughput.py answers for its own run.
        if run.get(name, expected) != expected:
            raise RuntimeError(
                f"{SYSTEMS[system]} made {run[name]} {name.replace('_', ' ')} per seed where"
                f" {expected} were asked for: its speed cannot be compared"
            )


def summarise(
    runs: dict[str, list[dict[str, Any]]], notes: dict[str, tuple[str, ...]]
) -> list[dict[str, Any]]:
    """Return one row per system: its median speed, and this package's divided by that.

    Speeds are environment steps per second of all of a run's seeds together. `ratio` is None where
    the package was not measured. `notes` are the deviations of each system.
    """
    speeds = {system: [run["steps_per_second"] for run in runs[system]] for system in runs}
    medians = {system: statistics.median(values) for system, values in speeds.items()}
    return [
        {
            "system": system,
            "versions": runs[system][0]["versions"],
            "num_seeds": runs[system][0]["num_seeds"],
            "steps_per_second": medians[system],
            "steps_per_second_rounds": speeds[system],
            "ratio": medians["package"] / medians[system] if "package" in medians else None,
            "deviations": list(notes[system]),
        }
        for system in runs
    ]


def make_table(rows: list[dict[str, Any]], settings: Settings) -> Table:
    """Lay the rows out for a person."""
    table = Table(title=f"DQN on {settings.env}, CPU, {os.cpu_count()} cores", show_lines=True)
    table.add_column("system and versions", no_wrap=True)
    for heading in ("seeds", "steps/s", "lowest to highest", "ours / this"):
        table.add_column(heading, justify="right")
    for row in rows:
        speeds = row["steps_per_second_rounds"]
        table.add_row(
            "\n".join(f"{name} {number}" for name, number in row["versions"].items()),
            str(row["num_seeds"]),
            f"{row['steps_per_second']:,.0f}",
            f"{min(speeds):,.0f} to {max(speeds):,.0f}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        )
    return table


def compare(options: Options, settings: Settings, python: Path) -> list[dict[str, Any]]:
    """Measure every system in rounds that take turns; `python` is the peers' own."""
    sb3_settings = dataclasses.replace(settings, total_steps=options.sb3_steps)
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in options.systems}
    for i in range(options.rounds):
        for system in options.systems:
            if system == "package":
                run = measure_package(options.seeds)
            elif system == "rejax":
                arguments = rejax_arguments(settings, options.seeds, seed=i)
                run = measure_peer(python, "peer_rejax.py", arguments)
                check_work(system, run, settings)
            else:
                run = measure_peer(python, "peer_sb3.py", sb3_arguments(sb3_settings, seed=i))
                check_work(system, run, sb3_settings)
            say(
                f"round {i + 1} of {options.rounds}: {SYSTEMS[system]}"
                f" {run['steps_per_second']:,.0f} steps per second"
            )
            runs[system].append(run)
    return summarise(runs, deviations(options, settings))


def main() -> None:
    options, settings = tyro.cli(Options, description=__doc__), Settings()
    # Not resolved: a virtual environment's Python may be a link out of it.
    venv = (options.venv or FOLDER.parents[1] / ".venv-peers").absolute()
    try:
        check(options, settings)
        if set(options.systems) != {"package"}:
            prepare_venv(venv)
        rows = compare(options, settings, python_of(venv))
    except ValueError as error:
        say(f"error: {error}")
        raise SystemExit(2) from None
    except (RuntimeError, subprocess.CalledProcessError) as error:
        say(f"error: {error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    console = make_console()
    console.print(make_table(rows, settings))
    for row in rows:
        for deviation in row["deviations"]:
            console.print(f"{SYSTEMS[row['system']]}: {deviation}.", highlight=False)
    if options.json_line:
        machine = {"platform": platform.platform(), "num_cores": os.cpu_count()}
        summary = {
            "settings": dataclasses.asdict(settings),
            "sb3_steps": options.sb3_steps,
            "machine": machine,
            "results": rows,
        }
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
