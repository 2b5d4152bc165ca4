"""Makes flags of declared settings, and reads them from a command line.

tyro parses the words and prints the help. The values are read as every other text of a setting, so
that a bad one is refused in the same words wherever it comes from.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import difflib
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import tyro

from purejaxdqn.runtime.modules import import_module_or_file
from purejaxdqn.training.declaration import Group, Setting, setting, settings_of
from purejaxdqn.training.settings_text import parse
from purejaxdqn.types import ConfigError


@dataclasses.dataclass(frozen=True)
class _Imports:
    imports: tuple[str, ...] = setting(
        (),
        "Modules or files to import first, such as my_module or my/agent.py, which register "
        "agents, environments or trackers of your own.",
        group="run",
    )


IMPORTS = settings_of(_Imports)["imports"]


class CommandLine(NamedTuple):
    """What a command line says.

    Attributes:
      flags: the command's own flags by name, with defaults where they are not given.
      given: the settings that are given, by name; lists for those that may have several values.
    """

    flags: SimpleNamespace
    given: dict[str, Any]


def read_command_line(
    argv: Sequence[str],
    prog: str,
    description: str,
    flags: Iterable[Setting],
    settings: Mapping[str, Setting] = {},
    *,
    have_several_values: bool = False,
    positional: Setting | None = None,
    readers: Mapping[str, Callable[[str], Any]] = {},
    hints_for_foreign_flags: Mapping[str, str] = {},
) -> CommandLine:
    """Reads a command line; for `--help` it prints the help and exits.

    Args:
      argv: the words behind the command.
      prog: how the command is called, such as "purejaxdqn train".
      description: what the help says above the flags.
      flags: the command's own.
      settings: those of an agent, by name; their defaults are the agent's.
      have_several_values: whether a setting takes several values, or a distribution.
      positional: a value without a flag.
      readers: parsers that replace the type's own, by flag.
      hints_for_foreign_flags: what to say of a flag that only other agents have, by its name.

    Raises:
      ConfigError: for a flag that there is not, that is given twice or without its value, or for a
        value that it cannot have.
    """
    own = {one.name: one for one in (*flags, IMPORTS)}
    if clashing := sorted(own.keys() & settings.keys()):
        raise ConfigError(
            f"the settings {', '.join(clashing)} have the names of flags of {prog}: rename them"
        )
    several = {name for name, one in own.items() if one.type == tuple[str, ...]}
    several |= set(settings) if have_several_values else set()
    everything = {**settings, **own}
    parsed, unknown = _parse(argv, prog, description, everything.values(), several, positional)
    counts = _count_flags(argv)
    _refuse_unknown(unknown, everything, hints_for_foreign_flags)
    given = {
        name: value
        for name, one in everything.items()
        if (value := _read(one, parsed[name], name in several, readers.get(name), counts))
        is not None
    }
    values = {name: given.pop(name, one.default) for name, one in own.items()}
    if positional is not None:
        values[positional.name] = parsed[positional.name] or positional.default
    problems = [p for name, one in own.items() if (p := one.problem(values[name]))]
    if problems:
        raise ConfigError("\n".join(problems))
    return CommandLine(SimpleNamespace(**values), given)


def find_values(argv: Sequence[str], name: str) -> list[str]:
    """Finds the values of one flag, on which other flags or their defaults depend."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", dest="values", nargs="*", default=[])
    values: list[str] = parser.parse_known_args(list(argv))[0].values
    return values


def import_modules(argv: Sequence[str]) -> None:
    """Imports what `--import` names, which registers agents and other parts of a user's own.

    Raises:
      ConfigError: for a module that cannot be imported.
    """
    for place in find_values(argv, "import"):
        import_module_or_file(place)


def _flag(name: str) -> str:
    """Returns the flag of a setting, or of a label such as "discount=0.9", without its dashes."""
    return "import" if name == IMPORTS.name else re.sub(r"[^\w.]+|_", "-", name)


def _parse(
    argv: Sequence[str],
    prog: str,
    description: str,
    settings: Collection[Setting],
    several: Collection[str],
    positional: Setting | None,
) -> tuple[dict[str, Any], list[str]]:
    """Parses with tyro: texts by flag, and unknown words."""
    groups: dict[str, Any] = {}
    names = {f"field_{at}": one.name for at, one in enumerate(settings)}  # any name may be a flag's
    for group in typing.get_args(Group):
        fields = [
            (field, *_make_field(one, one.name in several))
            for field, one in zip(names, settings, strict=True)
            if one.group == group
        ]
        if fields:
            groups[group] = dataclasses.make_dataclass(group, fields, frozen=True)
            groups[group].__doc__ = ""
    fields = [
        (group, kind, dataclasses.field(default_factory=kind)) for group, kind in groups.items()
    ]
    if positional is not None:
        text = tyro.conf.arg(
            metavar=positional.name.upper(), help=positional.help, help_behavior_hint=""
        )
        word = Annotated[str, tyro.conf.Positional, text]
        fields.insert(0, (positional.name, word, dataclasses.field(default="")))
    parsed: Any = tyro.cli(
        dataclasses.make_dataclass("Flags", fields, frozen=True),
        prog=prog,
        description=_wrap(description),
        args=argv,
        config=(tyro.conf.OmitArgPrefixes,),
        return_unknown_args=True,
    )
    flags, unknown = parsed
    found = {} if positional is None else {positional.name: getattr(flags, positional.name)}
    for group in groups:
        found |= {names[field]: value for field, value in vars(getattr(flags, group)).items()}
    return found, unknown


