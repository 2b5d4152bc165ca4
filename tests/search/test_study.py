"""Studies: what Optuna itself reads, proposals, pruning, and what survives a kill."""

import contextlib
import functools
import os
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("optuna", reason="Optuna is an extra: pip install 'purejaxdqn[search]'")

import optuna

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.engine.rounds import train_round
from purejaxdqn.search import search, study, trials
from purejaxdqn.search.space import read_space
from purejaxdqn.storage import results
from purejaxdqn.sweep.folder import SweepFolder
from purejaxdqn.types import ConfigError
from tiny import TINY

STEPS = [80, 160, 320, 480]
SPACE = {"learning_rate": stats.loguniform(1e-4, 1e-1), "discount": [0.9, 0.99]}


class Killed(BaseException):
    """The end of a process, from which nothing recovers."""


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
    distributions = study.make_distributions(read_space(TINY, SPACE, [0]))
    sampling = (seed, study.default_sampler, study.default_pruner(480))
    request = study.SearchRequest(dqn, TINY, SPACE, distributions, (0,), np.mean, *sampling)
    first = study.ask(one, request, 12)
    for trial in first:
        one.tell(trial, -abs(np.log10(trial.params["learning_rate"]) + 2))
    for trial in study.ask(one, request, num_failed):
        one.tell(trial, state=optuna.trial.TrialState.FAIL)
    return [trial.params for trial in [*first, *study.ask(one, request, 4)]]


def test_proposals_hang_on_the_seed_and_not_on_what_was_killed():
    assert proposals(0) == proposals(0, num_failed=3)
    assert proposals(0)[:12] != proposals(1)[:12]
    learned = [np.log10(params["learning_rate"]) for params in proposals(0)[12:]]
    assert len({*learned}) == 4


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


def test_a_diverged_trial_ends_and_the_study_has_it_as_pruned(run, tmp_path):
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


def test_a_killed_search_goes_on_and_ends_with_the_same_numbers(run, whole, tmp_path, monkeypatch):
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


def test_a_batch_that_was_kept_but_not_told_is_not_trained_again(run, whole, tmp_path, monkeypatch):
    told: list[int] = []

    def tell(self, number, *args, **kwargs):
        if len(told) == 6:
            raise Killed
        told.append(number)
        original(self, number, *args, **kwargs)

    original = optuna.Study.tell
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", tell)
        with pytest.raises(Killed):
            run(tmp_path)
    assert states(tmp_path)[4:] == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]
    result = run(tmp_path)
    assert "FAIL" not in states(tmp_path)
    assert_same_numbers(result, whole[1])


def test_a_finished_search_is_only_read(run, whole, begun, compiled):
    before = len(compiled)
    result = run(begun)
    assert len(compiled) == before
    assert result.dataset.identical(whole[1].dataset)
    assert result.best == whole[1].best


def test_overwrite_starts_again(run, begun, whole):
    result = run(begun, 4, overwrite=True, sampler_seed=1, statistic=np.min)
    assert len(read_study(begun)) == len(result.dataset.trial) == 4
    lowest = result.dataset.final_return.mean("episode").min("seed").isel(trial=0)
    assert float(result.dataset.score[0, -1]) == pytest.approx(float(lowest))
    assert not np.isin(result.dataset.learning_rate, whole[1].dataset.learning_rate).any()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_keeps_the_batches_before(run, tmp_path, monkeypatch, number, exit_code):
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


def test_a_damaged_record_costs_its_numbers_alone(run, begun, whole):
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": (0, 2)}, r"seeds: \[0, 1\] there, \[0, 2\] now"),
        ({"space": {**SPACE, "discount": [0.9, 0.95]}}, "space.discount"),
        ({"trials_per_batch": 2}, "trials_per_batch: 4 there, 2 now"),
        ({"sampler_seed": 3}, "sampler_seed: 0 there, 3 now"),
        ({"pruner": optuna.pruners.NopPruner()}, 'pruner: "PruneSome" there, "NopPruner" now'),
        ({"statistic": np.mean}, "statistic"),
    ],
)
def test_a_search_goes_on_only_as_it_was_begun(run, whole, options, message, compiled):
    output, before = whole[0], len(compiled)
    file = (output / "study.db").read_bytes()
    with pytest.raises(ConfigError, match=message):
        run(output, 12, **options)
    assert len(compiled) == before
    assert (output / "study.db").read_bytes() == file


