"""Help texts and refusals import no large library; commands that train show that they are at it."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

HEAVY = {
    *("jax", "jaxlib", "flax", "optax", "chex", "orbax", "scipy", "pandas", "xarray", "netCDF4"),
    *("matplotlib", "plotly", "PIL", "gymnasium", "ray", "optuna", "sqlalchemy", "pytest"),
}
MOST_MODULES = 550  # of Python, numpy, rich, tyro and the package: 480 at most, as counted
COMMANDS = ("train", "sweep", "plan", "search", "ablate", "play", "rerun", "restore", "check")
RATES = "--learning-rate loguniform:1e-5:1e-2"
HELP = ["--help", "--version", "agents", "agents rainbow", "environments"]
HELP += [f"{name} --help" for name in (*COMMANDS, "agents", "environments")]
REFUSED = [
    *("nothing", "--nothing", "environments nothing", "agents nothing", "agents --nothing"),
    *(f"{name} --nothing 1" for name in COMMANDS[:5]),
    *(f"{name} --output file" for name in ("train", "sweep", "search", "ablate")),
    *(f"train --output {folder}" for folder in ("results", "begun", "s3://a")),
    "train --agent nothing",
    "train --env nothing",
    "train --env CartPole-v1?nothing=1",
    "train --env CartPole-v1?time_limit=0",
    "train --env nothing:CartPole-v1",
    "train --import nothing",
    "train --discount 2",
    "train --discount linear:0.9:1:0",
    "train --batch-size 0",
    "train --hidden-sizes 64x0",
    "train --total-steps 1001",
    "train --munchausen --representation categorical",
    "train --temperature 0.1",
    "train --num-seeds 0",
    "train --first-seed 4294967295 --num-seeds 2",
    "train --width 2 --seed-mode map",
    "train --resume --overwrite",
    "train --memory-budget much",
    "train --num-devices 0",
    "train --tracker nothing",
    "train --cluster nowhere",
    "train --coordinator nowhere",
    "train --coordinator a:1 --cluster b:2",
    "train --num-processes 2",
    "train --gpus-per-task 1",
    "sweep --learning-rate 1e-3 1e-3",
    "sweep --learning-rate uniform:2:1",
    f"sweep {RATES}",
    "sweep --num-samples 3",
    "sweep --num-seeds 99999 --discount 0.9 0.8",
    "plan --cluster auto",
    "plan --discount 2",
    "search",
    "search --batch-size 64 128",
    "search --discount uniform:0.5:2",
    f"search {RATES} --num-trials 0",
    f"search {RATES} --trials-per-batch 99999",
    f"search {RATES} --output results",
    "ablate --components nothing",
    "ablate --components double minto",
    "ablate --metric median",
    *(f"{name} {place}" for name in COMMANDS[5:8] for place in ("", "nothing", "file")),
    "play results --num-episodes 0",
    "play results --random_seed -1",
    *("check nothing", "check nothing:loss", "check a:b --discount 2", "check --nothing"),
]
# Forks a process for each command, once what they all import is there.
REPORT = """
import contextlib, io, json, os, sys
from purejaxdqn.cli.main import main

def run(words):
    try:
        main(words)
    except SystemExit as end:
        return end.code

with contextlib.redirect_stdout(io.StringIO()):
    run(["train", "--help"])
lines, answers = json.load(sys.stdin), []
for line in lines:
    receive, send = os.pipe()
    if not os.fork():
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = run(line.split())
        os.write(send, json.dumps([code, [*sys.modules]]).encode())
        os._exit(0)
    os.close(send)
    with open(receive) as answer:
        answers.append(json.load(answer))
    os.wait()
print(json.dumps(dict(zip(lines, answers))))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """By command line: its exit code, and all modules that it has imported."""
    folder = tmp_path_factory.mktemp("at_once")
    (folder / "file").write_text("no results")
    (folder / "results").mkdir()
    (folder / "results" / "results.nc").touch()
    (folder / "begun" / "checkpoint" / "sweep").mkdir(parents=True)
    answer = subprocess.run(
        [sys.executable, "-c", REPORT],
        input=json.dumps([*HELP, *REFUSED]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    return json.loads(answer.stdout)


@pytest.mark.parametrize("line", [*HELP, *REFUSED])
def test_it_is_answered_without_any_large_library(line, imported):
    code, modules = imported[line]
    is_no_file = line.split()[0] in COMMANDS[5:8] and line.split()[1:] in (["nothing"], ["file"])
    assert code == (0 if line in HELP else 1 if is_no_file else 2)
    assert HEAVY & {*modules} == set()
    assert len(modules) <= MOST_MODULES


@pytest.mark.parametrize(
    "line", ["import purejaxdqn", "from purejaxdqn import dqn, pqn, DQNConfig, run_sweep"]
)
def test_what_draws_keeps_and_plays_is_imported_where_it_is_used(line, run_python):
    answer = run_python("-c", f"{line}; import json, sys; print(json.dumps([*sys.modules]))")
    later = HEAVY - {"jax", "jaxlib", "flax", "optax", "chex"}
    assert later & {*json.loads(answer.stdout)} == set()


def test_settings_that_are_older_than_jax_are_pytrees_too(run_python):
    code = (
        "import sys; from purejaxdqn import DQNConfig, agents;"
        "from purejaxdqn.training.schedules import linear;"
        "config, known = DQNConfig(), agents.get('pqn').config; falling = linear(0.5, 1.0, 3);"
        "assert 'jax' not in sys.modules; import jax;"
        "print(jax.tree.leaves((config, known)) == jax.tree.leaves((DQNConfig(), known)),"
        "jax.tree.leaves(known)[:1], jax.tree.leaves(falling))"
    )
    answer = run_python("-c", code)
    assert answer.stdout.strip() == "True [0.99] [0.5, 1.0, 3]", answer.stderr


def watch(words, environment, is_enough):
    """Runs a command whose standard error is a terminal, and reads that until it is enough."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "purejaxdqn", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**environment, "TERM": "xterm-256color", "PYTHONUTF8": "1"},
    )
    os.close(theirs)
    seen = b""
    try:
        while not is_enough(seen.decode(errors="ignore")):
            seen += os.read(ours, 2**16)  # an `OSError` if the command ends before
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def frames(seen, text):
    """Counts the pictures of a moving line that has a text."""
    return len({part for part in re.split(r"[\r\n]", seen) if text in part})


@pytest.mark.parametrize("words", [["train"], ["search", *RATES.split()]], ids=["train", "search"])
def test_a_line_moves_on_a_terminal_from_enter_to_the_first_step(
    words, fresh_environment, tmp_path
):
    def is_enough(seen):
        first, _, second = seen.partition("compiling ...")
        waited = min(frames(first, text) for text in ("importing JAX", "tracing the programs"))
        return waited >= 2 and (words[0] == "search" or frames(second, " 0/200,000 steps") >= 2)

    run = ["--num-seeds", 2, "--output", tmp_path / "output", "--hidden-sizes", 8]
    watch([*words, *run], fresh_environment, is_enough)
