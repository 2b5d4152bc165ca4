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
        self._check_width()
        self._check_devices()
        self._check_output()
        _check_seconds(self.checkpoint_seconds)
        check_memory_budget(self.memory_budget)
        if self.on_evaluation is not None and not callable(self.on_evaluation):
            raise ConfigError(
                f"on_evaluation ({self.on_evaluation!r:.60}) must be a function of an Evaluated, "
                "such as one that purejaxdqn.tracking.open_tracker gives"
            )

    @property
    def runs_per_batch(self) -> int | None:
        """The width that is asked for; None leaves it to the plan."""
        return 1 if self.seed_mode == "map" else self.width

    def _check_width(self) -> None:
        if self.seed_mode not in get_args(SeedMode):
            raise ConfigError(f"seed_mode ({self.seed_mode!r}) must be 'vmap' or 'map'")
        if self.seed_mode == "map" and self.width not in (None, 1):
            raise ConfigError(f"width ({self.width}) must be 1 with seed_mode 'map': leave it out")
        is_whole = isinstance(self.width, int) and not isinstance(self.width, bool)
        if self.width is not None and not (is_whole and self.width >= 1):
            raise ConfigError(f"width ({self.width!r}) must be at least 1, and a whole number")

    def _check_devices(self) -> None:
        devices = self.devices
        if devices is None:
            return
        is_list = isinstance(devices, Sequence) and all(isinstance(d, jax.Device) for d in devices)
        if not is_list or not devices or len(set(devices)) < len(devices):
            raise ConfigError(
                f"devices ({devices!r}) must be different devices of JAX, such as "
                "jax.devices()[:2]; leave them out for all there are"
            )

    def _check_output(self) -> None:
        for name in ("resume", "overwrite", "progress", "diagnostics"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} ({value!r:.60}) must be True or False")
        if self.output is not None:
            if not isinstance(self.output, (str, os.PathLike)):
                raise ConfigError(
                    f"output ({self.output!r:.60}) must be a folder, such as Path('results/sweep')"
                )
            object.__setattr__(self, "output", Path(self.output))
        if self.resume and self.overwrite:
            raise ConfigError(
                "resume (True) and overwrite (True) exclude each other: --resume goes on with what "
                "is there, --overwrite starts again"
            )
        if (self.resume or self.overwrite) and self.output is None:
            name = "resume" if self.resume else "overwrite"
            raise ConfigError(f"{name} (True) needs an output folder: give output")


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(SweepOptions)}


def split_keywords(
    options: SweepOptions | None, names: Mapping[str, Any]
) -> tuple[SweepOptions, dict[str, Any]]:
    """Splits the keywords of a call into options and others.

    Args:
      options: the options that the call was given as a whole; None is the defaults.
      names: the other keywords of the call.

    Returns:
      The options with those keywords that are fields of `SweepOptions`, and all other keywords.

    Raises:
      ConfigError: if `options` is of another type, if a keyword is set in `options` too, or for a
        value that a field cannot have.
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


def options_from(
    options: SweepOptions | None,
    names: Mapping[str, Any],
    caller: str,
    not_taken: Mapping[str, str] | None = None,
) -> SweepOptions:
    """Puts the keywords of a call, all of which must be options, into its options.

    Args:
      options: as in `split_keywords`.
      names: as in `split_keywords`.
      caller: the name of the called function, for messages.
      not_taken: the fields that this function has no use for, each with what to do instead.

    Returns:
      The options.

    Raises:
      ConfigError: as `split_keywords` does; for a keyword that is no option; and for a field of
        `not_taken` that is set.
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


def _check_seconds(seconds: float | None) -> None:
    is_number = isinstance(seconds, (int, float, np.number)) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 <= seconds < math.inf):
        raise ConfigError(
            f"checkpoint_seconds ({seconds!r}) must be at least 0 and finite, such as 60"
        )


def check_memory_budget(budget: float | None) -> None:
    """Refuses what is no amount of memory in bytes.

    Raises:
      ConfigError: unless it is a finite number of at least 1, or None.
    """
    is_number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if budget is not None and not (is_number and 1 <= budget < math.inf):
        raise ConfigError(f"memory_budget ({budget!r}) must be at least 1 byte, such as 4e9")


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
