"""Holds what every way to run a sweep can be asked for, beside its runs: `SweepOptions`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from purejaxdqn.tracking import Tracker
from purejaxdqn.types import ConfigError

SeedMode = Literal["vmap", "map"]


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """How runs are trained, shown and kept. Bad values are refused here, before anything compiles.

    `run_sweep`, `run_design`, `print_plan`, `run_on_cluster` and `search` take each field as a
    keyword, or several of them as one `options`.

    Attributes:
      width: runs per device program, on which the bits of a run depend; by default the plan chooses
        it. The results record it, and a resumed sweep uses the recorded one.
      seed_mode: "vmap" batches the runs of a device; "map" trains them one after another, each
        bitwise as if alone, which is a width of 1.
      devices: what to train on; by default every core, or the accelerators there are.
      output: a folder in which `results.nc` is kept up to date while the sweep runs, and beside it
        what is needed to resume the sweep after a kill. Without one nothing is kept.
      resume: whether to resume the sweep that was begun in that folder. A finished sweep is only
        read; where none was begun, this one is.
      overwrite: whether to start again, and drop what the folder holds. Without `resume` and
        `overwrite`, a folder that holds results or a sweep is refused.
      checkpoint_seconds: seconds between two checkpoints of what is under way; by default 20 times
        as long as the last one took, and at least 10. 0 makes one after each chunk.
      memory_budget: bytes that runs may take on the devices at a time, also written as 4e9; by
        default most of what is free.
      on_evaluation: called with each `Evaluated` as it comes; see `purejaxdqn.tracking`.
      progress: whether to show progress on standard error.
      diagnostics: whether to look inside the learner at each evaluation, see
        `purejaxdqn.training.diagnostics`. It changes no bit of anything else, and takes one more
        program.

    Raises:
      ConfigError: for a value that a field cannot have, and for fields that exclude each other.
    """

    width: int | None = None
    seed_mode: SeedMode = "vmap"
    devices: Sequence[jax.Device] | None = None
    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_seconds: float | None = None
    memory_budget: float | None = None
    on_evaluation: Tracker | None = None
    progress: bool = True
    diagnostics: bool = False

    def __post_init__(self) -> None:
        """Refuses bad values, and makes a `Path` of an output folder that is text."""
        width, seconds, budget = self.width, self.checkpoint_seconds, self.memory_budget
        output, devices, tracker = self.output, self.devices, self.on_evaluation
        a_bool = "must be True or False"
        rules = {
            "width": (
                width is None or (_is_a(int, width) and width >= 1),
                "must be at least 1, and a whole number",
            ),
            "seed_mode": (self.seed_mode in get_args(SeedMode), "must be 'vmap' or 'map'"),
            "devices": (
                devices is None or _are_devices(devices),
                "must be different devices of JAX, such as jax.devices()[:2]; leave them out for "
                "all there are",
            ),
            "output": (
                output is None or isinstance(output, (str, os.PathLike)),
                "must be a folder, such as Path('results/sweep')",
            ),
            "resume": (isinstance(self.resume, bool), a_bool),
            "overwrite": (isinstance(self.overwrite, bool), a_bool),
            "checkpoint_seconds": (
                seconds is None
                or (_is_a((int, float, np.number), seconds) and 0 <= seconds < math.inf),
                "must be at least 0 and finite, such as 60",
            ),
            "memory_budget": (
                budget is None or (_is_a((int, float), budget) and 1 <= budget < math.inf),
                "must be at least 1 byte, such as 4e9",
            ),
            "on_evaluation": (
                tracker is None or callable(tracker),
                "must be a function of an Evaluated, such as a tracker of open_tracker",
            ),
            "progress": (isinstance(self.progress, bool), a_bool),
            "diagnostics": (isinstance(self.diagnostics, bool), a_bool),
        }
        for name, (is_right, rule) in rules.items():
            if not is_right:
                raise ConfigError(f"{name} ({getattr(self, name)!r:.60}) {rule}")
        if self.seed_mode == "map" and width not in (None, 1):
            raise ConfigError(f"width ({width}) must be 1 with seed_mode 'map': leave it out")
        if self.resume and self.overwrite:
            raise ConfigError(
                "resume (True) and overwrite (True) exclude each other: --resume goes on with what "
                "is there, --overwrite starts again"
            )
        if (self.resume or self.overwrite) and output is None:
            name = "resume" if self.resume else "overwrite"
            raise ConfigError(f"{name} (True) needs an output folder: give output")
        if output is not None:
            object.__setattr__(self, "output", Path(output))

    @property
    def runs_per_batch(self) -> int | None:
        """The width that is asked for; None leaves it to the plan."""
        return 1 if self.seed_mode == "map" else self.width


def _is_a(kinds: Any, value: Any) -> bool:
    """Says whether a value is of some kinds of numbers, of which Python counts bool as one."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def check_whole(name: str, value: Any, at_least: int) -> None:
    """Refuses a value that is no whole number of at least `at_least`.

    Raises:
      ConfigError: naming the value and the limit.
    """
    if not (_is_a(int, value) and value >= at_least):
        raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {at_least}")


