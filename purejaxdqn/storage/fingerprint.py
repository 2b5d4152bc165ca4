"""Fingerprints an experiment: everything that it was made of, by name, so that a change has a name.

A fingerprint is a tree of texts that JSON holds. Two of them are compared leaf by leaf.
"""

import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib.metadata
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

UNSEEN = "cannot be seen: "
# Their versions are kept with every result, and another one is a warning.
WITH_EVERY_RESULT = ("purejaxdqn", "jax", "jaxlib", "flax", "optax", "gymnasium", "numpy", "xarray")
_LIBRARIES = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
_PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype, np.ufunc)
_OF_EVERY_CLASS = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"),
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__firstlineno__"),
}


def fingerprint(value: Any) -> Any:
    """Describes what a value is made of: a function with its code, closure, defaults and helpers.

    It reads a function's compiled code, so comments, docstrings, layout and line numbers do not
    count, and an edit of the file after its import does not either. Functions of libraries are
    described by their name and their library's version; what they close over is described like
    everything else.

    Returns:
      Nested dictionaries with texts at the leaves. A part that cannot be described has a text that
      begins with `UNSEEN`.
    """
    return _describe(value, ())


def find_file(value: Any) -> Path | None:
    """Finds the file of the user's function in an experiment; None where all is a library's."""
    for part in _take_apart(value):
        code = getattr(inspect.unwrap(part), "__code__", None) if callable(part) else None
        if code is not None and not _library_of(part.__globals__.get("__name__")):
            return Path(code.co_filename)
    return None


def _take_apart(value: Any) -> Iterator[Any]:
    """Takes a partial and the closures of functions apart, the outermost first."""
    yield value
    if isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _take_apart(part)
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # filled in later
            if callable(cell.cell_contents) and cell.cell_contents is not value:
                yield from _take_apart(cell.cell_contents)


def find_unseen(tree: Any, name: str = "experiment") -> list[str]:
    """Lists the parts of a fingerprint that it cannot see, such as "experiment.env: a Socket"."""
    if isinstance(tree, Mapping):
        return [line for key, part in tree.items() for line in find_unseen(part, f"{name}.{key}")]
    is_unseen = isinstance(tree, str) and tree.startswith(UNSEEN)
    return [f"{name}: {tree.removeprefix(UNSEEN)}"] if is_unseen else []


def _describe(value: Any, above: tuple[Any, ...]) -> Any:
    """Describes a value; `above` are those that it is part of, as a value may be part of itself."""
    if any(value is one for one in above):
        return f"itself: {_name_of(value)}"
    describe = functools.partial(_describe, above=(*above, value))
    match value:
        case _ if isinstance(value, _PLAIN):
            return repr(value)
        case functools.partial():
            parts = {f"argument {i}": describe(part) for i, part in enumerate(value.args)}
            parts |= {name: describe(value.keywords[name]) for name in sorted(value.keywords)}
            return {"": describe(value.func), **parts}
        case types.FunctionType():
            return _describe_function(value, describe)
        case types.MethodType():
            return {"": describe(value.__func__), "self": describe(value.__self__)}
        case types.ModuleType():
            return _library_of(value.__name__) or f"module {value.__name__}"
        case property():
            return {name: describe(getattr(value, name)) for name in ("fget", "fset", "fdel")}
        case staticmethod() | classmethod():
            return describe(value.__func__)
        case type():
            return _describe_class(value, describe)
        case np.ndarray() | jax.Array():
            return _describe_array(value)
        case Mapping():
            return {str(key): describe(part) for key, part in value.items()}
        case set() | frozenset():
            return {str(i): describe(part) for i, part in enumerate(sorted(value, key=repr))}
        case tuple() | list():
            names = getattr(value, "_fields", range(len(value)))
            parts = {str(key): describe(part) for key, part in zip(names, value, strict=True)}
            return {"": _name_of(type(value)), **parts} if hasattr(value, "_fields") else parts
        case _:
            return _describe_object(value, describe)


