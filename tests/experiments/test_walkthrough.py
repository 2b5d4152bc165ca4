"""Tests the walk-through as a script, and the notebook and pages that are made from it."""

import json
import re
import subprocess
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
SCRIPT = EXPERIMENTS / "walkthrough.py"
TRAINING = "No target network: "  # where the numbers of a whole training begin
NUMBER = r"-?\d+\.\d{3}"
STEP = re.compile(
    rf"Step (\d+) - Cart X: {NUMBER}, Cart V: {NUMBER}, Pole A: {NUMBER}, Pole V:{NUMBER}, "
    r"Reward: (1\.0|None)"
)


@pytest.fixture(scope="module")
def printed(run_script):
    """Runs the script with a short training."""
    answer = run_script("walkthrough.py", as_user=True, WALKTHROUGH_STEPS="1600")
    assert answer.returncode == 0, answer.stderr
    assert "Warning" not in answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def games(printed):
    """Reads the step lines of each game as `(number, reward)`."""
    found: list[list[tuple[int, str]]] = []
    for line in printed.splitlines():
        if not line.startswith("Step "):
            continue
        step = STEP.fullmatch(line)
        assert step is not None, line
        if step[1] == "0":
            found.append([])
        found[-1].append((int(step[1]), step[2]))
    return found


def test_the_environment(printed):
    assert "Observation space: Box([-4.8" in printed
    assert "Shape of an observation: (4,)" in printed
    assert "Action space: Discrete(2)" in printed
    assert "Number of actions: 2" in printed
    number = r" *-?0\.0\d*"
    reset = rf"^Reset: \[{number} {number} {number} {number}\]$"
    assert len(re.findall(reset, printed, re.MULTILINE)) == 3


def test_every_game_is_printed_step_by_step(games):
    assert len(games) == 3
    for game in games:
        assert game == [(0, "None"), *((n, "1.0") for n in range(1, len(game)))]
    pushed, alternating, acting = games
    assert 6 <= len(pushed) <= 21  # pushing one way tips the pole over
    assert 16 <= len(alternating) <= 61
    assert 6 <= len(acting) <= 200
    assert sum(map(len, games)) >= 25


def test_each_push_says_whether_the_game_goes_on(printed, games):
    pushed = printed[printed.index("Step 0") : printed.index("Step 0", printed.index("Step 1"))]
    told = [line for line in pushed.splitlines() if not line.startswith("Step ")]
    num_pushes = len(games[0]) - 1
    go_on = ["The game can continue", "Info: {'terminated': False, 'truncated': False}"]
    over = ["The Game is over.", "Info: {'terminated': True, 'truncated': False}"]
    assert told == [*go_on * (num_pushes - 1), *over]


def test_a_game_ends_with_its_score(printed, games):
    end = (
        r"^The Game is over\.\nInfo: \{'terminated': True, 'truncated': False\}\n"
        r"Game over! Score = (\d+)\.0$"
    )
    scores = re.findall(end, printed, re.MULTILINE)
    assert [int(score) for score in scores] == [len(game) - 1 for game in games[1:]]


def test_the_memory(printed, games):
    assert "Refused: the replay holds 3 transitions and a sample needs at least 4" in printed
    played = f"{len(games[1]) - 1} steps were played, 20 are remembered."
    assert played in printed.splitlines()
    assert "Is the first observation still there? No." in printed
    samples = re.findall(r"^Entries \[([\d ]+)\] with actions \[[01 ]+\]$", printed, re.MULTILINE)
    assert len(samples) == 3
    for sample in samples:
        entries = sample.split()
        assert len(set(entries)) == len(entries) == 4
    assert "obs_tm1    float32[4, 4]" in printed
    assert "a_tm1      int32[4]" in printed
    microseconds = [int(n) for n in re.findall(r"32 different ones in (\d+) microseconds", printed)]
    assert len(microseconds) == 2


def test_each_action_of_the_agent_explores_or_exploits(printed, games):
    lines = printed.splitlines()
    said = [i for i, line in enumerate(lines) if line in ("Exploration!", "Exploitation!")]
    assert not [line for line in lines if line.startswith("Explo") and not line.endswith("tion!")]
    alone, *acting = said
    assert lines[alone + 1] in ("Push Left", "Push Right")
    assert [lines[i + 1].split(" - ")[0] for i in acting] == [
        f"Step {n}" for n in range(1, len(games[2]))
    ]
    # Nothing is left to the network before there is a batch of four.
    assert all(lines[i] == "Exploration!" for i in said[:6])
    assert "Exploitation!" in lines


def test_the_network_and_learning(printed):
    (differences,) = re.findall(
        r"^Largest differences between gradients: (\S+) and (\S+)$", printed, re.M
    )
    assert max(map(float, differences)) < 1e-5
    targets = re.findall(r"^Target by hand (\S+), the package's (\S+)( \(lost\))?", printed, re.M)
    assert len(targets) == 4
    assert all(float(hand) == pytest.approx(float(ours)) for hand, ours, _ in targets)
    assert any(lost and float(hand) == 1 for hand, _, lost in targets)
    assert "With an empty memory: None" in printed
    before, after = map(
        float, re.findall(r"rate 0.001: loss (\S+) before, (\S+) after", printed)[0]
    )
    assert after < before


