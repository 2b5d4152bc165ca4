import dataclasses
import importlib.util
import io
import math
from pathlib import Path

import pytest
from rich.console import Console

PATH = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks" / "peers.py"
spec = importlib.util.spec_from_file_location("peers", PATH)
assert spec is not None
assert spec.loader is not None
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)

SETTINGS = peers.Settings()
VERSIONS = {"stable-baselines3": "2.9.2"}


def run(speed, num_seeds=8):
    return {"steps_per_second": speed, "num_seeds": num_seeds, "versions": VERSIONS}


def test_the_settings_ask_for_9000_updates():
    assert SETTINGS.num_updates == (100_000 - 10_000) // 10


def test_rejax_is_given_the_settings_in_its_own_units():
    arguments = peers.rejax_arguments(SETTINGS, num_seeds=3, seed=5)
    assert (arguments["num_seeds"], arguments["seed"]) == (3, 5)
    assert arguments["replace_agent"] == {"hidden_layer_sizes": (120, 84)}
    create = arguments["create"]
    assert create["env"] == "CartPole-v1"
    assert (create["num_envs"], create["num_epochs"], create["batch_size"]) == (10, 1, 128)
    assert (create["buffer_size"], create["total_timesteps"]) == (10_000, 100_000)
    # It starts at the first iteration that begins with more steps than this: at 10,000.
    assert create["fill_buffer"] == 9_999
    assert (create["target_update_freq"], create["polyak"]) == (500, 0.0)
    assert (create["learning_rate"], create["gamma"], create["ddqn"]) == (2.5e-4, 0.99, False)
    assert create["skip_initial_evaluation"]
    assert create["eval_freq"] == create["total_timesteps"]


def test_sb3_is_given_the_settings_in_its_own_units():
    arguments = peers.sb3_arguments(SETTINGS, seed=5)
    assert (arguments["env"], arguments["num_envs"]) == ("CartPole-v1", 10)
    assert arguments["total_timesteps"] == 100_000
    dqn = arguments["dqn"]
    # One call steps all 10 environments.
    assert (dqn["train_freq"], dqn["gradient_steps"], dqn["seed"]) == (1, 1, 5)
    assert (dqn["target_update_interval"], dqn["tau"]) == (500, 1.0)
    assert (dqn["buffer_size"], dqn["learning_starts"], dqn["batch_size"]) == (10_000, 10_000, 128)
    assert (dqn["learning_rate"], dqn["gamma"], dqn["max_grad_norm"]) == (2.5e-4, 0.99, math.inf)
    assert dqn["policy_kwargs"] == {"net_arch": (120, 84)}
    fewer = dataclasses.replace(SETTINGS, steps_per_update=20, num_envs=5)
    assert peers.sb3_arguments(fewer, seed=0)["dqn"]["train_freq"] == 4


def test_rows_hold_medians_and_ratios_of_this_package_to_each():
    rows = peers.summarise(
        {
            "package": [run(100.0), run(300.0), run(120.0)],
            "rejax": [run(40.0), run(30.0), run(1.0)],
            "sb3": [run(6.0, 1), run(7.0, 1), run(5.0, 1)],
        },
        peers.DEVIATIONS,
    )
    assert [row["system"] for row in rows] == ["package", "rejax", "sb3"]
    assert [row["steps_per_second"] for row in rows] == [120.0, 30.0, 6.0]
    assert [row["ratio"] for row in rows] == [1.0, 4.0, 20.0]
    assert [row["num_seeds"] for row in rows] == [8, 8, 1]
    assert rows[1]["steps_per_second_rounds"] == [40.0, 30.0, 1.0]
    assert rows[0]["deviations"] == []
    assert any("smooth L1" in deviation for deviation in rows[2]["deviations"])


def test_without_the_package_there_is_no_ratio():
    (row,) = peers.summarise({"rejax": [run(40.0)]}, peers.DEVIATIONS)
    assert row["ratio"] is None
    assert row["steps_per_second"] == 40.0


def test_the_table_shows_versions_speeds_and_ratios():
    runs = {"package": [run(120_000.0)], "sb3": [run(5_000.0, 1), run(7_000.0, 1)]}
    rows = peers.summarise(runs, peers.DEVIATIONS)
    output = io.StringIO()
    # 80 columns are what a terminal may have, and what a pipe gets.
    Console(file=output, width=80).print(peers.make_table(rows, SETTINGS))
    (line,) = (line for line in output.getvalue().splitlines() if "6,000" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["stable-baselines3 2.9.2", "1", "6,000", "5,000 to 7,000", "20.00"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rounds": 0}, "--rounds 0"),
        ({"seeds": -1}, "--seeds -1"),
        ({"sb3_steps": 10_000}, "--sb3-steps 10000"),
        ({"sb3_steps": 30_005}, "--sb3-steps 30005"),
        ({"systems": ()}, "--systems"),
        ({"systems": ("rejax", "rejax")}, "--systems rejax rejax"),
    ],
)
def test_options_that_cannot_be_run_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        peers.check(dataclasses.replace(peers.Options(), **change), SETTINGS)


def test_a_shorter_run_is_said():
    assert peers.deviations(peers.Options(), SETTINGS) == peers.DEVIATIONS
    notes = peers.deviations(peers.Options(sb3_steps=30_000), SETTINGS)
    assert notes["sb3"][0] == "30,000 environment steps in place of 100,000"
    assert notes["rejax"] == peers.DEVIATIONS["rejax"]


def test_the_default_options_pass():
    peers.check(peers.Options(), SETTINGS)


def test_a_folder_that_is_no_virtual_environment_is_left_alone(tmp_path):
    with pytest.raises(ValueError, match="no virtual environment"):
        peers.prepare_venv(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_run_that_did_other_work_is_refused():
    done = {"environment_steps": 100_000, "gradient_updates": 9_000}
    peers.check_work("rejax", done, SETTINGS)
    with pytest.raises(RuntimeError, match="made 8999 gradient updates per seed where 9000"):
        peers.check_work("rejax", done | {"gradient_updates": 8_999}, SETTINGS)


def test_the_package_is_measured_through_throughput(monkeypatch):
    commands = []

    def answer(command):
        commands.append(command)
        return {"steps_per_second": 8_000.0}

    monkeypatch.setattr(peers, "run_json", answer)
    monkeypatch.setattr(peers, "version_of", lambda name: "0")
    measured = peers.measure_package(8)
    assert (measured["steps_per_second"], measured["num_seeds"]) == (8_000.0, 8)
    ((_, script, *flags),) = commands
    assert script.name == "throughput.py"
    assert flags == ["--worker", "package", "--num-seeds", "8"]


def test_only_the_last_line_that_a_program_prints_is_read():
    python = peers.sys.executable
    assert peers.run_json([python, "-c", "print('warming up'); print('{\"a\": 1}')"]) == {"a": 1}
    with pytest.raises(RuntimeError, match="exit status 3"):
        peers.run_json([python, "-c", "print('{}'); raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="no JSON"):
        peers.run_json([python, "-c", "print('nothing')"])
