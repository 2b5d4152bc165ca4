"""Plays and films policies: in gymnasium's own environments, to check the reported returns.

What gymnasium does not have is filmed as it draws itself.
"""

from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import xarray as xr
from PIL import Image, ImageOps
from rich.progress import track

from purejaxdqn import environments
from purejaxdqn.environments import Environment
from purejaxdqn.environments.host.singles import load_creator, make_quietly, read_observations
from purejaxdqn.report.files import FILM_NAME
from purejaxdqn.runtime.console import make_console, show_waiting
from purejaxdqn.runtime.modules import describe_error
from purejaxdqn.storage import results
from purejaxdqn.storage.files import replace_file
from purejaxdqn.training.evaluation import evaluate
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Params, TimeStep

_EPISODES = 100  # played by each seed's policy
_MOST_FRAMES = 500  # of what is not filmed in gymnasium
_MOST_STEPS = 5_000  # of an episode without a time limit
_GIF_SIZE = (300, 200)  # pixels, at most
_OWN_RATE = 12.5  # steps per second of what is not filmed in gymnasium
_USUAL_RATE = 50.0  # where gymnasium's environment does not say


def play_and_film(
    train: Train, dataset: xr.Dataset, params: Params, output: Path, in_gymnasium: bool = True
) -> xr.Dataset:
    """Plays 100 episodes with every seed's policy, films the best policy, and saves the results.

    `params` have a leading axis of seeds, as one setting's results have. `policy.gif` goes into the
    folder of the results too, to which `gymnasium_return (seed, gymnasium_episode)` is added. What
    is not `in_gymnasium` is filmed as it draws itself, and `filmed` among the attributes says so.
    """
    if in_gymnasium:
        returns = play_in_gymnasium(train, params, _EPISODES, progress=True)
        dataset = dataset.assign(gymnasium_return=(("seed", "gymnasium_episode"), returns))
    else:
        returns = dataset.final_return.transpose("seed", "episode").values
        dataset = dataset.assign_attrs(filmed="as the environment draws itself")
    best = int(np.nan_to_num(returns.mean(axis=1), nan=-np.inf).argmax())
    one = jax.tree.map(lambda x: x[best], params)
    save_gif(train, one, output / FILM_NAME, in_gymnasium=in_gymnasium)
    results.save(dataset, output)  # last, because it says that all of this is done
    return dataset


def play(train: Train, params: Params, num_episodes: int, random_seed: int = 0) -> np.ndarray:
    """Plays every run's greedy policy in the environment itself.

    Returns undiscounted returns `[R, N]`: `params` have a leading axis of `R` runs. An episode
    without a time limit counts as it is after 5,000 steps.
    """

    def play_one(params: Params, key: jax.Array) -> jax.Array:
        policy = train.policy(params)
        cap = _MOST_STEPS if train.env.max_steps is None else None
        return evaluate(policy, train.env, key, num_episodes, cap).episode_return

    # A key for each run, though all are the same: on the host, runs cannot share environments.
    keys = jax.numpy.stack([jax.random.key(random_seed)] * len(jax.tree.leaves(params)[0]))
    return np.asarray(jax.jit(jax.vmap(play_one))(params, keys))


def play_in_gymnasium(
    train: Train, params: Params, num_episodes: int, random_seed: int = 0, progress: bool = False
) -> np.ndarray:
    """Plays every run's greedy policy in `gymnasium.make(train.env.name)`, or on the host.

    Returns undiscounted returns `[R, N]`: `params` have a leading axis of `R` runs, each of the `N`
    episodes has an environment of its own, and the initial states are the same for each run.
    """
    if train.env.is_host:  # steps in gymnasium anyhow
        return play(train, params, num_episodes, random_seed)
    # A seed is derived for each episode, because seed + i would overlap between calls.
    seeds = np.random.SeedSequence(random_seed).generate_state(num_episodes).tolist()
    return _play(train, params, seeds, progress, None)


