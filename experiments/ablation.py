"""What does each component buy? Trains all combinations of some, and prints each one's effect.

    python experiments/ablation.py --components double dueling n_step prioritised
    python experiments/ablation.py --components munchausen layer_norm --num-seeds 10 --n-step 3
    python experiments/ablation.py --base rainbow --components noisy categorical --output out

Of k components all 2^k combinations are trained, one compiled program for each set of settings that
are not floats. The effect of a component is the mean difference between combinations that differ
in it alone, with the same seeds on both sides. Every finished combination is in a folder of its own
at once; the same command goes on where a killed one stopped, and more components can be added.
Writes ablation.nc (every number, with a dimension per component), effects.png, .svg and .html,
learning_curves.html and summary.json. Progress goes to standard error.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from purejaxdqn import agents, cli, plotting, results, summary
from purejaxdqn.config import float_fields
from purejaxdqn.devices import use_every_core
from purejaxdqn.dqn import DQNConfig, dqn
from purejaxdqn.opening import width_of
from purejaxdqn.statistics import (
    Interval,
    bootstrap_interval,
    interquartile_mean,
    paired_effect,
)
from purejaxdqn.sweep import SweepInterrupted, run_sweep
from purejaxdqn.types import ConfigError

# What each changes in plain DQN: first the setting that it is known by, then what it needs with it.
COMPONENTS: dict[str, dict[str, Any]] = {
    "double": {"td_error": "double_q_learning"},
    "dueling": {"dueling": True},
    "n_step": {"n_step": 5},
    "prioritised": {"prioritised": True},
    "munchausen": {"munchausen": True},
    "noisy": {"noisy": True},
    "layer_norm": {"layer_norm": True},
    "categorical": {"representation": "categorical", "adam_epsilon": 1e-5},
    "quantile": {"representation": "quantile", "adam_epsilon": 1e-5},
    "implicit_quantile": {
        "representation": "implicit_quantile",
        "num_quantiles": 8,
        "adam_epsilon": 1e-5,
    },
    "proposed_quantile": {
        "representation": "proposed_quantile",
        "num_quantiles": 8,
        "adam_epsilon": 1e-5,
    },
    "expected_sarsa": {"td_error": "expected_sarsa"},
    "soft": {"td_error": "soft_q_learning"},
    "persistent": {"td_error": "persistent_advantage_learning"},
    "huber": {"penalty": "huber"},
    "constant_learning_rate": {"learning_rate_end_fraction": 1.0},
    "unclipped": {"max_grad_norm": float("inf")},
}

PLAIN = agents.AGENTS["dqn"]
FILE_NAME = "ablation.nc"
STATISTICS: dict[str, Callable[..., Any]] = {"iqm": interquartile_mean, "mean": np.mean}
WORDS = {"iqm": "interquartile mean", "mean": "mean"}
OUTCOMES = {
    "final_return": "final greedy return",
    "area": "greedy return over the whole run",  # the area under the learning curve, per step
}

Combination = tuple[bool, ...]  # of each component, whether it is in


@dataclasses.dataclass(frozen=True)
class Args(cli.SweepArgs):
    __doc__ = __doc__
    components: tuple[str, ...] = ("double", "dueling", "n_step", "prioritised")
    """What is put in and left out, of: double, dueling, n_step, prioritised, munchausen, noisy,
    layer_norm, categorical, quantile, implicit_quantile, proposed_quantile, expected_sarsa, soft,
    persistent, huber, constant_learning_rate, unclipped. A setting given by hand goes before a
    component's own: `--components n_step --n-step 3`."""
    num_seeds: int = 5
    """Seeds to train each combination with."""
    output: Path = Path("results/ablation")
    """Folder for everything that is written."""
    base: str = "dqn"
    """The agent that the components are beside. Those that it has already are taken out of it."""
    metric: Literal["iqm", "mean"] = "iqm"
    """How seeds are put together: by their interquartile mean or their mean."""
    config: DQNConfig = dataclasses.field(default_factory=lambda: base_config("dqn"))


def base_config(name: str) -> DQNConfig:
    """The settings that the flags start from."""
    config = agents.agent(name)
    if not isinstance(config, DQNConfig):
        raise ConfigError(f"base ({name!r}) must be one of {', '.join(agents.AGENTS)}")
    return dataclasses.replace(config, total_steps=50_000)


def defaults(argv: Sequence[str]) -> Args:
    """What flags are that are not given: those of the base."""
    name = cli.value_of("--base", argv) or "dqn"
    return Args(base=name, config=base_config(name))


# ---------------------------------------------------------------------------- what is to be trained


