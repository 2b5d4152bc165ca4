"""Imports modules and files that a user names on the command line."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from purejaxdqn.checks import ConfigError

IMPORTED: list[str] = []  # in their order, for another process to import too


def import_module_or_file(place: str) -> ModuleType:
    """Imports a module `my_module` or a file `path/to/file.py`; a second call imports nothing.

    The module is looked for in the current folder first. A file also finds what lies beside it.

    Raises:
      ConfigError: if there is no such module or file, or if it raises while it is imported.
    """
    is_file = place.endswith(".py") and place.isprintable()
    if not is_file and not all(part.isidentifier() for part in place.split(".")):
        raise ConfigError(
            f"import ({place!r:.60}) must be a module such as my_module, or a file that ends in .py"
        )
    path = Path(place).resolve()
    if is_file and not path.is_file():
        raise ConfigError(
            f"there is no file {place} in {Path.cwd()}: correct the path, or name a module"
        )
    for folder in [Path.cwd(), *[path.parent] * is_file]:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        module = _import_file(path) if is_file else importlib.import_module(place)
    except ConfigError:  # of a registration too
        raise
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and not is_file and f"{place}.".startswith(f"{missing}."):
            raise ConfigError(
                f"there is no module {place!r} here: it must lie in {Path.cwd()} or be installed; "
                "correct the name, or give the path of a file that ends in .py"
            ) from error
        raise ConfigError(
            f"importing {place} raises {describe_error(error)}; correct it until Python can "
            "import it"
        ) from error
    if not is_file and hasattr(module, "__path__") and getattr(module, "__file__", None) is None:
        raise ConfigError(
            f"import ({place!r:.60}) is a folder without __init__.py: name a module or file in it"
        )
    name = str(path) if is_file else place
    if name not in IMPORTED:
        IMPORTED.append(name)
    return module


def describe_error(error: BaseException) -> str:
    """Describes an error in one line, for a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _import_file(path: Path) -> ModuleType:
    """Imports a file under its own name, under which pickles and dataclasses look it up."""
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    is_others = "site-packages" in str(getattr(known, "__file__", ""))
    if is_others or path.stem in (*sys.stdlib_module_names, __package__.split(".")[0]):
        raise ConfigError(
            f"{path.name} has the name of a module that others import: rename the file"
        )
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
