"""Searches: proposals, pruning, what survives a kill, what Optuna itself reads, what is refused."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import sqlite3
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

pytest.importorskip("optuna", reason="Optuna is an extra: pip install 'purejaxdqn[search]'")

import jax
import optuna

from purejaxdqn import rerun
from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.engine import programs
from purejaxdqn.engine.rounds import train_round
from purejaxdqn.engine.run import Run
from purejaxdqn.runtime.devices import Plan
from purejaxdqn.search import search, study, trials
from purejaxdqn.storage import results
from purejaxdqn.sweep import batches
from purejaxdqn.sweep import plan as planning
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.types import ConfigError
from tiny import TINY

CONFIG = dataclasses.replace(TINY, eval_interval=160)
STEPS = [80, 160, 320, 480]
SPACE = {"learning_rate": stats.loguniform(1e-4, 1e-1), "discount": [0.9, 0.99]}
SEEDS = (0, 1)


class PruneSome(optuna.pruners.BasePruner):
    """Prunes at step 160: one of two trials on a device, two on one, and a whole batch.

    Trials are counted without the failed ones, so that it does the same in a continued search.
    """

    def prune(self, study, trial):
        others = [t for t in study.trials if t.number < trial.number]
        position = sum(t.state != optuna.trial.TrialState.FAIL for t in others)
        return position in (1, 6, 7, 8, 9)


class Killed(BaseException):
    """The end of a process, from which nothing recovers."""


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Compiles each program once for all tests; a list with an entry for each one asked for."""
    known: dict[Any, Any] = {}
    asked: list[Plan] = []

    def compile_once(experiment, config, plan, devices, diagnostics=False):
        asked.append(plan)
        key = (experiment, jax.tree.structure(config), plan.width, plan.num_devices)
        if key not in known:
            known[key] = programs.compile_programs(experiment, config, plan, devices, diagnostics)
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


def run(output, num_trials=10, experiment=dqn, config=CONFIG, space=SPACE, **options):
    options = {"seeds": SEEDS, "trials_per_batch": 4, "pruner": PruneSome(), **options}
    return search.search(
        experiment, config, space, num_trials=num_trials, output=output, progress=False, **options
    )


@pytest.fixture(scope="module")
def first(compiled, tmp_path_factory):
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


@pytest.fixture(scope="module")
def whole(first):
    return first[:2]


