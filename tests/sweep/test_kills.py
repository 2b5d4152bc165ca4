"""Sweeps that are killed or stopped by a signal go on as if nothing had happened."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.runtime.interrupts import Stopped, catch_signals, keep_handlers
from purejaxdqn.storage import checkpoint, results
from purejaxdqn.storage.checkpoint import CheckpointDamaged
from purejaxdqn.storage.files import TEMPORARY
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
    given = json.loads(sys.argv[3])
    config = DQNConfig(**{n: tuple(x) if type(x) is list else x for n, x in given.items()})
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


def test_four_kills_lose_nothing(tmp_path):
    check_kills(tmp_path, 2)


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path):
    check_kills(tmp_path, 50)


COMMAND = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
os.dup2(2, 1)
sys.argv[1:] = words
from purejaxdqn.cli.main import main
main()
"""
SMALL = (
    "--total-steps 20000 --num-envs 4 --steps-per-update 4 --prefill-steps 80 --replay-capacity "
    "120 --batch-size 16 --hidden-sizes 8 --target-period 5 --eval-interval 5000 "
    "--eval-episodes 3 --num-seeds 2 --output"
)
RATES = "--learning-rate 1e-3 3e-3 --width 2 --checkpoint-seconds 0 --resume"
COMMANDS = {
    "sweep": f"sweep {RATES} {SMALL}",
    "ablation": f"ablate --components double --width 2 --checkpoint-seconds 0 --resume {SMALL}",
    "search": f"search --learning-rate loguniform:1e-4:1e-2 --num-trials 6 --trials-per-batch 2 "
    f"{SMALL}",
    "cluster": f"sweep --cluster local {RATES} {SMALL}",
}
SIGNALS = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


class Lives:
    """Lives of one command in one folder, each of which ends in its own time or before.

    A server that has imported the package forks them: importing takes longer than training.
    """

    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        [
            *(f"purejaxdqn.cli.commands.{name}" for name in ("sweep", "search", "ablate")),
            *("purejaxdqn.sweep.run", "purejaxdqn.sweep.ray.cluster", "purejaxdqn.search.search"),
            *("purejaxdqn.report.sweep", "purejaxdqn.report.ablation", "purejaxdqn.agents.dqn.dqn"),
        ]
    )

    def __init__(self, words, output, cache):
        self.output, self.words = output, [*words.split(), str(output)]
        self.log, self.script = output.with_suffix(".log"), cache.parent / "command.py"
        self.script.write_text(COMMAND)

    def start(self):
        names = {"words": self.words, "log": str(self.log)}
        args = (str(self.script), names, "__main__")
        process = self.server.Process(target=runpy.run_path, args=args)
        process.start()
        return process

    def live(self):
        """Lives to the end, and returns the seconds that this took."""
        begin = time.monotonic()
        process = self.start()
        process.join()
        assert process.exitcode == 0, self.log.read_text()
        return time.monotonic() - begin


def kept_steps(output):
    """The steps that are kept of each batch, of those checkpoints whose every byte is right."""
    steps: dict[int, int] = {}
    for path in (output / "checkpoint" / "running").glob("[0-9]*"):
        with contextlib.suppress(CheckpointDamaged):  # dropped meanwhile
            facts = checkpoint.read(path)[1]
            for one in facts["batches"]:
                steps[one["batch"]] = max(steps.get(one["batch"], 0), facts["step"])
    for path in (output / "checkpoint" / "finished").glob("[0-9]*"):
        checkpoint.read(path)  # never dropped
        steps[int(path.name)] = 10**9
    return steps


def read_everything(output):
    """Opens each file there as readers do: it is absent, or whole."""
    if (output / "study.db").exists():
        with contextlib.closing(sqlite3.connect(output / "study.db", timeout=60)) as study:
            assert study.execute("pragma integrity_check").fetchall() == [("ok",)]
            assert study.execute("select study_name from studies").fetchall() == [("search",)]
    with contextlib.suppress(FileNotFoundError):
        results.load(output)
    with contextlib.suppress(FileNotFoundError):
        json.loads((output / "summary.json").read_text())
    for folder, _, files in os.walk(output / "checkpoint"):  # also while it changes
        if "manifest.json" not in files or TEMPORARY in folder:
            continue
        path = Path(folder) / "manifest.json"
        with contextlib.suppress(FileNotFoundError):
            digest, _, text = path.read_text().removesuffix("\n").partition("\n")
            assert hashlib.sha256(text.encode()).hexdigest() == digest, path