def _make_field(one: Setting, is_several: bool) -> tuple[Any, Any]:
    """Makes the field of tyro's dataclass that is a flag for a setting."""
    where = one.read_only_where()
    text = f"{one.help} Read only where {where}." if where else one.help
    if one.type is bool and not is_several:
        annotation: Any = Annotated[bool, tyro.conf.arg(name=_flag(one.name), help=text)]
        if one.default is False and one.group in ("run", "sweep", "machines"):
            annotation = Annotated[annotation, tyro.conf.FlagCreatePairsOff]
        return annotation, dataclasses.field(default=one.default)
    shown = format_value(one.default)
    argument = tyro.conf.arg(
        name=_flag(one.name),
        help=text,
        metavar=_metavar(one) + (" ..." if is_several else ""),
        help_behavior_hint=f"(default: {shown})" if shown else "",
    )
    return Annotated[tuple[str, ...], argument], dataclasses.field(default=())


def format_value(value: Any) -> str:
    """Formats a value as a command line has it, such as 64x64 or true; empty for no value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if value else "none"
    return "" if value is None else str(value)


def _metavar(one: Setting) -> str:
    if get_origin(one.type) is Literal:
        return f"{{{','.join(get_args(one.type))}}}"
    words: dict[Any, str] = {float: "FLOAT", int: "INT", bool: "{true,false}", str: "NAME"}
    return {**words, Path: "PATH", tuple[str, ...]: "NAME"}.get(one.type, "INTxINT")


def _count_flags(argv: Sequence[str]) -> Mapping[str, int]:
    """Counts each flag, and refuses one that is given twice."""
    words = [word.partition("=")[0] for word in argv if word.startswith("--") and word != "--"]
    counts = collections.Counter(word.replace("_", "-") for word in words)
    for word, count in counts.items():
        if count > 1:
            raise ConfigError(f"{word} is given twice: give it once, with all of its values")
    return counts


def _read(
    one: Setting,
    parsed: Any,
    is_several: bool,
    reader: Callable[[str], Any] | None,
    counts: Mapping[str, int],
) -> Any:
    """Reads what tyro found for a flag: a bool, or texts; None where the flag is not given."""
    flag = f"--{_flag(one.name)}"
    if isinstance(parsed, bool):
        return parsed if flag in counts or f"--no-{_flag(one.name)}" in counts else None
    if not parsed:
        if flag in counts:
            raise ConfigError(f"{flag} needs {'at least one' if is_several else 'a'} value")
        return None
    if one.type == tuple[str, ...]:
        return tuple(parsed)
    if is_several:
        return [parse(one, text, may_be_drawn=True) for text in parsed]
    if len(parsed) > 1:
        raise ConfigError(f"{one} takes one value, and not {' '.join(parsed)}")
    return parse(one, parsed[0]) if reader is None else reader(parsed[0])


def _refuse_unknown(
    unknown: Sequence[str], settings: Iterable[str], hints_for_foreign_flags: Mapping[str, str]
) -> None:
    if not unknown:
        return
    first = unknown[0].partition("=")[0].replace("_", "-")
    name = first.removeprefix("--").removeprefix("no-").replace("-", "_")
    if name in hints_for_foreign_flags:
        raise ConfigError(hints_for_foreign_flags[name])
    nearest = difflib.get_close_matches(first, [f"--{_flag(name)}" for name in settings], n=3)
    hint = f": did you mean {' or '.join(nearest)}?" if nearest else "; --help lists the flags"
    raise ConfigError(f"Unrecognized options: {', '.join(unknown)}{hint}")


def _wrap(text: str) -> str:
    """Wraps paragraphs to the terminal; indented ones, such as commands, stay as they are."""
    width = shutil.get_terminal_size().columns
    return "\n\n".join(
        # tyro would make one long line of a paragraph, but for lines that begin with a space.
        paragraph
        if paragraph.startswith(" ")
        else textwrap.indent(textwrap.fill(paragraph, width - 1), " ")
        for paragraph in inspect.cleandoc(text).split("\n\n")
    )
