"""The settings of a run: the class that every kind of them derives from, and their texts.

A command line's texts are read by `parse`; JSON is written and read for results files.
"""

import contextlib
import dataclasses
import functools
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from purejaxdqn import environments
from purejaxdqn.checks import ConfigError
from purejaxdqn.storage.provenance import to_jsonable
from purejaxdqn.training.declaration import (
    DIAGNOSTICS,
    LARGEST_INT,
    PATH,
    Setting,
    is_path,
    read_distribution,
    setting,
    settings_of,
)
from purejaxdqn.training.pytrees import register_pytree
from purejaxdqn.training.schedules import EXAMPLE, SHAPES, Changing, read_changing

if TYPE_CHECKING:
    from purejaxdqn.types import Array

# Settings that not every agent has: where they are missing, what depends on them is read.
_READ_IF_THERE = {"noisy", "optimizer", "epsilon_schedule", "td_error"}
_MOST_EVALUATIONS = 10**5  # of a run; they are kept one by one

# Names that results have for something else.
NAMES_OF_RESULTS = frozenset(
    {"loss", "evaluation_return", "final_return", "training_return", "num_updates"}
    | {"gymnasium_return", "step", "seed", "episode", "run", "sample", "settings", "diverged"}
    | set(DIAGNOSTICS)
)
_run = functools.partial(setting, group="run")
_network = functools.partial(setting, group="network")
_fraction = functools.partial(setting, at_least=0, at_most=1)
_epsilon = functools.partial(
    _fraction, group="exploration", may_change=False, read_if={"noisy": False}
)
_evaluation = functools.partial(setting, group="evaluation")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings that every training run has. Sweeps and reports read no others.

    A class of one's own is a frozen dataclass that derives from this one, or from `DQNConfig` or
    `PQNConfig`, and declares its settings with `setting`. Writing `x = 3` in it changes the
    parent's default. For a new name it declares a setting without help or range.

    Settings are a pytree. Floats are its leaves: they enter a compiled program as arguments, so
    that `jax.vmap` sweeps them. A program is compiled for each value of all other settings.
    """

    agent: str = _run("", "The named agent that the settings belong to.")
    env: str = _run("CartPole-v1", environments.naming.HELP)
    total_steps: int = _run(
        100_000, "Environment steps per seed, over all its environments, from the first one on."
    )
    num_envs: int = _run(4, "Environments stepped side by side within one seed.")
    hidden_sizes: tuple[int, ...] = _network((128, 128), "Widths of the network's hidden layers.")
    layer_norm: bool = _network(False, "Whether hidden layers are normalised before their ReLU.")
    discount: float = _fraction(0.99, "Gamma, per step of one environment.")
    learning_rate: float = setting(
        3e-4, "The optimiser's step size at the first gradient step.", above=0
    )
    learning_rate_end_fraction: float = _fraction(
        0.05,
        "Fraction of learning_rate left at the last gradient step, falling linearly; 1: constant.",
        may_change=False,
    )
    adam_epsilon: float = setting(
        1e-3,
        "What Adam, or RAdam, adds to its denominator; larger ones keep small gradients small.",
        above=0,
        read_if={"optimizer": "adam"},
    )
    max_grad_norm: float = setting(
        10.0,
        "Gradients are scaled down to this global norm; inf never does.",
        above=0,
        at_most=math.inf,
        remedy="inf turns clipping off",
    )
    epsilon_start: float = _epsilon(1.0, "Probability of a random action at first.")
    epsilon_end: float = _epsilon(
        0.04,
        "Probability of a random action once exploration has decayed.",
        read_if=({"noisy": False}, {"td_error": "expected_sarsa"}),
    )
    epsilon_fraction: float = _epsilon(
        0.2,
        "Fraction of total_steps over which epsilon falls in a straight line.",
        read_if={"noisy": False, "epsilon_schedule": "linear"},
    )
    eval_interval: int = _evaluation(
        5_000,
        "Environment steps between evaluations; one before learning and one at the end come on "
        "top, and are the only ones if this is longer than the run.",
    )
    eval_episodes: int = _evaluation(50, "Greedy episodes per evaluation; no training steps.")
    eval_max_steps: int = _evaluation(
        5_000, "Steps at which a greedy episode is stopped where there is no time limit."
    )

    def __post_init__(self) -> None:
        kind: Any = type(self)
        _register(kind)
        if "agent" not in vars(kind) and self.agent == kind.agent:
            # A class of one's own has its parent's default, and not its parent's name.
            object.__setattr__(self, "agent", "")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Registers the class where a pickle brings the first settings of it into a process."""
        vars(self).update(state)
        self.__post_init__()

    @property
    def prefill_steps(self) -> int:
        """Environment steps before anything is learned."""
        return 0

    @property
    def steps_per_update(self) -> int:
        """Environment steps (of all environments) between rounds of updates."""
        return self.num_envs

    @property
    def updates_per_iteration(self) -> int:
        """Gradient steps in each round of updates."""
        return 1

    @property
    def num_iterations(self) -> int:
        """Rounds of acting and learning in a run."""
        return (self.total_steps - self.prefill_steps) // self.steps_per_update

    @property
    def num_updates(self) -> int:
        """Gradient steps in a run."""
        return self.num_iterations * self.updates_per_iteration

    def at(self, num_updates: "Array | int") -> Self:
        """Returns the settings as they are after so many gradient steps, numbers for schedules.

        They are these settings themselves where none of them is a schedule.
        """
        now = {name: x(num_updates) for name, x in vars(self).items() if callable(x)}
        return dataclasses.replace(self, **now) if now else self

    def validate(self) -> None:
        """Refuses settings that cannot be kept, on concrete values, before anything is traced.

        Raises:
          ConfigError: with every setting at fault, its value, what is allowed, and the remedy.
        """
        declared = settings_of(type(self)).values()
        problems = [p for one in declared if (p := one.problem(getattr(self, one.name)))]
        # The relations divide by these numbers.
        if problems := problems or [*self.problems_together()]:
            raise ConfigError("; ".join(problems))
        environments.validate(self.env)

    def problems_together(self) -> Iterator[str]:
        """Yields what settings that are allowed each by itself make wrong together."""
        if self.total_steps // self.eval_interval > _MOST_EVALUATIONS:
            yield (
                f"eval_interval ({self.eval_interval}) makes more than {_MOST_EVALUATIONS:,} "
                f"evaluations of total_steps ({self.total_steps}): raise it"
            )
        for name in ("learning_rate", "fraction_learning_rate"):
            value, end = getattr(self, name, None), self.learning_rate_end_fraction
            if isinstance(value, Changing) and end != 1:
                yield (
                    f"{name} ({value}) is a schedule beside learning_rate_end_fraction ({end}), "
                    "which is another: set that to 1"
                )

    def multiple_problems(self, name: str, of: str, base: int) -> Iterator[str]:
        """Yields what is wrong with a setting that is no multiple of a number, called `of`."""
        value = getattr(self, name)
        if value % base:
            below = value // base * base
            near = f"{below} or {below + base}" if below else below + base
            yield f"{name} ({value}) must be a multiple of {of} ({base}): try {near}"

    def whole_iteration_problems(self, of: str) -> Iterator[str]:
        """Yields what keeps a run from being whole iterations, whose length is called `of`."""
        # Evaluations and the last step then fall on the end of an iteration.
        for name in ("eval_interval", "prefill_steps", "total_steps"):
            yield from self.multiple_problems(name, of, self.steps_per_update)
        if self.num_updates > LARGEST_INT:
            yield (
                f"the gradient steps of the run ({self.num_updates}) must be at most "
                f"{LARGEST_INT}: lower total_steps or the gradient steps of each iteration"
            )


