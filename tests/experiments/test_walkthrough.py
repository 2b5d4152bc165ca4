"""The walk-through as a script, and the notebook that was made from it."""

import json
import re
import time
from pathlib import Path

import jax
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCRIPT = EXPERIMENTS / "walkthrough.py"


@pytest.fixture(scope="module")
def printed(run_script):
    start = time.monotonic()
    answer = run_script("walkthrough.py")
    assert answer.returncode == 0, answer.stderr
    assert time.monotonic() - start < 120  # a minute, on a machine with nothing else to do
    return answer.stdout


def test_the_environment(printed):
    assert "Shape of an observation: (4,)" in printed
    assert "Action space: Discrete(2)" in printed
    assert "Number of actions: 2" in printed
    assert len(re.findall(r"^Reset: \[", printed, re.MULTILINE)) == 3
    number = r"-?\d+\.\d{3}"
    line = (
        rf"^Step (\d+) - Cart X: {number}, Cart V: {number}, Pole A: {number}, Pole V:{number}, "
        r"Reward: 1\.0$"
    )
    steps = [int(n) for n in re.findall(line, printed, re.MULTILINE)]
    assert steps == list(range(1, len(steps) + 1))
    assert 5 <= len(steps) <= 20  # pushing one way tips the pole over
    assert "The game can continue" in printed
    (score,) = re.findall(r"^Game over! Score = (\d+)\.0$", printed, re.MULTILINE)
    assert 15 <= int(score) <= 60


def test_the_memory(printed):
    assert "Refused: the replay holds 3 transitions and a sample needs at least 4" in printed
    assert re.search(r"^\d+ steps were played, 20 are remembered\.$", printed, re.MULTILINE)
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
    assert microseconds[1] < 20 * microseconds[0] + 1_000  # a shuffle of a million takes 50 ms


def test_the_network_exploration_and_learning(printed):
    (differences,) = re.findall(
        r"^Largest differences between gradients: (\S+) and (\S+)$", printed, re.M
    )
    assert max(map(float, differences)) < 1e-5
    lines = printed.splitlines()
    first, *_ = actions = [line for line in lines if line.startswith(("Explor", "Exploi"))]
    assert first.startswith("Exploration! ")
    assert all(re.fullmatch(r"Explo\w+! Push (Left|Right)", line) for line in actions)
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


def cells(script):
    """The percent format's cells, as a notebook holds them."""
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


def test_the_notebook_has_the_scripts_output(printed):
    notebook = json.loads(SCRIPT.with_suffix(".ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert all(output.get("name") == "stdout" for output in outputs)
    held = "".join("".join(output["text"]) for output in outputs)
    version = f"JAX {jax.__version__}\n"
    if not held.startswith(version):
        pytest.skip(f"the notebook was made with {held.splitlines()[0]}, whose bits may differ")

    def timeless(text):
        return re.sub(r"\d+ microseconds", "", text)

    assert timeless(held) == timeless(printed), "make notebook makes it anew"
