"""Opens trackers by name, so that a sweep's curves go where the user looks and never stop it."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purejaxdqn.checks import ConfigError, ensure, is_same_definition, nearest_names

PROJECT = "purejaxdqn"


class Evaluated(NamedTuple):
    """Holds one evaluation of the runs that are training."""

    step: int  # environment steps of each run so far
    runs: np.ndarray  # [n] numbers of the runs, counted over the grid, the seeds running fastest
    # [n] each run's swept settings by name, and its "seed"; numbers, bools or strings
    labels: list[dict[str, Any]]
    episode_return: np.ndarray  # [n, N] greedy returns
    # [n] mean return of the training episodes that ended since the last evaluation; NaN if none did
    training_return: np.ndarray
    metrics: dict[str, np.ndarray]  # [n] each, the learner's by name; NaN where a run has none


Tracker = Callable[[Evaluated], None]
Opened = contextlib.AbstractContextManager[Tracker]
Opener = Callable[[Path, str, Mapping[str, Any]], Opened]  # of one sweep: folder, project, config
TRACKERS: dict[str, Opener] = {}  # all by name; `register` adds one


def register(name: str, opener: Opener) -> None:
    """Adds a tracker to those that users can choose.

    Args:
      name: what users write, such as after `--tracker`.
      opener: takes the arguments of `open_tracker` and imports its library only when it is called.

    Raises:
      ConfigError: if the name is taken by another opener. A notebook's cell may run again.
    """
    is_name = isinstance(name, str) and name.isprintable() and name == name.strip() != ""
    ensure(is_name, "tracker", name, "a name, such as 'mine'")
    ensure(callable(opener), "opener", opener, "a function of folder, project and settings")
    if name in TRACKERS and not is_same_definition(TRACKERS[name], opener):
        raise ConfigError(f"tracker {name!r} is registered already: choose another name")
    TRACKERS[name] = opener


def check_name(name: str) -> None:
    """Refuses a name under which no tracker is registered: a `ConfigError` names the nearest."""
    if not isinstance(name, str) or name not in TRACKERS:
        raise ConfigError(f"tracker ({name!r}) must be one of {nearest_names(name, TRACKERS)}")


@contextlib.contextmanager
def open_tracker(
    name: str, folder: Path, *, project: str = PROJECT, config: Mapping[str, Any]
) -> Iterator[Tracker]:
    """Opens a tracker for one sweep.

    The tracker never stops the sweep: its first error becomes a `RuntimeWarning` and turns it off.

    Args:
      name: one of `TRACKERS`.
      folder: of the sweep's results. A tracker that is opened on the same folder again goes on
        with the same curves, until `forget` is called on it.
      project: under which Weights & Biases, Trackio and MLflow (as an experiment) list the sweep.
      config: settings by name that all runs share, kept wherever the library has a place for them.

    Raises:
      ConfigError: before anything is trained, if no such tracker is registered, its library is not
        installed, or it cannot be opened.
    """
    check_name(name)
    try:
        manager = TRACKERS[name](folder, project, config)
        tracker = manager.__enter__()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the tracker {name!r} cannot be opened ({join_lines(error)}): mend that, or do without"
        ) from error
    raised: tuple[Any, Any, Any] = (None, None, None)
    try:
        yield turn_off_after_error(tracker, name)
    except BaseException:
        raised = sys.exc_info()
        raise
    finally:
        try:
            manager.__exit__(*raised)
        except Exception as error:
            if error is not raised[1]:
                _warn(name, "could not be closed", error)


def turn_off_after_error(tracker: Tracker, name: str) -> Tracker:
    """Makes a tracker that turns itself off, with a `RuntimeWarning`, at its first error.

    A server that does not answer would otherwise delay every later evaluation too.
    """
    is_on = True

    def track(event: Evaluated) -> None:
        nonlocal is_on
        try:
            if is_on:
                tracker(event)
        except Exception as error:
            is_on = False
            _warn(name, f"failed at step {event.step} and is off from here on", error)

    return track


def _warn(name: str, what: str, error: Exception) -> None:
    told = f"the tracker {name!r} {what} ({join_lines(error)})"
    warnings.warn(told, RuntimeWarning, stacklevel=3)


def join_lines(error: Exception) -> str:
    """Returns an error's message on one line, or the error's kind where it has no message."""
    return " ".join((str(error) or type(error).__name__).split())
