"""Tests the tutorial's agent: what counts as a win, the table, the files, the exit code."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from purejaxdqn.engine.rounds import Event, Games
from purejaxdqn.storage import results
from purejaxdqn.types import ConfigError

PATH = Path(__file__).parents[2] / "experiments" / "tutorial_agent.py"
spec = importlib.util.spec_from_file_location("tutorial_agent", PATH)
assert spec is not None
assert spec.loader is not None
tutorial_agent = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tutorial_agent  # where dataclasses look
spec.loader.exec_module(tutorial_agent)
average_returns = tutorial_agent.average_returns
count_games_to_win = tutorial_agent.count_games_to_win


def games(returns):
    returns = np.asarray(returns, float)
    return Games(np.cumsum(returns).astype(int), returns)


def test_a_win_is_the_first_hundred_games_with_an_average_of_195():
    assert count_games_to_win(games([200] * 99)) is None
    assert count_games_to_win(games([200] * 100)) == 100
    assert count_games_to_win(games([195] * 100)) == 100
    assert count_games_to_win(games([194] * 500)) is None
    # 50 short games leave the last hundred one by one: 100 - n at 200 and n at 10.
    short_first = games([10] * 50 + [200] * 100)
    expected = next(
        n for n in range(100, 151) if np.mean(short_first.episode_return[n - 100 : n]) >= 195
    )
    assert count_games_to_win(short_first) == expected
    np.testing.assert_allclose(average_returns(short_first)[[99, 149]], [105, 200])
    assert np.isnan(average_returns(short_first)[98])


def make_played(num_won):
    """Makes what `play` returns if so many of ten seeds win, in their 120th game."""
    won = games([10] * 20 + [195] * 100)
    lost = games([10] * 150)
    return tutorial_agent.Played([won] * num_won + [lost] * (10 - num_won), 5, 2)


@pytest.mark.parametrize(("num_won", "code"), [(10, 0), (9, 0), (8, 1)])
def test_nine_of_ten_must_win_with_the_defaults(num_won, code, tmp_path, monkeypatch, capsys):
    others = {tutorial_agent.DEFAULTS: num_won}
    monkeypatch.setattr(tutorial_agent, "play", lambda name, args: make_played(others.get(name, 1)))
    monkeypatch.setattr(tutorial_agent, "save", lambda *arguments: None)
    args = tutorial_agent.Args(output=tmp_path, json=True, max_games=150)
    assert tutorial_agent.main(args) == code
    printed = capsys.readouterr().out
    facts = json.loads(printed.splitlines()[-1])["settings"]
    assert [row["num_won"] for row in facts.values()] == [1, 1, 1, num_won]
    assert facts[tutorial_agent.DEFAULTS]["games"] == [120] * num_won + [None] * (10 - num_won)
    assert facts[tutorial_agent.DEFAULTS]["steps"][0] == 20 * 10 + 100 * 195
    assert "120 / 19,700" in printed
    assert f"{num_won} of 10" in printed


def test_seeds_train_until_they_win_and_the_rest_is_cut(monkeypatch):
    """Plays two seeds: one wins with its 120th game, and the other never wins."""
    chunks = [[10] * 20 + [195] * 60, [195] * 60, [10] * 40, [10] * 40]
    seen = []

    def train_round(programs, config, runs, steps):
        assert steps[-1] >= 150 * 200
        played = 0
        for returns in chunks:
            step = played + np.cumsum(returns)
            played = step[-1]
            first, second = (
                Games(step, np.array(returns, float)),
                Games(step, np.full(len(step), 9.0)),
            )
            seen.append(len(step))
            yield Event(int(played), 0.0, 0.0, np.zeros(2), [first, second], None, {}, None)

    monkeypatch.setattr(tutorial_agent, "train_round", train_round)
    monkeypatch.setattr(tutorial_agent, "compile_programs", lambda *arguments: None)
    args = tutorial_agent.Args(num_seeds=2, max_games=150)
    winner, loser = tutorial_agent.play("tutorial", args).games
    assert (len(winner.step), len(loser.step)) == (120, 150)
    assert winner.step[-1] == 20 * 10 + 100 * 195
    assert len(seen) == 3  # after the third chunk both are done


@pytest.fixture(scope="module")
def played(tmp_path_factory, run_script):
    output = tmp_path_factory.mktemp("tutorial") / "run"
    flags = ("--num-seeds=2", "--first-seed=3", "--max-games=100", "--json")
    return output, run_script("tutorial_agent.py", *flags, "--output", output)


def test_it_prints_what_each_seed_did_and_fails_if_the_defaults_do(played):
    _, answer = played
    assert answer.returncode == 1, answer.stderr  # nobody wins within 100 games
    facts = json.loads(answer.stdout.splitlines()[-1])
    assert facts["seeds"] == [3, 4]
    assert list(facts["settings"]) == list(tutorial_agent.SETTINGS)
    for row in facts["settings"].values():
        assert row == {"games": [None, None], "steps": [None, None], "num_won": 0}
    assert answer.stdout.count("not in 100") == 8
    assert answer.stdout.count("0 of 2") == 4


def test_it_writes_every_game(played):
    output, _ = played
    assert {path.name for path in output.iterdir()} == {
        "results.nc",
        "games.png",
        "games.svg",
        "games.html",
    }
    dataset = results.load(output)
    assert dataset.training_return.dims == ("setting", "seed", "game")
    assert dataset.sizes == {"setting": 4, "seed": 2, "game": 100}
    assert (dataset.training_return >= 8).all()
    tutorial = dataset.sel(setting="tutorial")
    # One environment: each game's length is its return; the first may have begun in the prefill.
    lengths = tutorial.step.diff("game").values
    np.testing.assert_array_equal(lengths, tutorial.training_return.values[:, 1:])
    assert json.loads(dataset.attrs["configs"])["tutorial"]["target_period"] == 1
    assert (dataset.attrs["width"], dataset.attrs["status"]) == (1, "finished")


def test_games_do_not_depend_on_how_many_are_allowed():
    """Checks that the schedules come from the settings, and not from the games allowed."""
    steps = [tutorial_agent.count_steps(c, 300) for c in tutorial_agent.SETTINGS.values()]
    assert min(steps) >= 300 * 200
    assert all(c.total_steps == 100_000 for c in tutorial_agent.SETTINGS.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_games": 99}, r"max_games \(99\) must be at least 100"),
        ({"max_games": 2**31}, "must be at most"),
        ({"num_seeds": 0}, r"num_seeds \(0\) must be at least 1"),
        ({"seed_mode": "map", "width": 5}, r"width \(5\) must be 1"),
        ({"width": 0}, r"width \(0\) must be a whole number of at least 1"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(changes, words, tmp_path):
    args = tutorial_agent.Args(output=tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match=words):
        tutorial_agent.main(args)
    assert not (tmp_path / "run").exists()
