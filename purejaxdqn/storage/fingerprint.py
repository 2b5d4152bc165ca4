"""Fingerprints an experiment: everything that it was made of, by name, so that a change has a name.

A fingerprint is a tree of texts that JSON holds. Two of them are compared leaf by leaf.
"""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import inspect
import io
import json
import logging
import os
import random
import re
import site
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purejaxdqn.storage.bytecode import read_code, read_details, read_globals, read_imports

UNSEEN = "cannot be seen: "
FORMAT = "3"  # older ones told less, and called some modules otherwise
_AS_ABOVE = " as above, with hash "
# Their versions are kept with every result, and another one is a warning.
WITH_EVERY_RESULT = ("purejaxdqn", "jax", "jaxlib", "flax", "optax", "gymnasium", "numpy", "xarray")
_LIBRARIES = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
_LIBRARIES |= {*map(Path, (*site.getsitepackages(), site.getusersitepackages()))}
_PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"
_LONGEST = 1000  # characters of a value that is described by itself
_DEEPEST = 100  # functions that call each other in a row, or parts of parts
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype, np.ufunc)
_CONTAINERS = (dict, list, tuple, set, frozenset)
_WITHOUT_STATE = (object, type(threading.Lock()), type(threading.RLock()), logging.Logger)
_OF_OTHER_STATE = (os._Environ, io.IOBase, random.Random, weakref.ref)
_READ_ANYTHING = ("eval", "exec", "globals", "open", "__import__")
_OF_EVERY_CLASS = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slots__"),
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__firstlineno__"),
    *("__abstractmethods__", "_abc_impl", "__orig_bases__", "__parameters__"),
    "__static_attributes__",
}
# By `id`, what is described already, with its description.
_Known = dict[int, tuple[Any, Any]]


def fingerprint(value: Any) -> Any:
    """Describes what a value is made of: a function with its code, closure, defaults and helpers.

    It reads a function's compiled code, so comments, docstrings, layout and line numbers do not
    count, and an edit of the file after its import does not either. Functions of libraries are
    described by their name and their library's version; what they close over is described like
    everything else. What is part of several things is described at the first one, and has a hash of
    that at the others.

    Returns:
      Nested dictionaries with texts at the leaves. A part that cannot be described has a text that
      begins with `UNSEEN`.
    """
    return _describe(value, (), {})


def keep_common(one: Any, other: Any) -> tuple[Any, Any]:
    """Leaves out of two fingerprints what only one of them has, or one has by its hash alone."""
    for x in (one, other):
        if isinstance(x, str) and _AS_ABOVE in x:
            return None, None
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = {n: keep_common(one[n], other[n]) for n in one if n in other}
        return {n: x for n, (x, _) in pairs.items()}, {n: x for n, (_, x) in pairs.items()}
    # A part that is a text in the one may have parts below it in the other.
    one, other = (x.get("") if isinstance(x, dict) else x for x in (one, other))
    return (one, other) if isinstance(one, str) and isinstance(other, str) else (None, None)


def find_file(value: Any) -> Path | None:
    """Finds the file of what is the user's in an experiment; None where all is a library's."""
    for part in _take_apart(value, []):
        if isinstance(part, types.FunctionType):
            if not _library_of(part.__globals__.get("__name__", "")):
                return Path(part.__globals__.get("__file__") or part.__code__.co_filename)
            continue
        module = (part if isinstance(part, type) else type(part)).__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is not None and not _library_of(module):
            return Path(file)
    return None


def _take_apart(value: Any, seen: list[Any]) -> Iterator[Any]:
    """Takes partials, tuples, methods, wrappers and closures apart, the outermost first."""
    if any(value is one for one in seen):
        return
    seen.append(value)
    yield value
    parts = [*value] if isinstance(value, (tuple, list)) else []
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # filled in later
            parts.append(cell.cell_contents)
    parts += [getattr(value, name, None) for name in ("__func__", "__self__", "__wrapped__")]
    for part in parts:
        yield from _take_apart(part, seen)


def find_unseen(tree: Any, name: str = "experiment") -> list[str]:
    """Lists the parts of a fingerprint that it cannot see, such as "experiment.env: a Socket"."""
    if isinstance(tree, Mapping):
        return [line for key, part in tree.items() for line in find_unseen(part, f"{name}.{key}")]
    is_unseen = isinstance(tree, str) and tree.startswith(UNSEEN)
    return [f"{name}: {tree.removeprefix(UNSEEN)}"] if is_unseen else []


def _describe(value: Any, above: tuple[Any, ...], known: _Known) -> Any:
    """Describes a value; `above` are those that it is part of, as a value may be part of itself."""
    if any(value is one for one in above):
        return f"itself: {_name_of(value)}"
    if len(above) > _DEEPEST:
        return f"{UNSEEN}what is nested deeper than {_DEEPEST}"
    if id(value) in known:
        text = json.dumps(known[id(value)][1])
        return f"{_name_of(value)}{_AS_ABOVE}{_digest(text.encode())}"
    describe = functools.partial(_describe, above=(*above, value), known=known)
    description = _describe_parts(value, describe)
    if isinstance(description, dict):
        known[id(value)] = (value, description)
    return description