def kill_at_random(words, folder, num_kills, rng, cache):
    """Kills a command so often, at any moment of its life, and begins again where it has ended."""
    whole = Lives(words, folder / "whole", cache)
    whole.live()  # compiles
    expected = results.load(whole.output)
    shutil.rmtree(whole.output)
    seconds = whole.live()
    for name, variable in expected.variables.items():
        assert variable.values.tobytes() == results.load(whole.output)[name].values.tobytes()
    kills = 0
    for number in itertools.count():
        lives = Lives(words, folder / f"killed{number}", cache)
        seen: dict[int, int] = {}  # the furthest steps that were ever on the disk
        while kills < num_kills:
            process, wait = lives.start(), rng.uniform(0, 1.2 * seconds)
            begin = time.monotonic()
            while process.is_alive() and time.monotonic() - begin < wait:
                read_everything(lives.output)
                seen |= {n: max(s, seen.get(n, 0)) for n, s in kept_steps(lives.output).items()}
                time.sleep(0.02)
            if not process.is_alive():
                assert process.exitcode == 0, lives.log.read_text()
                break
            kills += 1
            signals = [rng.choice(SIGNALS)]
            if rng.random() < 0.2:
                signals *= 2  # the second at once
            for one in signals:
                with contextlib.suppress(ProcessLookupError):  # the first was enough
                    os.kill(process.pid, one)
                time.sleep(rng.uniform(0, 0.2))
            process.join()
            read_everything(lives.output)
            now = kept_steps(lives.output)
            if "search" not in words:  # whose batches under way are proposed again
                assert all(now.get(n, 0) >= s for n, s in seen.items()), (seen, now)
        lives.live()
        read_everything(lives.output)
        resumed = results.load(lives.output)
        trials = {"trial"} & {*expected.dims}  # kills use up some of their numbers
        assert_same_dataset(resumed.drop_vars(trials), expected.drop_vars(trials))
        assert resumed.attrs["status"] == "finished"
        assert not [*lives.output.rglob(f"{TEMPORARY}*")]
        assert "Traceback" not in lives.log.read_text()
        if kills >= num_kills:
            return


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "num_kills"), [("sweep", 60), ("search", 60), ("ablation", 50), ("cluster", 30)]
)
def test_two_hundred_kills_at_random_times_lose_nothing(command, num_kills, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("JAX_")]:
        monkeypatch.delenv(name)
    if command == "cluster":
        pytest.importorskip("ray")
    num_kills = int(os.environ.get("NUM_KILLS", num_kills))  # fewer, on a busy machine
    rng = random.Random(command)
    kill_at_random(COMMANDS[command], tmp_path, num_kills, rng, tmp_path / "cache")


def test_a_signal_ends_with_a_checkpoint_and_says_how_to_go_on(tmp_path):
    endless = dataclasses.replace(LONG, total_steps=40_000_000)
    exit_codes = {signal.SIGTERM: 75, signal.SIGINT: 130}
    outputs = {number: tmp_path / number.name for number in exit_codes}
    # Side by side: results come after 15 seconds.
    processes = {n: start(output, endless, checkpoint_seconds=1e9) for n, output in outputs.items()}
    for number, process in processes.items():
        output = outputs[number]
        wait_for((output / "results.nc").exists, process)
        assert checkpoints(output) == []  # none is ever due
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == exit_codes[number], err
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


@pytest.mark.parametrize("cause", [Stopped(signal.SIGHUP), ValueError("other")])
def test_a_signal_amid_code_in_c_is_heard(cause):
    """Where C cannot pass an exception on, Python makes a SystemError of it."""
    wanted = Stopped if isinstance(cause, Stopped) else SystemError
    with pytest.raises(wanted), catch_signals():
        raise SystemError("f returned a result with an exception set") from cause


def test_a_library_puts_no_handler_in_place_of_ours():
    with catch_signals() as stop:
        with keep_handlers():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
            assert signal.getsignal(signal.SIGTERM) == stop.handle
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    signal.signal(signal.SIGTERM, before)


def test_two_sweeps_into_one_folder_are_one_too_many(tmp_path):
    output = tmp_path / "sweep"
    first = start(output, dataclasses.replace(LONG, total_steps=40_000_000), checkpoint_seconds=0)
    wait_for(lambda: checkpoints(output), first)
    second = start(output, dataclasses.replace(LONG, total_steps=40_000_000))
    _, err = second.communicate()
    assert second.returncode == 2
    assert "another process is writing" in " ".join(err.split())
    assert "Traceback" not in err
    assert first.poll() is None
    first.kill()  # and the lock with it
    first.communicate()
    before = checkpoints(output)
    third = start(output, dataclasses.replace(LONG, total_steps=40_000_000), checkpoint_seconds=0)
    wait_for(lambda: {*checkpoints(output)} - {*before}, third)
    assert third.poll() is None
    third.kill()
    third.communicate()
