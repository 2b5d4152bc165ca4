"""Tests the scripts as a user runs them: files, exit codes, the last line, Ctrl-C."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from purejaxdqn.storage import results

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHORT = [
    "--total-steps=800",
    "--num-envs=4",
    "--steps-per-update=4",
    "--prefill-steps=200",
    "--batch-size=16",
    "--hidden-sizes",
    "8",
    "--replay-capacity=400",
    "--updates-per-iteration=1",
    "--target-period=5",
    "--eval-interval=400",
    "--eval-episodes=4",
]


def command(script, *flags):
    return [sys.executable, str(EXPERIMENTS / script), *map(str, flags)]


def run(script, *flags):
    return subprocess.run(
        command(script, *flags), capture_output=True, text=True, env=environment()
    )


def environment():
    """Returns a user's environment: the test run's own JAX settings do not reach the scripts."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}


@pytest.fixture
def call_script(tmp_path, monkeypatch, capsys):
    """Runs a script in this process; gives its exit code, and what it wrote to either stream."""

    def call(script, *flags):
        path = EXPERIMENTS / script
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [script, *flags])
        monkeypatch.setattr("purejaxdqn.runtime.devices.use_every_core", lambda *_: jax.devices())
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(path), run_name="__main__")
        return stopped.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    output = tmp_path_factory.mktemp("cartpole") / "run"
    answer = run("cartpole.py", "--num-seeds=3", "--output", output, "--json", *SHORT)
    assert answer.returncode == 0, answer.stderr
    return output, answer


def test_cartpole_writes_everything_and_ends_in_one_json_object(first):
    output, answer = first
    assert {path.name for path in output.iterdir()} == {
        "results.nc",
        "learning_curve.png",
        "learning_curve.svg",
        "learning_curve.html",
        "policy.gif",
        "summary.json",
        "checkpoint",
    }
    facts = json.loads(answer.stdout.splitlines()[-1])
    assert facts == json.loads((output / "summary.json").read_text())
    dataset = results.load(output)
    assert facts["final_return"] == pytest.approx(dataset.final_return.mean("episode").values)
    assert facts["gymnasium_return"] == pytest.approx(
        dataset.gymnasium_return.mean("gymnasium_episode")
    )
    assert dataset.sizes["gymnasium_episode"] == 100
    assert len(facts["steps_to_threshold"]) == 3
    for name in ("iqm", "iqm_low", "iqm_high", "env_steps_per_second", "compile_seconds"):
        assert facts[name] > 0
    assert "compiling" in answer.stderr
    assert "greedy return" in answer.stderr


def test_the_same_command_gives_the_same_numbers_and_needs_overwrite(first):
    output, _ = first
    flags = ("--num-seeds=3", "--output", output, "--json", *SHORT)
    refused = run("cartpole.py", *flags)
    assert refused.returncode == 2
    assert "already holds results" in refused.stderr
    assert "Traceback" not in refused.stderr
    before, written = results.load(output), (output / "results.nc").read_bytes()
    resumed = run("cartpole.py", *flags, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "is finished already" in " ".join(resumed.stderr.split())
    assert (output / "results.nc").read_bytes() == written
    again = run("cartpole.py", *flags, "--overwrite")
    assert again.returncode == 0, again.stderr
    assert results.load(output).equals(before)


def test_cartpole_trains_pqn_with_flags_of_its_own(run_script, tmp_path):
    flags = ["--total-steps=800", "--num-envs=4", "--num-steps=50", "--num-epochs=1"]
    flags += ["--q-lambda=0.5", "--hidden-sizes", "8", "--eval-interval=400", "--eval-episodes=4"]
    answer = run_script("cartpole.py", "--agent=pqn", "--num-seeds=1", "--output", tmp_path, *flags)
    assert answer.returncode == 0, answer.stderr
    assert "pqn on CartPole-v1" in answer.stdout
    dataset = results.load(tmp_path)
    assert dataset.attrs["experiment"] == "purejaxdqn.agents.pqn.pqn.pqn"
    assert json.loads(dataset.attrs["config"])["q_lambda"] == 0.5
    assert dataset.num_updates.values.tolist() == [0, 4, 8]
    assert (tmp_path / "policy.gif").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-seeds=0"], "num_seeds (0) must be a whole number of at least 1"),
        (["--num-envs=-1"], "num_envs (-1)"),
        (["--batch-size=200000"], "batch_size (200000) must be at most replay_capacity"),
        (["--discount=1.5"], "discount (1.5) must lie between 0 and 1"),
        (["--env=CartPole-v3"], "CartPole-v1"),
        (["--lerning-rate=1e-3"], "--learning-rate"),
        (["--agent=ranbow"], "rainbow"),
        (["--agent=rainbow", "--munchausen"], "munchausen"),
        (["--agent=pqn", "--num-minibatches=7"], "num_minibatches (7) must divide"),
        (["--agent=pqn", "--batch-size=32"], "'batch_size' is no setting of agent 'pqn'"),
        (["--output=/dev/null/x"], "cannot be written"),
    ],
)
def test_bad_flags_are_refused_with_exit_code_2_and_no_traceback(flags, words, call_script):
    code, out, err = call_script("cartpole.py", *flags)
    assert code == 2
    assert words in err + out
    assert "Traceback" not in err


