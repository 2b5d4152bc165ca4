"""Checkpoints: to the bit what was written, or an error; never silently something else."""

import contextlib
import json
import os
import shutil
import signal
import threading

import numpy as np
import pytest

from purejaxdqn.runtime.interrupts import Stopped, catch_signals
from purejaxdqn.storage import checkpoint
from purejaxdqn.storage.checkpoint import CheckpointDamaged

RNG = np.random.default_rng(0)
ARRAYS: list[np.ndarray] = [
    RNG.standard_normal((3, 50)).astype(np.float32),
    RNG.standard_normal(4),  # float64, which JAX would round
    np.array(2**31, np.uint32),
    np.array([True, False]),
    np.zeros((0, 3), np.int32),
    np.array([np.nan, -0.0, np.inf], np.float32),
    RNG.integers(0, 255, (2, 100), np.uint8),
    np.array([2**62 + 1], np.int64),
]
FACTS = {"step": 12, "names": ["a/b", "ü"]}


def same(arrays):
    assert len(arrays) == len(ARRAYS)
    return all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(arrays, ARRAYS, strict=True)
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "whole"
    checkpoint.write(folder, ARRAYS, FACTS)
    return folder


def test_what_is_written_is_what_is_read(written):
    arrays, facts = checkpoint.read(written)
    assert same(arrays)
    assert facts == FACTS
    assert checkpoint.read_manifest(written)["facts"] == FACTS


@pytest.mark.parametrize("part_bytes", [16, 100, 500])
def test_large_arrays_are_written_in_parts(part_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_PART_BYTES", part_bytes)
    parts = [*checkpoint._cut_into_parts(ARRAYS)]
    assert len(parts) >= 2
    assert all(sum(piece.nbytes for piece in part.values()) <= part_bytes for part in parts)
    if part_bytes == 500:
        checkpoint.write(tmp_path / "1", ARRAYS, FACTS)
        assert same(checkpoint.read(tmp_path / "1")[0])


def test_facts_alone_are_a_checkpoint_too(tmp_path):
    checkpoint.write(tmp_path / "facts", [], FACTS)
    assert checkpoint.read(tmp_path / "facts") == ([], FACTS)


def test_a_checkpoint_is_replaced_whole(tmp_path):
    folder = tmp_path / "1"
    checkpoint.write(folder, ARRAYS, FACTS)
    checkpoint.write(folder, ARRAYS[:2], {})
    arrays, facts = checkpoint.read(folder)
    assert (len(arrays), facts) == (2, {})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_no_damage_is_loaded_silently_wrong(written, tmp_path):
    """300 flipped bits, truncations and deletions, anywhere in any file."""
    rng = np.random.default_rng(1)
    files = [path.relative_to(written) for path in written.rglob("*") if path.is_file()]
    seen = set()
    for trial in range(300):
        damaged = tmp_path / "damaged"
        shutil.copytree(written, damaged)
        path = damaged / files[rng.integers(len(files))]
        content = bytearray(path.read_bytes())
        kind = ("flip", "truncate", "delete")[trial % 3]
        if kind == "flip":
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            path.write_bytes(content)
        elif kind == "truncate":
            path.write_bytes(content[: rng.integers(len(content))])
        else:
            path.unlink()
        with pytest.raises(CheckpointDamaged, match=r"not what was written|cannot be read"):
            checkpoint.read(damaged)
        seen.add((kind, path.name))
        shutil.rmtree(damaged)
    assert len(seen) > len(files)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    folder = tmp_path / "1"
    checkpoint.write(folder, ARRAYS, FACTS)

    late = []

    def full(arrays_folder, _):  # as Orbax: raises at once, while its threads still write
        late.append(threading.Timer(0.02, arrays_folder.mkdir, kwargs={"parents": True}))
        late[0].start()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_save_arrays", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(folder, ARRAYS[:1], {})
    monkeypatch.undo()
    late[0].join()
    assert same(checkpoint.read(folder)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system takes a privileged user")
def test_on_a_disk_that_is_really_full_it_is_an_os_error(tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2>/dev/null"):
        pytest.skip("no file system can be mounted here")
    try:
        checkpoint.write(disk / "1", ARRAYS, FACTS)
        for arrays in ([RNG.random(1_000_000)], [*RNG.random((20, 10_000))]):
            with pytest.raises(OSError, match="cannot be written: No space left on device"):
                checkpoint.write(disk / "2", arrays, {})
        assert "Traceback" not in capfd.readouterr().err
        assert same(checkpoint.read(disk / "1")[0])
        assert [path.name for path in disk.iterdir()] == ["1"]
    finally:
        os.system(f"umount {disk}")


def test_a_wrong_type_is_noticed(written, tmp_path, monkeypatch):
    """Were Orbax to cast an array, or to give another one."""
    load = checkpoint._load_arrays
    monkeypatch.setattr(
        checkpoint,
        "_load_arrays",
        lambda folder: load(folder) | {"00001-0": np.zeros(4, np.float32)},
    )
    with pytest.raises(CheckpointDamaged, match="array 00001-0 is of type float32"):
        checkpoint.read(written)


def test_the_manifest_is_one_that_a_person_can_read(written):
    _, _, text = (written / checkpoint.MANIFEST).read_text().partition("\n")
    assert json.loads(text)["facts"] == FACTS


@pytest.mark.parametrize("action", ["write", "read"])
def test_signals_wait_for_the_end_of_what_orbax_does(action, written, tmp_path, monkeypatch):
    """Interrupted in its event loop, it may wait for itself forever."""
    checkpointer, ended = checkpoint._make_checkpointer, []

    @contextlib.contextmanager
    def interrupted():
        with checkpointer() as it:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            yield it
            ended.append(True)

    monkeypatch.setattr(checkpoint, "_make_checkpointer", interrupted)
    act = {
        "write": lambda: checkpoint.write(tmp_path / "1", ARRAYS, FACTS),
        "read": lambda: checkpoint.read(written),
    }
    with catch_signals(), pytest.raises(Stopped):
        act[action]()
    assert ended == [True]
    assert [*tmp_path.iterdir()] == []