def _are_devices(devices: Any) -> bool:
    is_list = isinstance(devices, Sequence) and all(isinstance(d, jax.Device) for d in devices)
    return is_list and 0 < len(set(devices)) == len(devices)


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(SweepOptions)}


def split_keywords(
    options: SweepOptions | None, names: Mapping[str, Any]
) -> tuple[SweepOptions, dict[str, Any]]:
    """Puts those keywords of a call that are fields of `SweepOptions` into its options.

    Returns:
      The options, and all other keywords.

    Raises:
      ConfigError: if `options` is of another type, sets the same field, or has a bad value.
    """
    if not isinstance(options, SweepOptions | None):
        raise ConfigError(f"options ({options!r:.60}) must be SweepOptions, such as SweepOptions()")
    given = {name: value for name, value in names.items() if name in _DEFAULTS}
    for name, value in given.items():
        if options is not None and (there := getattr(options, name)) != _DEFAULTS[name]:
            raise ConfigError(
                f"{name} is given twice, in options ({there!r:.60}) and as a keyword "
                f"({value!r:.60}): leave one of them out"
            )
    others = {name: value for name, value in names.items() if name not in _DEFAULTS}
    return dataclasses.replace(options or SweepOptions(), **given), others


def take_options(
    options: SweepOptions | None,
    names: Mapping[str, Any],
    caller: str,
    not_taken: Mapping[str, str] | None = None,
) -> SweepOptions:
    """Puts the keywords of a call, all of which must be options, into its options.

    Args:
      options: the options that the call was given as a whole.
      names: the keywords of the call.
      caller: the name of the called function, for messages.
      not_taken: fields that this function has no use for, each with what to do instead.

    Raises:
      ConfigError: as `split_keywords` does; for other keywords; for fields that are not taken.
    """
    taken, others = split_keywords(options, names)
    for name in others:
        nearest = difflib.get_close_matches(name, _DEFAULTS, n=3)
        raise ConfigError(
            f"{name!r} is no option of {caller}: "
            f"{'did you mean ' if nearest else 'choose of '}{', '.join(nearest or _DEFAULTS)}"
        )
    for name, remedy in (not_taken or {}).items():
        if (value := getattr(taken, name)) != _DEFAULTS[name]:
            raise ConfigError(f"{name} ({value!r:.60}) is no option of {caller}: {remedy}")
    return taken


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1)}


def parse_bytes(text: str) -> int:
    """Reads an amount of memory, such as "4GB", "500 MiB" or "1e9", as bytes.

    Raises:
      ConfigError: if it is no positive amount of memory.
    """
    match = re.fullmatch(
        r"\s*(?P<amount>\d+\.?\d*(?:e\+?\d+)?|\.\d+)\s*(?P<unit>[kmgt]i?)?b?\s*", text.lower()
    )
    amount = float(match["amount"]) * _UNITS[match["unit"] or ""] if match else 0.0
    if not 1 <= amount < math.inf:
        raise ConfigError(
            f"memory_budget ({text!r}) must be an amount of memory, such as 4GB or 500MiB"
        )
    return int(amount)
