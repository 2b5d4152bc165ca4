"""Sweeps on a Ray cluster: the numbers of one machine, whichever node dies."""

import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import os
import shutil
import socket
import sys
import threading
import time
import types
import warnings
from typing import Any

import psutil
import pytest

from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.storage import checkpoint, results
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.ray import cluster
from purejaxdqn.sweep.ray.cluster import run_on_cluster
from purejaxdqn.sweep.run import SweepInterrupted, run_design
from purejaxdqn.types import ConfigError
from tiny import TINY

CONFIG = dataclasses.replace(TINY, total_steps=60_000, eval_interval=15_000)
# Ray starts its processes from this one, in which JAX has threads.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork")
# Four batches of two runs.
DESIGN = grid_design(CONFIG, range(4), {"learning_rate": [1e-3, 3e-3]})
OPTIONS: dict[str, Any] = {"width": 2, "batches_per_task": 2, "checkpoint_seconds": 0}
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def alone():
    """The same, undisturbed and without Ray."""
    return run_design(dqn, DESIGN, width=2, progress=False)


def add_node(nodes, address, **options):
    """Adds a node, and waits until it is there: for longer than Ray's own half a minute."""
    node = nodes.add_node(**NODE, node_ip_address=address, wait=False, **options)
    nodes.wait_for_nodes(timeout=3600)
    return node


@pytest.fixture(scope="module")
def ray_cluster(fresh_environment, alone):
    """A node with one CPU, to which others can be added; nothing of it is left."""
    ray = pytest.importorskip(
        "ray", reason='Ray is not installed: pip install "purejaxdqn[cluster]"'
    )
    from ray._private import services
    from ray.cluster_utils import Cluster

    if sys.platform != "linux":
        pytest.skip("every node needs a loopback address of its own, as only Linux has them")
    before = dict(os.environ)
    session = None
    for name in os.environ:
        if name.startswith(("JAX_", "XLA_", "RAY_")):
            del os.environ[name]
    os.environ |= fresh_environment | {"RAY_USAGE_STATS_ENABLED": "0"}
    nodes = Cluster()
    get_node = services.get_node

    def wait_for_node(address, node):  # Ray gives a node half a minute to start
        while True:
            with contextlib.suppress(RuntimeError):
                return get_node(address, node)
            time.sleep(0.1)

    services.get_node = wait_for_node
    try:
        session = add_node(nodes, "127.0.0.2", include_dashboard=False).get_session_dir_path()
        yield nodes
    finally:
        services.get_node = get_node
        ray.shutdown()
        nodes.shutdown()
        with warnings.catch_warnings(action="ignore"):
            gc.collect()  # Ray leaves files open
        os.environ.clear()
        os.environ |= before
        if session is not None:
            shutil.rmtree(session, ignore_errors=True)


def kept_step(output, batch):
    """The furthest step at which a batch was kept."""
    steps = [0]
    for folder in (output / "checkpoint" / "running").glob("[0-9]*"):
        try:
            facts = checkpoint.read_manifest(folder)["facts"]
        except checkpoint.CheckpointDamaged:  # dropped meanwhile
            continue
        if batch in [one["batch"] for one in facts["batches"]]:
            steps.append(facts["step"])
    return max(steps)