def check_components(components: Sequence[str], base: DQNConfig) -> None:
    """Refuses components that are none, or cannot stand beside each other or in the base.

    Raises:
      ConfigError: naming them.
    """
    if not components:
        raise ConfigError(f"components is empty: name some of {', '.join(COMPONENTS)}")
    for name in components:
        if name not in COMPONENTS:
            nearest = difflib.get_close_matches(name, COMPONENTS, n=3)
            raise ConfigError(
                f"component {name!r} must be one of {', '.join(nearest or COMPONENTS)}"
            )
    if len(set(components)) < len(components):
        raise ConfigError(f"components {list(components)} must differ from each other")
    for one, other in itertools.combinations(components, 2):
        setting = _switch(one)
        if setting == _switch(other):
            raise ConfigError(f"{one} and {other} both set {setting}: leave one of them out")
    for name in components:
        setting = _switch(name)
        value = getattr(base, setting)
        if isinstance(value, str) and value not in (
            getattr(PLAIN, setting),
            COMPONENTS[name][setting],
        ):
            raise ConfigError(
                f"{name} cannot be put in: the base has {setting} {value!r} already; leave the "
                f"component out, or set --{setting.replace('_', '-')} {getattr(PLAIN, setting)}"
            )


def _switch(component: str) -> str:
    """The setting that a component is known by."""
    return next(iter(COMPONENTS[component]))


def configure(base: DQNConfig, components: Sequence[str], combination: Combination) -> DQNConfig:
    """The base with the components that are in, and without the others."""
    changes: dict[str, Any] = {}
    for name, is_in in zip(components, combination, strict=True):
        switch = _switch(name)
        in_base = getattr(base, switch) != getattr(PLAIN, switch)
        for setting, value in COMPONENTS[name].items():
            plain, own = getattr(PLAIN, setting), getattr(base, setting)
            if is_in and own == plain:
                changes[setting] = value
            elif not is_in and in_base and (setting == switch or own == value):
                changes[setting] = plain
    return dataclasses.replace(base, **changes)


def idle(config: DQNConfig, names: Sequence[str]) -> list[str]:
    """What makes a component that is in change nothing."""
    problems = []
    for name in names:
        switch = _switch(name)
        if switch == "td_error" and config.munchausen:
            problems.append(f"munchausen's soft target stands in the place of {name}'s")
        if switch == "penalty" and config.representation != "values":
            problems.append(f"{name} is of values, and not of {config.representation!r}")
    return problems


def inside(components: Sequence[str], combination: Combination) -> list[str]:
    """The components that are in, whatever the order in which they were given."""
    chosen = {*itertools.compress(components, combination)}
    return [name for name in COMPONENTS if name in chosen]


def label(components: Sequence[str], combination: Combination) -> str:
    """A combination's name."""
    return "+".join(inside(components, combination)) or "none"


def plan(args: Args) -> dict[Combination, DQNConfig]:
    """The settings of all combinations.

    Raises:
      ConfigError: naming every combination that cannot be trained, and why.
    """
    _ = args.seeds, width_of(args.seed_mode, args.width)  # refuse what they cannot be
    args.config.validate()
    check_components(args.components, args.config)
    configs, problems = {}, []
    for combination in itertools.product((False, True), repeat=len(args.components)):
        config = configure(args.config, args.components, combination)
        name = label(args.components, combination)
        reasons = idle(config, inside(args.components, combination))
        try:
            config.validate()
        except ConfigError as error:
            reasons += str(error).splitlines()
        problems += [f"{name}: {reason}" for reason in reasons]
        configs[combination] = config
    if problems:
        raise ConfigError("combinations that cannot be trained: " + "; ".join(problems))
    return configs


# ----------------------------------------------------------------------------------------- training


def structure(config: DQNConfig) -> tuple[Any, ...]:
    """What a compiled program hangs on: the settings that are not floats."""
    floats = float_fields(config)
    return tuple(v for k, v in dataclasses.asdict(config).items() if k not in floats)


def finished(folder: Path, config: DQNConfig, args: Args) -> xr.Dataset | None:
    """What was trained with just these settings and seeds before, if it is there."""
    if not (folder / results.FILE_NAME).exists():
        return None
    try:
        dataset = results.load(folder)
    except (OSError, ValueError):
        return None  # no results file, whatever it is
    asked = {
        "status": "finished",
        "config": json.dumps(results.jsonable(dataclasses.asdict(config))),
        "experiment": "purejaxdqn.dqn.dqn",
        "seed_mode": args.seed_mode,
        **({} if args.width is None else {"width": args.width}),
    }
    same = all(dataset.attrs.get(name) == value for name, value in asked.items())
    return dataset if same and dataset.seed.values.tolist() == [*args.seeds] else None


