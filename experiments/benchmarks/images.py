"""Training from images, beside the same program with flax's convolution, and beside a bound.

    python experiments/benchmarks/images.py
    python experiments/benchmarks/images.py --agents dqn --num-seeds 32 --json

The bound is the time of the updates' matrix products, forward (with DQN, of the target network too)
and backward, and of a plain step of the weights, with the patches of images given. All programs
live in one process and take turns, a chunk at a time, so that a drift of the machine's speed meets
all of them; medians.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from family import Args as FamilyArgs
from family import measure_in_turns, plan_seeds, settings_of_task
from throughput import Args as ThroughputArgs
from throughput import make_config, make_pqn_config, print_rows

from purejaxdqn import environments
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.agents.pqn.pqn import pqn
from purejaxdqn.cli.exits import run_script
from purejaxdqn.networks import layers
from purejaxdqn.training.loop import ChunkOutputs, Experiment, Train
from purejaxdqn.types import Array, ConfigError, TrainState

Agent = Literal["dqn", "pqn"]


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    agents: tuple[Agent, ...] = ("dqn", "pqn")
    """Whose updates are timed: batches of 32 once in 4 steps, or PQN's own settings."""
    env: str = "MinAtar/Breakout-v1"
    """The task, whose observations are images."""
    num_seeds: int = 8
    """Seeds side by side."""
    rounds: int = 30
    """Chunks per program."""
    updates: int = 48
    """Gradient steps per chunk."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""


def with_flax(experiment: Experiment, config: Any) -> Train:
    """Makes the same training run, whose convolutions are flax's."""
    train = experiment(config)
    flax_conv = functools.partial(nn.Conv, padding="VALID")

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with mock.patch.object(layers, "Conv", flax_conv):
                return function(*args)

        return call

    return train._replace(init=traced(train.init), chunk=traced(train.chunk))


def sizes_of_products(config: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Lists the positions of each convolution, and the shapes of all layers' weights."""
    space = environments.make(config.env)
    rows, columns, channels = space.observation_space.shape
    positions, shapes = [], []
    for features, size, stride in zip(
        config.channels, config.kernel_sizes, config.strides, strict=True
    ):
        rows, columns = ((side - size) // stride + 1 for side in (rows, columns))
        positions.append(rows * columns)
        shapes.append((size * size * channels, features))
        channels = features
    sizes = [rows * columns * channels, *config.hidden_sizes, space.num_actions]
    return positions, [*shapes, *itertools.pairwise(sizes)]


def step_of_products(
    weights: Sequence[Array], inputs: Sequence[Array], batch_size: int
) -> list[Array]:
    """Multiplies what an update multiplies; `inputs` has the patches of each convolution."""
    num_convolutions = len(inputs)

    def forward(which: int) -> tuple[list[Array], Array]:
        factors: list[Array] = []
        x = jnp.zeros(())
        for i, weight in enumerate(weights):
            x = inputs[i][which] if i < num_convolutions else x.reshape(batch_size, -1)
            factors.append(x)
            x = x @ weight
        return factors, x

    factors, gradient = forward(0)
    if len(inputs[0]) > 1:
        gradient = gradient - forward(1)[1]
    gradients = []
    for i in reversed(range(len(weights))):
        gradients.append(factors[i].T @ gradient)
        if i:  # what patches share is not added up, which is no product
            shape = (len(factors[i - 1]), weights[i - 1].shape[1])
            gradient = jnp.resize(gradient @ weights[i].T, shape)
    # Each product depends on the one before, so that none is dropped or moved out of the loop.
    return [w - 1e-6 * g for w, g in zip(weights, reversed(gradients), strict=True)]


def only_products(experiment: Experiment, config: Any) -> Train:
    """Makes a run of as many products of matrices, and nothing else."""
    train = experiment(config)
    is_dqn = isinstance(config, DQNConfig)
    batch_size = config.batch_size if is_dqn else config.steps_per_update // config.num_minibatches
    positions, shapes = sizes_of_products(config)

    def init(key: Array) -> TrainState:
        def draw(i: int, *shape: int) -> Array:
            scale = math.sqrt(shape[-2])
            return jax.random.normal(jax.random.fold_in(key, i), shape) / scale

        weights = [draw(i, *shape) for i, shape in enumerate(shapes)]
        inputs = [
            draw(100 + i, 1 + is_dqn, batch_size * count, shapes[i][0])
            for i, count in enumerate(positions)
        ]
        return dataclasses.replace(train.init(key), measured=(weights, inputs))

    def chunk(state: TrainState, num: Array, most: int) -> tuple[TrainState, ChunkOutputs]:
        weights, inputs = state.measured
        num_updates = num * config.updates_per_iteration
        step = functools.partial(step_of_products, inputs=inputs, batch_size=batch_size)
        weights = jax.lax.fori_loop(0, num_updates, lambda _, x: step(x), weights)
        state = dataclasses.replace(state, measured=(weights, inputs))
        return state, ChunkOutputs(jnp.zeros((most, 1, 1)), {})

    return train._replace(init=init, chunk=chunk)


def compare(agent: Agent, args: Args) -> list[dict[str, Any]]:
    """A row for each program of an agent."""
    experiment: Any = dqn if agent == "dqn" else pqn
    settings = settings_of_task(args.env)
    if agent == "dqn":
        config: Any = dataclasses.replace(make_config(ThroughputArgs()), **settings)
    else:
        names = ("env", "channels", "kernel_sizes", "strides", "hidden_sizes")
        own = {name: settings[name] for name in names}
        config = dataclasses.replace(make_pqn_config(ThroughputArgs()), **own)
    iterations = max(1, args.updates // config.updates_per_iteration)
    programs: dict[str, Experiment] = {
        "bound": functools.partial(only_products, experiment),
        "nn.Conv": functools.partial(with_flax, experiment),
        "purejaxdqn": experiment,
    }
    options = FamilyArgs(num_seeds=args.num_seeds, rounds=args.rounds, iterations=iterations)
    plan = plan_seeds(config, args.num_seeds, experiment)
    measured = measure_in_turns({name: (config, x) for name, x in programs.items()}, options, plan)
    seconds = {name: median for name, (median, *_) in measured.items()}
    scale = 1e6 / iterations / config.updates_per_iteration / args.num_seeds
    return [
        {
            "agent": agent,
            "program": name,
            "microseconds": taken * scale,
            "speedup": seconds["nn.Conv"] / taken,
            "fraction_of_bound": seconds["bound"] / taken,
        }
        for name, taken in seconds.items()
    ]


def main(args: Args) -> None:
    if min(args.num_seeds, args.rounds, args.updates) < 1:
        raise ConfigError("num_seeds, rounds and updates must be at least 1")
    if "channels" not in settings_of_task(args.env):
        raise ConfigError(f"env ({args.env!r}) must be a task whose observations are images")
    rows = [row for agent in args.agents for row in compare(agent, args)]
    columns = {
        "agent": "{agent}",
        "program": "{program}",
        "us per update and seed": "{microseconds:,.0f}",
        "speedup": "{speedup:.2f}",
        "of the bound": "{fraction_of_bound:.2f}",
    }
    print_rows(rows, f"{args.env}, {args.num_seeds} seeds", columns)
    if args.json:
        print(json.dumps({"num_seeds": args.num_seeds, "results": rows}))


if __name__ == "__main__":
    run_script(main, Args)