_RECORDING = threading.RLock()


@contextlib.contextmanager
def record_reads() -> Iterator[set[str]]:
    """Records the names of all settings that code reads within the block, of any config.

    Whoever only copies a config, as `dataclasses.replace` and `jax.jit` do, reads none.
    """
    read: set[str] = set()

    def get(config: RunConfig, name: str) -> Any:
        reader = sys._getframe(1)
        room = str(reader.f_globals.get("__name__")).partition(".")[0]
        is_copied = room == "dataclasses" and reader.f_code.co_name in ("replace", "_replace")
        if not is_copied and room != "jax":
            read.add(name)
        return object.__getattribute__(config, name)

    with _RECORDING:
        RunConfig.__getattribute__ = get  # type: ignore[method-assign, assignment]
        try:
            yield read
        finally:
            del RunConfig.__getattribute__


KINDS: dict[str, type[RunConfig]] = {}  # every class that this process has used, by `name_of_kind`


@functools.cache
def _register(kind: type[RunConfig]) -> None:
    """Makes a class of settings a pytree whose leaves are its traced settings, or refuses it."""
    own = vars(kind)
    forgotten = own.get("__annotations__") and "__dataclass_fields__" not in own
    if forgotten or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(
            f"{kind.__name__} must be a frozen dataclass: put @dataclasses.dataclass(frozen=True) "
            "above the class"
        )
    declared = settings_of(kind)
    for name, one in declared.items():
        if one.default is None or one.type in (Path, tuple[str, ...]):
            raise ConfigError(
                f"{kind.__name__}.{name} ({one.default!r}) must be a bool, a number, a name or "
                "sizes: results keep no other settings"
            )
        if name in NAMES_OF_RESULTS:
            raise ConfigError(f"{kind.__name__}.{name} has a name of the results: rename it")
        others = {other for condition in one.read_if for other in condition}
        if unknown := sorted(others - {*declared} - _READ_IF_THERE):
            raise ConfigError(
                f"{kind.__name__}.{name} is read only where {', '.join(unknown)} has some value, "
                "but there is no such setting: correct read_if"
            )
    traced = [name for name, one in declared.items() if one.is_traced]
    register_pytree(kind, leaves=traced, static=[n for n in declared if n not in traced])
    KINDS[name_of_kind(kind)] = kind


