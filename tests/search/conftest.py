"""A search of three batches, which the tests of a search share."""

import dataclasses
import shutil
from typing import Any

import jax
import pytest
from scipy import stats

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.engine import programs
from purejaxdqn.engine.rounds import train_round
from purejaxdqn.runtime.devices import Plan
from purejaxdqn.search import search, trials
from purejaxdqn.sweep import batches
from purejaxdqn.sweep import plan as planning
from tiny import TINY

CONFIG = dataclasses.replace(TINY, eval_interval=160)
SPACE = {"learning_rate": stats.loguniform(1e-4, 1e-1), "discount": [0.9, 0.99]}


@pytest.fixture(scope="package", autouse=True)
def compiled():
    """Compiles each program once for all tests; a list with an entry for each one asked for."""
    known: dict[Any, Any] = {}
    asked: list[Plan] = []

    def compile_once(experiment, config, plan, devices, diagnostics=False, run=None):
        asked.append(plan)
        key = (experiment, jax.tree.structure(config), plan.width, plan.num_devices)
        if key not in known:
            known[key] = programs.compile_programs(
                experiment, config, plan, devices, diagnostics, run
            )
        return known[key]

    def trace_once(experiment, config):
        key = (experiment, jax.tree.structure(config))
        if key not in known:
            known[key] = trace_run(experiment, config)
        return known[key]

    trace_run = planning.trace_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "trace_run", trace_once)
        for module in (trials, batches):
            patch.setattr(module, "compile_programs", compile_once)
        yield asked


@pytest.fixture(scope="package")
def run(compiled):
    """Searches in a folder, with two seeds a trial and four trials a batch."""
    import optuna  # an extra, without which the tests are skipped

    class PruneSome(optuna.pruners.BasePruner):
        """Prunes at step 160: one of two trials on a device, two on one, and a whole batch.

        Trials are counted without the failed ones, so that it does the same in a continued search.
        """

        def prune(self, study, trial):
            others = [t for t in study.trials if t.number < trial.number]
            position = sum(t.state != optuna.trial.TrialState.FAIL for t in others)
            return position in (1, 6, 7, 8, 9)

    def run_search(output, num_trials=10, space=SPACE, **options):
        options = {"seeds": (0, 1), "trials_per_batch": 4, "pruner": PruneSome(), **options}
        options |= {"num_trials": num_trials, "output": output, "progress": False}
        return search.search(dqn, CONFIG, space, **options)

    return run_search


@pytest.fixture(scope="package")
def first(run, compiled, tmp_path_factory):
    """A search of three batches that nothing has interrupted.

    Returns its folder, its result, what it asked to compile, and the last step of each round.
    """
    output, before, last_steps = tmp_path_factory.mktemp("search") / "whole", len(compiled), []

    def train(*args, **kwargs):
        step = None
        for event in train_round(*args, **kwargs):
            step = event.step
            yield event
        last_steps.append(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "train_round", train)
        result = run(output)
    return output, result, compiled[before:], last_steps


@pytest.fixture(scope="package")
def whole(first):
    return first[:2]


@pytest.fixture
def begun(whole, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(whole[0], tmp_path / "begun")
