"""Checkpoints: to the bit what was written, or an error; never silently something else."""

import json
import os
import shutil
import signal

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


def test_only_what_is_wanted_is_read(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "copy")
    with (folder / checkpoint.ARRAYS).open("r+b") as file:
        file.write(b"other")
    with pytest.raises(CheckpointDamaged, match="array 0 is not what was written"):
        checkpoint.read(folder)
    arrays, facts = checkpoint.read(folder, lambda facts: range(1, len(ARRAYS)))
    assert same([ARRAYS[0], *arrays])
    assert facts == FACTS


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
    files = [path for path in written.rglob("*") if path.is_file() and path.stat().st_size]
    seen = set()
    for trial in range(300):
        damaged = tmp_path / "damaged"
        shutil.copytree(written, damaged)
        path = damaged / files[rng.integers(len(files))].relative_to(written)
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

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync", full)
    with pytest.raises(OSError, match="1 cannot be written: No space left on device"):
        checkpoint.write(folder, ARRAYS[:1], {})
    monkeypatch.undo()
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


def test_the_manifest_is_one_that_a_person_can_read(written):
    _, _, text = (written / checkpoint.MANIFEST).read_text().partition("\n")
    assert json.loads(text)["facts"] == FACTS


def test_a_signal_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    checkpoint.write(tmp_path / "1", ARRAYS, FACTS)
    monkeypatch.setattr(checkpoint, "sync", lambda _: signal.raise_signal(signal.SIGTERM))
    with catch_signals(), pytest.raises(Stopped):
        checkpoint.write(tmp_path / "1", ARRAYS[:1], FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert same(checkpoint.read(tmp_path / "1")[0])
