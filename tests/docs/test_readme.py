"""What the README shows is what the repository holds, and it runs as it is pasted."""

import ast
import dataclasses
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from purejaxdqn import agents
from purejaxdqn.cli.main import COMMANDS, run
from purejaxdqn.sweep.design import grid_design

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
# Beside the README: pages whose indented commands are read, but not run.
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = {"NAME": "dqn", "FIRST": "700"}
TRAINING = {"train", "sweep", "plan", "search", "ablate"}  # these commands are only read here

# The pasted text is not edited. But the runs that it trains are short ones of a small network.
SHORT = {
    "total_steps": 600,
    "prefill_steps": 200,
    "batch_size": 16,
    "hidden_sizes": (8,),
    "replay_capacity": 400,
    "target_period": 5,
    "eval_interval": 200,
    "eval_episodes": 3,
}


class WouldTrainError(Exception):
    """A command has read its words, and would start JAX to train."""


def body(path):
    """A script's source below its docstring."""
    source = (ROOT / path).read_text()
    first = ast.parse(source).body[1]
    return "\n".join(source.splitlines()[first.lineno - 1 :])


def commands_in(text):
    """Each line of a shell block, as words without the comment."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def stop(*_, **__):
    raise WouldTrainError


@pytest.fixture
def reading(monkeypatch):
    """Commands that train stop where they have read their words; no registration outlives it."""
    monkeypatch.setattr(agents, "_AGENTS", dict(agents._AGENTS))
    for module in ("my_agent", "my_loss"):  # set first, so that they are as before in the end
        monkeypatch.setitem(sys.modules, module, sys)
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr("purejaxdqn.runtime.devices.available_cores", lambda: 2)
    monkeypatch.setattr("purejaxdqn.runtime.processes.join_processes", stop)
    monkeypatch.setattr("purejaxdqn.search.search.search", stop)


def read_or_run(words):
    """Runs a command of the package; one that trains is read up to there."""
    assert words[0] == "purejaxdqn"
    if words[1] not in TRAINING:
        assert not run(words[1:])
    elif "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            run(words[1:])
    else:
        with pytest.raises(WouldTrainError):
            run(words[1:])


def check_other_command(words):
    """A command of another program names a target of the Makefile, or a file that is there."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    else:
        assert words[0] in ("python", "pytest"), words
        for word in words[1:]:
            if word.endswith(".py") or word.startswith(("tests/", "docs/")):
                assert (ROOT / word).exists(), words


def test_every_block_of_the_readme_runs_as_it_is_pasted(reading, monkeypatch, tmp_path, capsys):
    def short_grid(config, seeds, grid):
        return grid_design(dataclasses.replace(config, **SHORT), seeds, grid)

    monkeypatch.setattr("purejaxdqn.sweep.run.grid_design", short_grid)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")  # as in a clone
    printed = []
    for number, (language, text) in enumerate(BLOCKS):
        capsys.readouterr()
        if language == "python":
            named = re.match(r"# (\w+\.py)\n", text)
            path = tmp_path / (named[1] if named else f"block_{number}.py")
            path.write_text(text)
            runpy.run_path(str(path), run_name="__main__")
            # The block has registered its agent as a script; the next one imports it from its file.
            agents._AGENTS.pop("my_agent", None)
        elif language == "bash":
            for words in commands_in(text):
                (read_or_run if words[0] == "purejaxdqn" else check_other_command)(words)
        else:
            assert language == "bibtex"
        printed.append(capsys.readouterr().out)
    told = "\n".join(printed)
    assert len(re.findall(r"^learning rate 0.\d+: interquartile mean \d", told, re.M)) == 3
    assert len(re.findall(r"^(?:double DQN|cautious) \d.*95 % interval", told, re.M)) == 2
    assert "the same numbers as in the file, to the bit" in told
    assert (tmp_path / "policy.gif").stat().st_size > 1000


def test_commands_in_the_readmes_prose_are_read_too(reading, tmp_path, monkeypatch):
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"`(purejaxdqn [^`]+)`", prose):
        read_or_run(shlex.split(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_on_a_page_is_read(reading, page, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = re.findall(r"^(?:    |)((?:purejaxdqn|python|make|pytest) .*)$", page.read_text(), re.M)
    for line in lines:
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
        (read_or_run if words[0] == "purejaxdqn" else check_other_command)(words)


def test_no_two_commands_of_the_readme_write_to_the_same_folder():
    """The second one would be refused, where a reader pastes all of them in one place."""
    lines = [
        words for language, text in BLOCKS if language == "bash" for words in commands_in(text)
    ]
    folders = [
        words[words.index("--output") + 1] if "--output" in words else f"results/{words[1]}"
        for words in lines
        if words[1] in TRAINING - {"plan"} and "--help" not in words
    ]
    folders += re.findall(r'"(results/\w+)"\nresult = run_sweep', README)
    assert len(folders) == len({*folders}) > 5


def test_every_command_is_in_the_readme():
    for name in COMMANDS:
        assert f"purejaxdqn {name} " in README.replace("`", " "), name


def test_the_sweep_in_the_readme_is_the_script():
    assert body("experiments/sweep_learning_rate.py") in README


def test_the_loss_in_the_readme_is_the_tutorials():
    source = (ROOT / "experiments/your_own_loss.py").read_text()
    (example,) = re.findall(r"def cautious.*?- q_tm1\[a_tm1\]", README, re.DOTALL)
    assert example in source
    for call in re.findall(r"(?:bellman_loss|probability_of_improvement)\(.*?\)", README):
        assert call in source or "td_error" in call, call


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_two_commands_are_there_and_are_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
