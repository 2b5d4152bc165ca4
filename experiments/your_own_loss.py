# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A loss of your own: is it sound, does it help, and why?
#
# A new idea for a loss takes three lines. It takes longer to find out whether it is right, whether
# it helps, and what it does inside the learner. This page goes all the way once, in about two
# minutes: an idea is written down, fails a check, is mended, and is compared with double DQN on ten
# seeds.
#
# Run it as a script (`python experiments/your_own_loss.py`) or as a notebook (`make notebook`).

# %%
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn import DQNConfig, dqn, run_sweep
from purejaxdqn.losses import bellman_loss
from purejaxdqn.report.figures import plot_comparison
from purejaxdqn.report.files import save_figure
from purejaxdqn.report.statistics import bootstrap_interval, probability_of_improvement
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.testing import CheckError, check_loss
from purejaxdqn.training.loop import Experiment

use_every_core()  # before JAX computes anything
OUTPUT = Path("results/your_own_loss")
OUTPUT.mkdir(parents=True, exist_ok=True)
SEEDS = range(10)
CONFIG = DQNConfig(total_steps=40_000, n_step=1, hidden_sizes=(64, 64), batch_size=64)

# %% [markdown]
# ## An idea
#
# Q-learning is too optimistic: it believes the highest of several noisy values. Double Q-learning
# lets one network pick the action and another one judge it. Here is a more cautious one yet: the
# online network picks, *both* networks judge, and the lower judgement counts.
#
# A TD error is a function of ONE transition, and the package maps it over the batch. Its arguments
# are told apart by their names. `q_tm1` are the online network's values of the observation before
# the action, `a_tm1` is the action, and `r_t` is the reward. `discount_t` is 0 only where the
# episode terminated. The values of the observation after the action come from both networks: `q_t`
# from the target network, and `q_t_selector` from the online network, which selects the action.


# %%
def first_draft(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    best = jnp.argmax(q_t_selector)
    value_t = jnp.minimum(q_t[best], q_t_selector[best])
    return r_t + discount_t * value_t - q_tm1[a_tm1]


# %% [markdown]
# ## Is it sound?
#
# It would train, and its curve would look like any other. `check_loss` looks first, and prints one
# row for each check. This target takes its values from both networks. That is unusual, so
# `bootstrap="both"` declares it.

# %%
try:
    check_loss(first_draft, bootstrap="both")
except CheckError as error:
    failed = [check.name for check in error.report.failures]
    print("It fails:", ", ".join(failed))

# %% [markdown]
# The table says what is wrong. The gradient does not only pull the prediction towards the target,
# it also pulls the target towards the prediction, through `q_t_selector`: in double Q-learning the
# online network only picks, and an `argmax` has no gradient, but here its values are in the target
# too. `jax.lax.stop_gradient` mends it.


# %%
def cautious(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    best = jnp.argmax(q_t_selector)
    target_tm1 = r_t + discount_t * jnp.minimum(q_t[best], q_t_selector[best])
    return jax.lax.stop_gradient(target_tm1) - q_tm1[a_tm1]


report = check_loss(cautious, bootstrap="both")

# %% [markdown]
# Every row passes. One of them is the fixed point: repeated on small decision processes, the
# updates converge to the optimal values, because in the end both networks say the same. So the idea
# changes how values are learned, and not what is learned.
#
# ## Does it help?
#
# The rest of the agent stays as it is: one difference, one argument. Both losses train on the same
# ten seeds, and `diagnostics=True` makes the sweep measure what happens inside the learner.

# %%
EXPERIMENTS: dict[str, Experiment] = {
    "double DQN": dqn,
    "cautious": functools.partial(dqn, loss_fn=bellman_loss(cautious)),
}
datasets = {
    name: run_sweep(experiment, CONFIG, SEEDS, progress=False, diagnostics=True).dataset
    for name, experiment in EXPERIMENTS.items()
}

# %% [markdown]
# A mean without an interval says little, and ten seeds say less than one would like. The
# interquartile mean is the mean of the middle half of the seeds. The probability of improvement
# says how likely a seed of the new loss does better than a seed of double DQN; one half means no
# difference.

# %%
rng = np.random.default_rng(0)
finals = {name: ds.final_return.mean("episode").values for name, ds in datasets.items()}
for name, final in finals.items():
    print(f"{name:10}", "final greedy return", bootstrap_interval(final, rng))
better = probability_of_improvement(finals["cautious"], finals["double DQN"], rng)
print(f"Probability of improvement: {better.estimate:.2f}", end="")
if better.low is not None and better.high is not None:
    print(f", 95 % interval {better.low:.2f} to {better.high:.2f}")
    verdicts = {better.low > 0.5: "It helps.", better.high < 0.5: "It hurts."}
    print(verdicts.get(True, "With these seeds it cannot be told whether it helps."))


# %%
class Picture(NamedTuple):
    """The file of a figure; a notebook shows the picture."""

    path: Path

    def _repr_png_(self):
        return self.path.read_bytes()


def save_and_show(figure, name):
    """Saves a figure and returns its picture."""
    png, _ = save_figure(figure, OUTPUT / name)
    return Picture(png)


def pick_curves(of):
    """Picks one series of each loss."""
    return {name: of(dataset) for name, dataset in datasets.items()}


save_and_show(
    plot_comparison(
        {"greedy return": pick_curves(lambda dataset: dataset.evaluation_return.mean("episode"))},
        f"Two losses on {CONFIG.env}, {len(SEEDS)} seeds",
    ),
    "learning_curves",
)

# %% [markdown]
# ## Why?
#
# The datasets also say what happened inside the learner, with one number per seed and step. The
# idea was made against optimism. If it works, the values that the network predicts (`q_value`) are
# lower. So is `value_bias`, the difference between those values and what greedy episodes then
# bring.

# %%
inside = [
    str(name)
    for name, values in datasets["double DQN"].items()
    if values.dims == ("seed", "step") and name in datasets["cautious"]
]
for name in inside:
    last = {loss: float(dataset[name][:, -1].mean()) for loss, dataset in datasets.items()}
    print(f"{name:16}", ", ".join(f"{loss} {value:.3g}" for loss, value in last.items()))
save_and_show(
    plot_comparison(
        {name: pick_curves(lambda dataset, name=name: dataset[name]) for name in inside},
        "Inside the learner",
    ),
    "inside_the_learner",
)

# %% [markdown]
# ## And then?
#
# Ten seeds and one short run on one environment are a start. `purejaxdqn ablate` measures what an
# idea adds beside others, with the settings of `DQNConfig`. Losses that need more than action
# values (the network, its weights, and a random key) are in `experiments/custom_loss.py`.