def _describe_parts(value: Any, describe: Any) -> Any:
    import jax  # here: versions and times are noted, and JSON is made, without it

    match value:
        case np.ufunc() if "(vectorized)" in repr(value):
            return f"{UNSEEN}the Python function of {value!r}"
        case enum.Enum():
            parts = {"value": describe(value.value), "class": describe(type(value))}
            return {"": f"{_name_of(type(value))}.{value.name}", **parts}
        case _ if isinstance(value, _PLAIN):
            text = repr(value)
            is_long = len(text) > _LONGEST
            return f"{text[:40]}... with hash {_digest(text.encode())}" if is_long else text
        case functools.partial():
            parts = {f"argument {i}": describe(part) for i, part in enumerate(value.args)}
            parts |= {name: describe(value.keywords[name]) for name in sorted(value.keywords)}
            return {"": describe(value.func), **parts}
        case types.FunctionType():
            return _describe_function(value, describe)
        case types.MethodType():
            return {"": describe(value.__func__), "self": describe(value.__self__)}
        case types.ModuleType():
            anything = f"{UNSEEN}what is taken from module {value.__name__}"
            return _library_of(value.__name__) or anything
        case property():
            return {name: describe(getattr(value, name)) for name in ("fget", "fset", "fdel")}
        case staticmethod() | classmethod():
            return describe(value.__func__)
        case functools.cached_property():
            return describe(value.func)
        case type():
            return _describe_class(value, describe)
        case np.ndarray() | jax.Array():
            return _describe_array(value, describe)
        case Mapping() if not isinstance(value, os._Environ):
            return _describe_mapping(value, describe)
        case set() | frozenset():
            # Their order differs in each process: each part is described as if it were the first.
            each = sorted((describe(part, known={}) for part in value), key=json.dumps)
            return {"": _kind_of(value, describe)} | {str(i): part for i, part in enumerate(each)}
        case tuple() | list():
            names = getattr(value, "_fields", range(len(value)))
            parts = {str(key): describe(part) for key, part in zip(names, value, strict=True)}
            return {"": _kind_of(value, describe), **parts}
        case _:
            return _describe_object(value, describe)


def _kind_of(value: Any, describe: Any) -> Any:
    kind = type(value)
    if kind in _CONTAINERS:
        return kind.__name__
    return _name_of(kind) if _library_of(kind.__module__) else describe(kind)


def _describe_mapping(mapping: Mapping[Any, Any], describe: Any) -> dict[str, Any]:
    """Describes a mapping, and the order of its keys where that is not the one of their names."""
    parts: dict[str, Any] = {}
    for i, (key, value) in enumerate(mapping.items()):
        name = key if isinstance(key, str) and not key[:1].isdigit() else repr(key)
        if " at 0x" in name:  # of a function, or an object
            name = f"{_name_of(key)} {i}"
            parts[f"key {name}"] = describe(key)
        parts[name] = describe(value)
    if [*parts] != sorted(parts):
        parts["order of the keys"] = ", ".join(parts)
    if hasattr(mapping, "default_factory"):
        parts["default_factory"] = describe(mapping.default_factory)
    return parts if type(mapping) is dict else {"": _kind_of(mapping, describe), **parts}


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
    library = _library_of(function.__globals__.get("__name__", ""))
    name = _name_of(function)
    if library:
        # Its own defaults belong to its version; those that are the user's do not.
        modules = {n: getattr(x, "__module__", None) for n, x in given.items() if callable(x)}
        given = {n: given[n] for n, module in modules.items() if not _library_of(module)}
    else:
        code = _digest(repr([*read_code(function.__code__)]).encode())
        name = f"{name} with code {code} of {_PYTHON}"  # each Python compiles it to other bytes
        if details := [*read_details(function.__code__)]:
            parts["keywords and try"] = _digest(repr(details).encode())
        parts |= _describe_globals(function, describe)
        parts |= {n: describe(x) for n, x in vars(function).items() if n != "__wrapped__"}
    parts |= {key: describe(value) for key, value in given.items()}
    name = f"{name} of {library}" if library else name
    return {"": name, **parts} if parts else name


def _describe_globals(function: types.FunctionType, describe: Any) -> dict[str, Any]:
    """Describes what a function takes from the user's modules, but for what is filled in later."""
    parts: dict[str, Any] = {}
    for chain in read_globals(function.__code__):
        name, value = chain[0], function.__globals__.get(chain[0], _NOTHING)
        if value is _NOTHING and name in _READ_ANYTHING:
            parts[name] = f"{UNSEEN}what {name}() reads"
        for attribute in chain[1:]:
            if not isinstance(value, types.ModuleType) or _library_of(value.__name__):
                break
            name, value = f"{name}.{attribute}", getattr(value, attribute, _NOTHING)
        if value is not _NOTHING:
            parts[name] = describe(value)
    for module, taken in read_imports(function.__code__):
        if not _library_of(module):
            known = vars(sys.modules[module]) if module in sys.modules else {}
            parts |= {f"{module}.{n}": describe(known[n]) for n in taken if n in known}
            if not known:
                parts[module] = f"{UNSEEN}a module that is only imported when this is called"
    return parts


