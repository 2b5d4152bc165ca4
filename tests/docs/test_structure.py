"""The package stays readable: short files and functions, few files a folder, one public face."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import purejaxdqn

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "purejaxdqn"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_FILES = 400, 60, 10


def test_no_file_is_long():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_no_folder_but_that_of_the_checks_has_many_files():
    folders = {path.parent for path in FILES if "testing" not in path.parts}
    counts = {folder.relative_to(ROOT): len([*folder.glob("*.py")]) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def functions(tree):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_no_function_is_long_unless_its_docstring_says_why():
    long = []
    for path in FILES:
        for node in functions(ast.parse(path.read_text())):
            length = node.end_lineno - node.lineno + 1
            doc = ast.get_docstring(node) or ""
            says_why = "longer than other functions" in doc or "This function is long" in doc
            if length > MOST_LINES_OF_A_FUNCTION and not says_why:
                long.append(f"{path.relative_to(ROOT)}: {node.name} ({length} lines)")
    assert long == []


def test_every_file_says_first_why_it_exists():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_importing_the_package_starts_no_library():
    code = (
        "import sys, purejaxdqn; print({'jax', 'numpy', 'matplotlib', 'xarray'} & {*sys.modules})"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"


@pytest.mark.parametrize("name", purejaxdqn.__all__)
def test_every_public_name_is_there(name):
    assert getattr(purejaxdqn, name) is not None
    assert name in dir(purejaxdqn)


def test_no_other_name_is():
    with pytest.raises(AttributeError, match="has no attribute 'rainbow'"):
        purejaxdqn.rainbow  # type: ignore[attr-defined]  # noqa: B018


def test_what_pip_installs_has_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["purejaxdqn"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))
