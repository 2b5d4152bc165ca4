"""Makes flags of declared settings, and reads them from a command line.

tyro parses the words and prints the help. The values are read as every other text of a setting, so
that a bad one is refused in the same words wherever it comes from.
"""

import argparse
import collections
import dataclasses
import difflib
import inspect
import re
import shlex
import shutil
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, get_args, get_origin

import tyro

from purejaxdqn import agents
from purejaxdqn.checks import ConfigError
from purejaxdqn.runtime.modules import import_module_or_file
from purejaxdqn.sweep.options import parse_bytes
from purejaxdqn.training.declaration import Group, Setting, settings_of
from purejaxdqn.training.settings import RunConfig, parse

_PLACES = (
    "Modules or files to import first, such as my_module or my/agent.py, which register agents, "
    "environments or trackers of your own."
)
_IMPORT = Setting("import", tuple[str, ...], (), _PLACES, "run")


class CommandLine(NamedTuple):
    """What a command line says."""

    flags: SimpleNamespace  # the command's own by name, with defaults where they are not given
    given: dict[str, Any]  # settings by name; lists where they may have several values
    base: Any  # the settings of the agent, the first of several, before those that are given


def read_command_line(
    argv: Sequence[str],
    prog: str,
    description: str | None,
    own: Iterable[Setting] = (),
    *,
    positional: Setting | None = None,
    default_agent: str | None = None,
    have_several_values: bool = False,
    **defaults: Any,
) -> CommandLine:
    """Imports what a command line names, and reads it; for `--help` it prints the help and exits.

    Args:
      argv: the words behind the command.
      prog: how the command is called, such as "purejaxdqn train".
      description: what the help says above the flags.
      own: the command's flags that are no settings of an agent.
      positional: a value without a flag.
      default_agent: the agent where none is named; None for a command without an agent's settings.
      have_several_values: whether a setting takes several values, or a distribution.
      **defaults: settings that the command changes in the agent's.

    Raises:
      ConfigError: for a module that cannot be imported, an agent or a flag that there is not, a
        flag that is given twice or without its value, or a value that it cannot have.
    """
    for place in _find_values(argv, "import"):
        import_module_or_file(place)
    named = (_find_values(argv, "agent") or [default_agent]) if default_agent else []
    bases = [_set(prog, agents.defaults(name, _find_task(argv)), defaults) for name in named]
    settings = _collect_settings(bases, "Agents" if have_several_values else "The agent")
    flags = {one.name: one for one in (*own, _IMPORT)}
    if clashing := ", ".join(sorted(flags.keys() & settings.keys())):
        raise ConfigError(f"the settings {clashing} have the names of flags of {prog}: rename them")
    everything = {**settings, **flags}
    several = {name for name, one in flags.items() if one.type == tuple[str, ...]}
    several |= settings.keys() if have_several_values else set()
    parsed, unknown = tyro.cli(
        _make_type(everything, several, positional),
        prog=prog,
        description=_wrap(description or ""),
        args=argv,
        default={"word": ""},
        config=(tyro.conf.OmitArgPrefixes,),
        return_unknown_args=True,
    )
    check_words(argv, everything)
    if unknown:
        raise _unknown_flags(unknown, everything, named, argv)
    word = parsed.pop("word", "")
    found = {name: texts for group in parsed.values() for name, texts in group.items()}
    given = {name: _read(everything[name], texts, name in several) for name, texts in found.items()}
    values = {name: given.pop(name, one.default) for name, one in flags.items()}
    if problems := [p for name, one in flags.items() if (p := one.problem(values[name]))]:
        raise ConfigError("; ".join(problems))
    if positional is not None:
        values[positional.name] = word
    return CommandLine(SimpleNamespace(**values), given, bases[0] if bases else None)


def check_values(argv: Sequence[str], own: Iterable[Setting]) -> None:
    """Refuses bad values of a command's own flags, before a file has said which others it has."""
    for one in own:
        texts = _find_values(argv, one.name)
        if texts and (problem := one.problem(_read(one, texts, False))):
            raise ConfigError(problem)


def format_value(value: Any) -> str:
    """Formats a value as a command line has it, such as 64x64 or true; empty for no value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if value else "none"
    return "" if value is None else str(value)


def _find_values(argv: Sequence[str], name: str) -> list[str]:
    """Finds the values of one flag, on which other flags or their defaults depend."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{_flag(name)}", f"--{name}", dest="values", nargs="*", default=[])
    return [*parser.parse_known_args(argv)[0].values]


def _find_task(argv: Sequence[str]) -> str | None:
    """Finds the one environment whose defaults the help shows; None of several."""
    tasks = _find_values(argv, "env")
    return tasks[0] if len(tasks) == 1 else None


def _collect_settings(bases: Sequence[Any], agent_help: str) -> dict[str, Setting]:
    """Collects the settings of agents; the first agent that has one gives its default."""
    found: dict[str, Setting] = {}
    for base in bases:
        for name, one in settings_of(type(base)).items():
            found.setdefault(name, one._replace(default=getattr(base, name)))
    if found:
        shown = f"{agent_help}, whose settings are the defaults here: {', '.join(agents.names())}."
        found["agent"] = found["agent"]._replace(help=shown)
    return found


