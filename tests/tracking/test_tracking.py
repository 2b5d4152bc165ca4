"""Tests what each library has on disk after a sweep, read with its own reader."""

import contextlib
import importlib.util
import io
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest

from purejaxdqn import tracking
from purejaxdqn.tracking import Evaluated, open_tracker
from purejaxdqn.tracking.libraries import ID_FILE
from purejaxdqn.types import ConfigError

CONFIG = {"env": "CartPole-v1", "discount": 0.99, "hidden_sizes": (8, 8), "learning_rate": 5e-4}
LEARNING_RATES, SEEDS, STEPS = (1e-3, 3e-4), (7, 2**32 - 1), (80, 200, 400)
RUNS = [(rate, seed) for rate in LEARNING_RATES for seed in SEEDS]
EXTRAS = {  # by tracker
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "wandb-offline": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}
LIBRARIES = sorted({*EXTRAS} - {"wandb"})  # those that need no server


def evaluation(step, runs=range(4)):
    """Makes an evaluation of some of the four runs; no two of its numbers are the same."""
    runs = np.array(runs)
    first = step == STEPS[0]
    return Evaluated(
        step=step,
        runs=runs,
        labels=[
            {"learning_rate": np.float64(RUNS[run][0]), "seed": np.uint32(RUNS[run][1])}
            for run in runs
        ],
        episode_return=step + 10.0 * runs[:, None] + np.arange(5, dtype=np.float32),
        training_return=np.full(len(runs), np.nan) if first else step / 2 + runs,
        metrics={
            "loss": (1 + runs) / step,
            "policy_churn": np.full(len(runs), np.nan) if first else runs / 100 + step,
        },
    )


def expected():
    """Returns what a reader must find: `{run: {name: [(step, value), ...]}}`."""
    return {
        run: {
            "greedy_return": [(step, step + 10 * at + 2) for step in STEPS],
            "training_return": [(step, step / 2 + at) for step in STEPS[1:]],
            "loss": [(step, pytest.approx((1 + at) / step, rel=1e-6)) for step in STEPS],
            "policy_churn": [(s, pytest.approx(at / 100 + s, rel=1e-6)) for s in STEPS[1:]],
        }
        for at, run in enumerate(RUNS)
    }


