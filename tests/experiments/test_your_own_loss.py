"""Tests the tutorial on losses as a script, and what its notebook shows."""

import json
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "your_own_loss.py"
FIGURES = ("learning_curves", "inside_the_learner")
NUMBER = r"-?[\d.]+"


@pytest.fixture(scope="module")
def told(run_script, tmp_path_factory):
    """Runs the script on three seeds with a small network; returns its words and its folder."""
    folder = tmp_path_factory.mktemp("your_own_loss")
    source = SCRIPT.read_text()
    small = (
        "DQNConfig(total_steps=800, prefill_steps=200, n_step=1, hidden_sizes=(8,), batch_size=16, "
        "replay_capacity=400, target_period=5, eval_interval=400, eval_episodes=4)"
    )
    for setting, value in {
        "OUTPUT": f"Path({str(folder / 'out')!r})",
        "SEEDS": "range(3)",
        "CONFIG": small,
    }.items():
        source, count = re.subn(rf"^{setting} = .*$", f"{setting} = {value}", source, flags=re.M)
        assert count == 1
    script = folder / "small.py"
    script.write_text(source)
    answer = run_script(script)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout, folder / "out"


def tables(printed):
    """Cuts the printed table of each loss out."""
    parts = re.split(r"^(first_draft|cautious) *\n(?=┏)", printed, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_first_draft_fails_for_what_the_table_names_and_the_mended_one_passes(told):
    found = tables(told[0])
    assert list(found) == ["first_draft", "cautious"]
    assert re.search(r"no gradient through the target +│ FAIL", found["first_draft"])
    assert re.search(r"wrap the\s+target in\s+jax.lax.stop_gradient", found["first_draft"])
    assert "It fails: " in found["first_draft"]
    assert "FAIL" not in found["cautious"]
    assert re.search(r"fixed point, stochastic +│ pass", found["cautious"])


def test_the_comparison_has_intervals_and_a_probability(told):
    printed, _ = told
    for name in ("double DQN", "cautious"):
        interval = rf"^{name} +final greedy return {NUMBER}, 95 % interval {NUMBER} to {NUMBER}"
        assert re.search(interval, printed, re.M)
    probability = rf"^Probability of improvement: ({NUMBER}), 95 % interval {NUMBER} to {NUMBER}$"
    (estimate,) = re.findall(probability, printed, re.M)
    assert 0 <= float(estimate) <= 1
    assert re.search(r"^(It helps|It hurts|With these seeds it cannot be told)", printed, re.M)


def test_what_happened_inside_is_printed_and_drawn(told):
    printed, output = told
    for name in ("loss", "q_value"):
        assert re.search(rf"^{name} +double DQN {NUMBER}, cautious {NUMBER}$", printed, re.M)
    assert {path.name for path in output.iterdir()} == {
        f"{name}{suffix}" for name in FIGURES for suffix in (".png", ".svg")
    }
    assert all(path.stat().st_size > 10_000 for path in output.iterdir())


def test_the_notebook_shows_the_whole_story():
    notebook = json.loads(SCRIPT.with_suffix(".ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert len(re.findall(r"final greedy return", printed)) == 2
    assert "Probability of improvement" in printed
    shown = "".join("".join(o.get("data", {}).get("text/plain", "")) for o in outputs)
    assert "FAIL" in shown + printed
    assert "stop_gradient" in shown + printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(FIGURES)
