"""What all command lines share: typed flags, errors without a traceback, exit codes."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import jax
import tyro

from purejaxdqn import tracking
from purejaxdqn.runtime.devices import use_every_core
from purejaxdqn.runtime.interrupts import EXIT_INTERRUPTED, EXIT_TERMINATED, catch_signals
from purejaxdqn.storage.provenance import to_jsonable
from purejaxdqn.sweep.design import MOST_RUNS
from purejaxdqn.sweep.options import SeedMode, SweepOptions, parse_bytes
from purejaxdqn.tracking import Tracker
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.training.settings_text import parse
from purejaxdqn.types import ConfigError

T = TypeVar("T")

_MOST_DEVICES = 1024  # of one process
EXIT_REFUSED = 2
EXIT_FAILED = 1
_format_warning = warnings.formatwarning


@dataclasses.dataclass(frozen=True)
class SweepArgs:
    """Flags of every experiment that trains over seeds."""

    num_seeds: int = 10
    """Seeds to train."""
    first_seed: int = 0
    """The first of them; they are consecutive. The defaults were tuned on seeds 0 to 9."""
    output: Path = Path("results/sweep")
    """Folder for everything that is written."""
    overwrite: bool = False
    """Replace results that lie in the output folder already."""
    json: bool = False
    """Print the summary as one JSON object on the last line of standard output."""
    width: int | None = None
    """Runs per device program, by default chosen and recorded; a result's bits depend on it."""
    seed_mode: SeedMode = "vmap"
    """"vmap" trains a device's seeds side by side, "map" one by one, each bitwise as if alone."""

    @property
    def seeds(self) -> range:
        """The seeds to train.

        Raises:
          ConfigError: if there are none, or one lies outside 0 to 2**32 - 1.
        """
        if not 1 <= self.num_seeds <= MOST_RUNS:
            raise ConfigError(
                f"num_seeds ({self.num_seeds}) must be at least 1, at most {MOST_RUNS}"
            )
        if self.first_seed < 0 or self.first_seed + self.num_seeds > 2**32:
            raise ConfigError(
                f"first_seed ({self.first_seed}) must be at least 0, and the last seed below "
                f"{2**32}"
            )
        return range(self.first_seed, self.first_seed + self.num_seeds)

    @property
    def how_to_go_on(self) -> str:
        """What to do after an end before its time; empty where nothing was kept to go on from."""
        return ""


@dataclasses.dataclass(frozen=True)
class LongSweepArgs(SweepArgs):
    """Flags of sweeps that may be killed, and go on."""

    resume: bool = False
    """Go on with the sweep that was begun in the output folder; begin it where none was."""
    checkpoint_seconds: float | None = None
    """Seconds between two checkpoints; by default 20 times as long as the last one took, and at
    least 10."""
    memory_budget: str | None = None
    """Memory that runs may take at a time, such as 4GB; by default most of what is free."""

    num_devices: int | None = None
    """Devices to train on; by default one on each CPU core, or the accelerators there are."""

    tracker: tuple[str, ...] = ()
    """Where curves are shown as they come: tensorboard, wandb, wandb-offline, trackio, mlflow; each
    is an extra of the package."""

    @property
    def how_to_go_on(self) -> str:
        """What to do after an end before its time."""
        instead = " in place of --overwrite" if self.overwrite else ""
        return f"the same command with --resume{instead} goes on (in {self.output})"

    @contextlib.contextmanager
    def tracked(self, settings: Mapping[str, Any]) -> Iterator[Tracker | None]:
        """All trackers that are asked for, as one; None without any.

        Args:
          settings: by name, those that all runs have in common.

        Raises:
          ConfigError: for one that is none, or cannot be opened.
        """
        settings = to_jsonable(settings)
        if self.overwrite:
            tracking.forget(self.output)
        with contextlib.ExitStack() as stack:
            trackers = [
                stack.enter_context(tracking.open_tracker(name, self.output, config=settings))
                for name in self.tracker
            ]

            def track(event: tracking.Evaluated) -> None:
                for tracker in trackers:
                    tracker(event)

            yield track if trackers else None

    def sweep_options(self) -> dict[str, Any]:
        """What `run_sweep` is told of these flags.

        Raises:
          ConfigError: for what cannot be kept.
        """
        budget = None if self.memory_budget is None else parse_bytes(self.memory_budget)
        options: dict[str, Any] = {
            "width": self.width,
            "seed_mode": self.seed_mode,
            "resume": self.resume,
            "overwrite": self.overwrite,
            "checkpoint_seconds": self.checkpoint_seconds,
            "memory_budget": budget,
        }
        SweepOptions(output=self.output, **options)  # refuses bad values
        for name in self.tracker:
            tracking.check_name(name)
        if len({*self.tracker}) < len(self.tracker):
            raise ConfigError(f"tracker {list(self.tracker)} must differ from each other")
        if self.num_devices is not None and not 1 <= self.num_devices <= _MOST_DEVICES:
            raise ConfigError(
                f"num_devices ({self.num_devices}) must be 1 to {_MOST_DEVICES}; leave it out for "
                "all there are"
            )
        return options

    def devices(self) -> list[jax.Device]:
        """What to train on; starts JAX."""
        found = use_every_core(self.num_devices)
        return found if found[0].platform == "cpu" else found[: self.num_devices]