def _describe_function(function: types.FunctionType, describe: Any) -> Any:
    """Describes a function: its code if it is the user's, and what it was made with."""
    parts: dict[str, Any] = {}
    if hasattr(function, "__wrapped__"):
        parts["wrapped"] = describe(function.__wrapped__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts[name] = describe(cell.cell_contents)
        except ValueError:  # filled in later
            parts[name] = "nothing yet"
    defaults = function.__defaults__ or ()
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    given = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    given |= function.__kwdefaults__ or {}
    # A wrapper of a library bears the name and the module of the function that it wraps.
    library = _library_of(function.__globals__.get("__name__"))
    name = _name_of(function)
    if library:
        # Its own defaults belong to its version; those that are the user's do not.
        modules = {n: getattr(x, "__module__", None) for n, x in given.items() if callable(x)}
        given = {n: given[n] for n, module in modules.items() if not _library_of(module)}
    else:
        code = _digest(repr([*_read_code(function.__code__)]).encode())
        name = f"{name} with code {code} of {_PYTHON}"  # each Python compiles it to other bytes
        parts |= _describe_globals(function, describe)
    parts |= {key: describe(value) for key, value in given.items()}
    name = f"{name} of {library}" if library else name
    return {"": name, **parts} if parts else name


def _describe_globals(function: types.FunctionType, describe: Any) -> dict[str, Any]:
    """Describes what a function takes from the user's modules, but for what is filled in later."""
    parts = {}
    for chain in _read_globals(function.__code__):
        name, value = chain[0], function.__globals__.get(chain[0], _NOTHING)
        for attribute in chain[1:]:
            if not isinstance(value, types.ModuleType) or _library_of(value.__name__):
                break
            name, value = f"{name}.{attribute}", getattr(value, attribute, _NOTHING)
        if value is not _NOTHING:
            parts[name] = describe(value)
    return parts


_NOTHING = object()


def _read_code(code: types.CodeType) -> Iterator[Any]:
    """Reads what a code object does: its instructions, with jumps counted in instructions."""
    instructions = [one for one in dis.get_instructions(code) if one.opname != "NOP"]
    offsets = [one.offset for one in instructions]
    flags = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR)
    yield code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], flags
    for one in instructions:
        if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs:
            yield one.opname, sum(offset < one.argval for offset in offsets)
        elif isinstance(one.argval, types.CodeType):
            yield one.opname, [*_read_code(one.argval)]
        elif isinstance(one.argval, frozenset):  # its order differs in each process
            yield one.opname, sorted(map(repr, one.argval))
        else:
            yield one.opname, repr(one.argval)


def _read_globals(code: types.CodeType) -> Iterator[tuple[str, ...]]:
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
            yield from _read_globals(one.argval)


def _describe_class(cls: type, describe: Any) -> Any:
    """Describes a class: by its library, or by all that the user wrote into it."""
    if library := _library_of(cls.__module__):
        return f"{_name_of(cls)} of {library}"
    slots = (types.MemberDescriptorType, types.GetSetDescriptorType)
    parts = {f"base {base.__name__}": describe(base) for base in cls.__bases__}
    for name, part in vars(cls).items():
        is_made = isinstance(part, types.FunctionType) and part.__code__.co_filename == "<string>"
        if name not in _OF_EVERY_CLASS and not is_made and not isinstance(part, slots):
            parts[name] = describe(part)
    return {"": _name_of(cls), **parts}


def _describe_array(array: Any) -> str:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    if array.dtype.hasobject:
        return f"{UNSEEN}an array of Python objects"
    return f"{array.dtype}{list(array.shape)} with bytes {_digest(array.tobytes())}"


def _describe_object(value: Any, describe: Any) -> Any:
    """Describes an object by its class and its attributes."""
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None:  # `jax.jit` and `functools.cache`
        return describe(wrapped)
    if type(value) is object or isinstance(value, types.BuiltinFunctionType):
        return _name_of(value)  # of a bare object there is nothing to see
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        parts = {name: describe(getattr(value, name, None)) for name in fields}
    elif hasattr(value, "__dict__"):
        parts = {n: describe(part) for n, part in vars(value).items() if n != "__doc__"}
    elif " at 0x" not in repr(value):
        return f"{_name_of(type(value))}: {value!r}"
    else:
        return f"{UNSEEN}a {_name_of(type(value))}"
    return {"": describe(type(value)), **parts}


@functools.cache
def _library_of(module: str | None) -> str:
    """Names the library of a module and its version; nothing for a module of the user's."""
    top = (module or "builtins").partition(".")[0]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in (module, top) if name]
    is_installed = any(
        Path(file).is_relative_to(folder) for file in files if file for folder in _LIBRARIES
    )
    if top in sys.stdlib_module_names and (is_installed or not any(files)):
        return "Python"
    if top != "purejaxdqn" and not is_installed:
        return ""
    if top in WITH_EVERY_RESULT:
        return top
    version = getattr(sys.modules.get(top), "__version__", None)
    if version is None:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(top)
    return f"{top} {version or 'of unknown version'}"


def _name_of(value: Any) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}.{name}" if name else type(value).__qualname__


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
