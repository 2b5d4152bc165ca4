"""How fast tasks step at random, beside the same tasks in gymnasium, MinAtar and gymnax.

    python experiments/benchmarks/environments.py
    python experiments/benchmarks/environments.py --tasks MinAtar/Breakout-v1 --json
    python experiments/benchmarks/environments.py --peers gymnax --venv .venv-peers

Each task steps with uniformly random actions and begins anew when it ends: `num_envs` environments
of this package's, compiled, on all devices; gymnasium's vector environment of as many, and the one
in NumPy that it has of CartPole; one of MinAtar's games, which has no vector environment; gymnax's
under `jit(vmap)`. Of `gymnasium:` tasks it is the bridge beside the bare vector environment. The
rates are environment steps per second, medians of rounds in which all take turns, after
compilation. gymnax needs the virtual environment that peers.py makes: name it with --venv.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from peers import measure_peer, python_of
from rich.progress import track
from throughput import print_rows

from purejaxdqn import environments
from purejaxdqn.cli.exits import run_script
from purejaxdqn.environments import Environment, step_and_reset
from purejaxdqn.runtime.console import make_console
from purejaxdqn.runtime.devices import compiler_options, use_every_core
from purejaxdqn.runtime.random_keys import make_key
from purejaxdqn.types import Array, ConfigError

Peer = Literal["gymnasium", "minatar", "gymnax"]
Runner = Callable[[], float]  # runs for a while; steps per second
_IN_GYMNAX = {
    "Acrobot-v1": "Acrobot-v1",
    "CartPole-v1": "CartPole-v1",
    "MountainCar-v0": "MountainCar-v0",
    "Catch-bsuite": "Catch-bsuite",
    "DeepSea-bsuite": "DeepSea-bsuite",
    "FourRooms-v0": "FourRooms-misc",
    "MinAtar/Asterix-v1": "Asterix-MinAtar",
    "MinAtar/Breakout-v1": "Breakout-MinAtar",
    "MinAtar/Freeway-v1": "Freeway-MinAtar",
    "MinAtar/SpaceInvaders-v1": "SpaceInvaders-MinAtar",
}


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    tasks: tuple[str, ...] = ()
    """What to measure; all of the package's own by default."""
    peers: tuple[Peer, ...] = ("gymnasium", "minatar")
    """What to measure beside it, where it has the task."""
    num_envs: int = 1024
    """Environments side by side."""
    host_envs: int = 80
    """Those of a `gymnasium:` task: ten of each of eight runs."""
    seconds: float = 1.0
    """How long each is timed in a round, at least."""
    rounds: int = 3
    """Rounds; the table shows medians."""
    venv: Path | None = None
    """The virtual environment with gymnax."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""


def timed(advance: Callable[[], int], seconds: float) -> float:
    """Steps per second of a function that takes some steps and says how many."""
    start, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds:
        count += advance()
    return count / taken


def run_own(env: Environment, num_envs: int, num_steps: int, seconds: float) -> Runner:
    """Steps this package's environments on all devices, `num_steps` in each call."""
    devices = use_every_core()
    share = max(num_envs // len(devices), 1)

    def begin(keys: Array) -> Any:
        return *jax.vmap(env.reset)(jax.random.split(keys[0], share)), jnp.zeros(1)

    def play(keys: Array, carry: Any) -> Any:
        def step(carry: Any, key: Array) -> Any:
            state, _, rewards = carry
            act_key, step_key = jax.random.split(key)
            actions = jax.random.bits(act_key, (share,)) % env.num_actions
            actions = actions.astype(jnp.int32)
            step_all = jax.vmap(functools.partial(step_and_reset, env))
            state, obs, timestep = step_all(jax.random.split(step_key, share), state, actions)
            # Whoever acts needs the observation: where it is carried on, XLA makes it.
            return (state, obs, rewards + timestep.reward.sum()), None

        key, steps_key = jax.random.split(keys[0])
        carry, _ = jax.lax.scan(step, carry, jax.random.split(steps_key, num_steps))
        return key[jnp.newaxis], carry

    mesh, by_device = Mesh(np.array(devices), ("envs",)), PartitionSpec("envs")
    specs: dict[str, Any] = {
        "mesh": mesh,
        "in_specs": by_device,
        "out_specs": by_device,
        "check_vma": False,
    }
    options = compiler_options()  # as a run that trains is compiled
    program = jax.jit(jax.shard_map(play, **specs), donate_argnums=1, compiler_options=options)
    keys = jax.random.split(make_key(0), (2, len(devices)))
    box = [keys[0], jax.jit(jax.shard_map(begin, **specs))(keys[1])]

    def advance() -> int:
        box[:] = program(*box)
        jax.block_until_ready(box[1])
        return num_steps * share * len(devices)

    advance()  # compiles
    return lambda: timed(advance, seconds)


def run_gymnasium(name: str, num_envs: int, seconds: float, mode: str = "sync") -> Runner:
    """Steps gymnasium's environments, one after another or as its NumPy arrays do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls CartPole-v0 outdated
        envs = gymnasium.make_vec(name, num_envs=num_envs, vectorization_mode=mode)
    envs.reset(seed=0)
    num_actions = gymnasium.spaces.flatdim(envs.single_action_space)
    actions = np.random.default_rng(0).integers(0, 2**30, (64, num_envs)) % num_actions
    turn = [0]

    def advance() -> int:
        turn[0] += 1
        envs.step(actions[turn[0] % len(actions)])
        return num_envs

    return lambda: timed(advance, seconds)


def run_minatar(name: str, seconds: float) -> Runner:
    """Steps one game of the original, which has no vector environment."""
    from minatar import Environment as Original

    words = {"SpaceInvaders": "space_invaders"}
    game = name.removeprefix("MinAtar/").partition("-")[0]
    original = Original(words.get(game, game.lower()))
    original.seed(0)
    original.reset()
    actions = np.random.default_rng(0).integers(0, 6, 4096).tolist()

    def advance() -> int:
        for action in actions:
            _, ended = original.act(action)
            original.state()
            if ended:
                original.reset()
        return len(actions)

    return lambda: timed(advance, seconds)


def run_gymnax(name: str, args: Args) -> Runner:
    """Steps gymnax's environments in a process of its own, with its own virtual environment."""
    if args.venv is None:
        raise ConfigError("peers (gymnax) needs --venv, the virtual environment of peers.py")
    python = python_of(args.venv)
    asked = {"env": _IN_GYMNAX[name], "num_envs": args.num_envs, "seconds": args.seconds}
    return lambda: float(measure_peer(python, "peer_gymnax.py", asked)["steps_per_second"])


def make_runners(task: str, args: Args) -> dict[str, Runner]:
    """What is measured of a task, by name."""
    env = environments.make(task)
    base, num_envs, seconds = task.partition("?")[0], args.num_envs, args.seconds
    if env.is_host:
        there = base.partition(":")[2]
        return {
            "this package": run_own(env, args.host_envs, 64, seconds),
            "gymnasium": run_gymnasium(there, args.host_envs, seconds),
        }
    runners = {"this package": run_own(env, num_envs, 64, seconds)}
    if "gymnasium" in args.peers and base in gymnasium.registry:
        runners["gymnasium"] = run_gymnasium(base, num_envs, seconds)
        if gymnasium.spec(base).vector_entry_point is not None:
            mode = "vector_entry_point"
            runners["gymnasium, in NumPy"] = run_gymnasium(base, num_envs, seconds, mode)
    if "minatar" in args.peers and base.startswith("MinAtar/"):
        runners["minatar"] = run_minatar(base, seconds)
    if "gymnax" in args.peers and base in _IN_GYMNAX:
        runners["gymnax"] = run_gymnax(base, args)
    return runners


def measure(task: str, args: Args) -> list[dict[str, Any]]:
    """Measures a task in rounds in which all take turns."""
    runners = make_runners(task, args)
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(args.rounds):
        for name, run in runners.items():
            rates[name].append(run())
    ours = statistics.median(rates["this package"])
    return [
        {
            "task": task,
            "system": name,
            "steps_per_second": statistics.median(of),
            "ratio": ours / statistics.median(of),
        }
        for name, of in rates.items()
    ]


def main(args: Args) -> None:
    if min(args.num_envs, args.host_envs, args.rounds) < 1 or not args.seconds > 0:
        raise ConfigError("num_envs, host_envs and rounds must be at least 1, and seconds above 0")
    tasks = args.tasks or environments.names()
    for task in tasks:
        environments.validate(task)
    rows = [
        row
        for task in track(tasks, "measuring", console=make_console(stderr=True))
        for row in measure(task, args)
    ]
    columns = {
        "task": "{task}",
        "system": "{system}",
        "steps/s": "{steps_per_second:,.0f}",
        "ours / this": "{ratio:.1f}",
    }
    print_rows(rows, f"random steps of {args.num_envs} environments", columns)
    if args.json:
        print(json.dumps({"num_envs": args.num_envs, "results": rows}))


if __name__ == "__main__":
    run_script(main, Args)
