"""What does each component buy? Trains all combinations of some, and prints each one's effect.

    python experiments/ablation.py --components double dueling n_step prioritised
    python experiments/ablation.py --components munchausen layer_norm --num-seeds 10 --n-step 3
    python experiments/ablation.py --base rainbow --components noisy categorical --output out

Of k components all 2^k combinations are trained as one sweep, one compiled program for each set of
settings that are not floats. The effect of a component is the mean difference between combinations
that differ in it alone, with the same seeds on both sides. What was killed goes on with --resume.
Writes results.nc (every number, with a dimension per component: False without it, True with it),
effects.png, .svg and .html, learning_curves.html and summary.json. Progress goes to standard error.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from purejaxdqn import agents
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.cli import flags as cli
from purejaxdqn.report.ablation import Metric, report_ablation
from purejaxdqn.storage import results
from purejaxdqn.sweep.design import Design, grid_design
from purejaxdqn.sweep.run import run_design
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

PLAIN = agents.get("dqn").config

Combination = tuple[bool, ...]  # of each component, whether it is in


@dataclasses.dataclass(frozen=True)
class Args(cli.LongSweepArgs):
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
    metric: Metric = "iqm"
    """How seeds are put together: by their interquartile mean or their mean."""
    config: DQNConfig = dataclasses.field(default_factory=lambda: base_config("dqn"))


def base_config(name: str) -> DQNConfig:
    """The settings that the flags start from."""
    config = agents.get(name).config
    if not isinstance(config, DQNConfig):
        raise ConfigError(f"base ({name!r}) must be one of {', '.join(agents.names())}")
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


def make_design(args: Args) -> Design:
    """All combinations with all seeds, as a grid of False and True.

    Raises:
      ConfigError: naming every combination that cannot be trained, and why.
    """
    configs = plan(args)

    def configure(**is_in: bool) -> DQNConfig:
        return configs[tuple(is_in[name] for name in args.components)]

    in_order = [name for name in COMPONENTS if name in args.components]  # however they were given
    return grid_design(configure, args.seeds, {name: [False, True] for name in in_order})


def main(args: Args) -> int:
    design = make_design(args)
    options = args.sweep_options()  # refuse what they cannot be
    output = results.prepare_output(args.output, args.overwrite, args.resume)
    devices = args.devices()
    with args.tracked(design.shared) as tracker:
        result = run_design(
            dqn, design, devices=devices, output=output, on_evaluation=tracker, **options
        )
    facts = report_ablation(result.dataset, output, args.components, args.base, args.metric)
    if args.json:
        print(json.dumps(facts, allow_nan=False))
    return 0


if __name__ == "__main__":
    cli.run(main, Args, defaults=defaults)
