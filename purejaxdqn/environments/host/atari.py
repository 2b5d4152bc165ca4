"""Plays Atari games by ale_py's vector environment: "gymnasium:ALE/Breakout-v5".

The preprocessing is that of Mnih et al., "Human-level control through deep reinforcement learning"
(2015), Methods: an action for four frames, the larger of the last two, 84 x 84 grays, four of them
in an observation, and up to 30 steps without an action as an episode begins. Actions stick with
the probability of the game's version (Machado et al., "Revisiting the Arcade Learning Environment",
2018). Rewards are the game's own; behind the name, `clip_reward=1` clips them in training.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box

from purejaxdqn.environments.base import Environment
from purejaxdqn.environments.host.bridge import Host, make_environment
from purejaxdqn.environments.host.pool import Stepped
from purejaxdqn.types import ConfigError, nearest_names

# Of the vector environment's arguments, those that a name may set, and what stands for others.
_ALLOWED = (
    *("full_action_space", "frameskip", "max_num_frames_per_episode", "maxpool", "noop_max"),
    *("repeat_action_probability", "stack_num", "use_fire_reset"),
)
_GRAY = {"img_height": 84, "img_width": 84, "grayscale": True}
_PICTURE = {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}


class Game(NamedTuple):
    """A game, and how it is played."""

    settings: tuple[tuple[str, Any], ...]  # of the vector environment
    is_drawn: bool
    version: str  # of ale_py

    def make(self, num_envs: int, **settings: Any) -> Any:
        """Makes the vector environment."""
        import ale_py

        how: dict[str, Any] = {"autoreset_mode": "SameStep", "reward_clipping": False}
        return ale_py.AtariVectorEnv(num_envs=num_envs, **how | dict(self.settings) | settings)


class AtariEnvs:
    """A group of games, all of them stepped at once: see `HostEnvs`."""

    def __init__(self, game: Game, num_envs: int) -> None:
        self._games = game.make(num_envs, **_GRAY)
        # The same in colours, for films: from the same seeds, by the same actions.
        self._shown = game.make(num_envs, **_PICTURE) if game.is_drawn else None
        self._ended = np.zeros(num_envs, bool)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """See `HostEnvs.reset`."""
        numbers = seeds.astype(np.int64) >> 1  # of 31 bits, as the game takes them
        self._ended[:] = False
        if self._shown is not None:
            self._pictures = self._shown.reset(seed=numbers)[0]
        return _stack_last(self._games.reset(seed=numbers)[0])

    def step(self, lanes: np.ndarray, actions: np.ndarray) -> Stepped:
        """See `HostEnvs.step`; those that ended and are not asked for play on, unseen."""
        chosen = np.zeros(len(self._ended), np.int64)
        chosen[lanes] = actions
        others = np.ones(len(self._ended), bool)
        others[lanes] = False
        if (others & ~self._ended).any():
            raise RuntimeError("Atari games that were reset together must be stepped together")
        obs, reward, terminated, truncated, info = self._games.step(chosen)
        if self._shown is not None:
            self._pictures = self._shown.step(chosen)[0]
        ended, self._begun = terminated | truncated, obs
        self._ended[lanes] = ended[lanes]
        if ended.any():
            obs = np.where(ended[:, np.newaxis, np.newaxis, np.newaxis], info["final_obs"], obs)
        rows = reward[lanes].astype(np.float32), terminated[lanes], truncated[lanes]
        return _stack_last(obs[lanes]), *rows

    def next_episodes(self, lanes: np.ndarray) -> np.ndarray:
        """See `HostEnvs.next_episodes`: they have begun with the step before."""
        self._ended[lanes] = False
        return _stack_last(self._begun[lanes])

    def draw(self, lane: int) -> np.ndarray:
        """See `HostEnvs.draw`."""
        return np.array(self._pictures[lane, 0])

    def close(self) -> None:
        """See `HostEnvs.close`: the memory goes with the objects."""


def _stack_last(obs: np.ndarray) -> np.ndarray:
    """Copies frames `[n, K, H, W]` to `[n, H, W, K]`."""
    return np.ascontiguousarray(np.moveaxis(obs, 1, -1))


@functools.cache
def _host_of(game: Game) -> Host:
    shape = (84, 84, dict(game.settings).get("stack_num", 4))
    return Host(functools.partial(AtariEnvs, game), Box(0, 255, shape, np.uint8))


def make_atari(
    name: str, registered: Mapping[str, Any], settings: Mapping[str, Any]
) -> Environment:
    """Makes a game, `registered` with some arguments; settings change them.

    With `life_loss=1` an episode of training ends where a life is lost; evaluations play games to
    their end.

    Raises:
      ConfigError: for a setting that is not allowed.
    """
    import ale_py

    allowed = (*_ALLOWED, "life_loss", "render_mode")
    for key in settings:
        if key not in allowed:
            raise ConfigError(
                f"environment ({name!r}): setting {key!r} must be one of "
                f"{nearest_names(key, allowed)}"
            )
    known = inspect.signature(ale_py.AtariVectorEnv.__init__).parameters
    how = {key: value for key, value in registered.items() if key in known}
    how |= {key: value for key, value in settings.items() if key in known}
    is_drawn, life_loss = "render_mode" in settings, bool(settings.get("life_loss", False))
    whole = Game(tuple(sorted(how.items())), is_drawn, ale_py.__version__)
    game = whole._replace(settings=(*whole.settings, ("episodic_life", True)))
    num_actions = int(whole.make(1).single_action_space.n)
    limit = how["max_num_frames_per_episode"] // how["frameskip"]
    facts = {"num_actions": num_actions, "max_steps": limit, "frames": how.get("stack_num", 4)}
    env = make_environment(name, _host_of, whole, is_drawn=is_drawn, **facts)
    if not life_loss:
        return env
    cut = make_environment(name, _host_of, game, is_drawn=is_drawn, **facts)
    return cut._replace(for_evaluation=functools.partial(_keep, env))


def _keep(env: Environment, _: Any) -> Environment:
    return env
