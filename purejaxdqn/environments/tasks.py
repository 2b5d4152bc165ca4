"""The package's own environments, as data: who makes each, what it is like, and its settings.

Names are read without JAX, so nothing is imported here that needs it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from purejaxdqn.environments import naming


class Facts(NamedTuple):
    """What a list of environments says of one."""

    num_actions: int
    observation: str  # shape and dtype
    max_steps: int | None
    threshold: float | None


class Task(NamedTuple):
    """An environment of the package's own."""

    place: str  # of the function that makes it, as "module:function" in this folder
    facts: Facts
    arguments: Mapping[str, Any] = MappingProxyType({})  # of that function, beside the name
    options: naming.Options = MappingProxyType({})  # more of these, which a name may set


def _limited(place: str, num_actions: int, size: str, max_steps: int, threshold: float) -> Task:
    """Declares a task whose function takes its time limit and its threshold."""
    limits = {"max_steps": max_steps, "threshold": threshold}
    return Task(place, Facts(num_actions, f"{size} float32", max_steps, threshold), limits)


_SLIPPERY = {"is_slippery": naming.flag("whether steps may go astray")}
_DEEP_SEA = {
    "size": naming.whole(2, "steps of the way down"),
    "deterministic": naming.flag("whether each step does what it should"),
    "randomize_actions": naming.flag("whether each cell has actions of its own"),
    "mapping_seed": naming.whole(0, "of these actions"),
}
_BOARD = {"rows": naming.whole(2, "of the board"), "columns": naming.whole(2, "likewise")}
_ROOMS = {"failure": naming.number(0, 1, "probability that a step goes elsewhere")}
_MINATAR = {
    "sticky_actions": naming.number(0, 1, "probability of the last action instead; by default 0.1"),
    "time_limit": naming.whole(1, "cut episodes after so many steps; by default never"),
    "difficulty_ramping": naming.flag("whether the game gets harder; by default 1"),
}


def _minatar(game: str, num_channels: int, num_actions: int) -> Task:
    """Declares one of MinAtar's games with some of the six actions."""
    facts = Facts(num_actions, f"10x10x{num_channels} bool", None, None)
    return Task(f"minatar.{game}:{game}", facts, options=_MINATAR)


def _lake(size: str, observation: str, max_steps: int, threshold: float) -> Task:
    arguments = {"max_steps": max_steps, "threshold": threshold, "map_name": size}
    facts = Facts(4, observation, max_steps, threshold)
    return Task("grids.frozen_lake:frozen_lake", facts, arguments, _SLIPPERY)


def _cliff(is_slippery: bool) -> Task:
    arguments = {"max_steps": None, "threshold": None, "is_slippery": is_slippery}
    options = {} if is_slippery else _SLIPPERY
    return Task(
        "grids.cliff_walking:cliff_walking", Facts(4, "48 bool", None, None), arguments, options
    )


def _rooms(num_rooms: int, observation: str, max_steps: int) -> Task:
    arguments = {"max_steps": max_steps, "threshold": None, "num_rooms": num_rooms}
    return Task("grids.rooms:rooms", Facts(4, observation, max_steps, None), arguments, _ROOMS)


TASKS = {
    "Acrobot-v1": _limited("classic_control.acrobot:acrobot", 3, "6", 500, -100.0),
    "CartPole-v0": _limited("classic_control.cartpole:cartpole", 2, "4", 200, 195.0),
    "CartPole-v1": _limited("classic_control.cartpole:cartpole", 2, "4", 500, 475.0),
    "Catch-bsuite": Task("grids.catch:catch", Facts(3, "10x5 bool", None, None), options=_BOARD),
    "CliffWalking-v1": _cliff(is_slippery=False),
    "CliffWalkingSlippery-v1": _cliff(is_slippery=True),
    "DeepSea-bsuite": Task(
        "grids.deep_sea:deep_sea", Facts(2, "10x10 bool", None, None), options=_DEEP_SEA
    ),
    "FourRooms-v0": _rooms(4, "13x13x3 bool", 200),
    "FrozenLake-v1": _lake("4x4", "16 bool", 100, 0.7),
    "FrozenLake8x8-v1": _lake("8x8", "64 bool", 200, 0.85),
    "MinAtar/Asterix-v0": _minatar("asterix", 4, 6),
    "MinAtar/Asterix-v1": _minatar("asterix", 4, 5),
    "MinAtar/Breakout-v0": _minatar("breakout", 4, 6),
    "MinAtar/Breakout-v1": _minatar("breakout", 4, 3),
    "MinAtar/Freeway-v0": _minatar("freeway", 7, 6),
    "MinAtar/Freeway-v1": _minatar("freeway", 7, 3),
    "MinAtar/Seaquest-v0": _minatar("seaquest", 10, 6),
    "MinAtar/Seaquest-v1": _minatar("seaquest", 10, 6),
    "MinAtar/SpaceInvaders-v0": _minatar("space_invaders", 6, 6),
    "MinAtar/SpaceInvaders-v1": _minatar("space_invaders", 6, 4),
    "MountainCar-v0": _limited("classic_control.mountain_car:mountain_car", 3, "2", 200, -110.0),
    "TwoRooms-v0": _rooms(2, "7x11x3 bool", 100),
}
