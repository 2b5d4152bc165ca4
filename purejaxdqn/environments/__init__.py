"""Environments as pure functions: `make(name)` makes one, `register` adds one of your own.

A new environment is a file here, and a line below.
"""

import functools

from purejaxdqn.environments.base import Environment, EnvState, step_and_reset
from purejaxdqn.environments.cartpole import CartPoleState, cartpole
from purejaxdqn.environments.registry import make, names, register

__all__ = [
    "CartPoleState",
    "EnvState",
    "Environment",
    "make",
    "names",
    "register",
    "step_and_reset",
]

register("CartPole-v0", functools.partial(cartpole, "CartPole-v0", max_steps=200, threshold=195.0))
register("CartPole-v1", functools.partial(cartpole, "CartPole-v1", max_steps=500, threshold=475.0))
