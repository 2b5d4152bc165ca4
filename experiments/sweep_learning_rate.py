"""Sweeps the learning rate over seeds, in one compiled program, and prints what is best.

python experiments/sweep_learning_rate.py
"""

from pathlib import Path

import numpy as np

from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.report.statistics import bootstrap_interval
from purejaxdqn.sweep.run import run_sweep

LEARNING_RATES = [1e-4, 3e-4, 1e-3]


def main() -> None:
    config = DQNConfig(env="CartPole-v1", total_steps=50_000)
    output = Path("results/learning_rate")
    result = run_sweep(
        dqn, config, range(10), learning_rate=LEARNING_RATES, output=output, resume=True
    )
    means = result.dataset.final_return.mean("episode")  # (learning_rate, seed)
    rng = np.random.default_rng(0)
    for learning_rate in LEARNING_RATES:
        interval = bootstrap_interval(means.sel(learning_rate=learning_rate).values, rng)
        print(f"learning rate {learning_rate:g}: interquartile mean {interval}")


if __name__ == "__main__":
    main()