def setting_flags(*kinds: type[RunConfig]) -> list[tuple[str, Any, Any]]:
    """A flag for each setting that takes several values as text: fields for `make_dataclass`.

    Args:
      *kinds: classes of settings, whose docstrings become the help.
    """
    flags: dict[str, tuple[str, Any, Any]] = {}
    for kind in kinds:
        helps = _field_docstrings(kind)
        for field in dataclasses.fields(kind):
            text = tyro.conf.arg(help=helps[field.name], metavar=_metavar(kind, field.name))
            default = dataclasses.field(default=())
            flags.setdefault(field.name, (field.name, Annotated[tuple[str, ...], text], default))
    return [*flags.values()]


def _metavar(kind: type[RunConfig], name: str) -> str:
    annotation = get_type_hints(kind)[name]
    if get_origin(annotation) is Literal:
        return f"{{{','.join(get_args(annotation))}}} ..."
    words = {float: "FLOAT|DISTRIBUTION", int: "INT", bool: "{true,false}", str: "NAME"}
    return f"{words.get(annotation, 'INTxINT')} ..."


def _field_docstrings(kind: type[RunConfig]) -> dict[str, str]:
    """What stands below each field of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                assert isinstance(field.target, ast.Name)
                assert isinstance(below.value, ast.Constant)
                found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def parsed_settings(args: Any, *kinds: type[RunConfig]) -> dict[str, list[Any]]:
    """What stands on a command line of `setting_flags`: values and distributions by name.

    Args:
      args: the parsed flags.
      *kinds: as they were given to `setting_flags`.

    Raises:
      ConfigError: for a text that is no value of its setting.
    """
    found: dict[str, list[Any]] = {}
    for kind in kinds:
        for field in dataclasses.fields(kind):
            texts = getattr(args, field.name)
            if texts and field.name not in found:
                found[field.name] = [parse(settings_of(kind)[field.name], text) for text in texts]
    return found


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value of a flag that other flags' defaults hang on, before these are known."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", nargs="?")  # tyro refuses one without a value
    return parser.parse_known_args(argv)[0].value


def run(
    main: Callable[[T], int | None],
    args_type: type[T],
    argv: Sequence[str] | None = None,
    defaults: Callable[[Sequence[str]], T] | None = None,
) -> None:
    """Parses the command line into `args_type`, runs `main`, and exits.

    Args:
      main: takes the parsed flags, and returns the exit code.
      args_type: a dataclass whose fields are the flags.
      argv: the command line, `sys.argv[1:]` by default.
      defaults: `argv -> defaults of all flags`, where one flag sets those of others; those that
        stand on the command line go before them.

    Exit codes: what `main` returns (None is 0); 2 for settings that are refused; 1 for a file that
    cannot be written; 130 after Ctrl-C; 75 after SIGTERM, as a cluster sends it before it takes a
    machine away: what was under way can go on.
    """
    warnings.formatwarning = _as_a_line
    how_to_go_on = ""
    try:
        argv = sys.argv[1:] if argv is None else argv
        options: dict[str, Any] = {} if defaults is None else {"default": defaults(argv)}
        args: Any = _parsed(args_type, argv, options)
        how_to_go_on = getattr(args, "how_to_go_on", "")
        with catch_signals():
            exit_code = main(args)
        sys.exit(exit_code or 0)
    except ConfigError as error:
        print(f"error: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    except OSError as error:
        remedy = f"; once it can be, {how_to_go_on}" if how_to_go_on else ""
        print(f"error: {'; '.join(str(error).splitlines())}{remedy}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt as interrupt:
        exit_code = getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
        cause = "stopped by SIGTERM" if exit_code == EXIT_TERMINATED else "interrupted"
        told = f"{cause}; {how_to_go_on}" if how_to_go_on else str(interrupt) or cause
        print(told, file=sys.stderr)
        sys.exit(exit_code)


def _parsed(args_type: type[T], argv: Sequence[str], options: dict[str, Any]) -> T:
    """The command line as `args_type`.

    Raises:
      ConfigError: for what tyro refuses, which it says in a box, and for a list without values, or
        that is given twice.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            args: T = tyro.cli(
                args_type,
                args=argv,
                description=_filled(args_type.__doc__ or ""),
                config=(tyro.conf.OmitArgPrefixes,),
                **options,
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise ConfigError(_unboxed(box.getvalue())) from None
    flags = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    for flag in flags:
        name = flag[2:].replace("-", "_")
        if getattr(args, name, None) == ():  # sizes among the settings may be none
            raise ConfigError(f"{flag} needs at least one value")
        value = getattr(args, name, getattr(getattr(args, "config", None), name, None))
        if isinstance(value, tuple) and flags.count(flag) > 1:  # of which only the last would count
            raise ConfigError(f"{flag} is given twice: give it once, with all of its values")
    return args


def _filled(text: str) -> str:
    """Paragraphs as wide as the terminal; indented ones, such as commands, as they are."""
    width = shutil.get_terminal_size().columns
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        # tyro makes one line of several, but for those that begin with a space.
        paragraph
        if paragraph.startswith(" ")
        else textwrap.indent(textwrap.fill(paragraph, width - 1), " ")
        for paragraph in paragraphs
    )


def _unboxed(text: str) -> str:
    """What tyro says in a box, but for its title, rules, and the help that follows."""
    lines = [
        line.strip("│|╭╮╰╯─- \t")
        if re.match(r"[╭╰─]|[-+]{3}", line.strip("│| "))
        else line.strip("│| ")
        for line in text.splitlines()
    ]
    said = list(
        itertools.takewhile(
            lambda line: not line.startswith(("Argument help", "For full help")), lines[1:]
        )
    )
    return " ".join(line for line in said if line) or "the command line cannot be read: see --help"


def _as_a_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """A warning to the user without the place in the code, which only says something of others."""
    if category is UserWarning:
        return f"warning: {'; '.join(str(message).splitlines())}\n"
    return _format_warning(message, category, *where, **more)