def name_of_kind(kind: type[RunConfig]) -> str:
    """Returns the name that files have for a class of settings."""
    is_own = kind.__module__.split(".")[0] == __name__.split(".")[0]
    return kind.__name__ if is_own else f"{kind.__module__}.{kind.__qualname__}"


def ensure_kind(config: Any, kind: type[RunConfig]) -> None:
    """Refuses settings of another kind than an experiment takes, with a `ConfigError`."""
    if not isinstance(config, kind):
        raise ConfigError(
            f"the experiment takes settings of {kind.__name__}, and not of "
            f"{type(config).__name__}: give the one, or train with another experiment"
        )


def reserved_names() -> frozenset[str]:
    """Returns the names that no metric of a loss may have: those of results and of all settings."""
    return NAMES_OF_RESULTS.union(*map(settings_of, KINDS.values()))


def _read_path(text: str) -> Path:
    if not is_path(text):
        raise ValueError
    return Path(text)


def _read_float(text: str) -> float:
    value = float(text)
    if math.isinf(value) and "inf" not in text.lower():
        raise ValueError  # such as 1e400
    return value


_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    int: (int, "a whole number"),
    float: (_read_float, "a number"),
    str: (str, "a name"),
    Path: (_read_path, PATH),
    tuple[int, ...]: (
        lambda text: () if text == "none" else tuple(int(part) for part in text.split("x")),
        "whole numbers with x between them, such as 64x64",
    ),
}


def parse(setting: Setting, text: str, may_be_drawn: bool = False) -> Any:
    """Reads a value of a setting as a command line has it, such as "1e-3", "64x64" or "true".

    A setting that may change may be a schedule, such as "linear:0.97:0.997:10000". A float that
    `may_be_drawn` may also be a distribution, such as "loguniform:1e-5:1e-2": a `Drawn`.

    Raises:
      ConfigError: if the text is none of them.
    """
    choices = {name: name for name in map(str, get_args(setting.type))}
    by_default = (choices.__getitem__, f"one of {', '.join(choices)}")
    read, wanted = _READERS.get(setting.type, by_default)
    if setting.may_change and ":" in text:
        read = functools.partial(read_changing, read=read)
        wanted += f", or a schedule such as {EXAMPLE}, over whole gradient steps"
    if setting.type is float and may_be_drawn:
        wanted += ", or a distribution such as loguniform:1e-5:1e-2"
        if ":" in text and text.partition(":")[0] not in SHAPES:
            read = read_distribution
            wanted = (
                "one of uniform, loguniform with two limits, such as uniform:0.9:1 or "
                "loguniform:1e-5:1e-2: finite limits, the lower one first, of loguniform above 0; "
                f"or a schedule, such as {EXAMPLE}"
            )
    try:
        if not text or text != text.strip() or not text.isprintable():
            raise ValueError  # Python would read over blanks and a line's end
        if setting.type in (int, float, tuple[int, ...]) and (" " in text or not text.isascii()):
            raise ValueError  # nor over those within, and the digits of any script
        return read(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{setting} ({text!r:.60}) must be {wanted}") from None


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Lists all settings by name; schedules as texts."""
    values = {name: getattr(config, name) for name in settings_of(type(config))}
    return {name: str(x) if isinstance(x, Changing) else x for name, x in values.items()}


def config_to_json(config: RunConfig) -> str:
    """Writes all settings as JSON, for `config_from_json`."""
    facts = {**config_to_dict(config), "kind": name_of_kind(type(config))}
    return json.dumps(to_jsonable(facts), allow_nan=False)


def config_from_json(text: str, kind: type[RunConfig] | None = None) -> RunConfig:
    """Reads what `config_to_json` wrote, into the class of its `kind`.

    By default that is the class which the text names, and which this process must have used: a file
    that names a class causes no import.

    Raises:
      ConfigError: for an unknown class, or a setting or value that the class does not take.
    """
    try:
        facts = json.loads(text)
        name = str(facts.pop("kind"))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise ConfigError(
            f"the settings ({text!r:.60}) cannot be read: they must be what config_to_json wrote"
        ) from None
    kind = kind or KINDS.get(name)
    if kind is None:
        raise ConfigError(
            f"the settings' class {name} is not known here: import the module that registers its "
            "agent (--import), or give the class, to rerun as config_class"
        )
    declared = settings_of(kind)
    if unknown := [name for name in facts if name not in declared]:
        raise ConfigError(
            f"{kind.__name__} has no {', '.join(unknown)}: it is another class than the one that "
            "was trained with"
        )
    for name, value in facts.items():
        if isinstance(value, list):
            facts[name] = tuple(value)
        elif declared[name].type in (float, int) and isinstance(value, str):
            facts[name] = parse(declared[name], value)  # such as "inf", or a schedule
        elif declared[name].type is float and type(value) is int:
            facts[name] = float(value)
        if declared[name].type is float and type(value) not in (str, float, int):
            raise ConfigError(f"{name} ({value!r:.60}) must be a number")
    return kind(**facts)
