"""What cannot be run: one line with the value and the remedy, exit code 2, nothing compiled."""

import dataclasses
import signal

import jax
import pytest

from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.cli.exits import exit_with, saying_how_to_go_on
from purejaxdqn.cli.main import COMMANDS
from purejaxdqn.engine import programs
from purejaxdqn.runtime.interrupts import Stopped, StopRequest, catch_signals
from purejaxdqn.storage.files import replace_file
from purejaxdqn.sweep import batches
from purejaxdqn.sweep.options import parse_bytes
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.types import ConfigError

# Text that is no value of the setting, whatever its limits are.
NO_NUMBER = ["abc", "1e", "", "1,5", "--"]
COUNTS, FLOATS, FLAGS = (
    [name for name, one in settings_of(DQNConfig).items() if one.type is kind]
    for kind in (int, float, bool)
)
PQN_ONLY = {f.name for f in dataclasses.fields(PQNConfig)} - {
    f.name for f in dataclasses.fields(DQNConfig)
}
ABOVE_ONE = ["discount", "epsilon_start", "epsilon_end", "epsilon_fraction", "epsilon_decay"]
ABOVE_ONE += ["priority_exponent", "importance_exponent", "learning_rate_end_fraction"]
ABOVE_ONE += ["munchausen_coefficient", "advantage_coefficient", "target_step_size"]
POSITIVE = ["learning_rate", "fraction_learning_rate", "adam_epsilon", "huber_threshold"]
POSITIVE += ["temperature", "max_grad_norm", "target_step_size"]