_NOTHING = object()


def _describe_class(cls: type, describe: Any) -> Any:
    """Describes a class: by its library, or by all that the user wrote into it."""
    # One that was made where no module has a name is said to be one of Python's.
    is_nameless = cls.__module__ == "builtins" and "__module__" in vars(cls)
    if (library := _library_of(cls.__module__)) and not is_nameless:
        return f"{_name_of(cls)} of {library}"
    slots = (types.MemberDescriptorType, types.GetSetDescriptorType)
    is_enum = issubclass(cls, enum.Enum)
    parts = {f"base {base.__name__}": describe(base) for base in cls.__bases__}
    if not _library_of(type(cls).__module__):
        parts["metaclass"] = describe(type(cls))
    for name, part in vars(cls).items():
        # The functions that `dataclasses` writes follow from the fields.
        code = getattr(inspect.unwrap(part), "__code__", None) if callable(part) else None
        is_made = code is not None and code.co_qualname.startswith("__create_fn__")
        is_made |= is_enum and name.startswith("_") and name.endswith("_")
        if name not in _OF_EVERY_CLASS and not is_made and not isinstance(part, slots):
            parts[name] = describe(part.value if isinstance(part, enum.Enum) else part)
    if dataclasses.is_dataclass(cls):
        fields = dataclasses.fields(cls)
        parts["fields"] = ", ".join(field.name for field in fields)
        made = {x.name: x.default_factory for x in fields if x.default_factory is not x.default}
        made = {name: made[name] for name in made if made[name] is not dataclasses.MISSING}
        parts |= {f"default_factory of {name}": describe(make) for name, make in made.items()}
    return {"": _name_of(cls), **parts}


def _describe_array(array: Any, describe: Any) -> Any:
    import jax

    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if isinstance(array, np.ma.MaskedArray):
        return {
            "": _kind_of(array, describe),
            "data": describe(array.data),
            "mask": describe(array.mask),
        }
    weak = " of weak type" if getattr(array, "weak_type", False) else ""
    kind = f" in a {type(array).__name__}" if type(array) not in (np.ndarray, np.memmap) else ""
    kind = "" if isinstance(array, jax.Array) else kind
    array = np.asarray(array)
    if array.dtype.hasobject:
        return f"{UNSEEN}an array of Python objects"
    bytes_ = _digest(array.tobytes())
    return f"{array.dtype}{list(array.shape)} with bytes {bytes_}{weak}{kind}"


def _describe_object(value: Any, describe: Any) -> Any:
    """Describes an object by its class and its attributes."""
    import jax

    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None and not isinstance(value, (jax.custom_jvp, jax.custom_vjp)):
        return describe(wrapped)  # `jax.jit` and `functools.cache`
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        is_bound = owner is not None and not isinstance(owner, (types.ModuleType, type))
        return {"": _name_of(value), "self": describe(owner)} if is_bound else _name_of(value)
    if type(value) in _WITHOUT_STATE:
        return _name_of(type(value)) if type(value) is not object else _name_of(value)
    if isinstance(value, _OF_OTHER_STATE):
        return f"{UNSEEN}a {_name_of(type(value))}"
    if parts := _attributes_of(value):
        return {"": describe(type(value)), **{n: describe(part) for n, part in parts.items()}}
    if hasattr(value, "__dict__"):
        return {"": describe(type(value))}
    is_python = _library_of(type(value).__module__) in ("", "Python", "jax", "jaxlib")
    if is_python and " at 0x" not in repr(value) and len(repr(value)) <= _LONGEST:
        return f"{_name_of(type(value))}: {value!r}"
    return f"{UNSEEN}a {_name_of(type(value))}"


def _attributes_of(value: Any) -> dict[str, Any]:
    """Returns what an object holds, without what it works out from that."""
    kinds = type(value).__mro__
    if dataclasses.is_dataclass(value) and any(_library_of(kind.__module__) for kind in kinds[:-1]):
        names = [field.name for field in dataclasses.fields(value) if field.init]  # flax has others
        return {name: getattr(value, name, None) for name in names}
    slots = [vars(kind).get("__slots__", ()) for kind in kinds]
    names = [name for some in slots for name in ([some] if isinstance(some, str) else some)]
    found = {name: getattr(value, name) for name in names if hasattr(value, name)}
    found |= getattr(value, "__dict__", {})
    worked_out = [
        n for n in found if isinstance(getattr(type(value), n, None), functools.cached_property)
    ]
    for name in ("__doc__", "__dict__", "__weakref__", "__wrapped__", *worked_out):
        found.pop(name, None)
    return found


@functools.cache
def _library_of(module: str | None) -> str:
    """Names the library of a module and its version; nothing for a module of the user's."""
    if module in ("", "__main__"):  # a script; also where another program runs its functions
        return ""
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
    return strip_address(f"{module}.{name}" if name else type(value).__qualname__)


def strip_address(text: str) -> str:
    """Strips from a name what differs in each process, such as " at 0x7f00"."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
