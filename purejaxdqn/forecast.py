"""How long a sweep takes and how much memory, from its compiled programs and a short start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from purejaxdqn import checkpoint
from purejaxdqn.config import RunConfig
from purejaxdqn.design import Run
from purejaxdqn.planning import SweepPlan, peak_bytes
from purejaxdqn.programs import Programs
from purejaxdqn.rounds import evaluation_steps, train_round

_DOUBTED = 1.6  # times what XLA says of a program's memory: then it does not know all of it
_MEASURED_SECONDS = 1.0  # of training, to say how long all of it takes


def round_seconds(programs: Programs, config: RunConfig, runs: Sequence[Run]) -> float:
    """Of one round of runs, from its start to its end.

    Measured by training it for a second; the evaluations are taken to be as long as the first one.

    Args:
      programs: compiled.
      config: the settings of the runs.
      runs: of the round.

    Returns:
      Seconds.
    """
    evaluation_seconds, train_seconds, per_step = 0.0, 0.0, 0.0
    step = config.prefill_steps
    for event in train_round(programs, config, runs):
        if event.kept is None:
            if train_seconds:
                break
            evaluation_seconds = event.evaluation_seconds
            continue
        train_seconds += event.train_seconds
        per_step = event.train_seconds / (event.step - step)  # of the longest chunk yet
        step = event.step
        if train_seconds > _MEASURED_SECONDS:
            break
    seconds = per_step * (config.total_steps - config.prefill_steps)
    return seconds + len(evaluation_steps(config)) * evaluation_seconds


def peak_memory(
    plan: SweepPlan,
    compiled: Mapping[int, int],
    now: int,
    *,
    is_in_process: bool,
    is_kept: bool,
    goes_on: bool,
    is_checkpointed: bool,
) -> int:
    """The most memory that this process is going to have.

    Args:
      plan: the runs, laid out.
      compiled: bytes of a round, as XLA has laid it out, by its group's first batch; 0 if unknown.
      now: bytes that the process has without any run.
      is_in_process: whether the devices' memory is the process's, as that of a CPU is.
      is_kept: whether it writes to a folder.
      goes_on: whether it takes up there what was under way.
      is_checkpointed: whether it trains for long enough to write a checkpoint.

    Returns:
      Bytes; not fewer than it has had.
    """
    running = 0
    for group in plan.groups:
        by_xla = compiled.get(group.batches[0], 0)
        # XLA knows better what it has compiled, but for what it leaves to libraries.
        is_known = by_xla > group.round_bytes / _DOUBTED
        running = max(running, by_xla if is_known else group.round_bytes)
    if goes_on:
        # What is read of a device is there beside its copy.
        running += plan.width * max(group.run_bytes.state for group in plan.groups)
    if is_kept:
        states = (group.plan.slots_per_round * group.run_bytes.state for group in plan.groups)
        running += checkpoint.working_bytes(max(states) if is_checkpointed else 0)
    in_process = running if is_in_process else 0
    return max(peak_bytes(), now + in_process + plan.result_bytes)