CASES: list[tuple[str, str]] = [
    # Each setting: no value at all, and values outside its limits.
    *((f"--{name} {NO_NUMBER[i % 2]}", name) for i, name in enumerate(COUNTS)),
    *((f"--{name} 0", f"{name} (0)") for name in COUNTS),
    *((f"--{name} 3000000000", f"{name} (3000000000)") for name in COUNTS),
    *((f"--{name} {NO_NUMBER[i % 2]}", name) for i, name in enumerate(FLOATS)),
    *((f"--{name} nan", f"{name} (nan)") for name in FLOATS if name != "value_max"),
    *((f"--{name} 1.5", f"{name} (1.5)") for name in ABOVE_ONE),
    *((f"--{name} -0.5", f"{name} (-0.5)") for name in ABOVE_ONE),
    *((f"--{name} 0", f"{name} (0.0)") for name in POSITIVE),
    *((f"--{name} maybe", f"{name} ('maybe') must be true or false") for name in FLAGS),
    *((f"--agent pqn --{name} -1", name) for name in sorted(PQN_ONLY)),
    ("--hidden-sizes 64,64", "such as 64x64"),
    ("--hidden-sizes 64x0", "hidden_sizes ((64, 0))"),
    ("--hidden-sizes x", "such as 64x64"),
    ("--head-sizes 64x-1", "head_sizes ((64, -1))"),
    ("--head-sizes 0", "head_sizes ((0,))"),
    ("--env CartPole-v7", "CartPole-v1"),
    ("--env Pong", "Pong"),
    ("--representation fuzzy", "one of values, categorical"),
    ("--td-error sarsa", "one of q_learning"),
    ("--penalty cubic", "one of squared, huber"),
    ("--optimizer sgd", "one of adam, rmsprop"),
    ("--epsilon-schedule cosine", "one of linear, multiplicative"),
    ("--torso resnet", "torso ('resnet') must be one of auto, mlp, cnn"),
    ("--channels 16x0", "channels ((16, 0)) must be a tuple of whole numbers of at least 1"),
    ("--kernel-sizes -3", "kernel_sizes ((-3,)) must be a tuple of whole numbers of at least 1"),
    ("--strides 1.5", "strides ('1.5') must be whole numbers with x between them"),
    # Settings that are wrong together.
    ("--torso cnn", "torso ('cnn') needs observations [height, width, channels], and these have"),
    ("--channels 16", "channels ((16,)), kernel_sizes (()), strides (()) must be equal in number"),
    ("--channels 8x8 --kernel-sizes 3x3 --strides 1", "strides ((1,)) must be equal in number"),
    ("--channels 16 --kernel-sizes 3 --strides 1", "channels ((16,)) is set, but nothing in"),
    ("--torso mlp --strides 1 --kernel-sizes 3 --channels 8", "is read only where torso auto or"),
    ("--spectral-norm true --noisy true", "spectral_norm (True) must be False with noisy"),
    ("--spectral-norm true --hidden-sizes none", "spectral_norm (True) needs a hidden layer"),
    ("--batch-size 20000", "batch_size (20000) must be at most replay_capacity (10000)"),
    ("--batch-size 2000", "batch_size (2000) must be at most prefill_steps (1000)"),
    ("--num-envs 3", "steps_per_update (4) must be a multiple of num_envs (3)"),
    ("--total-steps 100001", "total_steps (100001) must be a multiple"),
    ("--eval-interval 5001", "eval_interval (5001) must be a multiple"),
    ("--prefill-steps 1002", "prefill_steps (1002) must be a multiple"),
    ("--total-steps 1000", "must be below total_steps (1000)"),
    ("--target-period 90000", "target_period (90000 gradient steps)"),
    ("--n-step 5000", "n_step (5000)"),
    ("--num-atoms 1", "num_atoms (1) must be at least 2"),
    ("--value-min 100", "value_min (100.0)"),
    ("--value-max -1", "value_max (-1.0)"),
    ("--value-max inf", "value_max (inf)"),
    ("--munchausen true --representation categorical", "munchausen"),
    ("--representation quantile --td-error expected_sarsa", "td_error ('expected_sarsa')"),
    ("--prioritised true --sample-with-replacement false", "sample_with_replacement"),
    ("--agent pqn --num-minibatches 7", "num_minibatches (7)"),
    ("--agent pqn --batch-size 32", "'batch_size' is no setting of agent 'pqn'"),
    ("--q-lambda 0.5", "'q_lambda' is no setting of agent 'double_n_step'"),
    ("--agent dqm", "agent ('dqm') must be one of dqn"),
    ("--agent dqn dqn", "must differ"),
    ("--agent dqn pqn --batch-size 32", "'batch_size' is no setting of agent 'pqn'"),
    # What is swept.
    ("--learning-rate 1e-3 1e-3", "values of learning_rate"),
    ("--learning-rate 1e-3 -1", "learning_rate (-1.0)"),
    ("--batch-size 64 64", "must differ"),
    ("--batch-size 64 0", "batch_size (0)"),
    ("--learning-rate loguniform:1e-5:1e-2", "--num-samples"),
    ("--learning-rate loguniform:1e-5 --num-samples 4", "two limits"),
    ("--learning-rate loguniform:1e-2:1e-5 --num-samples 4", "the lower one first"),
    ("--learning-rate loguniform:0:1e-5 --num-samples 4", "above 0"),
    ("--learning-rate uniform:a:b --num-samples 4", "two limits"),
    ("--learning-rate uniform:0:inf --num-samples 4", "finite limits"),
    ("--learning-rate normal:0:1 --num-samples 4", "one of uniform, loguniform"),
    ("--learning-rate uniform:-2:-1 --num-samples 4", "learning_rate (-"),
    ("--batch-size uniform:1:9 --num-samples 4", "batch_size ('uniform:1:9')"),
    ("--learning-rate uniform:0:1 uniform:1:2 --num-samples 4", "one distribution, or values"),
    ("--num-samples 4", "num_samples (4) needs a setting that is drawn"),
    ("--learning-rate uniform:1e-4:1e-3 --num-samples 0", "num_samples (0)"),
    ("--learning-rate uniform:1e-4:1e-3 --num-samples 4 --sample-seed -1", "sample_seed (-1)"),
    # Seeds, layout, memory, devices, files.
    ("--num-seeds 0", "num_seeds (0)"),
    ("--num-seeds -3", "num_seeds (-3)"),
    ("--first-seed -1", "first_seed (-1)"),
    ("--first-seed 4294967290", "first_seed (4294967290)"),
    ("--width 0", "width (0)"),
    ("--width -2", "width (-2)"),
    ("--width 3 --seed-mode map", "width (3)"),
    ("--checkpoint-seconds -1", "checkpoint_seconds (-1.0)"),
    ("--checkpoint-seconds nan", "checkpoint_seconds (nan)"),
    ("--checkpoint-seconds inf", "checkpoint_seconds (inf)"),
    ("--num-devices 0", "num_devices (0)"),
    ("--num-devices -1", "num_devices (-1)"),
    ("--num-devices 5000", "num_devices (5000)"),
    ("--memory-budget lots", "memory_budget ('lots')"),
    ("--memory-budget 0", "memory_budget ('0')"),
    ("--memory-budget -4GB", "memory_budget ('-4GB')"),
    ("--memory-budget 4XB", "memory_budget ('4XB')"),
    ("--memory-budget 1kB", "makes up"),
    ("--memory-budget 100kB --width 8", "--memory-budget"),
    ("--memory-budget 3MB --replay-capacity 1000000", "replay_capacity (1000000) makes up"),
    ("--memory-budget 3MB --hidden-sizes 2000x2000", "hidden_sizes ((2000, 2000)) makes up"),
    ("--memory-budget 3MB --eval-episodes 1000000", "eval_episodes (1000000) makes up"),
    ("--eval-episodes 99999999", "Lower eval_episodes"),
    ("--resume --overwrite", "exclude each other"),
    # Several machines.
    ("--cluster 127.0.0.1:1", "no Ray cluster can be reached at 127.0.0.1:1"),
    ("--cluster nowhere", "a host and a port"),
    ("--cluster auto --gpus-per-task -1", "gpus_per_task (-1)"),
    ("--cluster auto --coordinator auto", "coordinator ('auto') exclude each other"),
    ("--gpus-per-task 1", "gpus_per_task (1) needs --cluster"),
    ("--coordinator nowhere", "coordinator ('nowhere') must be a host and a port"),
    ("--coordinator 127.0.0.1:1", "num_processes (None)"),
    ("--coordinator 127.0.0.1:1 --num-processes 0", "num_processes (0)"),
    ("--coordinator 127.0.0.1:1 --num-processes 2", "process_id (None) must be 0 to 1"),
    ("--coordinator 127.0.0.1:1 --num-processes 2 --process-id 2", "process_id (2)"),
    ("--coordinator auto --process-id 0", "process_id (0) is found out"),
    ("--num-processes 2", "num_processes (2) needs a coordinator"),
    ("--process-id 1", "process_id (1) needs a coordinator"),
    ("--tracker tensorbord", "tracker ('tensorbord') must be one of tensorboard"),
    ("--tracker mlflow mlflow", "must differ"),
    ("--output /dev/null/x", "cannot be written"),
    ("--output /proc/x", "cannot be written"),
    ("--output FOLDER_WITH_RESULTS", "already holds results"),
    ("--output FOLDER_WITH_A_SWEEP", "go on with --resume"),
    ("--output FOLDER_WITH_RESULTS --resume", "no checkpoint to go on from"),
    ("--output FOLDER_WITH_A_SWEEP --resume --overwrite", "exclude each other"),
    ("--output FOLDER_WITH_A_SWEEP --resume", "is damaged"),
    ("--output NO_CHECKPOINT_FOLDER", "checkpoint is in the way"),
    ("--output NO_CHECKPOINT_FOLDER --overwrite", "checkpoint is in the way"),
    ("--output NO_LOCK_FILE --resume", "lock is in the way"),
    ("--output NO_RESULTS_FILE --overwrite", "results.nc is in the way"),
    ("--output ", "output ('') must be a path"),
    ("--num-seeds \u0663", "num_seeds ('\u0663') must be a whole number"),
    ("--learning-rate \u0661e-3", "must be a number"),
    ("--hidden-sizes \u0666x\u0666", "such as 64x64"),
    # What is no command line at all.
    ("--learning-rte 1e-3", "Unrecognized options: --learning-rte, 1e-3"),
    ("stray", "Unrecognized options: stray"),
    ("--num-seeds 1.5", "num_seeds ('1.5') must be a whole number"),
    ("--num-devices 1.5", "num_devices ('1.5') must be a whole number"),
    ("--checkpoint-seconds never", "checkpoint_seconds ('never') must be a number"),
    ("--seed-mode MAP", "seed_mode ('MAP') must be one of vmap, map"),
    ("--memory-budget", "--memory-budget needs a value"),
    ("--env", "--env needs at least one value"),
    ("--agent --num-seeds 2", "--agent needs at least one value"),
    ("--learning-rate", "--learning-rate needs at least one value"),
    (
        "--learning-rate uniform:1e-4:1e-3 --num-samples 100000000000000000000",
        "must be at most 100000",
    ),
    ("--num-seeds 20000000", "num_seeds (20000000)"),
    ("--num-seeds 50000 --learning-rate 1e-4 2e-4 3e-4", "150,000 runs are too many"),
    ("--hidden-sizes 9223372036854775808", "hidden_sizes ((9223372036854775808,)) must be at most"),
    ("--hidden-sizes 99999999999x99999999999", "must be at most 1,000,000 each"),
    ("--hidden-sizes 1000000x1000000", "hidden_sizes ((1000000, 1000000)) makes up"),
    ("--total-steps 2000000000 --eval-interval 4", "eval_interval (4) makes more than 100,000"),
    (
        "--agent c51 --value-max 1e300",
        "value_max (1e+300) must be finite, also in single precision",
    ),
    ("--value-min 1 --value-max 1.000000001", "value_min (1.0)"),
    ("--max-grad-norm 1e-60", "max_grad_norm (1e-60)"),
    ("--target-step-size 1e-60", "target_step_size (1e-60)"),
    ("--learning-rate 1e-3 --learning-rate 1e-4", "--learning-rate is given twice"),
    ("--batch_size 16 --batch-size=32", "--batch-size is given twice"),
]


