"""Sweeps: bitwise promises, labels, what is refused, and what survives an interruption."""

import dataclasses
import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.agents.pqn.pqn import PQNConfig
from purejaxdqn.engine import rounds
from purejaxdqn.engine.programs import compile_programs
from purejaxdqn.engine.rounds import evaluation_steps, train_round
from purejaxdqn.losses import bellman_loss, double_q_learning
from purejaxdqn.runtime.devices import make_plan
from purejaxdqn.storage import results
from purejaxdqn.sweep import batches
from purejaxdqn.sweep import run as sweep
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.run import SweepInterrupted, run_sweep
from purejaxdqn.tracking import Evaluated
from purejaxdqn.types import ConfigError
from tiny import TINY

CONFIG = TINY
quiet = partial(run_sweep, progress=False)


@pytest.fixture(scope="session")
def seven():
    """Seven seeds on two devices: four wide, one slot of padding."""
    return quiet(dqn, CONFIG, range(7))


def weights(result, seed):
    """A seed's final weights, as one array."""
    at = list(result.dataset.seed.values).index(seed)
    return np.concatenate([x[at].ravel() for x in jax.tree.leaves(result.params)])


def assert_same_run(one, other, seed):
    assert weights(one, seed).tobytes() == weights(other, seed).tobytes()
    for name in ("evaluation_return", "training_return", "loss", "q_value"):
        a, b = (x.dataset[name].sel(seed=seed).values for x in (one, other))
        assert a.tobytes() == b.tobytes(), name


def test_seven_seeds_on_two_devices_are_all_trained(seven):
    dataset = seven.dataset
    assert (dataset.attrs["width"], dataset.attrs["num_devices"]) == (4, 2)
    assert dataset.sizes == {"seed": 7, "step": 4, "episode": 3}
    assert dataset.step.values.tolist() == [80, 200, 400, 480]
    assert dataset.num_updates.values.tolist() == [0, 30, 80, 100]
    assert np.isfinite(dataset.evaluation_return).all()
    assert (dataset.final_return == dataset.evaluation_return.isel(step=-1)).all()
    assert len({weights(seven, seed).tobytes() for seed in range(7)}) == 7


def test_before_learning_there_is_no_training_return_and_none_is_ever_zero(seven):
    curve = seven.dataset.training_return
    assert np.isnan(curve.isel(step=0)).all()
    assert (curve.isel(step=slice(1, None)).min() >= 1).all()


def test_the_same_command_twice_gives_the_same_bits(seven):
    again = quiet(dqn, CONFIG, range(7))
    for seed in range(7):
        assert_same_run(seven, again, seed)


def test_a_seed_has_the_same_bits_in_any_slot_beside_any_others(seven):
    others = quiet(dqn, CONFIG, [6, 1000, 2**32 - 1, 3, 0], width=4)
    for seed in (6, 3, 0):
        assert_same_run(seven, others, seed)


@pytest.fixture(scope="session")
def on_devices(fresh_environment, tmp_path_factory):
    """Trains sixteen seeds, in four batches, in a process that has so many devices."""
    code = (
        "import os, sys, pickle; config, num_devices, path = pickle.load(sys.stdin.buffer);"
        # For one device there is to be only one core, where that can be had.
        "one = num_devices == 1 and hasattr(os, 'sched_setaffinity');"
        "one and os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "from purejaxdqn.runtime.devices import use_every_core; use_every_core(num_devices);"
        "from purejaxdqn.sweep.run import run_sweep; from purejaxdqn.agents.dqn.dqn import dqn;"
        "result = run_sweep(dqn, config, range(16), width=4, progress=False);"
        "pickle.dump((result.dataset, result.params), open(path, 'wb'))"
    )
    # Bits depend on how programs are optimised, and these are to be a user's.
    environment = {k: v for k, v in fresh_environment.items() if k != "XLA_FLAGS"}

    def train(num_devices):
        path = tmp_path_factory.mktemp("devices") / "result"
        given = pickle.dumps((CONFIG, num_devices, path))
        subprocess.run([sys.executable, "-c", code], input=given, env=environment, check=True)
        return sweep.SweepResult(*pickle.loads(path.read_bytes()))

    return train


@pytest.fixture(scope="session")
def on_two_devices(on_devices):
    """Two rounds."""
    return on_devices(2)


@pytest.mark.parametrize("num_devices", [1, pytest.param(3, marks=pytest.mark.slow), 4])
def test_a_sweep_has_the_same_bits_on_any_number_of_devices(
    on_two_devices, on_devices, num_devices, assert_same_bits
):
    other = on_devices(num_devices)
    # A program for a lone device would round differently, so that one core has two.
    assert other.dataset.attrs["num_devices"] == max(num_devices, 2)
    assert_same_bits(on_two_devices, other)


def test_chunking_changes_no_bit(seven, monkeypatch):
    monkeypatch.setattr(rounds, "_CHUNK_SECONDS", 1e-9)  # one iteration per chunk
    chopped = quiet(dqn, CONFIG, range(7))
    for seed in range(7):
        assert_same_run(seven, chopped, seed)


