"""`pytest --purejaxdqn-check my_module` runs what a module declares."""

import importlib.metadata
import subprocess
import sys
from types import ModuleType

import pytest

from purejaxdqn.cli.pytest_plugin import list_checks
from purejaxdqn.testing import converges_to
from purejaxdqn.testing.fixed_points import OPTIMAL
from purejaxdqn.types import ConfigError

MODULE = """
def broken():
    raise AssertionError("the replay forgets: write over the oldest")

CHECKS = {"sound": lambda: None, "broken": broken}
"""


def run_pytest(folder, *arguments):
    known = {one.name for one in importlib.metadata.entry_points(group="pytest11")}
    plugin = [] if "purejaxdqn" in known else ["-p", "purejaxdqn.cli.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_what_a_module_declares_is_run(tmp_path):
    (tmp_path / "parts.py").write_text(MODULE)
    code, text = run_pytest(tmp_path, "--purejaxdqn-check", "parts")
    assert (code, "1 failed, 1 passed" in text) == (1, True), text
    assert "the replay forgets: write over the oldest" in text
    assert "Traceback" not in text
    code, text = run_pytest(tmp_path, "--purejaxdqn-check", "parts.py", "-k", "sound")
    assert (code, "1 passed, 1 deselected" in text) == (0, True), text


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty", "empty declares nothing to check"), ("missing", "there is no module 'missing'")],
)
def test_what_declares_nothing_is_refused(tmp_path, name, message):
    (tmp_path / "empty.py").write_text("")
    code, text = run_pytest(tmp_path, "--purejaxdqn-check", name)
    assert (code, message in text) == (4, True), text


def mine(q_tm1, a_tm1, r_t, discount_t, q_t):
    return r_t + discount_t * q_t.max() - q_tm1[a_tm1]


def test_losses_that_declare_what_they_converge_to():
    module = ModuleType(__name__)
    vars(module).update(mine=converges_to(OPTIMAL)(mine), OPTIMAL=OPTIMAL, other=len)
    try:
        checks = list_checks(module)
    finally:
        vars(mine).clear()
    assert [*checks] == ["mine"]
    vars(module).update(CHECKS=["mine"])
    with pytest.raises(ConfigError, match=r"CHECKS of .*must be a dict of functions"):
        list_checks(module)
