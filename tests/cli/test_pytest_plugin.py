"""`pytest --purejaxdqn-check my_module` runs what a module declares."""

import importlib.metadata
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from purejaxdqn.cli.pytest_plugin import list_checks, pytest_collection_modifyitems
from purejaxdqn.testing import converges_to
from purejaxdqn.testing.fixed_points import OPTIMAL
from purejaxdqn.types import ConfigError

MODULE = """
def broken():
    raise AssertionError("the replay forgets: write over the oldest")

CHECKS = {"sound": lambda: None, "broken": broken, "other": broken}
"""


def test_what_a_module_declares_is_run(tmp_path):
    (tmp_path / "parts.py").write_text(MODULE)
    known = {one.name for one in importlib.metadata.entry_points(group="pytest11")}
    plugin = [] if "purejaxdqn" in known else ["-p", "purejaxdqn.cli.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin]
    command += ["--purejaxdqn-check", "parts", "-k", "sound or broken"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "1 failed, 1 passed, 1 deselected" in done.stdout) == (1, True), done
    assert "the replay forgets: write over the oldest" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty.py", "empty.py declares nothing to check"), ("missing", "there is no module")],
)
def test_what_declares_nothing_is_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "empty.py").write_text("")
    config = SimpleNamespace(getoption=lambda option: [name])
    with pytest.raises(pytest.UsageError, match=message):
        pytest_collection_modifyitems(None, config, [])  # type: ignore[arg-type]


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