def test_there_are_many_and_they_differ():
    assert len(CASES) >= 120
    assert len(dict(CASES)) == len(CASES)


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.nc").touch()
    (tmp_path / "sweep" / "checkpoint" / "sweep").mkdir(parents=True)
    (tmp_path / "file" / "checkpoint").parent.mkdir()
    (tmp_path / "file" / "checkpoint").touch()
    (tmp_path / "lock" / "checkpoint" / "lock").mkdir(parents=True)
    (tmp_path / "folder" / "results.nc").mkdir(parents=True)
    return {
        "NO_CHECKPOINT_FOLDER": str(tmp_path / "file"),
        "NO_LOCK_FILE": str(tmp_path / "lock"),
        "NO_RESULTS_FILE": str(tmp_path / "folder"),
        "FOLDER_WITH_RESULTS": str(tmp_path / "results"),
        "FOLDER_WITH_A_SWEEP": str(tmp_path / "sweep"),
    }


@pytest.mark.parametrize(("flags", "words"), CASES, ids=[flags for flags, _ in CASES])
def test_a_bad_input_is_one_line_and_exit_code_2(
    flags, words, call_command, folders, tmp_path, monkeypatch
):
    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(programs, "compile_programs", compiled)
    monkeypatch.setattr(batches, "compile_programs", compiled)
    monkeypatch.setattr("purejaxdqn.runtime.devices.use_every_core", lambda *_: jax.devices())
    argv = [folders.get(word, word) for word in flags.split(" ")]
    if "--output" not in argv:
        argv += ["--output", str(tmp_path / "output")]
    code, out, err = call_command("sweep", *argv)
    assert code == 2, err
    assert words in " ".join(err.split()), err
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["swep"], "command ('swep') must be one of sweep"),
        (["train", "stray"], "Unrecognized options: stray"),
        (["train", "--lerning-rate", "1"], "did you mean --learning-rate"),
        (["train", "--num-seeds", "2", "3"], "num_seeds takes one value, and not 2 3"),
        (
            ["train", "--learning-rate", "uniform:0:1"],
            "learning_rate ('uniform:0:1') must be a num",
        ),
        (["train", "--agent", "pqn", "--no-prioritised"], "'prioritised' is no setting of agent"),
        (
            ["train", "--temperature", "0.1"],
            "temperature changes nothing: it is read only where",
        ),
        (["train", "--import", "no_such_module"], "there is no module 'no_such_module'"),
        (["train", "--import", "no/such/file.py"], "there is no file no/such/file.py"),
        (["plan", "--cluster", "auto"], "cluster ('auto') has no plan before"),
        (["ablate", "--components", "duelling"], "component 'duelling' must be one of dueling"),
        (["ablate", "--agent", "pqn"], "double cannot be put in: the settings of pqn have no td"),
        (["ablate", "--num-seeds=0"], "num_seeds (0)"),
        (["rerun"], "name a results file first: purejaxdqn rerun results/train --seed 0"),
        (["play"], "name a results file first: purejaxdqn play"),
        (["agents", "ranbow"], "agent ('ranbow') must be one of rainbow"),
        (["environments", "stray"], "Unrecognized options: stray"),
    ],
)
def test_each_command_refuses_in_one_line(words, expected, call_command):
    code, out, err = call_command(*words)
    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "amount"),
    [("4GB", 4e9), ("500 MiB", 500 * 2**20), ("1e9", 1e9), ("2k", 2000), ("1.5 TB", 1.5e12)],
)
def test_amounts_of_memory(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "4 4", "1e999", "0.1", "4GBB"])
def test_no_amounts_of_memory(text):
    with pytest.raises(ConfigError, match="such as 4GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("happens", "exit_code"), [(OSError("the disk is full"), 1), (Stopped(signal.SIGTERM), 75)]
)
def test_an_end_before_its_time_says_how_to_go_on(happens, exit_code, capsys):
    def fail():
        with saying_how_to_go_on("the same command with --resume goes on"):
            raise happens

    with pytest.raises(SystemExit) as caught:
        exit_with(fail)
    assert caught.value.code == exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert str(happens) in line
    assert line.endswith("the same command with --resume goes on")


