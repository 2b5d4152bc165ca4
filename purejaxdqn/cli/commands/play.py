"""Plays a trained policy in gymnasium's own environment, and films one episode.

    purejaxdqn play results/train --seed 3
    purejaxdqn play results/rates --learning-rate 1e-3 --seed 0 --num-episodes 20 --film best.gif

The other flags are the labels of the runs: the swept settings and the seed. A label with only one
value may be left out.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from purejaxdqn.cli.commands.rerun import read_run
from purejaxdqn.report.films import FILM_NAME, is_in_gymnasium, play_in_gymnasium, save_gif
from purejaxdqn.runtime.console import make_console
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.sweep.rerun import load_params
from purejaxdqn.training.declaration import Setting
from purejaxdqn.types import ConfigError

_FILM = "Where the film goes; its folder must exist."
_FLAGS = [
    Setting("num_episodes", int, 100, "Episodes to play.", "evaluation", at_most=10**5),
    Setting("film", Path, Path(FILM_NAME), _FILM, "evaluation"),
    Setting("random_seed", int, 0, "Seed of gymnasium's initial states.", "evaluation", at_least=0),
]


def run(argv: Sequence[str]) -> int:
    """Plays a trained policy in Gymnasium, films it, and prints its mean return."""
    place, dataset, labels, flags = read_run(argv, "purejaxdqn play", __doc__, _FLAGS)
    use_every_core()
    train, params = load_params(place.parent if place.is_file() else place, dataset, labels)
    if not is_in_gymnasium(train.env.name):
        raise ConfigError(
            f"gymnasium has no {train.env.name!r}: play policies of gymnasium's environments alone"
        )
    one = jax.tree.map(lambda x: x[np.newaxis], params)
    returns = play_in_gymnasium(train, one, flags.num_episodes, flags.random_seed, progress=True)
    filmed = save_gif(train, params, flags.film, flags.random_seed)
    console = make_console()
    console.print(
        f"{train.env.name}: mean return {returns.mean():.1f} over {flags.num_episodes} episodes, "
        f"lowest {returns.min():.1f}, highest {returns.max():.1f}"
    )
    console.print(f"written: {flags.film} (an episode of return {filmed:.1f})")
    return 0
