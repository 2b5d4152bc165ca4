"""Sweeps the learning rate over seeds, in one compiled program, and prints how well each did.

python experiments/sweep_learning_rate.py
"""

import numpy as np

from purejaxdqn import DQNConfig, dqn, run_sweep
from purejaxdqn.report.statistics import bootstrap_interval

config, rates = DQNConfig(env="CartPole-v1", total_steps=50_000), [1e-4, 3e-4, 1e-3]
output = "results/learning_rate"
result = run_sweep(dqn, config, range(10), learning_rate=rates, output=output, resume=True)
means = result.dataset.final_return.mean("episode", skipna=False)  # (learning_rate, seed)
rng = np.random.default_rng(0)
for rate in rates:
    interval = bootstrap_interval(means.sel(learning_rate=rate).values, rng)
    print(f"learning rate {rate:g}: interquartile mean {interval}")