def die(nodes, node):
    """All processes of a node end at once, as when its machine is lost."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()
    nodes.remove_node(node, allow_graceful=False)


def test_a_node_that_dies_changes_no_bit(
    ray_cluster, alone, assert_same_bits, tmp_path, monkeypatch, capsys
):
    # At another address, so that it is not the one that this process talks to.
    victim = add_node(ray_cluster, "127.0.0.3")
    nodes: dict[int, str] = {}
    on_start = cluster._Driver._on_start

    def note_node(driver, task, node, versions):
        nodes.setdefault(task, node)
        on_start(driver, task, node, versions)

    monkeypatch.setattr(cluster._Driver, "_on_start", note_node)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.05)

    def kill():
        """Kills the other node once the task on it has been kept in mid-sweep."""
        while not ended.wait(0.01):
            for task, node in nodes.copy().items():
                if victim.node_id in node and kept_step(tmp_path, 2 * task) > 100:
                    die(ray_cluster, victim)
                    assert not (tmp_path / "checkpoint" / "finished" / str(2 * task)).exists()
                    return
        raise AssertionError("the sweep was over before the node could be killed")

    ended = threading.Event()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        killed = pool.submit(kill)
        try:
            result = run_on_cluster(
                dqn, DESIGN, address=ray_cluster.address, output=tmp_path, **OPTIONS
            )
        finally:
            ended.set()
        killed.result()
    err = " ".join(capsys.readouterr().err.split())
    assert len({*nodes.values()}) == 2
    assert_same_bits(result, alone)
    assert_same_bits(result._replace(dataset=results.load(tmp_path)), alone)
    attrs = result.dataset.attrs
    assert attrs["retries"] == 1, err
    (step,) = json.loads(attrs["retried_from"])
    assert 100 < step < CONFIG.total_steps
    assert attrs["num_devices"] == 2
    assert attrs["status"] == "finished"
    assert "started again on" in err
    assert f"going on at step {step:,}" in err
    assert not (tmp_path / "checkpoint" / "running").exists()


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_without_the_cluster(
    ray_cluster, alone, assert_same_bits, tmp_path
):
    seen = []

    def interrupt(event):
        seen.append(event)
        if event.step == 15_000:
            raise KeyboardInterrupt

    options = {**OPTIONS, "checkpoint_seconds": None, "batches_per_task": 1}
    with pytest.raises(SweepInterrupted, match="resume=True goes on") as caught:
        run_on_cluster(
            dqn,
            DESIGN,
            address=ray_cluster.address,
            output=tmp_path,
            on_evaluation=interrupt,
            progress=False,
            **options,
        )
    assert [event.step for event in seen[:2]] == [80, 15_000]
    assert seen[0].labels[0] == {"learning_rate": 1e-3, "seed": 0}
    kept = caught.value.result.dataset.isel(learning_rate=0, seed=[0, 1])
    for event, step in zip(seen, (80, 15_000), strict=False):
        ours = kept.evaluation_return.sel(step=step).values
        assert ours.tobytes() == event.episode_return.tobytes()
    assert results.load(tmp_path).attrs["status"] == "interrupted"
    # None was due: the task wrote it when it was told to stop.
    is_finished = (tmp_path / "checkpoint" / "finished" / "0").exists()
    assert is_finished or kept_step(tmp_path, 0) >= 15_000
    result = run_design(dqn, DESIGN, output=tmp_path, resume=True, progress=False)
    assert_same_bits(result, alone)


@pytest.mark.slow
def test_what_a_node_refuses_is_one_line(ray_cluster, tmp_path, monkeypatch):
    """A folder that the other nodes do not see; its place is taken by one that is not the same."""
    open_sweep = cluster.open_sweep

    @contextlib.contextmanager
    def open_another(*args):
        with open_sweep(*args) as sweep:
            yield sweep._replace(request={})

    monkeypatch.setattr(cluster, "open_sweep", open_another)
    with pytest.raises(ConfigError, match="output must be a folder that all nodes") as caught:
        run_on_cluster(
            dqn, DESIGN, address=ray_cluster.address, output=tmp_path, progress=False, **OPTIONS
        )
    assert str(caught.value).count("\n") == 0
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"num_cpus_per_task \(3\) must be at most 1, the CPUs"):
        run_on_cluster(
            dqn, DESIGN, address=ray_cluster.address, output=tmp_path, num_cpus_per_task=3
        )
    with pytest.raises(ConfigError, match=r"has a CPU and 1 GPU"):
        run_on_cluster(
            dqn, DESIGN, address=ray_cluster.address, output=tmp_path, num_gpus_per_task=1
        )
    with pytest.raises(ConfigError, match="may be used"):
        run_on_cluster(
            dqn, DESIGN, address=ray_cluster.address, output=tmp_path / "other", memory_budget=100
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches_per_task": 0}, r"batches_per_task \(0\) must be at least 1 and a whole number"),
        ({"num_cpus_per_task": 1.5}, r"num_cpus_per_task \(1.5\)"),
        ({"num_gpus_per_task": -1}, r"num_gpus_per_task \(-1\) .* at least 0"),
        ({"num_gpus_per_task": True}, r"num_gpus_per_task \(True\)"),
    ],
)
def test_bad_numbers_are_refused_before_ray_is_needed(options, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=words):
        run_on_cluster(dqn, DESIGN, output=tmp_path, **options)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "purejaxdqn\[cluster\]"'):
        run_on_cluster(dqn, DESIGN, output=tmp_path)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", r"no Ray cluster can be reached at 127.0.0.1:1 .*refused"),
        ("nonsense", r"cluster \('nonsense'\) must be a host and a port"),
    ],
)
def test_where_there_is_no_cluster_it_is_said(address, words, tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=words):
        run_on_cluster(dqn, DESIGN, address=address, output=tmp_path)


class NoRay(types.ModuleType):
    """Stands in for Ray that does not start, or that fails once it has started."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self, failure=None, nodes=()):
        super().__init__("ray")
        self.failure, self.nodes, self.is_up = failure, nodes, False

    def is_initialized(self):
        return False

    def init(self, *_, **__):
        self.is_up = True
        if self.failure:
            raise self.failure

    def shutdown(self):
        self.is_up = False


