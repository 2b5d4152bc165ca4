"""Searches for good settings with Optuna, each tried with several seeds, and prints the best.

    python experiments/search.py --learning-rate loguniform:1e-5:1e-2 --num-trials 32 --num-seeds 4
    python experiments/search.py --agent rainbow --learning-rate 1e-4 1e-3 --discount uniform:0.9:1

Any float is searched that has a distribution (uniform:LOW:HIGH, loguniform:LOW:HIGH) or several
values; all other settings take one value. Between evaluations, what is below the median so far is
pruned. The same command again goes on with a search that was killed, or with more trials. Writes
results.nc, summary.json and study.db, which Optuna reads. Progress goes to standard error.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from purejaxdqn import agents
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.cli import flags as cli
from purejaxdqn.report.files import save_summary
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.search.search import SearchInterrupted, SearchResult, search


@dataclasses.dataclass(frozen=True)
class _Args(cli.SweepArgs):
    agent: str | None = None
    """A named agent, whose settings are the defaults of all others: dqn, double, dueling, n_step,
    prioritised, c51, qr_dqn, iqn, fqf, munchausen, m_iqn, noisy, rainbow, pqn."""
    num_trials: int = 32
    """Settings to try in all, those included that were tried already; pruned ones count."""
    num_seeds: int = 4
    """Seeds to train each setting with."""
    trials_per_batch: int | None = None
    """Settings that are proposed together; by default as many as train at the same time, but at
    most a quarter of --num-trials."""
    sampler_seed: int = 0
    """Seed of the proposals."""
    output: Path = Path("results/search")
    """Folder for everything that is written; a search that was begun there goes on."""
    overwrite: bool = False
    """Start again, and drop what lies in the output folder."""
    seed_mode: tyro.conf.Suppress[cli.SeedMode] = "vmap"

    @property
    def how_to_go_on(self) -> str:
        without = " without --overwrite" if self.overwrite else ""
        return f"the same command{without} goes on (in {self.output})"


FLAGS = cli.setting_flags(DQNConfig, PQNConfig)
Args: Any = dataclasses.make_dataclass("Args", FLAGS, bases=(_Args,), frozen=True)
Args.__doc__ = __doc__
OWN = ["seeds", "num_trials", "trials_per_batch", "sampler_seed", "output", "overwrite", "width"]


def report(args: Any, result: SearchResult) -> None:
    result.print(Console())
    save_summary(result.summary(), args.output)
    if args.json:
        print(json.dumps(result.summary(), allow_nan=False))


def main(args: Any) -> None:
    values = cli.parsed_settings(args, DQNConfig, PQNConfig)
    fixed = {n: v[0] for n, v in values.items() if len(v) == 1 and not hasattr(v[0], "rvs")}
    space = {n: v[0] if len(v) == 1 else v for n, v in values.items() if n not in fixed}
    config = agents.configure(**({"agent": args.agent} if args.agent else {}), **fixed)
    use_every_core()
    try:
        result = search(agents.train, config, space, **{n: getattr(args, n) for n in OWN})
    except SearchInterrupted as interrupt:
        if interrupt.result is not None:
            report(args, interrupt.result)
        raise
    report(args, result)


if __name__ == "__main__":
    cli.run(main, Args)