@contextlib.contextmanager
def open_trackers(folder):
    """Opens all trackers whose libraries are installed, as one."""
    with contextlib.ExitStack() as stack:
        trackers = [
            stack.enter_context(open_tracker(name, folder, project="tests", config=CONFIG))
            for name in LIBRARIES
            if importlib.util.find_spec(EXTRAS[name])
        ]
        yield lambda event: [tracker(event) for tracker in trackers]


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory):
    """Keeps the tests from the user's own files and from the network."""
    home = tmp_path_factory.mktemp("home")
    connect = socket.socket.connect

    def connect_here(self, address):
        here = self.family == getattr(socket, "AF_UNIX", None) or address[0] in ("127.0.0.1", "::1")
        assert here, f"a connection to {address}"
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        for name in os.environ:
            if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_", "HF_")):
                patch.delenv(name)
        for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HF_HOME"):
            patch.setenv(name, str(home))
        patch.setenv("TRACKIO_DIR", str(home / "trackio"))
        patch.setenv("NETRC", str(home / "netrc"))
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Tracks a sweep of two rounds, one per setting; returns its folder and standard output."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stdout(io.StringIO()) as printed, open_trackers(folder) as track:
        for runs in ([0, 1], [2, 3]):
            for step in STEPS:
                track(evaluation(step, runs))
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Tracks a sweep that is interrupted, and goes on from a little before that point."""
    folder = tmp_path_factory.mktemp("resumed") / "it's a sweep"
    with contextlib.suppress(KeyboardInterrupt), open_trackers(folder) as track:
        track(evaluation(80))
        track(evaluation(200))
        raise KeyboardInterrupt
    interrupted = mlflow_status(folder) if importlib.util.find_spec("mlflow") else None
    with open_trackers(folder) as track:
        track(evaluation(200))
        track(evaluation(400))
    return folder, interrupted


def test_event_files_are_read_in_the_order_of_their_processes(tmp_path, monkeypatch):
    """TensorBoard sorts them by second, host, process and a count, "10" before "9"."""
    skip_without("tensorboard")
    from tensorboard.summary.writer import event_file_writer

    counts = iter([9, 10, 11])
    counter = types.SimpleNamespace(get=lambda: next(counts))
    monkeypatch.setattr(event_file_writer, "_global_uid", counter)
    for step in STEPS:
        with open_tracker("tensorboard", tmp_path, project="tests", config=CONFIG) as track:
            track(evaluation(step, [0]))
    ((_, curves),) = read_tensorboard(tmp_path)[0].items()
    assert [step for step, _ in curves["greedy_return"]] == [*STEPS]


# Each reader returns `{run: {name: [(step, value), ...]}}`, `{run: group}` and `{run: settings}`;
# a run is (learning rate, seed).


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    curves, groups, settings = {}, {}, {}
    for path in sorted((folder / "tensorboard").glob("*/*")):
        rate = path.parent.name.removeprefix("learning_rate=")
        seed = int(path.name.removeprefix("seed_"))
        run = float(rate), seed
        reader = EventAccumulator(str(path))
        reader.Reload()
        curves[run] = {
            tag: [(point.step, point.value) for point in reader.Scalars(tag)]
            for tag in reader.Tags()["scalars"]
        }
        content = reader.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        start = metadata.parse_session_start_info_plugin_data(content)
        groups[run] = start.group_name
        settings[run] = {
            key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()
        } | {"seed": seed}
    return curves, groups, settings


def read_wandb(folder):
    from wandb.util import get_core_path

    curves: dict = {}
    groups: dict = {}
    settings: dict = {}
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    for path in files:
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
        answer = subprocess.run(
            [*command, "--run-file", path, path.parent.parent],
            capture_output=True,
            text=True,
            check=True,
        )
        records = [json.loads(line) for line in answer.stdout.splitlines()]
        (started,) = [record["run"] for record in records if record["type"] == "run"]
        assert started["resume"]  # without, `wandb sync` would overwrite the part before
        config = {k: v for k, v in started["config"]["update"].items() if not k.startswith("_")}
        run = config["learning_rate"], config["seed"]
        groups.setdefault(run, started["run_group"])
        assert groups[run] == started["run_group"]
        assert settings.setdefault(run, config) == config
        for record in records:
            if record["type"] == "history":
                item = record["history"]["item"]
                for name in {*item} - {"_step", "_runtime", "_timestamp"}:
                    curve = curves.setdefault(run, {}).setdefault(name, [])
                    curve.append((item["_step"], item[name]))
    assert len({path.name for path in files}) == len(groups)
    return curves, groups, settings


def read_trackio(folder):
    sweep = (folder / ID_FILE).read_text().strip()
    curves: dict = {}
    groups, settings, names = {}, {}, {}
    (path,) = Path(os.environ["TRACKIO_DIR"]).glob("tests.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        for key, name, text in database.execute("SELECT run_id, run_name, config FROM configs"):
            config = json.loads(text)
            if sweep not in name:
                continue
            names[key] = run = config["learning_rate"], config["seed"]
            groups[run] = config["_Group"]
            settings[run] = {k: v for k, v in config.items() if not k.startswith("_")}
            curves[run] = {}
        rows = "SELECT run_id, step, metrics FROM metrics ORDER BY id"
        for key, step, text in database.execute(rows):
            if key in names:
                for name, value in json.loads(text).items():
                    curves[names[key]].setdefault(name, []).append((step, value))
    assert len({*names.values()}) == len(names)
    return curves, groups, settings


def mlflow_runs(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tests'")
    return client, client.search_runs([experiment.experiment_id])


def mlflow_status(folder):
    return {run.info.status for run in mlflow_runs(folder)[1]}


def read_mlflow(folder):
    curves, groups, settings = {}, {}, {}
    client, found = mlflow_runs(folder)
    parents = {run.info.run_id: run for run in found if "mlflow.parentRunId" not in run.data.tags}
    for child in found:
        if child.info.run_id in parents:
            continue
        parent = parents[child.data.tags["mlflow.parentRunId"]]
        params = child.data.params
        assert params == {**parent.data.params, "seed": params["seed"]}
        params = {
            **params,
            "hidden_sizes": [int(x) for x in re.findall(r"\d+", params["hidden_sizes"])],
        }
        params |= {key: float(params[key]) for key in ("learning_rate", "discount")}
        run = params["learning_rate"], int(params["seed"])
        assert run not in groups
        groups[run] = parent.info.run_name
        settings[run] = params | {"seed": run[1]}
        curves[run] = {
            name: [(p.step, p.value) for p in client.get_metric_history(child.info.run_id, name)]
            for name in child.data.metrics
        }
    assert len(parents) == len(LEARNING_RATES)
    return curves, groups, settings


READERS = {
    "tensorboard": read_tensorboard,
    "wandb-offline": read_wandb,
    "trackio": read_trackio,
    "mlflow": read_mlflow,
}


def skip_without(name):
    extra = EXTRAS[name]
    pytest.importorskip(extra, reason=f"needs {extra}: pip install 'purejaxdqn[{extra}]'")


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("sweep", ["whole", "resumed"])
def test_every_run_has_its_curves_in_the_group_of_its_setting(name, sweep, request):
    skip_without(name)
    folder, _ = request.getfixturevalue(sweep)
    curves, groups, settings = READERS[name](folder)
    assert curves == expected()
    sweep_name = f"{folder.name}-{(folder / ID_FILE).read_text().strip()}"
    assert groups == {(r, s): f"{sweep_name}/learning_rate={r}" for r, s in RUNS}
    for (rate, seed), found in settings.items():
        sizes = "(8, 8)" if name == "tensorboard" else [8, 8]
        assert found == {**CONFIG, "hidden_sizes": sizes, "learning_rate": rate, "seed": seed}


def test_standard_output_is_left_to_the_results(whole):
    assert whole[1] == ""


def test_mlflow_says_whether_a_sweep_was_interrupted(resumed):
    skip_without("mlflow")
    folder, interrupted = resumed
    assert interrupted == {"FAILED"}
    assert mlflow_status(folder) == {"FINISHED"}


def test_a_sweep_without_swept_settings_has_one_group(tmp_path):
    skip_without("tensorboard")
    event = evaluation(80, [0, 1])
    with open_tracker("tensorboard", tmp_path, config=CONFIG) as track:
        track(event._replace(labels=[{"seed": 0}, {"seed": 1}]))
    folders = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("events*")}
    assert folders == {"tensorboard/seed_0", "tensorboard/seed_1"}


def test_settings_of_any_kind_and_length_have_folders_of_their_own(tmp_path):
    skip_without("tensorboard")
    values = ["a/b", "a_b", "..", True, "x" * 300, "x" * 300 + "y"]
    event = evaluation(80, [0] * len(values))
    with open_tracker("tensorboard", tmp_path, config={}) as track:
        track(event._replace(labels=[{"loss": value, "seed": 0} for value in values]))
    folders = {path.parent.parent for path in tmp_path.rglob("events*")}
    assert len(folders) == len(values)
    assert {path.parent for path in folders} == {tmp_path / "tensorboard"}


def test_after_forgetting_a_sweep_begins_anew(tmp_path):
    skip_without("tensorboard")
    ids = []
    for step in (200, 80):
        tracking.forget(tmp_path)
        with open_tracker("tensorboard", tmp_path, config=CONFIG) as track:
            track(evaluation(step))
        ids.append((tmp_path / ID_FILE).read_text())
    assert ids[0] != ids[1]
    curves, _, _ = read_tensorboard(tmp_path)
    assert {step for curve in curves.values() for step, _ in curve["loss"]} == {80}


@pytest.mark.parametrize("name", EXTRAS)
def test_without_its_library_a_tracker_says_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, EXTRAS[name], None)
    with (
        pytest.raises(ConfigError, match=re.escape(f'pip install "purejaxdqn[{EXTRAS[name]}]"')),
        open_tracker(name, tmp_path, config={}),
    ):
        pass


def test_every_tracker_has_its_extra():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert {*EXTRAS} == {*tracking.TRACKERS}
    (everything,) = extras["tracking"]
    assert sorted(everything[len("purejaxdqn[") : -1].split(",")) == sorted({*EXTRAS.values()})
    for extra in EXTRAS.values():
        assert re.match(extra, extras[extra][0])


def test_libraries_are_imported_only_when_they_are_used():
    libraries = {*EXTRAS.values()}
    code = f"import sys, purejaxdqn.tracking; assert not {libraries} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wandb_online_asks_for_a_login_before_training(tmp_path):
    skip_without("wandb")
    with (
        pytest.raises(ConfigError, match=r"cannot log in .*'wandb login'.*'wandb-offline'"),
        open_tracker("wandb", tmp_path, config={}),
    ):
        pass
