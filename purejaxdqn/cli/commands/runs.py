"""Takes up a results file: trains one of its runs again, plays its policy, or mends the file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from purejaxdqn.checks import ConfigError
from purejaxdqn.cli.exits import EXIT_FAILED
from purejaxdqn.cli.flags import check_values, format_value, read_command_line
from purejaxdqn.report.files import FILM_NAME
from purejaxdqn.runtime.console import make_console, show_waiting
from purejaxdqn.storage import results
from purejaxdqn.sweep.dataset import check_has_weights, select_run
from purejaxdqn.training.declaration import Setting

if TYPE_CHECKING:
    import xarray as xr

_FILE = Setting("file", str, "", "a results file, or the folder that it is in")
_FILM = "Where the film goes; its folder must exist."
_PLAYING = [
    Setting("num_episodes", int, 100, "Episodes to play.", "evaluation", at_most=10**5),
    Setting("film", Path, Path(FILM_NAME), _FILM, "evaluation"),
    Setting("random_seed", int, 0, "Seed of the initial states.", "evaluation", at_least=0),
]


def run_rerun(argv: Sequence[str]) -> int:
    """Trains one run of a results file again, alone, and says whether every number is the same.

        purejaxdqn rerun results/rates --learning-rate 1e-3 --seed 7
        purejaxdqn rerun results/mine --seed 3 --import my_agent.py

    The flags are the labels of the runs: the swept settings and the seed. A label with only one
    value may be left out. Exit code 0: the same bits; 1: other numbers.
    """
    _, dataset, labels, _ = _read_run(argv, "purejaxdqn rerun", run_rerun.__doc__)
    known = select_run(dataset, labels)
    with show_waiting("importing JAX"):
        from purejaxdqn.report.statistics import mean_return
        from purejaxdqn.report.training import find_environment
        from purejaxdqn.runtime.devices import use_every_core
        from purejaxdqn.sweep.rerun import rerun

        use_every_core()
    again = rerun(dataset, **labels)
    numbers = [name for name in known.data_vars if name in again and name != "settings"]
    other = [str(name) for name in numbers if not _same_bits(known[name], again[name])]
    mean = float(mean_return(again, "final_return"))
    console = make_console()
    console.print(f"mean greedy return on {find_environment(known)[0]}: {mean:.1f}")
    if other:
        console.print(f"other numbers than in the file: {', '.join(other)}")
        return EXIT_FAILED
    console.print("the same numbers as in the file, to the bit")
    return 0


def run_play(argv: Sequence[str]) -> int:
    """Plays a trained policy and films an episode, in gymnasium's environment where it has one.

        purejaxdqn play results/train --seed 3
        purejaxdqn play results/rates --learning-rate 1e-3 --seed 0 --film best.gif

    The other flags are the labels of the runs: the swept settings and the seed. A label with only
    one value may be left out.
    """
    place, dataset, labels, flags = _read_run(argv, "purejaxdqn play", run_play.__doc__, _PLAYING)
    if flags.film.suffix.lower() != ".gif" or flags.film.is_dir():
        raise ConfigError(f"film ({flags.film}) must be a file that ends in .gif, as policy.gif")
    try:
        tempfile.TemporaryFile(dir=flags.film.parent).close()
    except OSError as error:
        raise ConfigError(
            f"film ({flags.film}) cannot be written ({error.strerror}): its folder must exist"
        ) from error
    check_has_weights(dataset)
    select_run(dataset, labels)
    with show_waiting("importing JAX"):
        import jax

        from purejaxdqn.report.films import find_problem, play, play_in_gymnasium, save_gif
        from purejaxdqn.runtime.devices import use_every_core
        from purejaxdqn.sweep.rerun import load_run

        use_every_core()
        train, params = load_run(place, dataset, labels)
        problem = find_problem(train.env)
    if problem and train.env.render is None:
        raise ConfigError(
            f"{problem}: play policies of gymnasium's environments, or of those that draw "
            "themselves, or import what registers yours there (--import)"
        )
    one = jax.tree.map(lambda x: x[np.newaxis], params)
    how = (train, one, flags.num_episodes, flags.random_seed)
    returns = play(*how) if problem else play_in_gymnasium(*how, progress=True)
    filmed = save_gif(train, params, flags.film, flags.random_seed, in_gymnasium=not problem)
    console = make_console()
    console.print(
        f"{train.env.name}: mean return {returns.mean():.1f} over {flags.num_episodes} episodes, "
        f"lowest {returns.min():.1f}, highest {returns.max():.1f}"
    )
    console.print(f"written: {flags.film} (an episode of return {filmed:.1f})")
    return 0


def run_restore(argv: Sequence[str]) -> int:
    """Makes a damaged or missing results file again, from the copy that its sweep's folder keeps.

        purejaxdqn restore results/train

    A file that is whole is left as it is. Variables that others have added are not in the copy.
    """
    description = run_restore.__doc__
    place = read_command_line(argv, "purejaxdqn restore", description, positional=_FILE).flags.file
    if not place:
        raise ConfigError("name a results file first: purejaxdqn restore results/train")
    console = make_console()
    try:
        results.load(place)
        console.print(f"{place} is whole: nothing is to be done")
    except OSError:
        dataset = results.load(place, restore=True)
        console.print(f"made again: {place} (its status is {dataset.attrs.get('status')!r})")
    return 0


def _read_run(
    argv: Sequence[str], prog: str, description: str | None, own: Sequence[Setting] = ()
) -> tuple[Path, xr.Dataset, dict[str, Any], SimpleNamespace]:
    """Reads a results file and the labels of one of its runs, and the command's own flags."""
    if not argv or argv[0].startswith("-"):
        read_command_line(argv, prog, description, own, positional=_FILE)  # may ask for help
        raise ConfigError(f"name a results file first: {prog} results/train --seed 0")
    check_values(argv, own)
    with show_waiting("reading the results"):
        dataset = results.load(argv[0])
    names = [str(n) for n in dataset.coords if n not in ("step", "episode", "gymnasium_episode")]
    labels = [Setting(n, str, None, f"Which {n}.", "run") for n in names if dataset[n].size > 1]
    flags = read_command_line(argv, prog, description, [*labels, *own], positional=_FILE).flags
    found = {
        one.name: _read_label(text, dataset[one.name].values)
        for one in labels
        if (text := getattr(flags, one.name)) is not None
    }
    return Path(argv[0]), dataset, found, flags


def _read_label(text: str, values: np.ndarray) -> Any:
    """Finds the value that a text means among those of a coordinate; the text itself if none."""
    for value in values.ravel().tolist():
        if text in (str(value), format_value(value)):
            return value
        with contextlib.suppress(ValueError):
            if float(text) == value:
                return value
    return text


def _same_bits(one: xr.DataArray, other: xr.DataArray) -> bool:
    """Compares numbers to the bit, but for those that the first one does not have."""
    is_known = one.notnull().values
    return one.values[is_known].tobytes() == other.values[is_known].tobytes()