def test_ctrl_c_ends_cleanly_with_what_was_finished_on_disk(fresh_environment, tmp_path):
    # Few evaluations: their lines would fill the pipe before the results are written first.
    flags = ["--total-steps=4000000", "--eval-interval=40000"]
    flags += [flag for flag in SHORT if not flag.startswith(("--total-steps", "--eval-interval"))]
    # What runs in the background of a shell inherits that SIGINT is ignored, and so would this.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command("cartpole.py", "--num-seeds=2", "--output", tmp_path, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=fresh_environment,
    )
    signal.signal(signal.SIGINT, before)
    while not (tmp_path / "results.nc").exists():  # the first write, 15 seconds into the training
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "not finished" in out
    dataset = results.load(tmp_path)
    assert dataset.attrs["status"] == "interrupted"
    assert dataset.evaluation_return.notnull().any()


def test_custom_losses_train(run_script, tmp_path):
    flags = ("--num-seeds=1", "--output", tmp_path / "out", "--json", *SHORT)
    answer = run_script("custom_loss.py", *flags)
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout.splitlines()[-1])
    for name in ("double", "persistent", "conservative"):
        assert any(key.startswith(name) for key in facts)
        assert results.load(tmp_path / "out" / name).attrs["status"] == "finished"


@pytest.mark.slow
def test_tune_scores_a_setting_at_several_learning_rates_and_goes_on_where_it_stopped(tmp_path):
    setting = {"total_steps": 800, "prefill_steps": 400, "eval_interval": 400, "hidden_sizes": [8]}
    settings = tmp_path / "settings.jsonl"
    settings.write_text(json.dumps(setting) + "\n")
    flags = ("--settings", settings, "--num-seeds=2", "--output", tmp_path / "tune")
    answer = run("tune.py", *flags, "--learning-rates", "1e-3", "1e-4")
    assert answer.returncode == 0, answer.stderr
    lines = (tmp_path / "tune" / "tune.jsonl").read_text().splitlines()
    (row,) = map(json.loads, lines)
    assert len(row["final"]) == 4  # two seeds at two learning rates
    settings.write_text(json.dumps(setting) + "\n" + json.dumps(setting | {"n_step": 1}) + "\n")
    assert run("tune.py", *flags).returncode == 0
    again = (tmp_path / "tune" / "tune.jsonl").read_text().splitlines()
    assert again[:1] == lines
    # At other learning rates the first setting is another search's.
    assert [len(json.loads(line)["final"]) for line in again[1:]] == [2, 2]
    assert run("tune.py", *flags).returncode == 0
    assert (tmp_path / "tune" / "tune.jsonl").read_text().splitlines() == again


@pytest.mark.slow
def test_a_plan_of_memory_holds_cold_warm_and_resumed(run_script):
    flags = ("--agents", "pqn", "--num-runs", "1", "20", "--json")
    answer = run_script("benchmarks/plans.py", *flags, as_user=True)
    assert answer.returncode == 0, answer.stderr
    rows = json.loads(answer.stdout.splitlines()[-1])
    assert [(row["runs"], row["kind"], row["folder"]) for row in rows] == [
        (runs, kind, folder)
        for runs in (1, 20)
        for kind, folders in (("cold", "no yes"), ("warm", "no yes"), ("resumed", "yes"))
        for folder in folders.split()
    ]
    for row in rows:
        assert 0.9 < row["memory"] < 1.1, row


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("tune.py", ["--num-seeds=30"], "num_seeds (30) must be 1 to 10"),
        ("tune.py", ["--num-seeds=x"], "Error parsing --num-seeds"),
        ("tune.py", ["--num-seeds"], "Missing value for argument"),
        ("tune.py", ["--num-seeds=1", "--num-seeds=2"], "--num-seeds is given twice"),
        ("tune.py", ["--nope"], "Unrecognized options: --nope"),
        ("tune.py", ["--num-settings=0"], "num_settings (0) must be 1 to 100,000"),
        ("tune.py", [f"--num-settings={10**30}"], "must be 1 to 100,000"),
        ("tune.py", ["--search-seed=-1"], "search_seed (-1)"),
        ("tune.py", ["--output=a\0b"], "must be a path, such as results/a"),
        ("tune.py", ["--output=/proc/x"], "cannot be written"),
        ("tune.py", ["--settings=nope"], "settings ('nope') cannot be read"),
        ("tune.py", ["--settings=a\0b"], "cannot be read (embedded null byte)"),
        *(("tune.py", [f"--overrides={x}"], "overrides (") for x in ("", "x", "[]", '{"x": [1]}')),
        ("tune.py", ['--overrides={"batch_size": 3}'], "batch_size (3) must be a list of values"),
        ("tune.py", ['--overrides={"batch_size": []}'], "batch_size ([]) must be a list"),
        ("tune.py", ["--learning-rates", "nan"], "learning_rate (nan)"),
        ("tutorial_agent.py", ["--num-seeds=1.5"], "Error parsing --num-seeds"),
        ("benchmarks/pqn.py", ["--rounds=0"], "num_seeds and rounds must be at least 1"),
        ("benchmarks/pqn.py", ["--total-steps=20010"], "num_envs * num_steps (500)"),
        ("benchmarks/plans.py", ["--num-runs", "0"], "rounds and num_runs must be at least 1"),
        ("benchmarks/plans.py", ["--kinds", "hot"], "kinds ['hot'] must be of cold, warm, resumed"),
        ("benchmarks/throughput.py", ["--rounds=0"], "rounds [0] must be at least 1"),
        ("benchmarks/throughput.py", ["--total-steps=5000"], "prefill_steps (10000)"),
    ],
)
def test_the_other_scripts_refuse_bad_flags_too(
    script, flags, words, call_script, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call_script(script, *flags)
    assert code == 2
    assert words in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []
