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

from collections.abc import Sequence
from typing import Literal

from purejaxdqn import agents
from purejaxdqn.agents.components import COMPONENTS, configure_all, find_components
from purejaxdqn.cli.commands.train import read_training
from purejaxdqn.cli.sweeps import list_seeds, print_json, refuse_unread, sweep_flags, train_design
from purejaxdqn.sweep.dataset import SweepResult
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.training.declaration import Setting
from purejaxdqn.training.settings import RunConfig

_DEFAULT = ("double", "dueling", "n_step", "prioritised")
_COMPONENTS = (
    f"What is put in and left out, of: {', '.join(COMPONENTS)}; or any setting with its value, "
    "such as discount=0.9. Those that the agent has already are taken out of it."
)
_METRIC = "How seeds are put together: by their interquartile mean or their mean."
_FLAGS = [
    Setting("components", tuple[str, ...], _DEFAULT, _COMPONENTS, "run"),
    Setting("metric", Literal["iqm", "mean"], "iqm", _METRIC, "evaluation"),
]


def run(argv: Sequence[str]) -> int:
    """Trains all combinations of the components, and prints the effect of each."""
    own = [*sweep_flags("results/ablation", num_seeds=5), *_FLAGS]
    base, flags = read_training(
        argv, "purejaxdqn ablate", __doc__, own, default_agent="dqn", total_steps=50_000
    )
    components = find_components(flags.components, base)
    configs = configure_all(base, components)
    refuse_unread(flags.given, configs.values())

    def configure(**is_in: bool) -> RunConfig:
        return configs[tuple(is_in[name] for name in components)]

    def report(result: SweepResult) -> None:
        from purejaxdqn.report.ablation import report_ablation

        dataset = result.dataset
        if dataset.attrs["status"] == "finished":
            told = (flags.components, base.agent, flags.metric)
            print_json(flags, report_ablation(dataset, flags.output, *told))

    design = grid_design(configure, list_seeds(flags), {name: [False, True] for name in components})
    train_design(lambda: agents.experiment_of(base), design, flags, report)
    return 0