def test_the_time_limit(printed):
    assert re.search(r"^lost +discount_t = 0.00$", printed, re.MULTILINE)
    assert re.search(r"^out of time +discount_t = 0.99$", printed, re.MULTILINE)
    numbers = re.findall(r"^  (obs_t|what was seen last|the next game's.*): +(.*)$", printed, re.M)
    obs_t, last, first = (number for _, number in numbers)
    assert obs_t == last != first
    assert "Bootstrapped through the limit: 100.0" in printed


def trained(text):
    """Reads what is printed of each agent's training: its games, its means, its evaluation."""
    agents = re.findall(
        r"^(.+ target network): (\d+) games in (\d+) steps\n((?:  Games .*\n){8})"
        r"  Evaluation: mean score (\S+), lowest (\d+)$",
        text,
        re.MULTILINE,
    )
    assert [name for name, *_ in agents] == ["No target network", "With a target network"]
    return agents


def test_both_agents_are_trained_and_evaluated(printed):
    for _, num_games, num_steps, parts, mean, lowest in trained(printed):
        assert num_steps == "1600"
        ends = re.findall(r"Games +(\d+) to +(\d+): mean score (\S+)", parts)
        assert ends[0][0] == "1"
        assert ends[-1][1] == num_games
        lengths = [int(last) - int(first) + 1 for first, last, _ in ends]
        num_played = sum(n * float(score) for n, (*_, score) in zip(lengths, ends, strict=True))
        assert num_played + 0.05 * int(num_games) >= 1600 - 200
        assert num_played - 0.05 * int(num_games) <= 1600
        assert 8 <= int(lowest) <= float(mean) <= 200


def cells(script):
    """Splits a script in the percent format into the cells that a notebook holds."""
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    for kind, source in zip(parts[::2], parts[1::2], strict=True):
        source = source.strip("\n")
        if "[markdown]" in kind:
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
        yield source


@pytest.mark.parametrize("name", ["walkthrough", "your_own_loss"])
def test_the_notebook_is_made_from_the_script(name):
    script = EXPERIMENTS / f"{name}.py"
    notebook = json.loads(script.with_suffix(".ipynb").read_text())
    assert [("".join(cell["source"])).strip("\n") for cell in notebook["cells"]] == list(
        cells(script.read_text())
    ), "make notebook makes it anew"


@pytest.fixture(scope="module")
def held():
    """Reads what the committed notebook printed."""
    notebook = json.loads(SCRIPT.with_suffix(".ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert all(output.get("name") == "stdout" for output in outputs)
    return "".join("".join(output["text"]) for output in outputs)


def test_the_notebook_has_the_scripts_output(printed, held):
    version = f"JAX {jax.__version__}\n"
    if not held.startswith(version):
        pytest.skip(f"the notebook was made with {held.splitlines()[0]}, whose bits may differ")

    def comparable(text):
        """Cuts the training out, which is longer in the notebook, and what a stopwatch says."""
        before, _, after = text.partition(TRAINING)
        _, _, after = after.rpartition("  Evaluation: ")
        return re.sub(r"\d+ microseconds", "", before), after.splitlines()[1:]

    assert comparable(held) == comparable(printed), "make notebook makes it anew"


def test_the_notebooks_agents_have_learned(held):
    (*_, steps, _, mean, _), (*_, steps_with_target, _, mean_with_target, _) = trained(held)
    assert steps == steps_with_target == "20000", "make notebook makes it anew"
    assert float(mean) > 100
    assert float(mean_with_target) >= 195  # won


def test_make_notebook_runs_each_tutorial_once_and_exports_a_page_and_markdown():
    answer = subprocess.run(
        ["make", "--dry-run", "notebook"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "for name in experiments/walkthrough experiments/your_own_loss;" in answer.stdout
    assert answer.stdout.count("--execute") == 1
    converted = re.findall(r"nbconvert .*--to (\w+) \$name\.ipynb", answer.stdout)
    assert converted == ["html", "markdown"]


def test_git_keeps_the_notebooks_and_ignores_what_is_made_from_them():
    def is_ignored(name):
        command = ["git", "check-ignore", "--quiet", "--no-index", f"experiments/{name}"]
        return subprocess.run(command, cwd=ROOT, check=False).returncode

    if is_ignored("walkthrough.ipynb") == 128:
        pytest.skip("this is no git repository")
    assert is_ignored("walkthrough.ipynb") == is_ignored("walkthrough.py") == 1
    for made in ("walkthrough.html", "walkthrough.md", "your_own_loss_files/picture.png"):
        assert is_ignored(made) == 0, made
