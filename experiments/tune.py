"""The search behind the default settings: random ones on tuning seeds 0 to 9, the best listed.

    python experiments/tune.py --num-settings 40 --output results/tune

Reported figures come from other seeds. Every line of `tune.jsonl` is one setting with its scores;
what has a line there already, with the same seeds and learning rates, is not trained again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.cli.exits import run_script
from purejaxdqn.report.statistics import interquartile_mean
from purejaxdqn.runtime.console import make_console
from purejaxdqn.storage import results
from purejaxdqn.storage.provenance import to_jsonable
from purejaxdqn.sweep.run import run_sweep
from purejaxdqn.training.declaration import PATH, is_path, settings_of
from purejaxdqn.types import ConfigError, ensure, ensure_whole

SPACE: dict[str, list[Any]] = {
    # num_envs, steps_per_update, updates_per_iteration
    "rhythm": [(4, 4, 1), (4, 4, 2), (4, 4, 4), (10, 10, 4), (10, 50, 20), (10, 250, 100)],
    "batch_size": [64, 128],
    "hidden_sizes": [(64, 64), (128, 128), (256, 256)],
    "replay_capacity": [10_000, 20_000, 50_000, 100_000],
    # target_period, target_step_size
    "target": [(25, 1.0), (50, 1.0), (100, 1.0), (200, 1.0), (1, 0.005), (1, 0.01), (1, 0.02)],
    # penalty, huber_threshold
    "penalty": [("squared", 1.0), ("huber", 10.0)],
    "td_error": ["q_learning", "double_q_learning"],
    "n_step": [1, 3, 5, 10],
    "learning_rate": [2.5e-4, 5e-4, 1e-3, 2e-3],
    "adam_epsilon": [1e-8, 1e-3, 1e-2],
    "learning_rate_end_fraction": [0.0, 0.05],
    "max_grad_norm": [1.0, 10.0, 1e6],
    "epsilon_fraction": [0.05, 0.1, 0.2, 0.5],
    "epsilon_end": [0.01, 0.04, 0.1],
    "discount": [0.97, 0.98, 0.99],
}


@dataclasses.dataclass(frozen=True)
class Args:
    """A random search over the settings of DQN on the tuning seeds."""

    num_settings: int = 40
    """Settings to try, those that stand in the output file already included."""
    search_seed: int = 0
    """Seed of the search itself."""
    num_seeds: int = 10
    """Training seeds per setting, from 0 on; at most 10, the others are for reporting."""
    output: Path = Path("results/tune")
    """Folder of `tune.jsonl`."""
    settings: Path | None = None
    """Instead of drawing at random: a file of JSON objects, changes to the defaults, one a line."""
    learning_rates: tuple[float, ...] = ()
    """Score every setting at all of these, in one compiled program: what is good at one learning
    rate alone was lucky."""
    overrides: str = "{}"
    """JSON of lists that replace those of the search space, such as '{"batch_size": [64]}'."""


def draw(rng: np.random.Generator, space: dict[str, Any]) -> dict[str, Any]:
    """One setting, each value drawn uniformly from its list."""
    choice = {name: values[rng.integers(len(values))] for name, values in space.items()}
    choice["target_period"], choice["target_step_size"] = choice.pop("target")
    choice["penalty"], choice["huber_threshold"] = choice.pop("penalty")
    choice["hidden_sizes"] = tuple(choice["hidden_sizes"])
    rhythm = ("num_envs", "steps_per_update", "updates_per_iteration")
    choice.update(zip(rhythm, choice.pop("rhythm"), strict=True))
    return choice


def read_json(name: str, text: str, names: Collection[str]) -> dict[str, Any]:
    """Reads an object by some of these names, or refuses the text of a flag or file."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    is_right = isinstance(found, dict) and set(found) <= set(names)
    ensure(is_right, name, text, f"a JSON object with some of {', '.join(names)}")
    return dict(found)


