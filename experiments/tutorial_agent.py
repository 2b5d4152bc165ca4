"""Trains the tutorial's agent until it wins CartPole-v0, and shows what each change to it adds.

    python experiments/tutorial_agent.py
    python experiments/tutorial_agent.py --num-seeds 20 --first-seed 600 --max-games 2000

The game is won when the last 100 training games average 195 steps. Four agents play: the
tutorial's own, the same with a target network, that one with double Q-learning, and the one of the
package's defaults. The script writes results.nc (every game), games.png, .svg and .html. The exit
code is 1 if fewer than nine of ten seeds win with the package's defaults.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import xarray as xr
from rich.progress import Progress
from rich.table import Table

from purejaxdqn import DQNConfig, agents, dqn, environments
from purejaxdqn.cli.exits import EXIT_FAILED, run_script
from purejaxdqn.engine.programs import compile_programs
from purejaxdqn.engine.rounds import Games, train_round
from purejaxdqn.report import figures, files, pages
from purejaxdqn.runtime.console import make_console
from purejaxdqn.runtime.devices import make_plan, max_width, use_every_core
from purejaxdqn.storage import provenance, results
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.types import ConfigError

ENV = environments.make("CartPole-v0")
GAME_STEPS = 200  # of the longest game, by the time limit
GAMES_TO_WIN = 100  # the average is taken over this many games
DEFAULTS = "package's defaults"
TUTORIAL = agents.get("tutorial").config
WITH_TARGET = dataclasses.replace(TUTORIAL, target_period=100)
SETTINGS = {
    "tutorial": TUTORIAL,
    "+ target network": WITH_TARGET,
    "+ double Q-learning": dataclasses.replace(WITH_TARGET, td_error="double_q_learning"),
    DEFAULTS: DQNConfig(env=ENV.name),
}


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    num_seeds: int = 10
    """Seeds to train each agent with."""
    first_seed: int = 500
    """The lowest seed. Learning rates and widths were chosen on seeds 0 to 9."""
    overwrite: bool = False
    """Replace results that lie in the output folder already."""
    json: bool = False
    """Print the summary as one JSON object on the last line of standard output."""
    width: int | None = None
    """Runs per device program; by default chosen. A result's bits depend on it."""
    seed_mode: Literal["vmap", "map"] = "vmap"
    """"vmap" trains a device's seeds side by side, "map" one by one, each bitwise as if alone."""
    output: Path = Path("results/tutorial_agent")
    """Folder for everything that is written."""
    max_games: int = 1_000
    """Games after which a seed counts as not won. Games of the random prefill are not counted."""

    @property
    def seeds(self) -> range:
        """Lists the seeds, which are consecutive."""
        return range(self.first_seed, self.first_seed + self.num_seeds)


def average_returns(games: Games) -> np.ndarray:
    """Computes the mean return of the last 100 games after each game.

    Args:
      games: `G` games of one seed.

    Returns:
      `[G]` the means; NaN for the first 99 games.
    """
    sums = np.cumsum(np.concatenate([[0.0], games.episode_return]))
    means = np.full(len(games.step), np.nan)
    means[GAMES_TO_WIN - 1 :] = (sums[GAMES_TO_WIN:] - sums[:-GAMES_TO_WIN]) / GAMES_TO_WIN
    return means


def count_games_to_win(games: Games) -> int | None:
    """Counts the games until the win, the winning one included; None if there is no win."""
    (won,) = np.nonzero(average_returns(games) >= ENV.threshold)
    return int(won[0]) + 1 if len(won) else None


class Played(NamedTuple):
    """The games of one agent.

    Attributes:
      games: for each seed, every game until the win or the last one allowed.
      width: runs per device program. The results' bits depend on it.
      num_devices: devices that trained.
    """

    games: list[Games]
    width: int
    num_devices: int


def play(name: str, args: Args) -> Played:
    """Trains all seeds of an agent until each has won or has played `max_games` games.

    Args:
      name: one of `SETTINGS`.
      args: the flags.

    Returns:
      The games of each seed.
    """
    devices = use_every_core()
    config = SETTINGS[name]
    runs = grid_design(config, args.seeds, {}).runs
    width = SweepOptions(width=args.width, seed_mode=args.seed_mode).runs_per_batch
    plan = make_plan(len(runs), len(devices), width, max_width())
    programs = compile_programs(dqn, config, plan, devices)
    played: list[Games] = []
    with Progress(console=make_console(stderr=True)) as progress:
        bar = progress.add_task(name, total=len(runs) * args.max_games)
        for members in plan.rounds(len(runs)):
            games = [Games(np.array([], int), np.array([]))] * len(members)
            steps = [config.prefill_steps, count_steps(config, args.max_games)]
            for event in train_round(programs, config, [runs[i] for i in members], steps):
                for i, new in enumerate(event.games):
                    both = zip(games[i], new, strict=True)
                    games[i] = Games(*(np.concatenate(parts)[: args.max_games] for parts in both))
                wins = [count_games_to_win(g) for g in games]
                done = [
                    args.max_games if won else len(g.step)
                    for g, won in zip(games, wins, strict=True)
                ]
                progress.update(bar, completed=members[0] * args.max_games + sum(done))
                if min(done) == args.max_games:
                    break
            for g, won in zip(games, wins, strict=True):
                played.append(Games(g.step[:won], g.episode_return[:won]))
    return Played(played, plan.width, plan.num_devices)


