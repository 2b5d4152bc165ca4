"""What `purejaxdqn play` refuses, in one line and before it plays: each by a tiny environment."""

import functools
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import xarray as xr
from gymnasium import spaces

from purejaxdqn.cli.commands import runs
from purejaxdqn.environments.classic_control.cartpole import cartpole
from purejaxdqn.report.films import find_problem

BOX, TWO = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)
BYTES = functools.partial(spaces.Box, 0, 255, dtype=np.uint8)


class Fake(gymnasium.Env):
    """Ends after a step; its frame is of 2 x 2 pixels, and its step answers `length` values."""

    def __init__(self, *, observations=BOX, actions=TWO, frame=True, length=5, render_mode=None):
        self.observation_space, self.action_space = observations, actions
        self.frame, self.length = np.zeros((2, 2, 3), np.uint8) if frame else None, length

    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return (np.zeros(4, np.float32), 1.0, True, False, {})[: self.length]

    def render(self):
        return self.frame


# By name: what is wrong with gymnasium's environment, and the words that say so.
PROBLEMS: dict[str, Any] = {
    "Fake-actions-v0": ({"actions": spaces.Discrete(3)}, "actions Discrete(3), and not observ"),
    "Fake-start-v0": ({"actions": spaces.Discrete(2, start=1)}, "Discrete(2, start=1)"),
    "Fake-force-v0": ({"actions": spaces.Box(-1, 1, (1,), np.float32)}, "actions Box(-1.0, 1.0"),
    "Fake-many-v0": ({"actions": spaces.MultiDiscrete([2] * 50)}, "actions MultiDiscrete([2 2"),
    "Fake-wide-v0": ({"observations": spaces.Box(-1, 1, (5,), np.float32)}, "Box (5,) of floats"),
    "Fake-image-v0": ({"observations": BYTES(shape=(8, 8, 3))}, "Box (8, 8, 3) of unsigned"),
    "Fake-bytes-v0": ({"observations": BYTES(shape=(4,))}, "Box (4,) of unsigned numbers"),
    "Fake-dict-v0": ({"observations": spaces.Dict(a=BOX)}, "observations Dict and actions"),
    "Fake-number-v0": ({"observations": spaces.Discrete(4)}, "observations Discrete () of whole"),
    "Fake-none-v0": ({"observations": None}, "cannot make and draw 'Fake-none-v0' (AttributeErr"),
    "Fake-blind-v0": ({"frame": False}, "cannot make and draw 'Fake-blind-v0' (TypeError"),
    "Fake-old-v0": ({"length": 4}, "not enough values to unpack (expected 5, got 4)"),
    "Fake-typo-v0": ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    "nobody/CartPole-v1": (None, "gymnasium has no 'nobody/CartPole-v1'"),
    "CartPole-v7": (None, "gymnasium has no 'CartPole-v7'"),
    "CartPole": (None, "gymnasium has no 'CartPole'"),
    "no_module:CartPole-v1": (None, "gymnasium has no 'no_module:CartPole-v1'"),
}


@pytest.fixture
def registry(monkeypatch):
    """What gymnasium knows for the length of a test."""
    known = {**gymnasium.registry}
    monkeypatch.setattr("gymnasium.envs.registration.registry", known)
    monkeypatch.setattr(gymnasium, "registry", known)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_policy_that_does_not_fit_is_refused_before_it_plays(
    name, registry, monkeypatch, call_command, tmp_path
):
    options, words = PROBLEMS[name]
    if options is not None:
        gymnasium.register(name, entry_point=functools.partial(Fake, **options))
    env = cartpole(name, max_steps=5, threshold=None)._replace(render=None)
    monkeypatch.setattr(runs.results, "load", lambda _: xr.Dataset(coords={"seed": [0]}))
    monkeypatch.setattr(runs, "check_has_weights", lambda _: None)
    monkeypatch.setattr(runs, "select_run", lambda *_: None)
    made = (SimpleNamespace(env=env), None)
    monkeypatch.setattr("purejaxdqn.sweep.rerun.load_run", lambda *_: made)
    monkeypatch.setattr("purejaxdqn.report.films.play_in_gymnasium", None)
    code, out, err = call_command("play", "results", "--film", tmp_path / "film.gif")
    assert (code, out) == (2, "")
    assert err.startswith("error: gymnasium")
    assert words in err
    assert "play policies of gymnasium's environments, or of those that draw themselves" in err
    assert len(err.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


def test_an_entry_point_that_is_gone_is_named(registry):
    gymnasium.register("Gone-v0", entry_point="no_module:Gone")
    problem = find_problem(cartpole("Gone-v0", max_steps=5, threshold=None))
    assert problem is not None
    assert "ModuleNotFoundError: No module named 'no_module'" in problem


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["CartPole-v0", "CartPole-v1", "Fake-v0", "Fake-double-v0"])
def test_those_that_fit_are_played(name, registry):
    """Also a version that gymnasium calls outdated, and observations of more digits."""
    gymnasium.register("Fake-v0", entry_point=functools.partial(Fake))
    double = functools.partial(Fake, observations=spaces.Box(-1, 1, (4,), np.float64))
    gymnasium.register("Fake-double-v0", entry_point=double)
    assert find_problem(cartpole(name, max_steps=5, threshold=None)) is None


@pytest.mark.parametrize("film", ["film", "film.mp4", "folder.gif", "folder", "."])
def test_a_film_that_could_not_be_written_is_refused(film, monkeypatch, call_command, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "folder.gif"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(runs.results, "load", lambda _: xr.Dataset(coords={"seed": [0]}))
    monkeypatch.setattr("purejaxdqn.sweep.rerun.load_run", None)
    code, out, err = call_command("play", "results", "--film", film)
    assert (code, out) == (2, "")
    assert err == f"error: film ({film}) must be a file that ends in .gif, as policy.gif\n"


@pytest.mark.parametrize("film", ["/dev/null/film.gif", "/proc/film.gif", "no/film.gif"])
def test_a_film_in_no_folder_is_refused(film, monkeypatch, call_command, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.results, "load", lambda _: xr.Dataset(coords={"seed": [0]}))
    monkeypatch.setattr("purejaxdqn.sweep.rerun.load_run", None)
    code, out, err = call_command("play", "results", "--film", film)
    assert (code, out) == (2, "")
    assert f"film ({film}) cannot be written" in err
    assert len(err.splitlines()) == 1