def save_gif(
    train: Train, params: Params, path: Path, random_seed: int = 0, in_gymnasium: bool = True
) -> float:
    """Films one episode of ONE run's greedy policy in gymnasium's own rendered environment.

    Its initial state is that of `random_seed`. What is not `in_gymnasium` is filmed as it draws
    itself, at most 500 steps. Returns the return of what was filmed.
    """
    frames: list[Image.Image] = []
    if in_gymnasium and not train.env.is_host:
        batched = jax.tree.map(lambda x: x[None], params)
        total = float(_play(train, batched, [random_seed], False, frames)[0, 0])
    else:
        total = _film_here(train, params, random_seed, frames)
    rate = _steps_per_second(train.env.name) if in_gymnasium else _OWN_RATE
    every = 2 if rate > 30 else 1  # every second frame has half the bytes
    first, *later = [frame.quantize(16) for frame in frames[::every]]
    duration = 1000 * every / rate  # milliseconds of a frame: the film has the speed of life
    with replace_file(path) as temporary:
        first.save(temporary, save_all=True, append_images=later, duration=duration, loop=0)
    return total


def _steps_per_second(name: str) -> float:
    """Finds how many steps a second has in one of gymnasium's environments."""
    spec = gymnasium.spec(name.removeprefix("gymnasium:").partition("?")[0])
    metadata = getattr(load_creator(spec), "metadata", {})
    return float(metadata.get("render_fps") or _USUAL_RATE)


def _film_here(train: Train, params: Params, random_seed: int, frames: list[Image.Image]) -> float:
    """Plays an episode in the environment itself, adds its frames, and returns its return."""
    env, policy = _make_drawing(train.env), train.policy(params)
    assert env.render is not None

    def show(state: Any) -> None:
        image = Image.fromarray(np.asarray(draw(state)))
        if factor := _GIF_SIZE[1] // image.height:
            size = (factor * image.width, factor * image.height)
            frames.append(image.resize(size, Image.Resampling.NEAREST))
        else:
            frames.append(ImageOps.contain(image, _GIF_SIZE))

    @jax.jit
    def advance(key: jax.Array, state: Any, obs: jax.Array) -> tuple[Any, TimeStep]:
        act_key, step_key = jax.random.split(key)
        return env.step(step_key, state, policy(act_key, obs))

    draw, total = jax.jit(env.render), 0.0
    reset_key, play_key = jax.random.split(jax.random.key(random_seed))
    state, obs = jax.jit(env.reset)(reset_key)
    show(state)
    for key in jax.random.split(play_key, _MOST_FRAMES):
        state, timestep = advance(key, state, obs)
        show(state)
        obs, total = timestep.obs, total + float(timestep.reward)
        if timestep.terminated or timestep.truncated:
            break
    return total


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
            frames.append(
                ImageOps.contain(Image.fromarray(np.asarray(envs[0][0].render())), _GIF_SIZE)
            )
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
    if env.name not in gymnasium.registry and not env.is_host:
        return f"gymnasium has no {env.name!r}"
    try:
        if env.is_host:
            drawing: Any = _make_drawing(env)
            Image.fromarray(np.asarray(drawing.render(drawing.reset(jax.random.key(0))[0])))
            return None
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


def _make_drawing(env: Environment) -> Environment:
    """Makes an environment that draws itself of one on the host, whose name says what to make."""
    if not env.is_host:
        return env
    return environments.make(f"{env.name}{'&' if '?' in env.name else '?'}render_mode=rgb_array")


def _make_in_gymnasium(name: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    env = make_quietly(name, render_mode=render_mode)
    reader = read_observations(env.observation_space)
    if reader is None or not isinstance(env.observation_space, gymnasium.spaces.Discrete):
        return env
    read = reader.read  # one-hot, as ours are
    return gymnasium.wrappers.TransformObservation(env, lambda x: np.float32(read(x)), reader.space)


def _read_spaces(env: Any) -> tuple[Any, ...]:
    """Reads what a network has to fit; the kind of number tells pixels from coordinates."""
    space, actions = env.observation_space, env.action_space
    return type(space).__name__, space.shape, space.dtype and space.dtype.kind, actions


def _show(spaces: tuple[Any, ...]) -> str:
    name, shape, kind, actions = spaces
    numbers = {"f": "floats", "i": "whole numbers", "u": "unsigned numbers"}.get(kind, kind)
    observations = name if kind is None else f"{name} {shape} of {numbers}"
    return f"observations {observations} and actions {' '.join(str(actions).split())}"
