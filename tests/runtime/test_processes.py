"""Two processes that share a sweep (`jax.distributed`): the numbers of one."""

import dataclasses
import functools
import pickle
import re
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import pytest

from purejaxdqn import agents
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.runtime import processes as distributed
from purejaxdqn.storage import checkpoint, results
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.plan import plan_sweep
from purejaxdqn.sweep.run import SweepResult, run_design, run_sweep
from purejaxdqn.types import ConfigError
from tiny import TINY

CONFIG = dataclasses.replace(TINY, total_steps=20_000, eval_interval=5_000)
RATES = {"learning_rate": [1e-3, 3e-3]}
COMMON: dict[str, Any] = {"config": CONFIG, "seeds": range(3), **RATES}


@functools.cache
def alone(width):
    """The same in one process."""
    return run_sweep(dqn, **COMMON, width=width, progress=False)


WORKER = """
import faulthandler, pickle, sys
faulthandler.dump_traceback_later(3500)  # to see who waits for whom
import jax
process, port, path, calls = pickle.load(sys.stdin.buffer)
jax.distributed.initialize(f"localhost:{port}", 2, process)
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.sweep.run import run_sweep
from purejaxdqn.types import ConfigError
use_every_core(2)
answers = []
for options in calls:
    try:
        result = run_sweep(dqn, **options)
        answers.append((result.dataset, result.params))
    except ConfigError as error:
        answers.append(str(error))
path.write_bytes(pickle.dumps(answers))
"""


class Pair:
    """Two processes, each of which makes its own calls of `run_sweep`."""

    def __init__(self, calls, folder, environment):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        folder.mkdir()
        self.paths = [folder / f"answers{process}" for process in range(2)]
        self.logs = [folder / f"log{process}" for process in range(2)]
        self.processes = []
        for process in range(2):
            with self.logs[process].open("wb") as log:
                worker = subprocess.Popen(
                    [sys.executable, "-c", WORKER],
                    stdin=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                )
            assert worker.stdin is not None
            worker.stdin.write(pickle.dumps((process, port, self.paths[process], calls[process])))
            worker.stdin.close()
            self.processes.append(worker)

    def answers(self):
        """What each call gave, in each process."""
        try:
            for process, log in zip(self.processes, self.logs, strict=True):
                assert process.wait() == 0, log.read_text()
        finally:
            self.kill()
        return [pickle.loads(path.read_bytes()) for path in self.paths]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


def test_two_processes_give_what_one_gives(tmp_path, fresh_environment, assert_same_bits):
    output = tmp_path / "sweep"
    output.mkdir()
    plan = plan_sweep(dqn, grid_design(CONFIG, [0], {}), jax.devices())
    three_runs = 3 * plan.groups[0].run.running_bytes
    calls: list[list[dict]] = [[], []]
    for process in range(2):
        common = {**COMMON, "progress": False}
        # What one of them refuses, both do: neither waits for the other.
        calls[process].append({**common, "seeds": range(3 + process)})
        calls[process].append({**common, "memory_budget": [10**9, 100][process]})
        # Only one run at a time has room on a device of the second, so that none may be wider.
        calls[process].append({**common, "memory_budget": [10**9, three_runs][process]})
        # Six runs on four devices: three batches of two.
        calls[process].append({**common, "output": output, "checkpoint_seconds": 0})
        calls[process].append({**common, "output": output, "resume": True})
        calls[process].append({**common, "output": output, "resume": True, "width": 3})
    both = Pair(calls, tmp_path / "pair", fresh_environment).answers()
    for other_seeds, no_room, narrow, kept, again, other_width in both:
        assert "process 1 was given another design" in other_seeds
        assert "100 bytes may be used" in no_room
        for answer, width in ((narrow, 1), (kept, 2), (again, 2)):
            dataset, params = answer
            assert dataset.attrs["width"] == width
            assert dataset.attrs["num_devices"] == 4
            assert_same_bits(SweepResult(dataset, params), alone(width))
        assert again[0].attrs["date"] == kept[0].attrs["date"]  # only read
        assert "width: 2 there, 3 now" in other_width
    written = SweepResult(results.load(output), both[0][3][1])
    assert_same_bits(written, SweepResult(*both[1][3]))
    assert sorted(path.name for path in (output / "checkpoint").iterdir()) == [
        "finished",
        "lock",
        "results.nc",
        "sweep",
        "times",
    ]


def under_way(output):
    """The batches that have a checkpoint of some step."""
    batches = set()
    for folder in (output / "checkpoint" / "running").glob("[0-9]*"):
        try:
            facts = checkpoint.read_manifest(folder)["facts"]
        except checkpoint.CheckpointDamaged:  # dropped meanwhile
            continue
        batches |= {batch["batch"] for batch in facts["batches"]}
    return batches


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on(tmp_path, fresh_environment, assert_same_bits):
    output = tmp_path / "sweep"
    output.mkdir()
    call = {**COMMON, "width": 2, "output": output, "resume": True, "checkpoint_seconds": 0}
    pair = Pair([[call], [call]], tmp_path / "killed", fresh_environment)
    try:
        while 1 not in under_way(output):  # the only batch of the second
            assert all(process.poll() is None for process in pair.processes), pair.logs
            time.sleep(0.01)
    finally:
        pair.kill()
    assert not (output / "checkpoint" / "finished" / "1").exists()
    pair = Pair([[call], [call]], tmp_path / "again", fresh_environment)
    both = pair.answers()
    assert re.search(r"going on at step [1-9]", " ".join(pair.logs[1].read_text().split()))
    for (answer,) in both:
        assert_same_bits(SweepResult(*answer), alone(2))


def test_two_commands_share_a_sweep(tmp_path, fresh_environment, assert_same_bits):
    """`purejaxdqn sweep --coordinator`: the second process only trains."""
    output = tmp_path / "sweep"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    small = {n: v for n, v in dataclasses.asdict(CONFIG).items() if v != getattr(DQNConfig(), n)}
    flags = ["--learning-rate", "1e-3", "3e-3", "--num-seeds", "3", "--width", "2"]
    for name, value in small.items():
        flags += [f"--{name.replace('_', '-')}", "8" if name == "hidden_sizes" else str(value)]
    flags += ["--output", str(output), "--num-devices", "2"]
    flags += ["--coordinator", f"localhost:{port}", "--num-processes", "2"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "purejaxdqn", "sweep", *flags, "--process-id", str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=fresh_environment,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert ["written to" in out for out, _ in said] == [True, False]
    dataset = results.load(output)
    assert dataset.attrs["num_devices"] == 4
    assert dataset.attrs["status"] == "finished"
    design = grid_design(functools.partial(agents.configure, **small), range(3), RATES)
    expected = run_design(agents.train, design, width=2, progress=False)
    assert_same_bits(SweepResult(dataset, expected.params), expected)


def test_a_lone_process_talks_to_no_other(monkeypatch):
    monkeypatch.setattr(distributed, "gather", None)
    assert distributed.run_on_first_process(lambda: 3) == 3
    assert distributed.run_on_every_process(lambda: 4) == [4]

    def refuse():
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        distributed.run_on_first_process(refuse)
