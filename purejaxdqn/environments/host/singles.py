"""Steps gymnasium environments one after another: a group of those that are on the host."""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.spaces.utils import flatten, flatten_space

from purejaxdqn.environments.host.pool import Stepped


class Source(NamedTuple):
    """Where environments come from; a function of it is told by all of this from another."""

    id: str  # of gymnasium's registry, also "my_package:My-v0"
    settings: tuple[tuple[str, Any], ...]  # of `gymnasium.make`
    creator: Callable[..., Any]
    registered: str  # what else the registry says of it

    def make(self) -> gymnasium.Env[Any, Any]:
        """Makes one."""
        return make_quietly(self.id, **dict(self.settings))


def make_quietly(id: str, **settings: Any) -> gymnasium.Env[Any, Any]:
    """Makes an environment of gymnasium's registry, without its warnings and without a screen."""
    # Frames are drawn on machines without a screen too.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium calls older versions outdated at each make
        return gymnasium.make(id, disable_env_checker=True, **settings)


def load_creator(spec: EnvSpec) -> Callable[..., Any]:
    """Finds the class or function that makes an environment of gymnasium's registry."""
    entry: Any = spec.entry_point
    creator: Callable[..., Any] = entry if callable(entry) else load_env_creator(entry)
    return creator


class Reader(NamedTuple):
    """Reads a gymnasium space as ours."""

    space: Box
    read: Callable[[Any], Any]  # an observation, whose numbers are cast where it is stored


def read_observations(space: gymnasium.Space[Any]) -> Reader | None:
    """Reads an observation space: a Box as it is, other numbers one-hot; None for other spaces."""
    if isinstance(space, (Discrete, MultiDiscrete, MultiBinary)):
        shape = flatten_space(space).shape
        return Reader(Box(0, 1, shape, np.float32), functools.partial(flatten, space))
    if not isinstance(space, Box):
        return None
    dtype = space.dtype if space.dtype in (np.bool_, np.uint8, np.float32) else np.float32
    with np.errstate(over="ignore"):
        low, high = space.low.astype(dtype), space.high.astype(dtype)
    return Reader(Box(low, high, dtype=dtype), np.asarray)


class SingleEnvs:
    """A group of gymnasium environments, stepped one after another: see `HostEnvs`."""

    def __init__(self, source: Source, reader: Reader, num_envs: int) -> None:
        self._envs = [source.make() for _ in range(num_envs)]
        self._reader, self._first = reader, int(self._envs[0].action_space.start)  # type: ignore[attr-defined]

    def _make_rows(self, num: int) -> np.ndarray:
        return np.empty((num, *self._reader.space.shape), self._reader.space.dtype)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """See `HostEnvs.reset`."""
        rows, read = self._make_rows(len(seeds)), self._reader.read
        for i, (env, seed) in enumerate(zip(self._envs, seeds.tolist(), strict=True)):
            rows[i] = read(env.reset(seed=seed)[0])
        return rows

    def step(self, lanes: np.ndarray, actions: np.ndarray) -> Stepped:
        """See `HostEnvs.step`."""
        rows, read = self._make_rows(len(lanes)), self._reader.read
        numbers = []
        for i, (lane, action) in enumerate(zip(lanes.tolist(), actions.tolist(), strict=True)):
            obs, *answer, _ = self._envs[lane].step(action + self._first)
            rows[i] = read(obs)
            numbers.append(answer)
        reward, terminated, truncated = np.array(numbers, np.float32).T
        return rows, reward, terminated != 0, truncated != 0

    def next_episodes(self, lanes: np.ndarray) -> np.ndarray:
        """See `HostEnvs.next_episodes`."""
        rows, read = self._make_rows(len(lanes)), self._reader.read
        for i, lane in enumerate(lanes.tolist()):
            rows[i] = read(self._envs[lane].reset()[0])
        return rows

    def draw(self, lane: int) -> np.ndarray:
        """See `HostEnvs.draw`."""
        return np.asarray(self._envs[lane].render())

    def close(self) -> None:
        """See `HostEnvs.close`."""
        for env in self._envs:
            env.close()