def test_the_first_of_two_signals_says_how_the_process_ends():
    stop = StopRequest()
    stop.is_deferred = True
    stop.handle(signal.SIGTERM, None)
    with pytest.raises(Stopped) as caught:
        stop.handle(signal.SIGINT, None)
    assert caught.value.exit_code == 75


def test_a_text_that_would_steer_the_terminal_is_shown(capsys):
    def fail():
        raise ConfigError("no run has seed '\x1b[2J\x07'")

    with pytest.raises(SystemExit):
        exit_with(fail)
    assert capsys.readouterr().err == "error: no run has seed '\\x1b[2J\\x07'\n"


def test_a_closed_terminal_ends_as_sigterm_does_and_is_written_to_no_more(run_python):
    code = (
        "import os, pty, signal, sys\n"
        "from purejaxdqn.runtime.interrupts import StopRequest\n"
        "near, far = pty.openpty()\n"
        "os.dup2(far, 2)\n"
        "stop = StopRequest()\n"
        "stop.is_deferred = True\n"
        "stop.handle(signal.SIGHUP, None)\n"
        "os.close(near)\n"
        "print('fails without it', file=sys.stderr, flush=True)\n"
        "try:\n    stop.raise_if_requested()\n"
        "except KeyboardInterrupt as error:\n    print(error, error.exit_code)"
    )
    answer = run_python("-c", code)
    assert answer.stdout.split() == ["stopped", "by", "SIGHUP", "75"]


