"""Trains many seeds of an agent on vectorised CartPole at once and says how well they did.

    python experiments/cartpole.py --num-seeds 10
    python experiments/cartpole.py --num-seeds 30 --first-seed 100 --learning-rate 5e-4 --output out
    python experiments/cartpole.py --agent rainbow --no-noisy
    python experiments/cartpole.py --agent pqn --q-lambda 0.65

This is `purejaxdqn train` as a script to copy from, and it takes the same flags. Writes results.nc
(every number, labelled), learning_curve.png, .svg and .html (to look into), policy.gif (the best
seed's policy in gymnasium's rendered environment) and summary.json. Progress goes to standard
error.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from purejaxdqn import agents
from purejaxdqn.cli.commands.train import read_training, train_and_report
from purejaxdqn.cli.exits import exit_with
from purejaxdqn.cli.sweeps import choose_devices, list_seeds, make_options, sweep_flags
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import TrainState


def start_all(config: RunConfig, num_seeds: int) -> TrainState:
    """Gives the shapes of all seeds' training states, side by side.

    One run is a pure function: `init` steps `num_envs` CartPoles with one `jax.vmap`. Another
    `jax.vmap` runs it for many seeds. `run_sweep` does the same for `chunk`, and spreads the seeds
    over all cores.
    """
    run = agents.train(config)
    init = jax.vmap(lambda seed: run.init(jax.random.key(seed)))
    states: TrainState = jax.eval_shape(init, jax.ShapeDtypeStruct((num_seeds,), jnp.uint32))
    return states


def main() -> int:
    own = sweep_flags("results/cartpole")
    config, flags = read_training(sys.argv[1:], "cartpole.py", __doc__ or "", own)
    make_options(flags)  # refuses what cannot be kept
    if flags.cluster is None and flags.coordinator is None:
        choose_devices(flags)
        shape = start_all(config, len(list_seeds(flags))).obs.shape
        print(f"{shape[0]} seeds x {shape[1]} environments, side by side", file=sys.stderr)
    train_and_report(config, flags)
    return 0


if __name__ == "__main__":
    exit_with(main)