@pytest.mark.parametrize(
    ("address", "failure", "words"),
    [
        (None, Exception("The current node timed out"), "Ray does not start .*: The .* 'ray stop'"),
        ("local", TimeoutError(), "Ray does not start on this machine"),
        ("auto", ConnectionError("no\nRay"), "no Ray cluster .* at auto .*no Ray.* 'ray start"),
        ("auto", NoRay.exceptions.RayError("x" * 999), "no Ray cluster can be reached at auto"),
    ],
)
def test_where_ray_does_not_start_a_line_says_why(address, failure, words, tmp_path, monkeypatch):
    ray = NoRay(failure)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=words) as caught:
        run_on_cluster(dqn, DESIGN, address=address, output=tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600
    assert not ray.is_up
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("answer", [b"HTTP/1.0 200 OK\r\n", b"", b"x"])
def test_what_answers_at_the_address_and_is_no_ray(answer, tmp_path, monkeypatch):
    """Ray itself would try for minutes."""
    monkeypatch.setitem(sys.modules, "ray", NoRay())
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(99)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"at {address} .*what answers there is no Ray"):
            run_on_cluster(dqn, DESIGN, address=address, output=tmp_path / "out")
        thread.join()


def test_a_cluster_that_is_lost_is_one_line(tmp_path, monkeypatch):
    def fail():
        raise NoRay.exceptions.RayError("the raylet\ndied")

    ray = NoRay(nodes=fail)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(OSError, match=r"cannot be used any more .*the raylet died.* 'ray status'"):
        run_on_cluster(dqn, DESIGN, address="auto", output=tmp_path / "out")
    assert not ray.is_up


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_commands_start_ray_before_jax(command, run_python, tmp_path):
    """Started first, JAX has threads that Ray's processes would copy, and one device."""
    pytest.importorskip("ray")
    words = [command, "--cluster", "127.0.0.1:1", "--output", str(tmp_path / "out")]
    script = f"""
from jax._src import xla_bridge
from purejaxdqn.cli.main import run
try:
    run({words})
except ValueError as error:
    print(xla_bridge.backends_are_initialized(), error)
"""
    assert run_python("-c", script).stdout.startswith("False no Ray cluster can be reached")


class Nodes:
    """Stands in for Ray: only says what nodes there are."""

    def __init__(self, *resources):
        self._nodes = [{"Alive": True, "Resources": part} for part in resources]

    def nodes(self):
        return [*self._nodes, {"Alive": False, "Resources": {}}]


def test_a_task_has_a_share_of_its_node():
    nodes = Nodes(
        {"CPU": 4.0, "memory": 8e9},
        {"CPU": 9.0, "memory": 8e9},
        {"memory": 1e9},  # runs no tasks
    )
    layout = cluster._lay_out(nodes, None, 0, None)
    assert (layout.num_cpus, layout.num_gpus, layout.devices_per_task) == (4, 0, 4)
    assert layout.num_devices == 4 + 2 * 4
    assert layout.memory_budget == int(8e9 * 4 / 9)
    single = cluster._lay_out(nodes, 1, 0, 123)
    assert (single.devices_per_task, single.num_devices) == (2, 13)
    assert single.memory_budget == 123
    gpus = cluster._lay_out(Nodes({"CPU": 8.0, "GPU": 4.0, "memory": 1e9}), None, 2, None)
    assert (gpus.num_cpus, gpus.num_gpus, gpus.devices_per_task) == (1, 2, 2)
    assert gpus.num_devices == 4
    assert gpus.memory_budget is None  # known on the node alone
