"""Plays and films policies in gymnasium's own environments, to check the reported returns."""

import os
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import xarray as xr
from PIL import Image
from rich.progress import track

from purejaxdqn.environments import Environment
from purejaxdqn.report.files import FILM_NAME
from purejaxdqn.runtime.console import make_console, show_waiting
from purejaxdqn.runtime.modules import describe_error
from purejaxdqn.storage import results
from purejaxdqn.storage.files import replace_file
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Params

_EPISODES = 100  # played by each seed's policy
_MOST_STEPS = 5_000  # of an episode without a time limit
_GIF_SIZE = (300, 200)  # pixels


def play_and_film(train: Train, dataset: xr.Dataset, params: Params, output: Path) -> xr.Dataset:
    """Plays 100 episodes with every seed's policy, films the best policy, and saves the results.

    `params` have a leading axis of seeds, as one setting's results have. `policy.gif` goes into the
    folder of the results too, to which `gymnasium_return (seed, gymnasium_episode)` is added.
    """
    returns = play_in_gymnasium(train, params, _EPISODES, progress=True)
    best = int(np.nan_to_num(returns.mean(axis=1), nan=-np.inf).argmax())
    save_gif(train, jax.tree.map(lambda x: x[best], params), output / FILM_NAME)
    dataset = dataset.assign(gymnasium_return=(("seed", "gymnasium_episode"), returns))
    results.save(dataset, output)  # last, because it says that all of this is done
    return dataset


def play_in_gymnasium(
    train: Train, params: Params, num_episodes: int, random_seed: int = 0, progress: bool = False
) -> np.ndarray:
    """Plays every run's greedy policy in `gymnasium.make(train.env.name)`.

    Returns undiscounted returns `[R, N]`: `params` have a leading axis of `R` runs, each of the `N`
    episodes has an environment of its own, and the initial states are the same for each run.
    """
    # A seed is derived for each episode, because seed + i would overlap between calls.
    seeds = np.random.SeedSequence(random_seed).generate_state(num_episodes).tolist()
    return _play(train, params, seeds, progress, None)


def save_gif(train: Train, params: Params, path: Path, random_seed: int = 0) -> float:
    """Films one episode of ONE run's greedy policy in gymnasium's own rendered environment.

    Its initial state is that of `random_seed`. Returns the episode's return.
    """
    frames: list[Image.Image] = []
    batched = jax.tree.map(lambda x: x[None], params)
    returns = _play(train, batched, [random_seed], False, frames)
    # Every second frame, for half the bytes; 40 ms each keeps the film at the speed of life.
    first, *later = [frame.quantize(16) for frame in frames[::2]]
    with replace_file(path) as temporary:
        first.save(temporary, save_all=True, append_images=later, duration=40, loop=0)
    return float(returns[0, 0])


def _play(
    train: Train, params: Params, seeds: list[int], progress: bool, frames: list[Image.Image] | None
) -> np.ndarray:
    """Plays an episode from each seed with each run's policy; adds frames of the first one."""
    mode = None if frames is None else "rgb_array"
    runs = range(len(jax.tree.leaves(params)[0]))
    envs = [[_make_in_gymnasium(train.env.name, mode) for _ in seeds] for _ in runs]

    @jax.jit
    @jax.vmap
    def act(params: Params, obs: jax.Array) -> jax.Array:
        key = jax.random.key(0)  # the greedy policy draws nothing
        return jax.vmap(lambda one: train.policy(params)(key, one))(obs)

    obs = np.array([[env.reset(seed=seeds[i])[0] for i, env in enumerate(row)] for row in envs])
    if progress:  # the bar would stand still meanwhile
        with show_waiting("compiling the policy"):
            act(params, obs)
    returns = np.zeros(obs.shape[:2])
    running = set(np.ndindex(*returns.shape))
    console, steps = make_console(stderr=True), range(train.env.max_steps or _MOST_STEPS)
    for _ in track(steps, "playing in gymnasium", console=console, disable=not progress):
        if frames is not None and running:
            frames.append(Image.fromarray(np.asarray(envs[0][0].render())).resize(_GIF_SIZE))
        actions = np.asarray(act(params, obs)).tolist() if running else []
        for r, i in list(running):
            obs[r, i], reward, terminated, truncated, _ = envs[r][i].step(actions[r][i])
            returns[r, i] += float(reward)
            if terminated or truncated:
                running.remove((r, i))
                envs[r][i].close()
    return returns


def find_problem(env: Environment) -> str | None:
    """Says why policies of an environment cannot be played in gymnasium's; None where they can.

    It takes one step there and draws it, before a policy is played for long.
    """
    if env.name not in gymnasium.registry:
        return f"gymnasium has no {env.name!r}"
    try:
        there = _make_in_gymnasium(env.name, "rgb_array")
        found, wanted = map(_read_spaces, (there, env))
        if found != wanted:
            return f"gymnasium's {env.name!r} has {_show(found)}, and not {_show(wanted)}"
        there.reset(seed=0)
        _, _, _, _, _ = there.step(0)
        Image.fromarray(np.asarray(there.render()))
        there.close()
    except Exception as error:  # of any kind: what is made and drawn is others' code
        return f"gymnasium cannot make and draw {env.name!r} ({describe_error(error)})"
    return None


def _make_in_gymnasium(name: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    # Frames are drawn on machines without a screen too.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium calls CartPole-v0 outdated at each make
        return gymnasium.make(name, render_mode=render_mode, disable_env_checker=True)


def _read_spaces(env: Any) -> tuple[Any, ...]:
    """Reads what a network has to fit; the kind of number tells pixels from coordinates."""
    space, actions = env.observation_space, env.action_space
    return type(space).__name__, space.shape, space.dtype and space.dtype.kind, actions


def _show(spaces: tuple[Any, ...]) -> str:
    name, shape, kind, actions = spaces
    numbers = {"f": "floats", "i": "whole numbers", "u": "unsigned numbers"}.get(kind, kind)
    observations = name if kind is None else f"{name} {shape} of {numbers}"
    return f"observations {observations} and actions {' '.join(str(actions).split())}"
