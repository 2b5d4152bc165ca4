"""Where plain DQN's time goes: the settings of throughput.py, with one part left out at a time.

    python experiments/benchmarks/left_out.py
    python experiments/benchmarks/left_out.py --num-seeds 32 --json

All programs live in one process and take turns, a chunk at a time, so that a drift of the machine's
speed meets all of them. What a part takes is the time of the whole program less the time without
it. Parts overlap: what one leaves in the cache, another one finds there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from family import Args as FamilyArgs
from family import measure_in_turns
from jax.extend.random import define_prng_impl
from throughput import Args as ThroughputArgs
from throughput import make_config, print_rows

from purejaxdqn import losses, networks
from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.checks import ConfigError
from purejaxdqn.cli.exits import run_script
from purejaxdqn.replay import uniform_replay
from purejaxdqn.training.learner import make_learner, periodic_target_update
from purejaxdqn.training.loop import Experiment, Train
from purejaxdqn.types import Array, Replay, Sample


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    num_seeds: int = 8
    """Seeds side by side."""
    rounds: int = 60
    """Chunks per program."""
    iterations: int = 50
    """Iterations per chunk, each of 10 environment steps and one update."""
    json: bool = False
    """Print everything as one JSON object on the last line of standard output."""


class Linear(nn.Module):
    """The products of matrices of an MLP, without biases and nonlinearities."""

    sizes: Sequence[int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for size in self.sizes:
            x = networks.layers.Dense(size, use_bias=False)(x)
        return x


def first_rows(replay: Replay, batch_size: int) -> Replay:
    """A replay that takes the first of its rows in place of drawing from all."""

    def sample(state: Any, key: Array) -> Sample:
        sampled = jax.eval_shape(replay.sample, state, key)
        num_rows = -(-batch_size // state.num_envs)

        def read(column: Array, shape: Any) -> Array:
            rows = column[:num_rows].reshape(-1, *column.shape[2:])[:batch_size]
            return rows.reshape(shape.shape).astype(shape.dtype)

        columns = {name: getattr(state, name) for name in ("obs", "action", "reward")}
        columns |= {name: getattr(state, name) for name in ("terminated", "truncated")}
        columns |= {"is_inside": jnp.ones_like(state.action), "next_obs": state.obs}
        columns |= {"observations": state.obs}
        window = sampled.window
        read_all = {name: read(x, getattr(window, name)) for name, x in columns.items()}
        ones = jnp.ones(batch_size)
        return Sample(window._replace(**read_all), jnp.arange(batch_size), ones)

    return replay._replace(sample=sample)


def mix(key: Array, num: int) -> Array:
    """Makes `[num]` bits that look random from afar."""
    bits = (key[0] ^ key[1]) + jnp.arange(num, dtype=jnp.uint32) * jnp.uint32(2654435769)
    bits = (bits ^ (bits >> 16)) * jnp.uint32(2146121005)
    return bits ^ (bits >> 15)


QUICK = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jnp.stack([jnp.uint32(seed), jnp.uint32(1)]),
    split=lambda key, shape: mix(key, 2 * math.prod(shape)).reshape(*shape, 2),
    random_bits=lambda key, _, shape: mix(key, math.prod(shape)).reshape(shape),
    fold_in=lambda key, data: key + jnp.uint32(data),
    name="quick",
)


def with_quick_keys(config: DQNConfig) -> Train:
    """DQN whose random bits cost next to nothing, and are good for nothing else."""
    train = dqn(config)

    def init(key: Array) -> Any:
        return train.init(jax.random.wrap_key_data(jax.random.key_data(key), impl=QUICK))

    return train._replace(init=init)


def list_variants(config: DQNConfig) -> dict[str, tuple[DQNConfig, Experiment]]:
    """The whole program, and what is left of it without each part."""
    replay = uniform_replay(config.replay_capacity, config.batch_size, 500)
    network = networks.value_network(2, config.hidden_sizes)
    sgd = make_learner(network, losses.bellman_loss(), optax.sgd(1e-6), periodic_target_update(50))
    linear = networks.make_network(Linear((*config.hidden_sizes, 2)))
    variants: dict[str, Experiment] = {
        "": dqn,
        "Adam and clipping (plain steps in their place)": functools.partial(dqn, learner=sgd),
        "the target network's update": functools.partial(
            dqn, target_update=lambda params, target_params, num_updates: target_params
        ),
        "biases and nonlinearities": functools.partial(dqn, network=linear),
        "drawing transitions (the first rows in their place)": functools.partial(
            dqn, replay=first_rows(replay, config.batch_size)
        ),
        "the generator of random numbers (a few operations in its place)": with_quick_keys,
    }
    programs = {name: (config, experiment) for name, experiment in variants.items()}
    # With twice the updates, what is more is a gradient step, and all else is the rest.
    programs["twice"] = (dataclasses.replace(config, updates_per_iteration=2), dqn)
    return programs


def measure(args: Args) -> list[dict[str, Any]]:
    """The microseconds of each part in an iteration, for each seed."""
    shared = FamilyArgs(num_seeds=args.num_seeds, rounds=args.rounds, iterations=args.iterations)
    measured = measure_in_turns(list_variants(make_config(ThroughputArgs())), shared)
    scale = 1e6 / args.iterations / args.num_seeds
    medians = {name: median * scale for name, (median, *_) in measured.items()}
    whole, twice = medians.pop(""), medians.pop("twice")
    parts = {"acting, environments, remembering and the loop": 2 * whole - twice}
    parts |= {name: whole - without for name, without in medians.items()}
    rows = [{"part": name, "microseconds": x, "share": x / whole} for name, x in parts.items()]
    return [{"part": "everything", "microseconds": whole, "share": 1.0}, *rows]


def main(args: Args) -> None:
    if min(args.num_seeds, args.rounds, args.iterations) < 1:
        raise ConfigError("num_seeds, rounds and iterations must be at least 1")
    rows = measure(args)
    columns = {"left out": "{part}", "us per seed": "{microseconds:.1f}", "share": "{share:.1%}"}
    print_rows(rows, f"{args.num_seeds} seeds, an iteration", columns)
    if args.json:
        print(json.dumps({"num_seeds": args.num_seeds, "results": rows}))


if __name__ == "__main__":
    run_script(main, Args)