def _make_type(settings: dict[str, Setting], several: set[str], word: Setting | None) -> Any:
    """Makes what tyro parses into: the word, and by group the texts, or bools, that are given."""
    make: Any = TypedDict  # mypy knows those alone whose fields stand in the code
    fields: dict[str, Any] = {}
    if word is not None:
        text = tyro.conf.arg(metavar=word.name.upper(), help=word.help, help_behavior_hint="")
        fields["word"] = Annotated[str, tyro.conf.Positional, text]
    for group in get_args(Group):
        members = {n: _make_field(x, n in several) for n, x in settings.items() if x.group == group}
        if members:
            fields[group] = make(group, members, total=False)
    return make("Flags", fields)


def _make_field(one: Setting, is_several: bool) -> Any:
    """Makes the type of a flag for a setting, as tyro reads it."""
    where = one.read_only_where()
    shown = format_value(one.default)
    is_bool = one.type is bool and not is_several
    argument = tyro.conf.arg(
        name=_flag(one.name),
        help=f"{one.help} Read only where {where}." if where else one.help,
        metavar=None if is_bool else _metavar(one) + (" ..." if is_several else ""),
        help_behavior_hint=f"(default: {shown})" if shown else "",
    )
    return Annotated[bool if is_bool else tuple[str, ...], argument]


def _flag(name: str) -> str:
    """Returns the flag of a setting, or of a label such as "discount=0.9", without its dashes."""
    return re.sub(r"[^\w.]+|_", "-", name)


def _set(prog: str, config: RunConfig, defaults: Mapping[str, Any]) -> RunConfig:
    """Changes settings of an agent, which must have them."""
    if missing := [name for name in defaults if not hasattr(config, name)]:
        raise ConfigError(
            f"agent ({config.agent}) has no {', '.join(missing)}, which {prog} sets: choose one "
            "that has, such as dqn"
        )
    return dataclasses.replace(config, **defaults)


def _metavar(one: Setting) -> str:
    if get_origin(one.type) is Literal:
        return f"{{{','.join(get_args(one.type))}}}"
    words: dict[Any, str] = {float: "FLOAT", int: "INT", bool: "{true,false}", str: "NAME"}
    return {**words, Path: "PATH", tuple[str, ...]: "NAME"}.get(one.type, "INTxINT")


def check_words(argv: Sequence[str], known: Collection[str]) -> None:
    """Refuses what tyro reads over: a flag that is given twice, and an end of all flags."""
    counts: collections.Counter[str] = collections.Counter()
    for before, word in zip(("", *argv), argv, strict=False):
        if not word and not before.startswith("-"):
            raise ConfigError("'' is empty: give a name, or leave it out")
        if word == "--" or word.endswith("=--"):
            raise ConfigError(f"{word} is no flag and no value: leave it out")
        flag = word.partition("=")[0].replace("_", "-")
        positive = flag.replace("--no-", "--", 1)
        counts[positive if positive[2:].replace("-", "_") in known else flag] += 1
    for flag, count in counts.items():
        if flag.startswith("--") and count > 1:
            raise ConfigError(f"{flag} is given twice: give it once, with all of its values")


def _read(one: Setting, found: Any, is_several: bool) -> Any:
    """Reads what tyro found for a flag: a bool, or texts."""
    if isinstance(found, bool):
        return found
    if not found:
        amount = "at least one" if is_several else "a"
        raise ConfigError(f"--{_flag(one.name)} needs {amount} value")
    if one.type == tuple[str, ...]:
        if len({*found}) < len(found):
            raise ConfigError(f"{one} {[*found]} must differ from each other: name each once")
        return tuple(found)
    if is_several:
        return [parse(one, text, may_be_drawn=True) for text in found]
    if len(found) > 1:
        raise ConfigError(f"{one} takes one value, and not {shlex.join(found)}")
    return parse_bytes(found[0]) if one.name == "memory_budget" else parse(one, found[0])


def _unknown_flags(
    unknown: list[str], known: Mapping[str, Setting], named: list[str], argv: Sequence[str]
) -> ConfigError:
    words = [part for word in argv for part in word.split("=", 1)]
    before = words[words.index(unknown[0]) - 1] if unknown[0] in words[1:] else ""
    is_on = known.get(before.removeprefix("--").removeprefix("no-").replace("-", "_"))
    if before.startswith("--") and is_on is not None and is_on.type is bool:
        flag = _flag(is_on.name)
        return ConfigError(
            f"--{flag} takes no value ({unknown[0]!r}): give --{flag} or --no-{flag}"
        )
    first = unknown[0].partition("=")[0].replace("_", "-")
    name = first.removeprefix("--").removeprefix("no-").replace("-", "_")
    others = (settings_of(type(agents.get(other).config)) for other in agents.names() if named)
    if name not in known and any(name in other for other in others):
        return ConfigError(f"{name!r} is no setting of agent {' or '.join(map(repr, named))}")
    nearest = difflib.get_close_matches(first, [f"--{_flag(name)}" for name in known], n=3)
    hint = f": did you mean {' or '.join(nearest)}?" if nearest else "; --help lists the flags"
    return ConfigError(f"Unrecognized options: {', '.join(unknown)}{hint}")


def _wrap(text: str) -> str:
    """Wraps paragraphs to the terminal; indented ones, such as commands, stay as they are."""
    # tyro would make one long line of a paragraph, but for lines that begin with a space.
    wrapper = textwrap.TextWrapper(shutil.get_terminal_size().columns, " ", " ")
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else wrapper.fill(p) for p in paragraphs)