def count_steps(config: DQNConfig, max_games: int) -> int:
    """Counts the environment steps after which every seed has played `max_games` games.

    No game is longer than the time limit, so that this is an upper bound.
    """
    steps = (max_games + config.num_envs) * GAME_STEPS
    return config.prefill_steps + -(-steps // config.steps_per_update) * config.steps_per_update


def to_dataset(played: dict[str, Played], seeds: Sequence[int]) -> xr.Dataset:
    """Labels every game by agent, seed and number; values after a seed's last game are NaN."""
    longest = max(len(games.step) for row in played.values() for games in row.games)
    values = np.full((3, len(played), len(seeds), longest), np.nan)
    for i, row in enumerate(played.values()):
        for j, games in enumerate(row.games):
            series = (games.step, games.episode_return, average_returns(games))
            values[:, i, j, : len(games.step)] = series
    names = ("step", "training_return", "average_return")
    dims = ("setting", "seed", "game")
    coords = {"setting": list(played), "seed": list(seeds), "game": np.arange(longest) + 1}
    return xr.Dataset(dict(zip(names, ((dims, v) for v in values), strict=True)), coords)


def save(played: dict[str, Played], args: Args, output: Path) -> None:
    """Writes the games of the agents that have finished, and draws their curves."""
    configs = {name: dataclasses.asdict(SETTINGS[name]) for name in played}
    last = list(played.values())[-1]
    dataset = to_dataset(played, args.seeds).assign_attrs(
        provenance.collect_provenance(dataclasses.asdict(SETTINGS[DEFAULTS]), dqn),
        configs=json.dumps(provenance.to_jsonable(configs), allow_nan=False),
        status="finished" if len(played) == len(SETTINGS) else "running",
        max_games=args.max_games,
        seed_mode=args.seed_mode,
        width=last.width,
        num_devices=last.num_devices,
        device=jax.devices()[0].device_kind,
    )
    results.save(dataset, output)
    average = dataset.average_return.rename(f"mean return of the last {GAMES_TO_WIN} games")
    curves = {name: average.sel(setting=name) for name in played}
    title = f"{ENV.name} until it is won"
    files.save_figure(figures.plot_panels(curves, title, ENV.threshold), output / "games")
    files.save_page(
        pages.plot_interactive_curves(curves, title, ENV.threshold), output / "games.html"
    )


def summarise(played: dict[str, Played], seeds: Sequence[int]) -> dict[str, Any]:
    """Counts each seed's games and environment steps to the win (None without one)."""
    facts = {}
    for name, row in played.items():
        games_to_win = [count_games_to_win(games) for games in row.games]
        pairs = zip(row.games, games_to_win, strict=True)
        steps = [int(games.step[n - 1]) if n else None for games, n in pairs]
        num_won = sum(n is not None for n in games_to_win)
        facts[name] = {"games": games_to_win, "steps": steps, "num_won": num_won}
    return {"seeds": list(seeds), "settings": facts}


def print_table(facts: dict[str, Any], max_games: int) -> None:
    """Prints games and steps to the win, with a row for each seed and a column for each agent."""
    table = Table(title=f"{ENV.name}: games and environment steps to the win")
    table.add_column("seed", justify="right")
    for name in facts["settings"]:
        table.add_column(name, justify="right")
    for i, seed in enumerate(facts["seeds"]):
        cells = [(row["games"][i], row["steps"][i]) for row in facts["settings"].values()]
        lost = f"not in {max_games:,}"
        texts = (lost if games is None else f"{games:,} / {steps:,}" for games, steps in cells)
        table.add_row(str(seed), *texts)
    table.add_section()
    num_seeds = len(facts["seeds"])
    won = [f"{row['num_won']} of {num_seeds}" for row in facts["settings"].values()]
    table.add_row("won", *won)
    make_console().print(table)


def check(args: Args) -> None:
    """Checks the flags before anything is written or compiled.

    Raises:
      ConfigError: for a flag whose value cannot be used.
    """
    if args.num_seeds < 1:
        raise ConfigError(f"num_seeds ({args.num_seeds}) must be at least 1")
    if args.max_games < GAMES_TO_WIN:
        raise ConfigError(
            f"max_games ({args.max_games}) must be at least {GAMES_TO_WIN}: the average is taken "
            "over this many games"
        )
    for config in SETTINGS.values():
        grid_design(config, args.seeds, {})
        if count_steps(config, args.max_games) >= 2**31:
            raise ConfigError(
                f"max_games ({args.max_games}) must be at most {2**31 // GAME_STEPS - 100}: "
                "steps are counted in 32 bits"
            )
    options = SweepOptions(width=args.width, seed_mode=args.seed_mode)  # refuses bad values
    make_plan(len(args.seeds), 1, options.runs_per_batch)


def main(args: Args) -> int:
    """Trains all four agents, and returns the exit code."""
    check(args)
    output = results.prepare_output(args.output, args.overwrite)
    played: dict[str, Played] = {}
    for name in SETTINGS:
        played[name] = play(name, args)
        save(played, args, output)
    facts = summarise(played, args.seeds)
    print_table(facts, args.max_games)
    make_console().print(f"written to {output}")
    if args.json:
        print(json.dumps(facts))
    won = facts["settings"][DEFAULTS]["num_won"] >= 0.9 * len(args.seeds)
    return 0 if won else EXIT_FAILED


if __name__ == "__main__":
    run_script(main, Args)