def test_a_second_search_into_a_folder_is_refused(run, begun):
    other = SweepFolder(begun)
    other.lock()
    try:
        with pytest.raises(ConfigError, match="another process is writing"):
            run(begun, 12)
    finally:
        other.unlock()


def test_a_study_that_cannot_be_read_is_refused(run, begun):
    (begun / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be read as a study") as caught:
        run(begun, 12)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "damaged"),
    [
        ("update trial_params set param_value=param_value/2 where param_id=1", "trial 0"),
        ("update trial_params set distribution_json=replace(distribution_json, '01', '02')", ""),
        ("update trial_intermediate_values set intermediate_value=5 where trial_id=3", "trial 2"),
        ("update trial_values set value=999 where trial_id=1", "trial 0"),
        ("update trials set state='FAIL' where trial_id=1", "trial 0"),
        ("update trials set state='PRUNED' where trial_id=1", "trial 0"),
        ("update trials set number=77 where trial_id=1", "trial 77, trial 0"),
        ("insert into trials(number, study_id, state) values(50, 1, 'COMPLETE')", "trial 50"),
        ("delete from trials", "trial 0, trial 1"),
        ("update study_directions set direction='MINIMIZE'", "its direction"),
        ("update trial_params set distribution_json='['", "cannot be read"),
        ("update trial_params set param_value='abc'", "cannot be read"),
        ("update trials set datetime_start='x'", "cannot be read"),
        ("update alembic_version set version_num='x'", "cannot be read"),
    ],
)
def test_a_study_of_which_anything_was_changed_is_refused(run, begun, change, damaged):
    with contextlib.closing(sqlite3.connect(begun / "study.db")) as database:
        database.execute(change)
        database.commit()
    with pytest.raises(ConfigError, match=rf"study\.db .*{damaged}.* put a copy") as caught:
        run(begun, 12)
    assert "\n" not in str(caught.value)


def test_a_study_that_another_process_writes_to_is_refused_in_a_line(run, begun, monkeypatch):
    connect = functools.partial(sqlite3.connect, timeout=0.0)
    monkeypatch.setattr(study.sqlite3, "connect", connect)
    with contextlib.closing(connect(begun / "study.db", isolation_level=None)) as database:
        database.execute("begin exclusive")
        with pytest.raises(ConfigError, match=r"is locked\): end what has it open"):
            run(begun, 12)


@pytest.mark.parametrize(
    "make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/dev/zero")]
)
def test_what_is_no_study_in_its_place_is_refused(run, begun, make):
    path = begun / "study.db"
    path.unlink()
    make(path)
    with pytest.raises(ConfigError, match=r"study\.db (cannot be read|is damaged|is a link)"):
        run(begun, 12)


def test_a_study_that_is_missing_or_another_ones_is_refused(run, begun, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (begun / "study.db").rename(other / "study.db")
    for folder, message in ((begun, "is missing"), (other, "is of no search")):
        for _ in range(2):  # a refusal leaves nothing that would be gone on with
            with pytest.raises(ConfigError, match=message):
                run(folder, 12)


def test_a_sweeps_folder_is_refused(run, tmp_path, whole):
    folder = SweepFolder(tmp_path)
    folder.lock()
    folder.begin({"asked": {"seeds": [0, 1], "width": 4}, "made_with": {}})
    folder.unlock()
    with pytest.raises(ConfigError, match="was begun with other code or settings"):
        run(tmp_path)


def test_without_optuna_the_remedy_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'purejaxdqn\[search\]'"):
        run(tmp_path)