def test_evaluation_changes_no_bit_of_the_training(seven):
    rarely = quiet(dqn, dataclasses.replace(CONFIG, eval_interval=480, eval_episodes=1), range(7))
    for seed in range(7):
        assert weights(seven, seed).tobytes() == weights(rarely, seed).tobytes()


def test_in_map_mode_a_seed_in_a_batch_is_bitwise_the_seed_alone():
    batch = quiet(dqn, CONFIG, range(3), seed_mode="map")
    assert batch.dataset.attrs["width"] == 1
    for seed in range(3):
        assert_same_run(batch, quiet(dqn, CONFIG, [seed], seed_mode="map"), seed)


def test_a_swept_setting_gives_what_it_gives_alone():
    grid = quiet(dqn, CONFIG, range(2), width=4, learning_rate=[1e-3, 3e-3], discount=[0.9, 0.99])
    assert grid.dataset.sizes["learning_rate"] == grid.dataset.sizes["discount"] == 2
    assert grid.dataset.evaluation_return.dims == (
        "learning_rate",
        "discount",
        "seed",
        "step",
        "episode",
    )
    alone = quiet(
        dqn, dataclasses.replace(CONFIG, learning_rate=3e-3, discount=0.9), range(2), width=4
    )
    part = grid.dataset.sel(learning_rate=3e-3, discount=0.9)
    assert (part.evaluation_return.values == alone.dataset.evaluation_return.values).all()
    for swept, single in zip(*map(jax.tree.leaves, (grid.params, alone.params)), strict=True):
        assert swept[1, 0].tobytes() == single.tobytes()
    other = grid.dataset.sel(learning_rate=1e-3, discount=0.9).loss.values
    assert not np.array_equal(part.loss.values, other, equal_nan=True)


def test_a_loss_of_ones_own_is_what_is_trained(seven):
    def half(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
        return 0.5 * double_q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector)

    same = quiet(partial(dqn, loss_fn=bellman_loss(double_q_learning)), CONFIG, range(7))
    other = quiet(partial(dqn, loss_fn=bellman_loss(half)), CONFIG, range(7))
    assert_same_run(seven, same, 0)
    assert weights(other, 0).tobytes() != weights(seven, 0).tobytes()
    assert same.dataset.attrs["experiment"] == "purejaxdqn.agents.dqn.dqn.dqn"
    arguments = json.loads(same.dataset.attrs["experiment_arguments"])
    assert arguments == {
        "loss_fn": "purejaxdqn.losses.bellman_loss.bellman_loss(double_q_learning, l2_loss)"
    }


def test_evaluations_come_as_the_sweep_runs(seven):
    seen: list[Evaluated] = []
    quiet(dqn, CONFIG, range(7), on_evaluation=seen.append)
    assert [event.step for event in seen] == [80, 200, 400, 480]
    for at, event in enumerate(seen):
        assert event.runs.tolist() == list(range(7))
        expected = seven.dataset.evaluation_return.isel(step=at).values
        assert event.episode_return.tobytes() == expected.tobytes()


def test_training_games_come_with_their_steps():
    devices = jax.devices()
    plan = make_plan(2, len(devices))
    programs = compile_programs(dqn, CONFIG, plan, devices)
    runs = grid_design(CONFIG, range(2), {}).runs
    events = list(train_round(programs, CONFIG, runs))
    for run in range(2):
        parts = [event.games[run] for event in events if event.games]
        step, returns = (np.concatenate(column) for column in zip(*parts, strict=True))
        assert (np.diff(step) >= 0).all()
        assert ((step > CONFIG.prefill_steps) & (step <= CONFIG.total_steps)).all()
        assert (step % CONFIG.num_envs == 0).all()
        # Each environment's games follow each other: those that ended add up to the steps played,
        # but for the first ones, which began in the prefill, and those still under way.
        played = CONFIG.total_steps - CONFIG.prefill_steps
        assert abs(returns.sum() - played) < 0.5 * played
    last = events[-1]
    assert last.games == []
    assert last.episode_return is not None


def test_rounds_one_after_another_fill_the_same_dataset(seven):
    seen: list[Evaluated] = []
    rounds = quiet(dqn, CONFIG, range(7), width=2, on_evaluation=seen.append)
    assert [event.runs.tolist() for event in seen[::4]] == [[0, 1, 2, 3], [4, 5, 6]]
    assert np.isfinite(rounds.dataset.evaluation_return).all()


def test_after_an_interruption_everything_finished_is_on_disk(tmp_path):
    def interrupt(event):
        if event.runs[0] == 4 and event.step == 200:
            raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted) as caught:
        quiet(dqn, CONFIG, range(7), width=2, output=tmp_path, on_evaluation=interrupt)
    dataset = results.load(tmp_path)
    assert dataset.attrs["status"] == "interrupted"
    finals = dataset.final_return.values
    assert np.isfinite(finals[:4]).all()
    assert np.isnan(finals[4:]).all()
    assert np.isfinite(dataset.evaluation_return.sel(seed=slice(4, 6), step=200)).all()
    kept = caught.value.result
    whole = quiet(dqn, CONFIG, range(7), width=2)
    assert_same_run(kept, whole, 2)
    assert np.isnan(weights(kept, 5)).all()


