"""Importing what a user names: a module or a file, or a refusal that says why."""

import sys

import pytest

from purejaxdqn.runtime.modules import import_module_or_file
from purejaxdqn.types import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_a_module_of_the_current_folder(folder):
    (folder / "my_module.py").write_text("number = 3")
    assert import_module_or_file("my_module").number == 3


def test_a_file_finds_what_lies_beside_it_and_is_run_once(folder):
    (folder / "below").mkdir()
    (folder / "below" / "my_helper.py").write_text("number = 4")
    (folder / "below" / "my_file.py").write_text("from my_helper import number\nruns = []")
    module = import_module_or_file("below/my_file.py")
    assert module.number == 4
    assert sys.modules["my_file"] is module
    module.runs.append(1)
    assert import_module_or_file("below/my_file.py").runs == [1]


def test_two_files_of_one_name_are_told_apart(folder):
    for name in ("one", "other"):
        (folder / name).mkdir()
        (folder / name / "my_file.py").write_text(f"name = {name!r}")
        assert import_module_or_file(f"{name}/my_file.py").name == name


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nothing", "there is no module 'nothing' here.*correct the name"),
        ("broken.nothing", "importing broken.nothing raises ValueError: two lines"),
        ("nothing.py", "there is no file nothing.py in .*: correct the path"),
        ("broken.py", "importing broken.py raises ValueError: two lines; correct it"),
        ("wanting", "importing wanting raises ModuleNotFoundError: No module named 'missing'"),
        ("leaving.py", "importing leaving.py raises SystemExit: 3"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_line(place, words, folder):
    (folder / "broken.py").write_text("raise ValueError('two\\nlines')")
    (folder / "wanting.py").write_text("import missing")
    (folder / "leaving.py").write_text("raise SystemExit(3)")
    with pytest.raises(ConfigError, match=words) as refused:
        import_module_or_file(place)
    assert "\n" not in str(refused.value)


def test_a_file_that_fails_can_be_corrected_and_imported_again(folder):
    path = folder / "my_file.py"
    path.write_text("raise ValueError('not yet')")
    with pytest.raises(ConfigError):
        import_module_or_file("my_file.py")
    path.write_text("number = 5  # longer than before")
    assert import_module_or_file("my_file.py").number == 5
