"""Stopped, damaged, and gone on with: the numbers are those of an undisturbed sweep."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.agents.pqn.pqn import pqn
from purejaxdqn.storage import checkpoint, provenance, results
from purejaxdqn.sweep.folder import FORMAT, Paused, Record, SweepFolder
from purejaxdqn.sweep.run import SweepInterrupted, run_sweep
from purejaxdqn.types import ConfigError
from tiny import TINY, TINY_PQN, assert_same_dataset

quiet = functools.partial(run_sweep, progress=False)


KINDS: dict[str, tuple[Any, Any]] = {
    "uniform replay": (dqn, TINY),
    "everything at once": (
        dqn,
        dataclasses.replace(
            TINY, prioritised=True, noisy=True, dueling=True, representation="categorical"
        ),
    ),
    "no replay": (pqn, dataclasses.replace(TINY_PQN, eval_interval=200)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_on_from_a_checkpoint_ends_as_if_nothing_had_happened(kind, tmp_path, capsys):
    experiment, config = KINDS[kind]
    options = {"width": 2, "learning_rate": [1e-3, 3e-3], "diagnostics": kind == "uniform replay"}
    whole = quiet(experiment, config, range(3), **options)
    seen = []

    def interrupt(event):
        seen.append(event)
        if len(seen) == 6:  # within the second round
            raise KeyboardInterrupt

    options |= {"output": tmp_path, "resume": True}
    with pytest.raises(SweepInterrupted, match="resume=True goes on"):
        quiet(
            experiment, config, range(3), on_evaluation=interrupt, checkpoint_seconds=0, **options
        )
    assert results.load(tmp_path).attrs["status"] == "interrupted"
    steps = []
    again = run_sweep(
        experiment,
        config,
        range(3),
        on_evaluation=lambda event: steps.append(event.step),
        **options,
    )
    assert steps[0] > config.prefill_steps  # neither the first round nor the second began again
    assert "going on at step" in capsys.readouterr().err
    assert_same_dataset(again.dataset, whole.dataset)
    for a, b in zip(*map(jax.tree.leaves, (again.params, whole.params)), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    return output, quiet(dqn, TINY, range(3), width=2, output=output)


def test_a_finished_sweep_is_only_read(finished, monkeypatch):
    output, result = finished
    before = (output / "results.nc").stat().st_mtime_ns
    monkeypatch.setattr("purejaxdqn.sweep.batches.compile_programs", None)
    again = quiet(dqn, TINY, range(3), width=2, output=output, resume=True)
    assert_same_dataset(again.dataset, result.dataset)
    assert (output / "results.nc").stat().st_mtime_ns == before
    assert not (output / "checkpoint" / "running").exists()


def test_what_a_user_has_added_to_a_finished_sweep_stays(finished, tmp_path, capsys):
    output = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    more = results.load(output).assign(mine=("seed", [1, 2, 3]))
    results.save(more.assign_coords(tag=("seed", ["a", "b", "c"]), note=1), output)
    again = run_sweep(dqn, TINY, range(3), output=output, resume=True)
    assert "is finished already" in " ".join(capsys.readouterr().err.split())
    assert again.dataset.mine.values.tolist() == [1, 2, 3]
    assert again.dataset.tag.values.tolist() == ["a", "b", "c"]


def test_without_resume_nothing_that_is_there_is_dropped(finished, tmp_path):
    output = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    with pytest.raises(ConfigError, match=r"already holds results.*--resume.*--overwrite"):
        quiet(dqn, TINY, range(2), output=output)
    assert results.load(output).equals(finished[1].dataset)
    again = quiet(dqn, TINY, range(2), width=2, output=output, overwrite=True)
    assert_same_dataset(again.dataset, finished[1].dataset.isel(seed=slice(2)))


def test_times_are_those_of_all_processes_that_it_took(finished, tmp_path):
    output = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    before = results.load(output).attrs
    (output / "results.nc").unlink()
    shutil.rmtree(output / "checkpoint" / "finished" / "1")
    again = quiet(dqn, TINY, range(3), output=output, resume=True).dataset.attrs
    assert again["begun"] == before["begun"] <= again["date"]
    for name in ("compile_seconds", "train_seconds", "evaluation_seconds"):
        assert again[name] > before[name] > 0
    (output / "results.nc").unlink()
    third = quiet(dqn, TINY, range(3), output=output, resume=True).dataset.attrs
    for name in ("compile_seconds", "train_seconds", "env_steps_per_second"):
        assert third[name] == pytest.approx(again[name])


def test_infinite_values_are_swept_and_gone_on_with(tmp_path):
    options = {"max_grad_norm": [1.0, float("inf")], "width": 2, "output": tmp_path}
    once = quiet(dqn, TINY, range(2), **options)
    assert once.dataset.max_grad_norm.values.tolist() == [1.0, float("inf")]
    assert_same_dataset(quiet(dqn, TINY, range(2), **options, resume=True).dataset, once.dataset)


def test_the_recorded_width_goes_before_the_plans_own(finished):
    output, _ = finished
    again = quiet(dqn, TINY, range(3), output=output, resume=True)
    assert again.dataset.attrs["width"] == 2


def test_a_damaged_finished_batch_is_trained_again(finished, tmp_path, capsys):
    output, result = finished
    shutil.copytree(output, tmp_path / "copy")
    manifest = tmp_path / "copy" / "checkpoint" / "finished" / "1" / checkpoint.MANIFEST
    manifest.write_text(manifest.read_text()[:-5])
    again = run_sweep(dqn, TINY, range(3), output=tmp_path / "copy", resume=True)
    assert "its runs are trained again" in " ".join(capsys.readouterr().err.split())
    assert_same_dataset(again.dataset, result.dataset)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(finished, tmp_path, capsys):
    def interrupt(event):
        if event.step == 400:
            raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted):
        quiet(
            dqn,
            TINY,
            range(3),
            width=2,
            output=tmp_path,
            checkpoint_seconds=0,
            on_evaluation=interrupt,
        )
    running = sorted((tmp_path / "checkpoint" / "running").iterdir(), key=_age)
    assert len(running) == 2
    arrays = running[-1] / checkpoint.ARRAYS
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 4
    arrays.write_bytes(content)
    steps = [checkpoint.read_manifest(folder)["facts"]["step"] for folder in running]
    again = run_sweep(dqn, TINY, range(3), output=tmp_path, resume=True)
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("going back to the checkpoint before") == 1  # for two batches in it
    assert f"going on at step {steps[0]}" in err
    assert_same_dataset(again.dataset, finished[1].dataset)


def _age(folder):
    return (folder / checkpoint.MANIFEST).stat().st_mtime_ns


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": dataclasses.replace(TINY, discount=0.9)}, "discount: 0.99 there, 0.9 now"),
        ({"config": dataclasses.replace(TINY, batch_size=8)}, "batch_size: 16 there, 8 now"),
        ({"seeds": range(4)}, "seeds"),
        ({"width": 3}, "width: 2 there, 3 now"),
        ({"seed_mode": "map"}, "seed_mode"),
        ({"diagnostics": True}, "diagnostics: false there, true now"),
        ({"learning_rate": [1e-3]}, "(axes.learning_rate: nothing there, [0.001] now)"),
        (
            {"config": dataclasses.replace(TINY, discount=0.9), "batch_size": [16, 32]},
            "(axes.batch_size: nothing there, [16, 32] now; "
            "settings.discount: 0.99 there, 0.9 now)",
        ),
        (
            {"experiment": functools.partial(dqn, optimizer=optax.rmsprop)},
            "code.experiment.optimizer",
        ),
    ],
)
def test_another_sweep_is_not_gone_on_with(finished, change, words, monkeypatch):
    output, _ = finished
    monkeypatch.setattr("purejaxdqn.sweep.batches.compile_programs", None)
    asked = {"experiment": dqn, "config": TINY, "seeds": range(3)} | change
    with pytest.raises(ConfigError, match="begun with other code or settings") as caught:
        quiet(**asked, output=output, resume=True)
    assert words in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_another_commit_or_version_is_warned_about_and_recorded(
    finished, tmp_path, monkeypatch, capsys
):
    output, result = finished
    shutil.copytree(output, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoint" / "finished" / "1")
    known = provenance.collect_versions()
    other = {**known, "git_commit": "0" * 40, "versions": {**known["versions"], "jax": "0.0.1"}}
    monkeypatch.setattr(provenance, "collect_versions", lambda: other)
    again = run_sweep(dqn, TINY, range(3), output=tmp_path / "copy", resume=True)
    err = " ".join(capsys.readouterr().err.split())
    assert "may have other bits: git_commit" in err
    assert "versions.jax" in err
    changed = json.loads(again.dataset.attrs["not_bitwise"])
    assert [line.partition(":")[0] for line in changed] == ["versions.jax", "git_commit"]
    assert "not_bitwise" not in result.dataset.attrs
    # A kill while that is noted leaves no moment without what the sweep was asked for.
    sweep = [folder / "checkpoint" / "sweep" for folder in (output, tmp_path / "copy")]
    assert _age(sweep[0]) == _age(sweep[1])
    # It stays so when it goes on once more as it began.
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "copy" / "checkpoint" / "finished" / "1")
    third = quiet(dqn, TINY, range(3), output=tmp_path / "copy", resume=True)
    assert json.loads(third.dataset.attrs["not_bitwise"]) == changed


def test_results_without_a_checkpoint_are_not_overwritten(finished, tmp_path):
    results.save(finished[1].dataset, tmp_path)
    with pytest.raises(ConfigError, match="no checkpoint to go on from"):
        quiet(dqn, TINY, range(3), output=tmp_path, resume=True)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "a bit", "another sweep's"])
def test_results_that_are_not_those_of_the_finished_batches_are_written_again(
    damage, finished, tmp_path
):
    output, result = finished
    shutil.copytree(output, tmp_path / "copy")
    path = tmp_path / "copy" / "results.nc"
    content = path.read_bytes()
    if damage == "another sweep's":  # as where --overwrite was killed at its very end
        results.save(result.dataset.assign(diverged=~result.dataset.diverged), path.parent)
    elif damage == "missing":
        path.unlink()
    elif damage == "a bit":
        at = content.index(result.dataset.final_return.values.tobytes())
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        path.write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    again = quiet(dqn, TINY, range(3), output=path.parent, resume=True)
    assert_same_dataset(again.dataset, result.dataset)
    assert_same_dataset(results.load(path), result.dataset)


@pytest.mark.parametrize("number", [None, 0, FORMAT + 1], ids=["before numbers", "older", "newer"])
def test_a_folder_of_another_version_is_refused_by_name(number, finished, tmp_path):
    output = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    # As the version before format numbers wrote it: only these facts.
    facts = SweepFolder(output).read_begun()
    old = {name: facts[name] for name in ("asked", "made_with", "begun")}
    old |= {} if number is None else {"format": number}
    checkpoint.write(output / "checkpoint" / "sweep", [], old)
    with pytest.raises(ConfigError, match="are of another version of purejaxdqn") as caught:
        quiet(dqn, TINY, range(3), output=output, resume=True)
    assert str(output / "checkpoint") in str(caught.value)
    assert ("no format number" if number is None else f"format {number}") in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert results.load(output).equals(finished[1].dataset)  # results are still read
    again = quiet(dqn, TINY, range(3), width=2, output=output, overwrite=True)
    assert_same_dataset(again.dataset, finished[1].dataset)


def test_what_a_sweep_was_is_not_guessed(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    (tmp_path / "copy" / "checkpoint" / "sweep" / checkpoint.MANIFEST).write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        quiet(dqn, TINY, range(3), output=tmp_path / "copy", resume=True)


def test_what_is_of_no_sweep_is_left_where_it_lies(finished, tmp_path):
    output, result = finished
    shutil.copytree(output, tmp_path / "copy")
    root = tmp_path / "copy" / "checkpoint"
    strange = [
        root / folder / name
        for folder in (".", "changes", "finished", "running")
        for name in ("1x-y", "-1", "notes.txt")
    ]
    for path in strange:
        path.parent.mkdir(exist_ok=True)
        path.write_text("?")
    shutil.rmtree(root / "finished" / "1")
    again = quiet(dqn, TINY, range(3), output=tmp_path / "copy", resume=True)
    assert_same_dataset(again.dataset, result.dataset)


def test_nothing_is_dropped_from_under_a_sweep_that_is_running(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.lock()
    with pytest.raises(ConfigError, match="another process is writing"):
        results.prepare_output(tmp_path, overwrite=True)
    folder.unlock()
    assert results.prepare_output(tmp_path, overwrite=True) == tmp_path


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_sweep_leaves_nothing(there, tmp_path, monkeypatch):
    output = tmp_path / "a" / "b"
    if there:
        output.mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    with pytest.raises(ConfigError, match="10 bytes may be used"):
        quiet(dqn, TINY, range(2), output=output, memory_budget=10)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(OSError, match="No space left"):
        quiet(dqn, TINY, range(2), output=output)
    assert {*before} == {tmp_path, *tmp_path.rglob("*")}


def test_a_refused_sweep_touches_nothing_that_is_there(finished, tmp_path):
    output = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    (output / ".writing-results.1.nc").write_text("half")
    (output / "tensorboard").mkdir()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    for options in ({"resume": True}, {}, {"overwrite": True, "memory_budget": 10}):
        with pytest.raises(ConfigError):
            quiet(dqn, TINY, range(4), output=output, **options)
        locked = output / "checkpoint" / "lock"
        assert {**before, locked: True} == {
            path: path == locked or path.stat().st_mtime_ns for path in output.rglob("*")
        }
    quiet(dqn, TINY, range(3), output=output, resume=True)
    assert not (output / ".writing-results.1.nc").exists()


def test_what_was_kept_before_an_error_is_told(tmp_path):
    def fail(event):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        quiet(dqn, TINY, range(3), width=2, output=tmp_path, on_evaluation=fail)
    assert str(tmp_path) in caught.value.__notes__[0]


def test_a_full_disk_costs_nothing_that_is_finished(tmp_path, monkeypatch, capsys):
    """No checkpoint and no finished batch can be written until the last moment."""
    write, full = checkpoint.write, True

    def fail(folder, *rest):
        if full and folder.name != "sweep":
            raise OSError(28, "No space left on device")
        write(folder, *rest)

    def free(event):
        nonlocal full
        full = not (event.runs[0] == 2 and event.step == TINY.total_steps)

    monkeypatch.setattr(checkpoint, "write", fail)
    options = {"width": 1, "output": tmp_path, "checkpoint_seconds": 0}
    result = run_sweep(dqn, TINY, range(3), on_evaluation=free, **options)
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("could not save for now, going on") == 1  # for a dozen attempts in vain
    again = quiet(dqn, TINY, range(3), output=tmp_path, resume=True)
    assert_same_dataset(again.dataset, result.dataset)
    finished = {path.name for path in (tmp_path / "checkpoint" / "finished").iterdir()}
    assert finished == {"0", "1", "2"}


def test_checkpoints_of_other_batches_are_kept_until_they_are_gone_on_with(tmp_path):
    """Two batches were under way; one is ahead now, and the other is where it was."""
    record = Record(TINY, 1)

    def paused(step):
        return Paused(step, [np.array([step])], [], {}, record)

    folder = SweepFolder(tmp_path, print)
    folder.save_running({0: paused(10), 1: paused(10)})
    for step in (20, 30, 40, 50):
        folder.save_running({0: paused(step)})
    kept = [folder.load_running(number, TINY) for number in (0, 1)]
    assert [paused.step for paused in kept if paused is not None] == [50, 10]
    assert folder.load_running(2, TINY) is None
    assert folder.find_running_steps() == {0: 50, 1: 10}
    assert len([*(tmp_path / "checkpoint" / "running").iterdir()]) == 3
    folder.save_finished(1, record)
    folder.save_running({0: paused(60)})
    assert len([*(tmp_path / "checkpoint" / "running").iterdir()]) == 2