def test_a_full_disk_stops_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_SAVE_SECONDS", 0.0)
    tries = []

    def save(dataset, folder):
        tries.append(dataset.attrs["status"])
        if dataset.attrs["status"] == "running":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "save", save)
    result = quiet(dqn, CONFIG, range(2), output=tmp_path)
    assert tries[0] == "running"
    assert tries[-1] == "finished"
    assert np.isfinite(result.dataset.final_return).all()


def test_a_run_of_nan_is_marked_and_neither_stops_nor_touches_the_others(capsys):
    rates = [CONFIG.learning_rate, 1e30]
    grid = run_sweep(dqn, CONFIG, range(2), width=2, learning_rate=rates)
    assert grid.dataset.diverged.values.tolist() == [[False, False], [True, True]]
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("diverged by step 200: it is marked") == 2
    assert "the run with learning_rate=1e+30, seed=1 diverged" in err
    alone = quiet(dqn, CONFIG, range(2), width=2)
    assert not np.isfinite(grid.dataset.loss.sel(learning_rate=1e30, step=480)).any()
    fine = grid.dataset.sel(learning_rate=CONFIG.learning_rate)
    assert (fine.final_return.values == alone.dataset.final_return.values).all()


def test_the_dataset_says_how_to_run_it_again(seven):
    attrs = seven.dataset.attrs
    settings = json.loads(attrs["config"])
    read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    assert DQNConfig(**read) == CONFIG
    for name in ("jax", "flax", "numpy"):
        assert json.loads(attrs["versions"])[name]
    for name in ("git_commit", "device", "processor", "date", "command", "python"):
        assert attrs[name]
    for name in ("compile_seconds", "train_seconds", "evaluation_seconds", "env_steps_per_second"):
        assert attrs[name] > 0


def test_evaluations_fall_on_multiples_and_on_the_end():
    assert evaluation_steps(CONFIG) == [80, 200, 400, 480]
    assert evaluation_steps(dataclasses.replace(CONFIG, eval_interval=4000)) == [80, 480]
    assert evaluation_steps(dataclasses.replace(CONFIG, eval_interval=240)) == [80, 240, 480]
    assert evaluation_steps(dataclasses.replace(CONFIG, eval_interval=40))[:3] == [80, 120, 160]


@pytest.mark.parametrize(
    ("seeds", "options", "words"),
    [
        ([], {}, "seeds is empty"),
        ([1, 1], {}, "must differ"),
        ([-1], {}, r"seed \(-1\)"),
        ([2**32], {}, "whole number from 0"),
        ([0], {"width": 0}, r"width \(0\)"),
        ([0], {"seed_mode": "pmap"}, "seed_mode"),
        ([0], {"seed_mode": "map", "width": 3}, r"width \(3\)"),
        ([0], {"learning_rte": [1.0]}, "learning_rate"),
        ([0], {"batch_size": [8, 8]}, "must differ"),
        ([0], {"learning_rate": []}, "empty"),
        (3, {}, r"seeds \(3\) must be a sequence, such as range\(3\)"),
        ([0], {"learning_rate": 1e-3}, r"learning_rate \(0.001\) .* such as \[0.001\]"),
        ([0], {"learning_rate": [1e-3, 1e-3]}, "must differ"),
        ([0], {"learning_rate": [1e-3, -1.0]}, r"learning_rate \(-1.0\)"),
        ([0], {"learning_rate": [{}]}, r"learning_rate must be numbers, .* not \{\}"),
        (range(200_000), {}, "200,000 runs are too many"),
        (range(2**70), {}, r"seeds \(range\(0, \d+\)\) are too many"),
        ([0], {"max_grad_norm": [10**400]}, "max_grad_norm must be at most"),
        ([0], {"devices": jax.devices()[:1] * 2}, "different devices"),
        ([0], {"devices": "cpu"}, r"devices \('cpu'\)"),
        ([0], {"devices": []}, r"devices \(\[\]\)"),
        ([0], {"checkpoint_seconds": "60"}, r"checkpoint_seconds \('60'\)"),
        ([0], {"resume": True}, "needs an output folder"),
        ([0], {"overwrite": True}, "needs an output folder"),
        ([0], {"output": Path(__file__)}, "cannot be written"),
    ],
)
def test_sweeps_that_cannot_be_run_are_refused_before_anything_is_compiled(
    seeds, options, words, monkeypatch
):
    monkeypatch.setattr(batches, "compile_programs", None)
    with pytest.raises(ConfigError, match=words):
        quiet(dqn, CONFIG, seeds, **options)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"learning_rate": 1e-3}, "must be settings, such as DQNConfig"),
        (lambda: 3, "and made 3"),
        (PQNConfig(), "takes settings of DQNConfig, and not of PQNConfig"),
    ],
)
def test_what_are_no_settings_of_the_experiment_is_refused(config, words, monkeypatch):
    monkeypatch.setattr(batches, "compile_programs", None)
    with pytest.raises(ConfigError, match=words):
        quiet(dqn, config, [0])
