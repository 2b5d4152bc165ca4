"""Searches for good settings with Optuna, each tried with several seeds, and prints the best.

    purejaxdqn search --learning-rate loguniform:1e-5:1e-2 --num-trials 32 --num-seeds 4
    purejaxdqn search --agent rainbow --learning-rate 1e-4 1e-3 --discount uniform:0.9:1

Any float is searched that has a distribution (uniform:LOW:HIGH, loguniform:LOW:HIGH) or several
values; all other settings take one value. Between evaluations, what is below the median so far is
pruned. The same command again goes on with a search that was killed, or with more trials. Writes
results.nc, summary.json and study.db, which Optuna reads. Progress goes to standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from purejaxdqn import agents
from purejaxdqn.cli.commands.sweep import read_swept_settings
from purejaxdqn.cli.exits import saying_how_to_go_on
from purejaxdqn.cli.sweeps import list_seeds, print_json, refuse_unread, seed_flags
from purejaxdqn.runtime.console import make_console, show_waiting
from purejaxdqn.search.space import check_batch, read_space
from purejaxdqn.storage import results
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.training.declaration import Drawn, Setting, settings_of

if TYPE_CHECKING:
    from purejaxdqn.search.trials import SearchResult

_TRIALS = "Settings to try in all, those included that were tried already; pruned ones count."
_TOGETHER = (
    "Settings that are proposed together; by default as many as train at the same time, but at "
    "most a quarter of --num-trials."
)
_FLAGS = [
    Setting("num_trials", int, 32, _TRIALS, "sweep"),
    Setting("trials_per_batch", int, None, _TOGETHER, "sweep"),
    Setting("sampler_seed", int, 0, "Seed of the proposals.", "sweep", at_least=0),
]


def run(argv: Sequence[str]) -> int:
    """Trains the trials of a search, and prints their settings and scores."""
    shared = [settings_of(SweepOptions)[n] for n in ("overwrite", "width", "memory_budget")]
    own = [*seed_flags("results/search", 4), *shared, *_FLAGS]
    flags, fixed, several = read_swept_settings(argv, "purejaxdqn search", __doc__, own)
    space = {name: values[0] if len(values) == 1 else values for name, values in several.items()}
    config = agents.configure(**fixed)
    refuse_unread([*fixed, *space], [config])
    read_space(config, space, list_seeds(flags))
    check_batch(flags.trials_per_batch or 1, flags.num_seeds)
    results.check_output(flags.output, flags.overwrite, resume=not flags.overwrite)

    def report(result: SearchResult) -> None:
        from purejaxdqn.report.files import save_summary

        result.print(make_console())
        save_summary(result.summary(), flags.output)
        print_json(flags, result.summary())

    without = " without --overwrite" if flags.overwrite else ""
    keywords = {one.name: getattr(flags, one.name) for one in (*shared, *_FLAGS)}
    with saying_how_to_go_on(f"the same command{without} goes on (in {flags.output})"):
        with show_waiting("importing JAX"):
            from purejaxdqn.runtime.devices import use_every_core
            from purejaxdqn.search.search import SearchInterrupted, search

            use_every_core()
            space = {n: x.freeze() if isinstance(x, Drawn) else x for n, x in space.items()}
        try:
            seeds, output = list_seeds(flags), flags.output
            report(search(agents.train, config, space, seeds=seeds, output=output, **keywords))
        except SearchInterrupted as interrupt:
            if interrupt.result is not None:
                report(interrupt.result)
            raise
    return 0