@pytest.mark.parametrize("fails", [False, True])
def test_signals_while_a_file_is_written_are_heard_after_it(fails, tmp_path):
    """An exception in the midst of a library may leave its locks behind, for ever."""
    path = tmp_path / "file.txt"
    done = []

    def write():
        with replace_file(path) as temporary:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # a second one, which waits for nothing else
            temporary.write_text("whole")
            done.append("written")
            if fails:
                raise OSError("the disk is full")

    with catch_signals() as stop:
        stop.is_deferred = True
        with pytest.raises(Stopped) as caught:
            write()
    assert caught.value.exit_code == 75
    assert done == ["written"]
    assert [*tmp_path.iterdir()] == ([] if fails else [path])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_is_as_wide_as_the_terminal(command, monkeypatch, call_command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call_command(command, "--help")
    assert code == 0
    lines = out.splitlines()
    examples = [line for line in lines if line.strip().startswith("purejaxdqn ")]
    assert examples
    assert [line for line in lines[1:] if len(line) > 80 and line not in examples] == []
    assert "(default: )" not in out


def test_the_help_of_an_agent_has_its_settings_alone_and_its_defaults(call_command):
    _, out, _ = call_command("train", "--agent", "pqn", "--help")
    assert "--q-lambda FLOAT" in out
    assert "--batch-size INT" not in out
    _, out, _ = call_command("train", "--agent", "rainbow", "--help")
    assert "--q-lambda FLOAT" not in out
    assert "--prioritised, --no-prioritised" in out
    for heading in ("run", "agent", "exploration", "replay", "network", "evaluation", "sweep"):
        assert f" {heading} options " in out
