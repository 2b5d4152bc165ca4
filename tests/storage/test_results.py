"""Results on disk: all or nothing, and never over somebody's earlier results."""

import errno
import json
import os
import random

import filelock
import numpy as np
import pytest
import xarray as xr

from purejaxdqn.storage import files, results
from purejaxdqn.types import ConfigError

DATASET = xr.Dataset(
    {"final_return": (("seed", "episode"), np.array([[1.0, np.nan]], np.float32))},
    coords={"seed": [3], "episode": [0, 1]},
    attrs={"config": "{}", "status": "finished"},
)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    path = results.save(DATASET, tmp_path)
    assert path.name == "results.nc"
    for place in (path, tmp_path):
        xr.testing.assert_identical(results.load(place), DATASET)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_results_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.nc"):
        results.load(tmp_path)
    path = results.save(DATASET, tmp_path)
    for content in (b"", b"text", path.read_bytes()[:-2000]):
        path.write_bytes(content)
        with pytest.raises(OSError, match=r"results\.nc cannot be read as results") as caught:
            results.load(tmp_path)
        assert "\n" not in str(caught.value)


MUCH = xr.Dataset(
    {
        "evaluation_return": (("seed", "step", "episode"), np.full((4, 20, 50), 3.0, np.float32)),
        "diverged": ("seed", np.zeros(4, bool)),
        "settings": ((), '{"discount": 0.99}'),
        "loss": (("seed", "step"), np.full((4, 20), np.nan)),
        "nothing": (("seed", "none"), np.zeros((4, 0))),
    },
    coords={
        "seed": np.arange(4),
        "step": ("step", np.arange(20), {"units": "environment steps"}),
        "penalty": ("seed", ["huber", "squared", "", "\u00fc"]),
    },
    attrs={"status": "finished", "config": '{"a": 1}' * 50, "width": 4, "sizes": [1, 2]},
)


def flip_bits(folder, num):
    """Flips one bit at a time; returns how many flips went unnoticed, and what was said."""
    good = results.load(results.save(MUCH, folder))
    xr.testing.assert_identical(good, MUCH)
    path = folder / results.FILE_NAME
    content, rng, messages = path.read_bytes(), random.Random(0), []
    for _ in range(num):
        damaged, bit = bytearray(content), rng.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            # Some bits of a file mean nothing: then every number and text is what it was.
            xr.testing.assert_identical(results.load(path), good)
        except OSError as error:
            messages.append(str(error))
    return messages


def test_a_flipped_bit_is_noticed_and_named(tmp_path):
    messages = flip_bits(tmp_path, 100)
    assert len(messages) > 20
    assert all(len(message.splitlines()) == 1 for message in messages)
    assert any("is damaged (evaluation_return)" in message for message in messages)


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_noticed(tmp_path):
    assert len(flip_bits(tmp_path, 1000)) > 200


@pytest.mark.parametrize(
    ("change", "damaged"),
    [
        (lambda x: x.assign(loss=x.loss.fillna(1.0)), "loss"),
        (lambda x: x.assign(loss=x.loss.astype(np.float32)), "loss"),
        (lambda x: x.assign_coords(seed=x.seed + 1), "seed"),
        (lambda x: x.assign(settings=((), "{}")), "settings"),
        (lambda x: x.assign_attrs(width=5), "the attributes"),
        (lambda x: x.drop_vars("loss"), "loss"),
        (lambda x: x.rename(loss="lost"), "loss"),
        (lambda x: x.assign_attrs(purejaxdqn="{"), "the digests"),
        (lambda x: x.assign_attrs(purejaxdqn='{"format": 1, "sha256": []}'), "the digests"),
        (lambda x: x.assign_attrs(purejaxdqn="[" * 50_000), "the digests"),
        (lambda x: x.drop_attrs(deep=False), "the digests"),
    ],
)
def test_what_another_program_has_changed_is_named(change, damaged, tmp_path):
    path = results.save(MUCH, tmp_path)
    with xr.open_dataset(path) as dataset:
        dataset = dataset.load()
    change(dataset).to_netcdf(path)
    with pytest.raises(OSError, match=rf"is damaged \({damaged}\)"):
        results.load(path)