@pytest.fixture
def begun(whole, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(whole[0], tmp_path / "begun")


def read_study(output):
    """As Optuna itself reads it."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{output / 'study.db'}")
    try:
        return optuna.load_study(study_name="search", storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()


def states(output):
    return [trial.state.name for trial in read_study(output)]


def assert_same_numbers(one, other):
    """But for the numbers of the trials in the study, of which kills use some up."""
    one, other = (x.dataset.drop_vars("trial").drop_attrs() for x in (one, other))
    assert one.identical(other)


def stop_at(patch, batch, stop):
    """Calls `stop` between two chunks of a batch, counted from 0."""
    rounds = []

    def train(*args, **kwargs):
        rounds.append(args)
        for number, event in enumerate(train_round(*args, **kwargs)):
            yield event
            if len(rounds) == batch + 1 and number == 3:
                stop()

    patch.setattr(trials, "train_round", train)


# ------------------------------------------------------------------------------- what is trained


def test_all_batches_share_one_compiled_program(first):
    _, result, (plan,), _ = first
    assert len(result.dataset.trial) == 10
    assert (plan.width, plan.num_devices) == (4, 2)


def test_a_round_ends_where_all_of_its_trials_are_pruned(first):
    assert first[3] == [480, 480, 160]


def test_the_dataset_has_every_trial_up_to_its_end(whole):
    output, result = whole
    dataset = result.dataset
    assert dataset.evaluation_return.dims == ("trial", "seed", "step", "episode")
    assert dataset.evaluation_return.shape == (10, 2, 4, 3)
    assert dataset.step.values.tolist() == STEPS
    pruned = np.isin(np.arange(10), (1, 6, 7, 8, 9))
    assert (dataset.state.values == np.where(pruned, "pruned", "complete")).all()
    known = np.isfinite(dataset.evaluation_return).all(("seed", "episode")).values
    assert (known == (~pruned[:, None] | (dataset.step.values <= 160))).all()
    learned = known & (dataset.step.values > 80)
    assert (np.isfinite(dataset.score) == learned).all()
    means = dataset.evaluation_return.mean(("episode", "seed")).values
    np.testing.assert_allclose(dataset.score.values[learned], means[learned], rtol=1e-6)
    for name in ("learning_rate", "discount"):
        held = [json.loads(text)[name] for text in dataset.settings.values]
        assert dataset[name].values.tolist() == held
    assert len(np.unique(dataset.learning_rate)) == 10
    assert results.load(output).identical(dataset)
    assert dataset.attrs["status"] == "finished"


def test_the_best_trial_has_the_highest_score_of_those_that_were_not_pruned(whole):
    dataset, best = whole[1]
    complete = dataset.isel(trial=dataset.state.values == "complete")
    last = complete.score.isel(step=-1)
    assert best.score == float(last.max())
    assert best.trial == int(complete.trial[np.argmax(last.values)])
    row = dataset.sel(trial=best.trial)
    assert best.settings == {name: float(row[name]) for name in SPACE}
    assert best.config.learning_rate == best.settings["learning_rate"]
    assert best.config.hidden_sizes == CONFIG.hidden_sizes


@pytest.mark.parametrize(
    "trial", [0, 5, 6], ids=["beside pruned", "device beside pruned", "pruned"]
)
def test_pruning_changes_no_bit_of_what_is_trained(whole, trial):
    dataset = whole[1].dataset
    alone = rerun(dataset, trial=trial, seed=1, progress=False)
    there = dataset.sel(trial=trial, seed=1)
    known = np.isfinite(there.evaluation_return).all("episode").values
    assert known.sum() == (2 if trial == 6 else 4)
    for name in ("evaluation_return", "training_return", "loss", "q_value"):
        assert there[name].values[known].tobytes() == alone[name].values[known].tobytes(), name


def test_devices_without_wanted_runs_stand_still_and_the_round_ends_without_any(compiled, whole):
    plan = compiled[0]
    compiled_programs = programs.compile_programs(dqn, CONFIG, plan, jax.local_devices())
    runs = [Run(seed, CONFIG, {}) for seed in range(8)]
    wanted = np.ones(8, bool)
    full = [e for e in train_round(compiled_programs, CONFIG, runs) if e.episode_return is not None]
    seen = []
    for event in train_round(compiled_programs, CONFIG, runs, wanted=lambda: wanted):
        if event.episode_return is None:
            continue
        seen.append(event)
        if event.step == 80:
            # The fourth run shares its device with them, the others have one of their own.
            wanted[:] = np.arange(8) < 3
        if event.step == 320:
            wanted[:] = False
    assert [event.step for event in seen] == STEPS[:3]
    for event, other in zip(seen, full, strict=False):
        for mine, theirs in zip(*map(jax.tree.leaves, (event.params, other.params)), strict=True):
            assert mine[:3].tobytes() == theirs[:3].tobytes()
        mine, theirs = (np.asarray(x.episode_return) for x in (event, other))
        assert mine[:3].tobytes() == theirs[:3].tobytes()
        for name, values in event.metrics.items():
            assert values[:3].tobytes() == other.metrics[name][:3].tobytes(), name
    for before, after in zip(*(jax.tree.leaves(seen[i].params) for i in (0, 2)), strict=True):
        assert before[4:].tobytes() == after[4:].tobytes()
        assert before[:3].tobytes() != after[:3].tobytes()


def test_more_trials_than_there_is_room_for_train_one_round_after_another(whole, tmp_path):
    dataset = run(tmp_path, 8, trials_per_batch=8, width=4).dataset
    assert (dataset.attrs["width"], dataset.attrs["num_devices"]) == (4, 2)
    first = {"trial": slice(0, 4)}
    for name in ("learning_rate", "evaluation_return", "score"):
        assert (
            dataset[name].isel(first).values.tobytes()
            == whole[1].dataset[name].isel(first).values.tobytes()
        )
    assert np.isfinite(dataset.evaluation_return.isel(step=0)).all()


@pytest.mark.parametrize(
    ("num_trials", "num_seeds", "num_devices", "width"),
    [(4, 2, 2, 4), (3, 4, 2, 8), (1, 4, 2, 2), (1, 10, 4, 3), (2, 4, 8, 1), (4, 4, 1, 16)],
)
def test_the_seeds_of_a_trial_share_a_device_unless_some_would_stand_idle(
    num_trials, num_seeds, num_devices, width
):
    assert search._choose_width(num_trials, num_seeds, num_devices) == width


def test_a_diverged_trial_ends_and_the_study_has_it_as_pruned(tmp_path):
    space = {"learning_rate": [1e-3, 1e30]}
    result = run(tmp_path, 4, space=space, pruner=optuna.pruners.NopPruner())
    dataset = result.dataset
    bad = dataset.learning_rate.values == 1e30
    assert bad.any()
    assert not bad.all()
    assert (dataset.state.values == np.where(bad, "diverged", "complete")).all()
    assert (dataset.diverged.any("seed").values == bad).all()
    assert result.best.settings == {"learning_rate": 1e-3}
    for trial in read_study(tmp_path):
        if bad[trial.number]:
            assert trial.state.name == "PRUNED"
            assert trial.value is None
            assert np.isnan(trial.intermediate_values[trial.last_step])
            assert trial.last_step < 480


def test_the_default_pruner_spares_the_first_quarter():
    one = optuna.create_study(direction="maximize", pruner=study.default_pruner(1000))
    for _ in range(5):
        done = one.ask()
        for step in (200, 300):
            done.report(100.0, step)
        one.tell(done, 100.0)
    trial = one.ask()
    trial.report(1.0, 200)
    assert not trial.should_prune()
    trial.report(1.0, 300)
    assert trial.should_prune()


# ----------------------------------------------------------------------------------- the study


def test_optuna_reads_the_study(whole):
    output, result = whole
    trials = read_study(output)
    assert states(output) == [
        {"complete": "COMPLETE", "pruned": "PRUNED"}[state] for state in result.dataset.state.values
    ]
    for trial, score in zip(trials, result.dataset.score.values, strict=True):
        reported = {step: value for step, value in zip(STEPS, score, strict=True) if step > 80}
        known = {step: value for step, value in reported.items() if np.isfinite(value)}
        assert trial.intermediate_values == known
        assert trial.value == known[trial.last_step]
    with contextlib.closing(sqlite3.connect(output / "study.db")) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]


def proposals(seed, num_failed=0):
    """Two batches, the second of which the estimator proposes; failed trials go before it."""
    one = optuna.create_study(direction="maximize")
    distributions = {name: study.make_distribution(name, source) for name, source in SPACE.items()}
    sampling = (distributions, study.default_sampler, seed)
    first = study.ask(one, 12, *sampling)
    for trial in first:
        study.tell(one, trial.number, -abs(np.log10(trial.params["learning_rate"]) + 2))
    for trial in study.ask(one, num_failed, *sampling):
        study.tell(one, trial.number, None)
    return [trial.params for trial in [*first, *study.ask(one, 4, *sampling)]]


def test_proposals_hang_on_the_seed_and_not_on_what_was_killed():
    assert proposals(0) == proposals(0, num_failed=3)
    assert proposals(0)[:12] != proposals(1)[:12]
    learned = [np.log10(params["learning_rate"]) for params in proposals(0)[12:]]
    assert len({*learned}) == 4


def test_a_killed_search_goes_on_and_ends_with_the_same_numbers(whole, tmp_path, monkeypatch):
    def kill():
        raise Killed

    run(tmp_path, 4)
    with monkeypatch.context() as patch:
        stop_at(patch, 0, kill)
        with pytest.raises(Killed):
            run(tmp_path)
    assert states(tmp_path)[4:] == ["RUNNING"] * 4
    result = run(tmp_path, trials_per_batch=None)
    assert_same_numbers(result, whole[1])
    assert states(tmp_path)[4:8] == ["FAIL"] * 4
    assert result.dataset.trial.values.tolist() == [*range(4), *range(8, 14)]


def test_a_batch_that_was_kept_but_not_told_is_not_trained_again(whole, tmp_path, monkeypatch):
    told: list[int] = []

    def tell(opened, number, score):
        if len(told) == 6:
            raise Killed
        told.append(number)
        original(opened, number, score)

    original = study.tell
    with monkeypatch.context() as patch:
        patch.setattr(study, "tell", tell)
        with pytest.raises(Killed):
            run(tmp_path)
    assert states(tmp_path)[4:] == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]
    result = run(tmp_path)
    assert "FAIL" not in states(tmp_path)
    assert_same_numbers(result, whole[1])


def test_a_finished_search_is_only_read(whole, begun, compiled):
    before = len(compiled)
    result = run(begun)
    assert len(compiled) == before
    assert result.dataset.identical(whole[1].dataset)
    assert result.best == whole[1].best


def test_overwrite_starts_again(begun, whole):
    result = run(begun, 4, overwrite=True, sampler_seed=1, statistic=np.min)
    assert len(read_study(begun)) == len(result.dataset.trial) == 4
    lowest = result.dataset.final_return.mean("episode").min("seed").isel(trial=0)
    assert float(result.dataset.score[0, -1]) == pytest.approx(float(lowest))
    assert not np.isin(result.dataset.learning_rate, whole[1].dataset.learning_rate).any()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_keeps_the_batches_before(tmp_path, monkeypatch, number, exit_code):
    stop_at(monkeypatch, 1, lambda: os.kill(os.getpid(), number))
    # What runs in the background of a shell inherits that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(search.SearchInterrupted, match="goes on") as caught:
            run(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.exit_code == exit_code
    assert caught.value.result is not None
    assert caught.value.result.dataset.sizes["trial"] == 4
    assert results.load(tmp_path).attrs["status"] == "interrupted"
    assert states(tmp_path)[4:] == ["FAIL"] * 4


def test_a_damaged_record_costs_its_numbers_alone(begun, whole):
    files = (begun / "checkpoint" / "finished" / "3").rglob("*")
    kept = [path for path in files if path.is_file() and path.suffix != ".json"]
    path = max(kept, key=os.path.getsize)
    path.write_bytes(path.read_bytes()[::-1])
    dataset = run(begun, 12).dataset
    assert np.isnan(dataset.evaluation_return.sel(trial=3)).all()
    assert dataset.score.sel(trial=3).identical(whole[1].dataset.score.sel(trial=3))
    others = {"trial": [0, 1, 2, *range(4, 10)]}
    assert (
        dataset.evaluation_return.isel(others).values.tobytes()
        == whole[1].dataset.evaluation_return.isel(others).values.tobytes()
    )


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"hidden_sizes": [(8,), (16,)]}}, "hidden_sizes cannot be searched"),
        ({"space": {"n_step": [1, 3]}}, "n_step cannot be searched"),
        ({"space": {"learning_rat": [1e-3]}}, "did you mean learning_rate"),
        ({"space": {"learning_rate": stats.norm(0, 1)}}, "a norm distribution of"),
        ({"space": {"learning_rate": ["big"]}}, r"learning_rate \(\['big'\]\) must be searched"),
        ({"space": {"learning_rate": []}}, r"learning_rate \(\[\]\) must be searched"),
        ({"space": {"learning_rate": 1e-3}}, r"learning_rate \(0.001\) must be searched"),
        ({"space": {"discount": [0.9, stats.uniform(0, 1)]}}, "a distribution among other values"),
        ({"space": {"discount": stats.uniform(0.5, 1)}}, r"discount \(1.5\) must lie between"),
        (
            {"space": {"value_min": stats.uniform(0, 90), "value_max": stats.uniform(50, 90)}},
            r"value_min \(90.0\) must be below value_max \(50.0\), also in single precision",
        ),
        ({"num_trials": 0}, r"num_trials \(0\) must be a whole number of at least 1"),
        ({"trials_per_batch": 1.5}, r"trials_per_batch \(1.5\) must be"),
        ({"trials_per_batch": 10**6}, r"trials_per_batch \(1000000\) of 2 seeds are too many"),
        ({"seeds": 5}, r"seeds \(5\) must be a sequence"),
        ({"sampler_seed": -1}, r"sampler_seed \(-1\) must be a whole number of at least 0"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": (0, 0)}, "must differ"),
        ({"width": 0}, r"width \(0\) must be"),
        ({"width": 1, "seeds": range(3)}, "the 3 seeds of a trial must train at the same time"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_compiles(
    options, message, tmp_path, compiled
):
    before = len(compiled)
    with pytest.raises(ConfigError, match=message) as caught:
        run(tmp_path / "new", **options)
    assert "\n" not in str(caught.value)
    assert len(compiled) == before
    assert not (tmp_path / "new" / "study.db").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": (0, 2)}, r"seeds: \[0, 1\] there, \[0, 2\] now"),
        ({"space": {**SPACE, "discount": [0.9, 0.95]}}, "space.discount"),
        ({"trials_per_batch": 2}, "trials_per_batch: 4 there, 2 now"),
        ({"sampler_seed": 3}, "sampler_seed: 0 there, 3 now"),
        ({"pruner": optuna.pruners.NopPruner()}, 'pruner: "PruneSome" there, "NopPruner" now'),
        ({"statistic": np.mean}, "statistic.experiment"),
    ],
)
def test_a_search_goes_on_only_as_it_was_begun(whole, options, message, compiled):
    output, before = whole[0], len(compiled)
    file = (output / "study.db").read_bytes()
    with pytest.raises(ConfigError, match=message):
        run(output, 12, **options)
    assert len(compiled) == before
    assert (output / "study.db").read_bytes() == file


def test_a_second_search_into_a_folder_is_refused(begun):
    other = SweepFolder(begun)
    other.lock()
    try:
        with pytest.raises(ConfigError, match="another process is writing"):
            run(begun, 12)
    finally:
        other.unlock()


def test_a_study_that_cannot_be_read_is_refused(begun):
    (begun / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be read as a study") as caught:
        run(begun, 12)
    assert "\n" not in str(caught.value)


def test_a_study_that_is_missing_or_another_ones_is_refused(begun, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (begun / "study.db").rename(other / "study.db")
    for folder, message in ((begun, "is missing"), (other, "is of no search")):
        for _ in range(2):  # a refusal leaves nothing that would be gone on with
            with pytest.raises(ConfigError, match=message):
                run(folder, 12)


def test_a_summary_is_strict_json_also_of_infinite_settings():
    best = search.Best(0, {"max_grad_norm": math.inf}, 25.0, CONFIG)
    dataset = xr.Dataset({"state": ("trial", ["complete"])}, attrs={"status": "finished"})
    text = json.dumps(search.SearchResult(dataset, best).summary(), allow_nan=False)
    assert json.loads(text)["best"]["settings"] == {"max_grad_norm": "inf"}


def test_a_sweeps_folder_is_refused(tmp_path, whole):
    folder = SweepFolder(tmp_path)
    folder.lock()
    folder.begin({"asked": {"seeds": [0, 1], "width": 4}, "made_with": {}})
    folder.unlock()
    with pytest.raises(ConfigError, match="was begun with other settings"):
        run(tmp_path)


def test_without_optuna_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'purejaxdqn\[search\]'"):
        run(tmp_path)


# ------------------------------------------------------------------------------------ the script


def test_the_command_prints_the_best_setting_and_writes_everything(run_command, tmp_path):
    flags = "--total-steps 480 --prefill-steps 80 --replay-capacity 120 --batch-size 16"
    flags += " --hidden-sizes 8 --target-period 5 --eval-interval 160 --eval-episodes 3"
    flags += " --learning-rate loguniform:1e-4:1e-2 --discount 0.9 0.99 --num-trials 3"
    answer = run_command(
        "search", *flags.split(), "--num-seeds=2", "--json", "--output", tmp_path / "out"
    )
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout.splitlines()[-1])
    assert (facts["num_trials"], facts["complete"]) == (3, 3)
    best = facts["best"]["settings"]
    assert f"--learning-rate {best['learning_rate']}" in answer.stdout
    assert f"--discount {best['discount']}" in answer.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.nc", "study.db", "summary.json", "checkpoint"}
    assert results.load(tmp_path / "out").sizes["trial"] == 3


def test_the_command_refuses_what_cannot_be_searched(call_command, tmp_path):
    flags = ("--hidden-sizes", "8", "16", "--output", tmp_path / "out")
    code, _, err = call_command("search", *flags)
    assert code == 2
    assert err.startswith("error: hidden_sizes cannot be searched")
    assert len(err.splitlines()) == 1
