"""Sweeps that are killed or stopped by a signal go on as if nothing had happened."""

import concurrent.futures
import dataclasses
import functools
import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.runtime.interrupts import Stopped, catch_signals
from purejaxdqn.storage import results
from purejaxdqn.sweep.run import run_sweep
from tiny import TINY, assert_same_dataset

quiet = functools.partial(run_sweep, progress=False)

VICTIM = """
import json, signal, sys
# What runs in the background of a shell inherits that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from purejaxdqn.cli.exits import exit_with
from purejaxdqn.storage import results
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.sweep.run import run_sweep

def main():
    output, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    results.prepare_output(output, resume=True)
    config = DQNConfig(**{**json.loads(sys.argv[3]), "hidden_sizes": (8,), "head_sizes": ()})
    run_sweep(dqn, config, range(2), learning_rate=[1e-3, 3e-3], width=2, output=output,
              resume=True, **options)

exit_with(main)
"""
LONG = dataclasses.replace(TINY, total_steps=200_000, eval_interval=20_000)


def start(output, config=LONG, **options):
    code = [sys.executable, "-c", VICTIM, str(output), json.dumps(options)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    cache = {"XDG_CACHE_HOME": str(output.parent / "cache")}
    return subprocess.Popen(
        [*code, json.dumps(dataclasses.asdict(config))],
        stderr=subprocess.PIPE,
        text=True,
        env=environment | cache,
    )


def checkpoints(output):
    folder = output / "checkpoint" / "running"
    return [path for path in folder.glob("*") if path.name[0].isdigit()]


def is_writing(output, process):
    return any((output / "checkpoint" / "running").glob(f".writing-*.{process.pid}.*"))


def wait_for(condition, process):
    while not condition() and process.poll() is None:
        time.sleep(0.002)


def kill_again_and_again(output, num_kills, rng):
    """Kills a sweep so often, at random moments; says at which step each life began."""
    starts = []
    for life in range(num_kills):
        process = start(output, checkpoint_seconds=0)
        lines: list[str] = []
        reader = threading.Thread(target=lambda p=process, x=lines: x.extend(p.stderr))
        reader.start()
        before = {path.name for path in checkpoints(output)}
        if life % 2:  # in the middle of a checkpoint's write
            for _ in range(rng.randrange(1, 6)):
                wait_for(lambda p=process: is_writing(output, p), process)
                wait_for(lambda p=process: not is_writing(output, p), process)
            wait_for(lambda p=process: is_writing(output, p), process)
        else:
            wait_for(lambda b=before: {p.name for p in checkpoints(output)} - b, process)
            time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()
        found = re.search(r"going on at step ([\d,]+)", " ".join("".join(lines).split()))
        starts.append(int(found[1].replace(",", "")) if found else 0)
    return starts


def check_kills(folder, num_kills):
    """Two sweeps are killed so often in turn, side by side; both must end as if they never were."""
    outputs = [folder / "one", folder / "other"]
    whole = quiet(dqn, LONG, range(2), learning_rate=[1e-3, 3e-3], width=2)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [
            pool.submit(kill_again_and_again, output, num_kills, random.Random(i))
            for i, output in enumerate(outputs)
        ]
        all_starts = [future.result() for future in futures]
    for output, starts in zip(outputs, all_starts, strict=True):
        assert starts[0] == 0
        assert all(step > 0 for step in starts[1:]), starts
        assert starts == sorted(starts)
        resumed = quiet(dqn, LONG, range(2), learning_rate=[1e-3, 3e-3], output=output, resume=True)
        assert_same_dataset(resumed.dataset, whole.dataset)
        assert not [*(output / "checkpoint").rglob(".writing-*")]  # nothing half written is left


def test_eight_kills_lose_nothing(tmp_path):
    check_kills(tmp_path, 4)


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path):
    check_kills(tmp_path, 50)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_ends_with_a_checkpoint_and_says_how_to_go_on(number, exit_code, tmp_path):
    output = tmp_path / "sweep"
    endless = dataclasses.replace(LONG, total_steps=40_000_000)
    process = start(output, endless, checkpoint_seconds=1e9)
    wait_for((output / "results.nc").exists, process)
    assert checkpoints(output) == []  # none is ever due
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == exit_code, err
    assert f"resume=True goes on from what is kept in {output}" in " ".join(err.split())
    assert "Traceback" not in err
    assert results.load(output).attrs["status"] == "interrupted"
    assert len(checkpoints(output)) == 1


def test_a_signal_that_python_drops_is_heard_again(capfd):
    """What is raised in a callback of the garbage collector goes nowhere, with a traceback."""

    def collected(*_):
        gc.callbacks.remove(collected)
        signal.raise_signal(signal.SIGTERM)

    def collect():
        gc.callbacks.append(collected)
        gc.collect()
        while True:
            time.sleep(0.01)

    with catch_signals() as stop, pytest.raises(Stopped):
        collect()
    assert stop.number == signal.SIGTERM
    assert "Traceback" not in capfd.readouterr().err


def test_two_sweeps_into_one_folder_are_one_too_many(tmp_path):
    output = tmp_path / "sweep"
    first = start(output, dataclasses.replace(LONG, total_steps=40_000_000))
    wait_for((output / "results.nc").exists, first)
    second = start(output, dataclasses.replace(LONG, total_steps=40_000_000))
    _, err = second.communicate()
    assert second.returncode == 2
    assert "another process is writing" in " ".join(err.split())
    assert "Traceback" not in err
    assert first.poll() is None
    first.kill()  # and the lock with it
    first.communicate()
    third = start(output, dataclasses.replace(LONG, total_steps=40_000_000))
    wait_for(lambda: checkpoints(output), third)
    assert third.poll() is None
    third.kill()
    third.communicate()
