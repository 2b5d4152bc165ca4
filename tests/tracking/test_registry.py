"""Users' own trackers, and failures: no tracker stops a sweep."""

import contextlib

import numpy as np
import pytest

from purejaxdqn import tracking
from purejaxdqn.tracking import Evaluated, open_tracker, registry
from purejaxdqn.tracking.registry import turn_off_after_error
from purejaxdqn.types import ConfigError


def evaluation(step):
    return Evaluated(step, np.arange(1), [{"seed": 0}], np.zeros((1, 5)), np.zeros(1), {})


def test_a_tracker_that_fails_is_off_with_one_warning():
    seen = []

    def fails(event):
        seen.append(event.step)
        raise OSError(28, "No space\nleft on device")

    track = turn_off_after_error(fails, "mlflow")
    with pytest.warns(
        RuntimeWarning, match=r"'mlflow' failed at step 80 .*No space left on device"
    ):
        track(evaluation(80))
    track(evaluation(200))
    assert seen == [80]


def test_ctrl_c_goes_through_a_tracker():
    def interrupted(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turn_off_after_error(interrupted, "mlflow")(evaluation(80))


def test_a_tracker_that_cannot_be_closed_stops_nothing(monkeypatch, tmp_path):
    @contextlib.contextmanager
    def opened(folder, project, config):
        yield [].append
        raise OSError("the server is gone")

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", opened)
    with (
        pytest.warns(RuntimeWarning, match="could not be closed .the server is gone"),
        open_tracker("mlflow", tmp_path, config={}) as track,
    ):
        track(evaluation(80))


def test_an_error_of_the_sweep_is_raised_as_it_is(monkeypatch, tmp_path):
    @contextlib.contextmanager
    def opened(folder, project, config):
        try:
            yield [].append
        finally:
            closed.append(project)

    closed: list[str] = []
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", opened)
    with pytest.raises(ZeroDivisionError), open_tracker("mlflow", tmp_path, config={}):
        _ = 1 / 0
    assert closed == ["purejaxdqn"]


def test_a_tracker_that_cannot_be_opened_is_refused_before_training(monkeypatch, tmp_path):
    @contextlib.contextmanager
    def opened(folder, project, config):
        raise OSError("no such server")
        yield

    monkeypatch.setitem(tracking.TRACKERS, "mlflow", opened)
    with (
        pytest.raises(ConfigError, match=r"'mlflow' cannot be opened \(no such server\)"),
        open_tracker("mlflow", tmp_path, config={}),
    ):
        pass


def test_an_unknown_tracker_is_refused_with_the_nearest(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"tracker \('tensorbord'\) must be one of tensorboard$"),
        open_tracker("tensorbord", tmp_path, config={}),
    ):
        pass


@contextlib.contextmanager
def open_list(folder, project, config):
    """Opens a user's own tracker, which keeps steps in a file."""
    steps = []
    yield lambda event: steps.append(event.step)
    (folder / project).write_text(f"{steps} {config}")


def test_users_register_trackers_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "TRACKERS", {})
    tracking.register("list", open_list)
    with open_tracker("list", tmp_path, project="mine", config={"discount": 0.9}) as track:
        for step in (80, 200, 400):
            track(evaluation(step))
    assert (tmp_path / "mine").read_text() == "[80, 200, 400] {'discount': 0.9}"


def test_a_tracker_does_not_take_the_name_of_another():
    with pytest.raises(ConfigError, match="'mlflow' is registered already: choose another name"):
        tracking.register("mlflow", open_list)
    assert tracking.TRACKERS["mlflow"] is not open_list
