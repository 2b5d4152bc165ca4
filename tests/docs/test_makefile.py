"""How `make` sets itself up, with interpreters and installers that only write what they do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make") or ""
pytestmark = pytest.mark.skipif(not MAKE, reason="there is no make")

UV = """#!/bin/sh
echo "$0 $*" >> "$LOG"
exit $UV_FAILS
"""
# Prints $VERSION as its own; $PIP_FAILS is what its pip cannot install.
PYTHON = """#!/bin/sh
case "$*" in
  *'version_info < (3, 11)'*) exit $TOO_OLD;;
  *version_info*) echo "$VERSION"; exit;;
esac
echo "$0 $*" >> "$LOG"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip";;
  "-m pip "*" $PIP_FAILS") exit 1;;
  "-m pip "*" uv") cp "$(dirname "$0")/../../uv" "$(dirname "$0")/uv";;
esac
"""
FACTS = {"VERSION": "3.11.7", "TOO_OLD": "0", "PIP_FAILS": "nothing", "UV_FAILS": "0"}


@pytest.fixture
def run_make(tmp_path):
    """Runs `make` where nothing else is on the PATH; returns what it said, and what was run."""
    path = tmp_path / "path"
    path.mkdir()
    for tool in ("cp", "dirname", "echo", "mkdir", "touch"):
        (path / tool).symlink_to(shutil.which(tool) or tool)
    for file, text in ((path / "python3", PYTHON), (tmp_path / "uv", UV)):
        file.write_text(text)
        file.chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments, **facts):
        log.write_text("")
        answer = subprocess.run(
            [MAKE, *arguments, f"VENV={tmp_path / 'venv'}"],
            cwd=ROOT,
            env={"PATH": str(path), "LOG": str(log)} | FACTS | facts,
            capture_output=True,
            text=True,
        )
        return answer, log.read_text().replace(f"{tmp_path}{os.sep}", "").splitlines()

    return run


@pytest.mark.parametrize("extra", ["", "[test]"])
def test_an_installed_uv_installs_and_pip_does_nothing(run_make, tmp_path, extra):
    (tmp_path / "uv").rename(tmp_path / "path" / "uv")
    answer, ran = run_make("test" if extra else "demo")
    assert answer.returncode == 0, answer.stderr
    venv, install, program = ran
    assert venv == "path/python3 -m venv venv"
    assert install.startswith("path/uv pip install --python venv/bin/python --constraint ")
    assert install.endswith(f" --editable .{extra}")
    assert program.startswith("venv/bin/python ")
    assert "pip installs" not in answer.stdout
    _, ran = run_make("demo")
    assert len(ran) == 1  # it is installed, also for the demo where it was for the tests


def test_where_there_is_no_uv_its_pinned_wheel_comes_first(run_make):
    answer, (_, wheel, install, _) = run_make("demo")
    assert answer.returncode == 0, answer.stderr
    assert wheel.startswith("venv/bin/python -m pip install ")
    assert wheel.endswith(" --constraint constraints.txt --only-binary uv uv")
    assert install.startswith("venv/bin/uv pip install ")
    assert "\nuv==" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("facts", [{"PIP_FAILS": "uv"}, {"UV_FAILS": "2"}])
def test_where_uv_cannot_be_had_or_fails_pip_installs_and_it_is_said(run_make, facts):
    answer, ran = run_make("test", **facts)
    assert answer.returncode == 0, answer.stderr
    *_, install, _ = ran
    assert install.startswith("venv/bin/python -m pip install ")
    assert install.endswith(" --constraint constraints.txt --editable .[test]")
    assert "uv cannot be had or has failed: pip installs instead" in answer.stdout


def test_what_pip_cannot_install_either_is_tried_again_next_time(run_make, tmp_path):
    answer, _ = run_make("demo", UV_FAILS="1", PIP_FAILS=".")
    assert answer.returncode != 0
    assert not (tmp_path / "venv" / ".installed").exists()
    answer, ran = run_make("demo")
    assert answer.returncode == 0, answer.stderr
    assert ran[-2].startswith("venv/bin/uv pip install ")


@pytest.mark.parametrize(
    ("arguments", "facts", "words"),
    [
        (["PYTHON=python0"], {}, "No working Python was found as 'python0': install Python 3.11"),
        ([], {"TOO_OLD": "1", "VERSION": "3.9.1"}, "but 'python3' is Python 3.9.1. Name a newer"),
    ],
)
def test_an_interpreter_that_will_not_do_is_refused(run_make, tmp_path, arguments, facts, words):
    answer, ran = run_make("demo", *arguments, **facts)
    assert answer.returncode != 0
    assert words in answer.stderr
    assert ran == []
    assert not (tmp_path / "venv").exists()


def test_an_environment_of_another_interpreter_is_refused_when_one_is_asked_for(run_make, tmp_path):
    assert run_make("demo")[0].returncode == 0
    (tmp_path / "path" / "python3.13").write_text(PYTHON.replace("$VERSION", "3.13.1"))
    (tmp_path / "path" / "python3.13").chmod(0o755)
    answer, ran = run_make("demo", "PYTHON=python3.13")
    assert answer.returncode != 0
    assert "holds Python 3.11.7, but PYTHON=python3.13 is 3.13.1: run 'make clean" in answer.stderr
    assert ran == []
