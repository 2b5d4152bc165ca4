"""What cannot be run from Python: one line with value, rule and remedy.

Nothing is compiled, and no file is written.
"""

# mypy: disable-error-code="arg-type, call-arg, list-item, return-value, misc"

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

from purejaxdqn import (
    DQNConfig,
    agents,
    dqn,
    environments,
    load,
    losses,
    networks,
    pqn,
    replay,
    rerun,
    run_sweep,
)
from purejaxdqn.report import statistics
from purejaxdqn.search.search import search
from purejaxdqn.sweep.design import grid_design, random_design
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.run import print_plan, run_design
from purejaxdqn.tracking import open_tracker
from tiny import TINY, TINY_PQN

RNG = np.random.default_rng(0)
RATES = {"learning_rate": stats.loguniform(1e-5, 1e-2)}
change = functools.partial(dataclasses.replace, TINY)
sweep = functools.partial(run_sweep, dqn, TINY, range(2))
seeds = functools.partial(run_sweep, dqn, TINY)
design = grid_design(TINY, [0], {})
trials = functools.partial(search, dqn, TINY, RATES, seeds=range(2), output="x")
draw = functools.partial(random_design, TINY, [0])

CASES = {
    # What is trained.
    "an experiment's name": (lambda: run_sweep("dqn", TINY, [0]), "experiment ('dqn')"),
    "no experiment": (lambda: run_sweep(None, TINY, [0]), "experiment (None)"),
    "a class of settings": (lambda: run_sweep(dqn, DQNConfig, [0]), "DQNConfig()"),
    "a function of no settings": (lambda: run_sweep(dqn, lambda: 3, [0]), "made 3"),
    "settings as a dictionary": (lambda: run_sweep(dqn, {"discount": 0.9}, [0]), "config ("),
    "settings by name": (lambda: run_sweep(dqn, "dqn", [0]), "config ('dqn')"),
    "no settings": (lambda: run_sweep(dqn, None, [0]), "config (None)"),
    "another agent's settings": (lambda: run_sweep(dqn, TINY_PQN, [0]), "takes settings of DQN"),
    "settings of DQN for PQN": (lambda: run_sweep(pqn, TINY, [0]), "takes settings of PQN"),
    "an experiment that is called": (lambda: run_sweep(dqn(TINY), TINY, [0]), "experiment ("),
    "an experiment that makes nothing": (lambda: run_sweep(lambda c: None, TINY, [0]), "made None"),
    "an experiment without arguments": (lambda: run_sweep(lambda: None, TINY, [0]), "experiment ("),
    # Seeds.
    "a number of seeds": (lambda: seeds(10), "range(10)"),
    "no seeds": (lambda: seeds([]), "seeds is empty"),
    "seeds as floats": (lambda: seeds([0.0, 1.0]), "seed (0.0)"),
    "an array of floats": (lambda: seeds(np.arange(2.0)), "seed ("),
    "seeds as text": (lambda: seeds("01"), "seeds ('01')"),
    "seeds as texts": (lambda: seeds(["0", "1"]), "seed ('0')"),
    "a seed twice": (lambda: seeds([1, 1]), "must differ"),
    "a negative seed": (lambda: seeds([-1]), "seed (-1)"),
    "a seed of 33 bits": (lambda: seeds([2**32]), "seed (4294967296)"),
    "a truth as a seed": (lambda: seeds([True]), "seed (True)"),
    "no seed at all": (lambda: seeds(None), "seeds (None)"),
    "seeds of two dimensions": (lambda: seeds(np.zeros((2, 2), int)), "seed"),
    "a generator of seeds": (lambda: seeds(i for i in range(2)), "seeds ("),
    "a set of seeds": (lambda: seeds({0, 1}), "seeds ("),
    "too many seeds": (lambda: seeds(range(10**6)), "1,000,000 runs are too many"),
    "a dictionary of seeds": (lambda: seeds({0: 1}), "seeds ("),
    "a seed of NaN": (lambda: seeds([float("nan")]), "seed (nan)"),
    # The grid.
    "no such setting": (lambda: sweep(lerning_rate=[1e-3]), "did you mean learning_rate"),
    "an option's typo": (lambda: sweep(outptu="x"), "did you mean output"),
    "one value": (lambda: sweep(learning_rate=1e-3), "such as [0.001]"),
    "no values": (lambda: sweep(learning_rate=[]), "empty"),
    "values as text": (lambda: sweep(learning_rate="1e-3"), "must be a sequence"),
    "a value as text": (lambda: sweep(learning_rate=["1e-3"]), "learning_rate ('1e-3')"),
    "a value twice": (lambda: sweep(learning_rate=[1e-3, 1e-3]), "must differ"),
    "a value of NaN": (lambda: sweep(learning_rate=[float("nan")]), "learning_rate (nan)"),
    "values of NaN": (lambda: sweep(discount=[float("nan"), float("nan")]), "discount"),
    "a value out of range": (lambda: sweep(discount=[0.9, 1.1]), "discount (1.1)"),
    "a value that is None": (lambda: sweep(discount=[None]), "values of discount"),
    "a batch of floats": (lambda: sweep(batch_size=[8.0]), "batch_size (8.0)"),
    "a truth as a number": (lambda: sweep(batch_size=[True]), "batch_size (True)"),
    "a number as a truth": (lambda: sweep(dueling=[0, 1]), "dueling (0)"),
    "sizes as a number": (lambda: sweep(hidden_sizes=[64]), "hidden_sizes (64)"),
    "values of two dimensions": (lambda: sweep(discount=np.zeros((2, 2))), "values of discount"),
    "a dictionary of values": (lambda: sweep(discount={"a": 0.9}), "must be a sequence"),
    "the agent": (lambda: sweep(agent=["dqn", "double"]), "agents.configure"),
    "a distribution": (lambda: sweep(**RATES), "must be a sequence"),
    "a name of the results": (lambda: sweep(seed=[1]), "'seed' is no setting"),
    "no value of a choice": (lambda: sweep(td_error=["sarsa"]), "td_error ('sarsa')"),
    "nothing drawn": (lambda: draw(RATES, 0, RNG), "num_samples (0)"),
    "half a draw": (lambda: draw(RATES, 1.5, RNG), "num_samples (1.5)"),
    "draws without a generator": (lambda: draw(RATES, 2, 0), "rng (0)"),
    "a distribution of pairs": (
        lambda: draw({"discount": stats.dirichlet([1, 1])}, 2, RNG),
        "gives 2 numbers",
    ),
    "draws of no setting": (lambda: draw({"x": stats.uniform()}, 2, RNG), "'x' is no setting"),
    "nothing to draw from": (lambda: draw({"discount": []}, 2, RNG), "empty"),
    # Options.
    "output as a number": (lambda: sweep(output=5), "output (5)"),
    "output of no letters": (lambda: sweep(output=""), "output ('')"),
    "output as bytes": (lambda: sweep(output=b"x"), "output (b'x')"),
    "output that is a file": (lambda: sweep(output=__file__), "cannot be written"),
    "output as a list": (lambda: sweep(output=["x"]), "output (['x'])"),
    "a tracker's name": (lambda: sweep(on_evaluation="wandb"), "on_evaluation ('wandb')"),
    "diagnostics as text": (lambda: sweep(diagnostics="yes"), "diagnostics ('yes')"),
    "diagnostics as a number": (lambda: sweep(diagnostics=1), "diagnostics (1)"),
    "progress as text": (lambda: sweep(progress="no"), "progress ('no')"),
    "resume without a folder": (lambda: sweep(resume=True), "needs an output folder"),
    "resume as text": (lambda: sweep(resume="yes", output="x"), "resume ('yes')"),
    "overwrite without a folder": (lambda: sweep(overwrite=True), "needs an output folder"),
    "a width of zero": (lambda: sweep(width=0), "width (0)"),
    "half a width": (lambda: sweep(width=1.5), "width (1.5)"),
    "a width as text": (lambda: sweep(width="2"), "width ('2')"),
    "a width of a map": (lambda: sweep(width=2, seed_mode="map"), "width (2) must be 1"),
    "an unknown mode": (lambda: sweep(seed_mode="pmap"), "seed_mode ('pmap')"),
    "a negative time": (lambda: sweep(checkpoint_seconds=-1), "checkpoint_seconds (-1"),
    "a time as text": (lambda: sweep(checkpoint_seconds="60"), "checkpoint_seconds ('60')"),
    "no memory": (lambda: sweep(memory_budget=0), "memory_budget (0"),
    "memory as text": (lambda: sweep(memory_budget="4GB"), "memory_budget ('4GB')"),
    "memory of NaN": (lambda: sweep(memory_budget=float("nan")), "memory_budget (nan)"),
    "little memory": (lambda: sweep(memory_budget=1000), "makes up"),
    "no devices": (lambda: sweep(devices=[]), "devices ([])"),
    "a number of devices": (lambda: sweep(devices=2), "devices (2)"),
    "devices by name": (lambda: sweep(devices=["cpu"]), "devices (['cpu'])"),
    "a device twice": (lambda: sweep(devices=jax.devices()[:1] * 2), "must be different"),
    "options as a dictionary": (lambda: sweep(options={"width": 2}), "options ({'width': 2})"),
    "an option twice": (lambda: sweep(options=SweepOptions(width=2), width=1), "given twice"),
    "a grid beside a design": (lambda: run_design(dqn, design, discount=[0.9]), "is no option of"),
    "no design": (lambda: run_design(dqn, TINY), "design ("),
    "a plan of no design": (lambda: print_plan(dqn, [TINY]), "design ("),
    # Settings.
    "a probability above 1": (lambda: sweep(epsilon_end=[2.0]), "epsilon_end (2.0)"),
    "a count as a float": (lambda: change(total_steps=1e5).validate(), "total_steps (100000.0)"),
    "a rate as text": (lambda: change(learning_rate="1e-3").validate(), "learning_rate ('1e-3')"),
    "an array for a rate": (lambda: change(discount=np.ones(2)).validate(), "discount ("),
    "sizes as a list": (lambda: change(hidden_sizes=[8]).validate(), "hidden_sizes ([8])"),
    "no environment": (lambda: change(env="Pong").validate(), "Pong"),
    "an environment itself": (
        lambda: change(env=environments.make("CartPole-v1")).validate(),
        "env (",
    ),
    "a number for an environment": (lambda: environments.make(3), "env"),
    # Registries.
    "an agent without a name": (lambda: agents.register("", TINY, dqn), "agent ('')"),
    "an agent of two words": (lambda: agents.register("a b", TINY, dqn), "agent ('a b')"),
    "an agent without settings": (lambda: agents.register("mine", None, dqn), "RunConfig"),
    "an agent with a class": (lambda: agents.register("mine", DQNConfig, dqn), "RunConfig"),
    "an agent without experiment": (lambda: agents.register("mine", TINY, "dqn"), "('dqn')"),
    "an agent's name taken": (lambda: agents.register("dqn", TINY, dqn), "registered already"),
    "an unknown agent": (lambda: agents.get("ranbow"), "rainbow"),
    "a setting of no agent": (lambda: agents.configure(lerning_rate=1), "learning_rate"),
    "an environment's name taken": (
        lambda: environments.register("CartPole-v1", lambda: None),
        "registered already",
    ),
    "an environment without a maker": (lambda: environments.register("Mine-v0", 3), "Mine-v0"),
    # Parts.
    "a loss that is none": (
        lambda: run_sweep(functools.partial(dqn, loss_fn=3), TINY, [0]),
        "loss_fn (3)",
    ),
    "a TD error that is none": (lambda: losses.bellman_loss(3), "td_error (3)"),
    "a TD error with a foreign argument": (
        lambda: losses.bellman_loss(lambda q_tm1, a_tm1, reward: 0.0),
        "reward",
    ),
    "no actions": (lambda: networks.value_network(0, (8,)), "num_actions (0)"),
    "a layer of no units": (lambda: networks.value_network(2, (0,)), "hidden_sizes[0] (0)"),
    "a replay of nothing": (lambda: replay.uniform_replay(0, 1, 500), "capacity (0)"),
    "a batch above the replay": (
        lambda: replay.uniform_replay(8, 16, 500, with_replacement=False),
        "batch_size (16)",
    ),
    "a priority exponent of NaN": (
        lambda: replay.prioritised_replay(8, 4, 500, float("nan")),
        "exponent (nan)",
    ),
    # Files.
    "results of no name": (lambda: load(""), "path ('')"),
    "results that are not there": (lambda: load("no/such/folder"), "no/such/folder"),
    "results as a number": (lambda: load(3), "path (3)"),
    "a rerun of no file": (lambda: rerun("no/such/folder", seed=0), "no/such/folder"),
    "a rerun of a number": (lambda: rerun(3, seed=0), "3"),
    "an unknown tracker": (
        lambda: open_tracker("wandbb", Path("x"), config={}).__enter__(),
        "wandb",
    ),
    # Search.
    "no trials": (lambda: trials(num_trials=0), "num_trials (0)"),
    "half a trial": (lambda: trials(num_trials=1.5), "num_trials (1.5)"),
    "nothing searched": (
        lambda: search(dqn, TINY, {}, seeds=[0], num_trials=2, output="x"),
        "space",
    ),
    # Statistics.
    "an interval of nothing": (lambda: statistics.bootstrap_interval(np.array([]), RNG), "scores"),
    "an interval of NaN": (
        lambda: statistics.bootstrap_interval(np.array([1.0, np.nan]), RNG),
        "NaN",
    ),
}


def test_there_are_many():
    assert len(CASES) >= 100


@pytest.mark.parametrize("what", CASES)
def test_a_bad_input_is_refused_in_one_line(what, monkeypatch, tmp_path):
    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr("purejaxdqn.engine.programs.compile_programs", compiled)
    monkeypatch.setattr("purejaxdqn.sweep.batches.compile_programs", compiled)
    monkeypatch.chdir(tmp_path)
    call, words = CASES[what]
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert [*tmp_path.iterdir()] == []
