"""What the README shows is what the repository holds."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def body(path):
    """A script's source below its docstring."""
    source = (ROOT / path).read_text()
    first = ast.parse(source).body[1]
    return "\n".join(source.splitlines()[first.lineno - 1 :])


def test_the_sweep_in_the_readme_is_the_script():
    assert body("experiments/sweep_learning_rate.py") in README


def test_the_loss_in_the_readme_is_the_tutorials():
    source = (ROOT / "experiments/your_own_loss.py").read_text()
    (example,) = re.findall(r"def cautious.*?- q_tm1\[a_tm1\]", README, re.DOTALL)
    assert example in source
    assert 'check_loss(cautious, bootstrap="both")' in README
    for call in re.findall(r"(?:functools.partial|probability_of_improvement)\(.*\)", README):
        assert call.removesuffix(")") in source


def test_every_file_that_the_readme_links_to_exists():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_the_two_commands_are_there_and_are_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
