"""Holds what every way to run a sweep can be asked for, beside its runs: `SweepOptions`."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from purejaxdqn.checks import ConfigError, suggest_names
from purejaxdqn.tracking import Tracker
from purejaxdqn.training.declaration import Setting, setting, settings_of

_sweep = functools.partial(setting, group="sweep")
_NOT_A_FLAG: dict[str, Any] = {"is_no_flag": True}


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """How runs are trained, shown and kept. Bad values are refused here, before anything compiles.

    `run_sweep`, `run_design`, `print_plan`, `run_on_cluster` and `search` take each field as a
    keyword, or several of them as one `options`; the command line has a flag for each.

    Attributes:
      devices: what to train on; by default every core, or the accelerators there are.
      on_evaluation: called with each `Evaluated` as it comes; see `purejaxdqn.tracking`.
      progress: whether to show progress on standard error.

    Raises:
      ConfigError: for a value that a field cannot have, and for fields that exclude each other.
    """

    output: Path | None = setting(
        None,
        "Folder for everything that is written: results.nc, kept up to date while the sweep runs, "
        "and what is needed to resume it after a kill. Without one nothing is kept.",
        group="run",
    )
    overwrite: bool = setting(
        False, "Start again, and drop what the output folder holds.", group="run"
    )
    resume: bool = _sweep(
        False, "Go on with the sweep that was begun in the output folder; begin it where none was."
    )
    width: int | None = _sweep(
        None,
        "Runs per device program, on which a result's bits depend; by default chosen. The results "
        "record it, and a resumed sweep keeps it.",
    )
    seed_mode: Literal["vmap", "map"] = _sweep(
        "vmap",
        '"vmap" trains the runs of a device side by side, "map" one by one, each bitwise as if '
        "alone, which is a width of 1.",
    )
    checkpoint_seconds: float | None = _sweep(
        None,
        "Seconds between two checkpoints; by default 100 times as long as the last one took, and "
        "at least 30. 0 makes one after each chunk.",
        at_least=0,
        may_change=False,
        remedy="give seconds, such as 60",
    )
    memory_budget: float | None = setting(
        None,
        "Memory that runs may take on the devices at a time, in bytes, such as 4e9; by default "
        "most of what is free.",
        group="machines",
        at_least=1,
        remedy="give bytes, such as 4e9",
        may_change=False,
    )
    diagnostics: bool = setting(
        False,
        "Also look inside the learner at each evaluation: value bias, dormant units, effective "
        "rank, gradient norm, policy churn; of a small task also the true value error, the "
        "true action gap and the share of optimal actions. No bit of a run changes.",
        group="evaluation",
    )
    devices: Sequence[Any] | None = dataclasses.field(default=None, metadata=_NOT_A_FLAG)
    on_evaluation: Tracker | None = dataclasses.field(default=None, metadata=_NOT_A_FLAG)
    progress: bool = dataclasses.field(default=True, metadata=_NOT_A_FLAG)

    def __post_init__(self) -> None:
        """Refuses bad values, and makes a `Path` of an output folder that is text."""
        declared = [*settings_of(type(self)).values(), Setting("progress", bool, True)]
        if problems := [p for one in declared if (p := one.problem(getattr(self, one.name)))]:
            raise ConfigError("; ".join(problems))
        if self.output is not None:
            object.__setattr__(self, "output", Path(self.output))
        if self.devices is not None:
            _ensure_devices(self.devices)
        if self.on_evaluation is not None and not callable(self.on_evaluation):
            raise ConfigError(
                f"on_evaluation ({self.on_evaluation!r:.60}) must be a function of an Evaluated, "
                "such as one that purejaxdqn.tracking.open_tracker gives"
            )
        if self.seed_mode == "map" and self.width not in (None, 1):
            raise ConfigError(f"width ({self.width}) must be 1 with seed_mode 'map': leave it out")
        if self.resume and self.overwrite:
            raise ConfigError(
                "resume (True) and overwrite (True) exclude each other: --resume goes on with what "
                "is there, --overwrite starts again"
            )
        for name in ("resume", "overwrite"):
            if getattr(self, name) and self.output is None:
                raise ConfigError(f"{name} (True) needs an output folder: give output")

    @property
    def runs_per_batch(self) -> int | None:
        """The width that is asked for; None leaves it to the plan."""
        return 1 if self.seed_mode == "map" else self.width


def _ensure_devices(devices: Any) -> None:
    import jax  # whoever has devices has it

    is_list = isinstance(devices, Sequence) and all(isinstance(d, jax.Device) for d in devices)
    if not (is_list and 0 < len(set(devices)) == len(devices)):
        raise ConfigError(
            f"devices ({devices!r}) must be different devices of JAX, such as jax.devices()[:2]; "
            "leave them out for all there are"
        )


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(SweepOptions)}


def split_keywords(
    options: SweepOptions | None, keywords: Mapping[str, Any]
) -> tuple[SweepOptions, dict[str, Any]]:
    """Puts those keywords of a call that are fields of `SweepOptions` into its options.

    The other keywords come back as they are. Refuses `options` of another type, a field that is
    given in both, and bad values.
    """
    options = SweepOptions() if options is None else options
    if not isinstance(options, SweepOptions):
        raise ConfigError(f"options ({options!r:.60}) must be SweepOptions, such as SweepOptions()")
    others = {name: value for name, value in keywords.items() if name not in _DEFAULTS}
    given = {name: value for name, value in keywords.items() if name in _DEFAULTS}
    for name, value in given.items():
        if (there := getattr(options, name)) != _DEFAULTS[name]:
            raise ConfigError(
                f"{name} is given twice, in options ({there!r:.60}) and as a keyword "
                f"({value!r:.60}): leave one of them out"
            )
    return dataclasses.replace(options, **given), others


def take_options(
    options: SweepOptions | None,
    option_fields: Mapping[str, Any],
    caller: str,
    not_taken: Mapping[str, str] | None = None,
) -> SweepOptions:
    """Puts the keywords of a call, all of which must be options, into its options.

    Messages name the `caller`, which has no use for the fields `not_taken`: these are refused with
    what to do instead.
    """
    taken, others = split_keywords(options, option_fields)
    for name in others:
        raise ConfigError(f"{name!r} is no option of {caller}: {suggest_names(name, _DEFAULTS)}")
    for name, remedy in (not_taken or {}).items():
        if (value := getattr(taken, name)) != _DEFAULTS[name]:
            raise ConfigError(f"{name} ({value!r:.60}) is no option of {caller}: {remedy}")
    return taken


def parse_bytes(text: str) -> int:
    """Reads an amount of memory, such as "4GB", "500 MiB" or "1e9", as bytes, or refuses it."""
    pattern = r"(\d+\.?\d*(?:e\+?\d+)?|\.\d+) ?(?:([kmgt])(i?))?b?"
    amount = 0.0
    if match := re.fullmatch(pattern, text.lower(), re.ASCII):
        number, unit, binary = match.groups()
        amount = float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " ")
    if not 1 <= amount < math.inf:
        raise ConfigError(
            f"memory_budget ({text!r}) must be an amount of memory, such as 4GB or 500MiB"
        )
    return int(amount)