def read(line: str) -> dict[str, Any]:
    """One setting of a file."""
    choice = read_json("settings", line, settings_of(DQNConfig))
    return {name: tuple(x) if isinstance(x, list) else x for name, x in choice.items()}


def score(config: DQNConfig, args: Args) -> dict[str, Any]:
    """Trains the seeds, at each learning rate, and says how well all of these runs did."""
    grid: dict[str, Any] = {"learning_rate": args.learning_rates} if args.learning_rates else {}
    dataset = run_sweep(dqn, config, range(args.num_seeds), progress=False, **grid).dataset
    means = dataset.final_return.mean("episode", skipna=False).values.ravel()
    curve = dataset.evaluation_return.mean("episode").values.reshape(len(means), -1)
    reached = [
        int(dataset.step.values[np.argmax(row >= 475)]) if (row >= 475).any() else None
        for row in curve
    ]
    median_steps = np.median([step or np.inf for step in reached])
    return {
        "iqm": float(interquartile_mean(means)),
        "lowest": float(means.min()),
        "mean": float(means.mean()),
        "solved": int((means >= 475).sum()),
        "median_steps": None if np.isinf(median_steps) else float(median_steps),
        "late": float(curve[:, -5:].mean()),
        "seconds": dataset.attrs["train_seconds"],
        "final": means.round(1).tolist(),
    }


def main(args: Args) -> None:
    """Searches, and prints the best settings by their last five evaluations."""
    if not 1 <= args.num_seeds <= 10:
        raise ConfigError(
            f"num_seeds ({args.num_seeds}) must be 1 to 10: the seeds above are for reporting"
        )
    ensure(1 <= args.num_settings <= 10**5, "num_settings", args.num_settings, "1 to 100,000")
    ensure_whole("search_seed", args.search_seed, 0)
    ensure(is_path(args.output), "output", str(args.output), PATH)
    results.check_output(args.output, resume=True)
    overrides = read_json("overrides", args.overrides, SPACE)
    for name, values in overrides.items():
        ensure(isinstance(values, list) and len(values) > 0, name, values, "a list of values")
    space = SPACE | overrides
    rng = np.random.default_rng(args.search_seed)
    console = make_console(stderr=True)
    if args.settings is None:
        choices = [draw(rng, space) for _ in range(args.num_settings)]
    else:
        try:
            lines = args.settings.read_text().splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"settings ({str(args.settings)!r}) cannot be read ({error}): name a file of JSON "
                "objects, one a line"
            ) from None
        choices = [read(line) for line in lines if line]
    configs = [dataclasses.replace(DQNConfig(), **choice) for choice in choices]
    for config in configs:
        config.validate()
    rates = args.learning_rates
    ensure(len({*rates}) == len(rates) > 0, "learning_rates", rates, "one or more, all different")
    for rate in rates:
        dataclasses.replace(DQNConfig(), learning_rate=rate).validate()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "tune.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = []
    for index, (choice, config) in enumerate(zip(choices, configs, strict=True)):
        asked = {
            "setting": to_jsonable(choice),
            "learning_rates": list(args.learning_rates),
            "num_seeds": args.num_seeds,
        }
        row = next((line for line in known if line.items() >= asked.items()), None)
        if row is None:
            row = asked | score(config, args)
            console.print(f"{index + 1}/{len(choices)}", row)
            with path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        rows.append(row)
    table = Table("late", "mean", "IQM", "lowest", "solved", "median steps", "seconds", "setting")
    for row in sorted(rows, key=lambda row: -row["late"])[:10]:
        steps = row["median_steps"]
        table.add_row(
            *(f"{row[name]:.1f}" for name in ("late", "mean", "iqm", "lowest")),
            f"{row['solved']} of {len(row['final'])}",
            "-" if steps is None else f"{steps:,.0f}",
            f"{row['seconds']:.0f}",
            str(row["setting"]),
        )
    make_console().print(table)


if __name__ == "__main__":
    run_script(main, Args)
