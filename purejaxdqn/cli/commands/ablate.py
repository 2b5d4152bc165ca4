"""What does each component buy? Trains all combinations of some, and prints each one's effect.

    purejaxdqn ablate --components double dueling n_step prioritised
    purejaxdqn ablate --components munchausen layer_norm --num-seeds 10 --n-step 3
    purejaxdqn ablate --agent rainbow --components noisy categorical --output results/rainbow
    purejaxdqn ablate --import my_agent.py --agent my_agent --components scale=0.5 layer_norm

Of k components all 2^k combinations are trained as one sweep, one compiled program for each set of
settings that are not floats. The effect of a component is the mean difference between combinations
that differ in it alone, with the same seeds on both sides. A setting that is given by hand goes
before a component's own. What was killed goes on with --resume. Writes results.nc (every number,
with a dimension per component: False without it, True with it), effects.png, .svg and .html,
learning_curves.html and summary.json. Progress goes to standard error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace

from purejaxdqn import agents
from purejaxdqn.agents.components import COMPONENTS, configure_all, find_components
from purejaxdqn.cli.commands.train import read_training
from purejaxdqn.cli.sweeps import list_seeds, print_json, refuse_unread, sweep_flags, trained_design
from purejaxdqn.report.ablation import Metric, report_ablation
from purejaxdqn.runtime import processes
from purejaxdqn.sweep.design import Design, grid_design
from purejaxdqn.training.declaration import setting, settings_of
from purejaxdqn.training.settings import RunConfig

_PLAIN = "dqn"  # the agent where none is named


@dataclasses.dataclass(frozen=True)
class _AblationFlags:
    components: tuple[str, ...] = setting(
        ("double", "dueling", "n_step", "prioritised"),
        f"What is put in and left out, of: {', '.join(COMPONENTS)}; or any setting with its value, "
        "such as discount=0.9. Those that the agent has already are taken out of it.",
        group="run",
    )
    metric: Metric = setting(
        "iqm",
        "How seeds are put together: by their interquartile mean or their mean.",
        group="evaluation",
    )


def run(argv: Sequence[str]) -> int:
    """Trains all combinations of the components, and prints the effect of each."""
    design, components, config, flags = read_ablation(argv)
    with trained_design(agents.experiment_of(config), design, flags) as (dataset, _):
        if processes.is_first_process():
            facts = report_ablation(dataset, flags.output, components, config.agent, flags.metric)
            print_json(flags, facts)
    return 0


def read_ablation(
    argv: Sequence[str],
) -> tuple[Design, list[str], RunConfig, SimpleNamespace]:
    """Reads all combinations as a grid of False and True, the components, the base and the flags.

    Raises:
      ConfigError: naming every combination that cannot be trained, and why.
    """
    own = [
        *sweep_flags("results/ablation", num_seeds=5),
        *settings_of(_AblationFlags).values(),
    ]
    base, flags = read_training(
        argv, "purejaxdqn ablate", __doc__ or "", own, default_agent=_PLAIN, total_steps=50_000
    )
    components = find_components(flags.components, base)
    configs = configure_all(base, components)
    refuse_unread(flags.given, configs.values())

    def configure(**is_in: bool) -> RunConfig:
        return configs[tuple(is_in[name] for name in components)]

    design = grid_design(configure, list_seeds(flags), {name: [False, True] for name in components})
    return design, [*flags.components], base, flags