def find_finished(
    args: Args, configs: Mapping[Combination, DQNConfig]
) -> tuple[dict[Combination, Path], dict[Combination, xr.Dataset]]:
    """The folder of each combination, and what need not be trained again.

    Raises:
      ConfigError: if other results lie there that must not be overwritten.
    """
    folders = {c: args.output / label(args.components, c) for c in configs}
    found: dict[Combination, xr.Dataset] = {}
    others = []
    for combination, config in configs.items():
        folder = folders[combination]
        dataset = None if args.overwrite else finished(folder, config, args)
        if dataset is not None:
            found[combination] = dataset
        elif not args.overwrite and (folder / results.FILE_NAME).exists():
            others.append(folder.name)
    if others:
        raise ConfigError(
            f"the output folder {args.output} already holds results of other settings or seeds "
            f"({', '.join(others)}): choose another with --output, or replace them with --overwrite"
        )
    for folder in (args.output, *folders.values()):
        results.prepare_output(folder, overwrite=True)
    return folders, found


def train(args: Args, configs: Mapping[Combination, DQNConfig]) -> dict[Combination, xr.Dataset]:
    """Every combination's results, each saved as soon as it is finished."""
    folders, found = find_finished(args, configs)
    console = Console(stderr=True, highlight=False)
    if found:
        console.print(f"{len(found)} of {len(configs)} combinations were trained before")
    groups: dict[tuple[Any, ...], list[Combination]] = {}
    for combination, config in configs.items():
        if combination not in found:
            groups.setdefault(structure(config), []).append(combination)
    use_every_core()
    for members in groups.values():
        names = ", ".join(label(args.components, member) for member in members)
        console.print(f"{len(found)} of {len(configs)} combinations are there; next: {names}")
        grid = _grid([configs[member] for member in members])
        try:
            result = run_sweep(
                dqn,
                configs[members[0]],
                args.seeds,
                width=args.width,
                seed_mode=args.seed_mode,
                **grid,
            )
        except SweepInterrupted:
            console.print(
                f"{len(found)} of {len(configs)} combinations are finished: the same command, "
                "without --overwrite, goes on from there"
            )
            raise
        for member in members:
            config = configs[member]
            one = result.dataset.sel({name: getattr(config, name) for name in grid}, drop=True)
            one = one.assign_attrs(results.provenance(config, dqn))
            results.save_or_rescue(one, folders[member])
            found[member] = one
    return {combination: found[combination] for combination in configs}


def _grid(configs: Sequence[DQNConfig]) -> dict[str, Any]:
    """The floats in which settings of one structure differ, with their values.

    No two components set the same float, so that these combine just as the components do.
    """
    values = {
        name: [*dict.fromkeys(getattr(config, name) for config in configs)]
        for name in float_fields(configs[0])
    }
    return {name: several for name, several in values.items() if len(several) > 1}


# ------------------------------------------------------------------------------------------ effects


def combine(components: Sequence[str], found: Mapping[Combination, xr.Dataset]) -> xr.Dataset:
    """All combinations as one dataset, with a dimension and a boolean coordinate per component."""
    parts = []
    for combination, dataset in found.items():
        per_run = dataset[[name for name, v in dataset.items() if "seed" in v.dims]]
        coordinates = {name: [is_in] for name, is_in in zip(components, combination, strict=True)}
        parts.append(per_run.drop_attrs(deep=False).expand_dims(coordinates))
    # What some losses alone report is NaN for the others.
    combined = xr.combine_by_coords(parts, join="outer", combine_attrs="drop")
    assert isinstance(combined, xr.Dataset)
    return combined.assign(area=area(combined))


def area(dataset: xr.Dataset) -> xr.DataArray:
    """The area under each seed's learning curve, divided by its length: a mean return."""
    curve = dataset.evaluation_return.mean("episode").astype(float)
    span = float(dataset.step[-1] - dataset.step[0])
    return curve.integrate("step") / span


