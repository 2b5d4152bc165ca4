"""Reads compiled Python: what a function does, and which names it takes from elsewhere.

Nothing here depends on comments, layout or line numbers.
"""

import dis
import inspect
import types
from collections.abc import Iterator
from typing import Any

_OF_LAYOUT = ("NOP", "EXTENDED_ARG")  # instructions


def read_code(code: types.CodeType) -> Iterator[Any]:
    """Reads what a code object does: its instructions, with jumps counted in instructions."""
    instructions = [one for one in dis.get_instructions(code) if one.opname not in _OF_LAYOUT]
    offsets = [one.offset for one in instructions]
    flags = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR)
    yield code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], flags
    for one in instructions:
        if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs:
            yield one.opname, sum(offset < one.argval for offset in offsets)
        elif isinstance(one.argval, types.CodeType):
            yield one.opname, [*read_code(one.argval)]
        elif isinstance(one.argval, frozenset):  # its order differs in each process
            yield one.opname, sorted(map(repr, one.argval))
        else:
            yield one.opname, repr(one.argval)


def read_details(code: types.CodeType) -> Iterator[Any]:
    """Reads what instructions do not say: the keywords of calls, and what a `try` is around."""
    offsets = []
    for one in dis.get_instructions(code):
        if one.opname not in _OF_LAYOUT:
            offsets.append(one.offset)
        if one.opname == "KW_NAMES":
            yield code.co_consts[one.arg or 0]
        if isinstance(one.argval, types.CodeType):
            yield from read_details(one.argval)
    for entry in getattr(dis.Bytecode(code), "exception_entries", ()):
        ends = (entry.start, entry.end, entry.target)
        yield [sum(offset < end for offset in offsets) for end in ends]


def read_globals(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    """Reads which global names the code takes, with the attributes that follow: `(np, sin)`."""
    chain: tuple[str, ...] = ()
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain = (*chain, str(one.argval))
            continue
        if chain:
            yield chain
        chain = (str(one.argval),) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
        if isinstance(one.argval, types.CodeType):
            yield from read_globals(one.argval)


def read_imports(code: types.CodeType) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Reads which modules the code imports when it runs, with the names it may take of them."""
    for one in dis.get_instructions(code):
        if one.opname == "IMPORT_NAME":
            yield str(one.argval), code.co_names
        if isinstance(one.argval, types.CodeType):
            yield from read_imports(one.argval)