def test_a_variable_that_a_user_adds_is_read_and_the_others_are_still_verified(tmp_path):
    path = results.save(MUCH, tmp_path)
    with xr.open_dataset(path) as dataset:
        more = dataset.load().assign(mine=("seed", np.arange(4)))
    more.to_netcdf(path)
    xr.testing.assert_identical(results.load(path).drop_vars("mine"), results.load(path)[[*MUCH]])
    more.assign(loss=more.loss.fillna(1.0)).to_netcdf(path)
    with pytest.raises(OSError, match=r"is damaged \(loss\)"):
        results.load(path)
    # What is loaded and written anew is the user's own.
    results.save(MUCH, tmp_path)
    results.load(path).assign(loss=0.0).to_netcdf(path)
    assert results.load(path).loss == 0


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_a_damaged_file_is_made_again_when_asked_and_else_says_that_it_can_be(content, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*results\.nc$"):
        results.load(tmp_path, restore=True)
    kept = tmp_path / "checkpoint"
    kept.mkdir()
    path = results.save(MUCH, tmp_path)
    before = path.read_bytes()

    def damage():
        path.unlink() if content is None else path.write_bytes(content)

    damage()
    with pytest.raises(OSError, match=r"has a copy that is whole: .*restore=True.* puts it back"):
        results.load(tmp_path)
    for place in (tmp_path, path):
        xr.testing.assert_identical(results.load(place, restore=True), results.load(path))
        xr.testing.assert_identical(results.load(path), MUCH)
        damage()
    (kept / "results.nc").write_bytes(before[:-9])
    with pytest.raises(OSError, match=r"no copy that is whole: the same command") as caught:
        results.load(tmp_path, restore=True)
    assert "\n" not in str(caught.value)
    assert path.exists() == (content is not None)


def test_what_is_whole_or_of_somebody_else_is_not_restored(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    results.save(MUCH, tmp_path)
    path = results.save(MUCH.assign_attrs(status="running"), tmp_path / "checkpoint")
    path.rename(tmp_path / "results.nc")
    assert results.load(tmp_path, restore=True).attrs["status"] == "running"
    DATASET.drop_attrs().to_netcdf(tmp_path / "results.nc")
    with pytest.raises(ConfigError, match="is no results file"):
        results.load(tmp_path, restore=True)


def test_plain_xarray_reads_the_file_and_checks_its_bytes_too(tmp_path):
    path = results.save(MUCH, tmp_path)
    with xr.open_dataset(path) as dataset:
        xr.testing.assert_equal(dataset, MUCH)
        assert dataset.evaluation_return.encoding["fletcher32"]


def test_files_of_others_are_refused_and_those_of_older_versions_read(tmp_path):
    path = tmp_path / "results.nc"
    DATASET.to_netcdf(path)  # as versions without digests wrote it
    xr.testing.assert_identical(results.load(path), DATASET)
    DATASET.drop_attrs().to_netcdf(path)
    with pytest.raises(ConfigError, match=r"results\.nc is no results file"):
        results.load(path)
    facts = json.dumps({"format": 99, "sha256": {}})
    DATASET.assign_attrs(purejaxdqn=facts).to_netcdf(path)
    with pytest.raises(ConfigError, match=r"has format 99, and this version .* reads 1"):
        results.load(path)


@pytest.mark.parametrize("path", ["", None, 3, "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigError, match=r"path \(.*\) must be a results file or its folder"):
        results.load(path)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("NetCDF: HDF error")]
)
def test_a_write_that_fails_leaves_the_file_before_it_intact(tmp_path, monkeypatch, error):
    """On a full disk: netCDF's own error is a RuntimeError."""
    results.save(DATASET, tmp_path)

    def half_written(self, path, **options):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(xr.Dataset, "to_netcdf", half_written)
    with pytest.raises(OSError, match=r"No space|results.nc cannot be written: NetCDF"):
        results.save(DATASET.assign_attrs(status="other"), tmp_path)
    monkeypatch.undo()
    assert results.load(tmp_path).attrs["status"] == "finished"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    """netCDF calls whatever went wrong a lack of permission."""
    with pytest.raises(OSError, match=r"gone/results.nc cannot be written: No such file"):
        results.save(DATASET, tmp_path / "gone")
    path = tmp_path / "page.html"
    path.write_text("before")

    def half_written():
        with files.replace_file(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk quota exceeded")

    with pytest.raises(OSError, match=r"page.html cannot be written: disk quota"):
        half_written()
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_results_that_a_full_disk_refuses_are_rescued(tmp_path, monkeypatch):
    save = results.save

    def full(dataset, folder):
        if folder == tmp_path:
            raise OSError(28, "No space left on device")
        return save(dataset, folder)

    monkeypatch.setattr(results, "save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        path = results.save_or_rescue(DATASET, tmp_path)
    assert path.parent != tmp_path
    xr.testing.assert_identical(results.load(path), DATASET)


def test_an_output_folder_is_made_and_earlier_results_are_kept(tmp_path):
    folder = results.prepare_output(tmp_path / "a" / "b")
    assert folder.is_dir()
    results.prepare_output(folder)  # empty: fine
    results.save(DATASET, folder)
    with pytest.raises(ConfigError, match=r"already holds results.*--overwrite"):
        results.prepare_output(folder)
    assert results.prepare_output(folder, overwrite=True) == folder


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint/finished", "study.db"])
def test_a_link_that_may_lead_out_of_a_folder_is_refused(name, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "mine"
    (outside / "finished").mkdir(parents=True)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(outside)
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match=rf"{name} is a link"):
            results.prepare_output(folder, **how)
    assert (outside / "finished").exists()


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*--output"):
        results.prepare_output(tmp_path / "file" / "below")


def test_a_refusal_names_who_writes_there(tmp_path, monkeypatch):
    def lock():
        return filelock.FileLock(tmp_path / "lock")

    held = lock()
    results.acquire_lock(held, tmp_path)
    words = rf"writing to {tmp_path} now \(process {os.getpid()} on .*, since 2.*: .*\): wait until"
    with pytest.raises(ConfigError, match=words):
        results.acquire_lock(lock(), tmp_path)
    monkeypatch.setattr("psutil.pid_exists", lambda pid: False)
    with pytest.raises(ConfigError, match="now: wait until"):  # of one before it, that was killed
        results.acquire_lock(lock(), tmp_path)
    monkeypatch.undo()
    for text in ("", "{}", '{"pid": 1', "[]", '{"pid": "x", "host": 1, "since": 2, "command": 3}'):
        (tmp_path / "lock").write_text(text)
        with pytest.raises(ConfigError, match="another process is writing"):
            results.acquire_lock(lock(), tmp_path)
    results.release_lock(held)
    assert (tmp_path / "lock").read_text() == ""
    results.acquire_lock(held, tmp_path)
    results.release_lock(held)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO, errno.ESTALE])
def test_a_disk_without_locks_is_refused(code, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ConfigError, match=r"cannot be locked .*: choose a folder on another disk"):
        results.acquire_lock(filelock.FileLock(tmp_path / "lock"), tmp_path)