def scores(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """One number per combination and seed, for each outcome."""
    return {
        OUTCOMES["final_return"]: dataset.final_return.mean("episode").astype(float),
        OUTCOMES["area"]: dataset.area,
    }


def effects(
    components: Sequence[str], score: xr.DataArray, statistic: Callable[..., Any]
) -> dict[str, Interval]:
    """The effect of each component: the mean difference over all pairs that differ in it alone.

    Args:
      components: by name, dimensions of `score` with the coordinates False and True.
      score: `(*components, seed)`.
      statistic: over the seeds, such as `np.mean`.

    Returns:
      Per component its effect, with its interval.
    """

    def side(name: str, is_in: bool) -> np.ndarray:
        chosen = score.sel({name: is_in})
        return chosen.transpose(..., "seed").values.reshape(-1, score.sizes["seed"])

    return {
        name: paired_effect(
            side(name, True), side(name, False), np.random.default_rng(0), statistic
        )
        for name in components
    }


class Row(NamedTuple):
    """One combination's scores over its seeds, an interval per outcome."""

    name: str
    combination: Combination
    intervals: dict[str, Interval]


def rows(
    components: Sequence[str], dataset: xr.Dataset, statistic: Callable[..., Any]
) -> list[Row]:
    """The table of all combinations, the best final return first."""
    table = []
    for combination in itertools.product((False, True), repeat=len(components)):
        at = dict(zip(components, combination, strict=True))
        intervals = {
            outcome: bootstrap_interval(score.sel(at).values, np.random.default_rng(0), statistic)
            for outcome, score in scores(dataset).items()
        }
        table.append(Row(label(components, combination), combination, intervals))
    final = OUTCOMES["final_return"]
    return sorted(table, key=lambda row: -row.intervals[final].estimate)


# ------------------------------------------------------------------------------------------- report


def numbers(interval: Interval, sign: str = "") -> str:
    """Such as "+12.3 (-4.5 to 30.1)"."""
    text = f"{interval.estimate:{sign}.1f}"
    if interval.low is not None:
        text += f" ({interval.low:{sign}.1f} to {interval.high:{sign}.1f})"
    return text


def report(args: Args, dataset: xr.Dataset) -> dict[str, Any]:
    """Prints the tables, writes the figures, and says the same for JSON."""
    statistic = STATISTICS[args.metric]
    table = rows(args.components, dataset, statistic)
    by_outcome = {
        outcome: effects(args.components, score, statistic)
        for outcome, score in scores(dataset).items()
    }
    console = Console()
    note = table[0].intervals[OUTCOMES["final_return"]].note
    words = f"{WORDS[args.metric]} over {args.num_seeds} seeds"
    all_of_them = Table(title=f"All combinations, {words} (95 % interval)")
    all_of_them.add_column("components", overflow="fold")
    for outcome in by_outcome:
        all_of_them.add_column(outcome, justify="right")
    for row in table:
        all_of_them.add_row(row.name, *map(numbers, row.intervals.values()))
    console.print(all_of_them)
    of_each = Table(title=f"Effect of each component, {words} (95 % interval)")
    of_each.add_column("component", overflow="fold")
    for outcome in by_outcome:
        of_each.add_column(outcome, justify="right")
    for name in args.components:
        of_each.add_row(name, *(numbers(known[name], "+") for known in by_outcome.values()))
    console.print(of_each)
    if note:
        console.print(note)
    title = f"What each component adds to {args.base} on {args.config.env}"
    plotting.save_figure(plotting.effects(by_outcome, title), args.output / "effects")
    plotting.save_html(
        plotting.interactive_effects(by_outcome, title), args.output / "effects.html"
    )
    curves = {
        row.name: dataset.evaluation_return.sel(
            dict(zip(args.components, row.combination, strict=True))
        )
        .mean("episode")
        .rename("greedy return")
        for row in table
    }
    plotting.save_html(
        plotting.interactive_curves(curves, f"All combinations on {args.config.env}"),
        args.output / "learning_curves.html",
    )
    facts = {
        "base": args.base,
        "env": args.config.env,
        "components": list(args.components),
        "seeds": dataset.seed.values.tolist(),
        "metric": args.metric,
        "interval_note": note,
        "combinations": [
            {
                "name": row.name,
                "components": [*itertools.compress(args.components, row.combination)],
            }
            | _facts(row.intervals)
            for row in table
        ],
        "effects": {
            name: _facts({outcome: known[name] for outcome, known in by_outcome.items()})
            for name in args.components
        },
    }
    summary.save_summary(facts, args.output)
    return facts


def _facts(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {
        short: {
            "estimate": intervals[outcome].estimate,
            "low": intervals[outcome].low,
            "high": intervals[outcome].high,
        }
        for short, outcome in OUTCOMES.items()
    }


def main(args: Args) -> None:
    configs = plan(args)
    dataset = combine(args.components, train(args, configs))
    dataset = dataset.assign_attrs(
        results.provenance(args.config, dqn),
        base=args.base,
        components=json.dumps(
            results.jsonable({name: COMPONENTS[name] for name in args.components})
        ),
    )
    results.save(dataset, args.output, FILE_NAME)
    facts = report(args, dataset)
    names = sorted(path.name for path in args.output.iterdir() if path.is_file())
    Console().print(f"written to {args.output}: {', '.join(names)}, and a folder per combination")
    if args.json:
        print(json.dumps(facts, allow_nan=False))


if __name__ == "__main__":
    cli.run(main, Args, defaults=defaults)
