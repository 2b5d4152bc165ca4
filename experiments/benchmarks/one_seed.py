"""Whether a second core makes the updates of ONE seed faster.

    python experiments/benchmarks/one_seed.py
    python experiments/benchmarks/one_seed.py --hidden-sizes 256 256 --batch-sizes 128 2048

Times double forward, backward and Adam of a Q-network on a batch: on one single-threaded device
(`one`), with the batch split over two devices whose gradients are averaged (`split`), and with
XLA's own threads within each matrix product (`threads`). Each is a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any, Literal

from throughput import print_rows

from purejaxdqn.cli.exits import run_script

Kind = Literal["one", "split", "threads"]
KINDS: tuple[Kind, ...] = ("one", "split", "threads")


@dataclasses.dataclass(frozen=True)
class Args:
    __doc__ = __doc__
    hidden_sizes: tuple[int, ...] = (120, 84)
    """Widths of the network's hidden layers."""
    batch_sizes: tuple[int, ...] = (128, 512, 2048)
    """Transitions of an update."""
    kind: Kind | None = None
    """Used by the script itself: measure only this, in this process."""


def measure(args: Args) -> float:
    """Microseconds of an update of the first batch size, in this process."""
    threads = "true" if args.kind == "threads" else "false"
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={threads}"
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import Mesh, PartitionSpec

    jax.config.update("jax_num_cpu_devices", 2)
    from purejaxdqn.networks import value_network

    network = value_network(2, args.hidden_sizes)
    optimizer = optax.flatten(optax.adam(2.5e-4))
    batch_size = args.batch_sizes[0]
    keys = jax.random.split(jax.random.key(0), 3)
    params = network.init(keys[0], jnp.zeros(4))
    batch = tuple(jax.random.normal(key, (batch_size, 4)) for key in keys[1:])

    def loss(params: Any, target: Any, obs: Any, next_obs: Any) -> Any:
        values = jax.vmap(network.apply, (None, 0))
        errors = values(params, obs)[:, 0] - 0.99 * values(target, next_obs).max(-1)
        return jnp.mean(jnp.square(errors))

    def run(target: Any, batch: Any, num_updates: Any) -> Any:
        def update(i: Any, state: Any) -> Any:
            params, opt_state = state
            # Of changing batches, or else products would be moved out of the loop.
            grads = jax.grad(loss)(params, target, batch[0] + 1e-6 * i, batch[1] + 1e-6 * i)
            grads = jax.lax.pmean(grads, "batch") if args.kind == "split" else grads
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return jax.lax.fori_loop(0, num_updates, update, (target, optimizer.init(target)))[0]

    function: Any = run
    if args.kind == "split":
        mesh, shared = Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec()
        specs: Any = {"in_specs": (shared, PartitionSpec("batch"), shared), "out_specs": shared}
        function = jax.shard_map(run, mesh=mesh, check_vma=False, **specs)
    program = jax.jit(function)

    def time_updates(num_updates: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(params, batch, jnp.int32(num_updates)))
        return (time.perf_counter() - start) / num_updates

    time_updates(5)
    num_updates = max(20, int(0.3 / time_updates(20)))
    return 1e6 * min(time_updates(num_updates) for _ in range(5))


def main(args: Args) -> None:
    if args.kind is not None:
        print(json.dumps(measure(args)))
        return
    rows = []
    for batch_size in args.batch_sizes:
        sizes = [*map(str, args.hidden_sizes)]
        row: dict[str, Any] = {"network": "-".join(sizes), "batch": batch_size}
        for kind in KINDS:
            command = [sys.executable, __file__, "--kind", kind, "--hidden-sizes", *sizes]
            command += ["--batch-sizes", str(batch_size)]
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            row[kind] = json.loads(answer.stdout.splitlines()[-1])
        rows.append(row)
    columns = {"network": "{network}", "batch": "{batch}"}
    columns |= {f"{kind} us": f"{{{kind}:,.0f}}" for kind in KINDS}
    print_rows(rows, "microseconds of an update", columns)


if __name__ == "__main__":
    run_script(main, Args)
