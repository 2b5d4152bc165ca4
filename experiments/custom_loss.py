"""Two ideas of one's own, trained beside the package's loss: a TD error, and a whole loss.

    python experiments/custom_loss.py --num-seeds 4 --total-steps 50000

A TD error sees action values and is three lines. A full loss sees the network, the weights and one
transition, and is a dozen. `purejaxdqn.testing` says whether they are sound. The settings td_error,
penalty and huber_threshold are those of the package's own loss alone.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from purejaxdqn import dqn, environments
from purejaxdqn.cli.commands.train import read_training
from purejaxdqn.cli.exits import exit_with
from purejaxdqn.cli.sweeps import list_seeds, print_json, seed_flags
from purejaxdqn.losses import bellman_loss
from purejaxdqn.report.statistics import bootstrap_interval
from purejaxdqn.report.training import summarise
from purejaxdqn.runtime.console import make_console
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.storage import results
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.run import run_sweep
from purejaxdqn.testing import check_loss
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.loop import Experiment
from purejaxdqn.types import Array, LossOutput, Network, Params, Transition


def persistent(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector, scale=0.1):  # type: ignore[no-untyped-def]
    """Persistent actions: bootstraps a little from the action that was just taken."""
    target_tm1 = r_t + discount_t * ((1 - scale) * q_t.max() + scale * q_t[a_tm1])
    return jax.lax.stop_gradient(target_tm1) - q_tm1[a_tm1]


def persistent_target(q_tm1, a_tm1, r_t, discount_t, q_t, scale=0.1):  # type: ignore[no-untyped-def]
    """What `persistent` converges to, in NumPy, for arrays of transitions."""
    same = np.take_along_axis(q_t, a_tm1[:, np.newaxis], axis=1)[:, 0]
    return r_t + discount_t * ((1 - scale) * q_t.max(axis=1) + scale * same)


def conservative(
    network: Network[Any], params: Params, target_params: Params, transition: Transition, key: Array
) -> LossOutput:
    """Q-learning with CQL's regulariser: Kumar et al. (2020), equation 4, alpha = 0.1."""
    del key  # draws nothing
    q_tm1 = network.action_values(network.apply(params, transition.obs_tm1))
    q_t = network.action_values(network.apply(target_params, transition.obs_t))
    target_tm1 = jax.lax.stop_gradient(transition.r_t + transition.discount_t * q_t.max())
    chosen = q_tm1[transition.a_tm1]
    td_error = target_tm1 - chosen
    gap = jax.nn.logsumexp(q_tm1) - chosen
    loss = 0.5 * td_error**2 + 0.1 * gap
    return LossOutput(loss, priority=jnp.abs(td_error), metrics={"conservative_gap": gap})


EXPERIMENTS: dict[str, Experiment] = {
    "double Q-learning (the package's)": dqn,
    "persistent (a TD error)": functools.partial(dqn, loss_fn=bellman_loss(persistent)),
    "conservative (a full loss)": functools.partial(dqn, loss_fn=conservative),
}


def main() -> None:
    own = [*seed_flags("results/custom_loss", num_seeds=4), settings_of(SweepOptions)["overwrite"]]
    # Persistent actions compare neighbouring steps: transitions span one.
    config, flags = read_training(
        sys.argv[1:],
        "custom_loss.py",
        __doc__ or "",
        own,
        total_steps=50_000,
        n_step=1,
        learning_rate=1e-3,
    )
    seeds = list_seeds(flags)
    folders = {
        name: results.prepare_output(flags.output / name.split()[0], flags.overwrite)
        for name in EXPERIMENTS
    }
    use_every_core()
    check_loss(persistent, fixed_point=persistent_target)
    # Its regulariser moves what it converges to, and the actions that were not taken.
    check_loss(conservative, fixed_point=None, learns_other_actions=True)
    table = Table("loss", "interquartile mean of the final greedy return")
    facts = {}
    threshold = environments.make(config.env).threshold
    for name, experiment in EXPERIMENTS.items():
        result = run_sweep(
            experiment,
            config,
            seeds,
            output=folders[name],
            overwrite=flags.overwrite,
        )
        means = result.dataset.final_return.mean("episode", skipna=False).values
        table.add_row(name, str(bootstrap_interval(means, np.random.default_rng(0))))
        facts[name] = summarise(result.dataset, threshold, np.random.default_rng(0))
    make_console().print(table)
    print_json(flags, facts)


if __name__ == "__main__":
    exit_with(main)
