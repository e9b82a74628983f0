"""A user's own Python files: imported before a configuration is read, so that what they register can be named in it.

A file becomes a module below this one whose name holds the file's path. A worker process that meets the name, in the
pickle of an encoding for example, thus imports the file by itself. Packages bring plugins as entry points of the group
`vqa_bench.plugins`. Knows neither what can be registered nor what is done with it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from base64 import b32decode, b32encode
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from vqa_bench.errors import UserError

GROUP = "vqa_bench.plugins"

__path__: list[str] = []  # modules may be below this one; the finder at the end of this file finds them

_loaded: dict[str, str] = {}
_files: dict[str, Path] = {}


def load_plugins(files: Sequence[Path] = ()) -> None:
    """Import these files, and the plugins of installed packages; what was imported before is not imported again.

    Raises:
        UserError: no such file, two files of one name, or an error while importing; says in which line.
    """
    for file in files:
        _load_file(file.resolve())
    for entry in entry_points(group=GROUP):
        _load_entry(entry)


def loaded() -> dict[str, str]:
    """The SHA-256 of every plugin's file: files by their names, plugins of packages by theirs with the version."""
    return dict(_loaded)


def _load_file(file: Path) -> None:
    if file.suffix != ".py" or not file.is_file():
        raise UserError(f"expected a Python file as a plugin, got {file}, which is none")
    if _files.setdefault(file.name, file) != file:
        raise UserError(f"expected plugins with names of their own, got {_files[file.name]} and {file}; rename one")
    _loaded[file.name] = _sha256(file)
    try:
        importlib.import_module(_module_name(file))
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {error}{_place(error, file)}"
        raise UserError(f"expected {file} to be importable as a plugin, got {cause}; correct it") from error


def _load_entry(entry: EntryPoint) -> None:
    package = "a package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
    try:
        entry.load()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"expected the plugin {entry.name} of {package} to be importable, got {type(error).__name__}: {error}; "
            "correct or uninstall it"
        ) from error
    file = _file_of(sys.modules[entry.module])
    _loaded[f"{entry.name} ({package})"] = "" if file is None else _sha256(file)


def _place(error: BaseException, file: Path) -> str:
    """The last line of the file that had to do with an error, as words."""
    if isinstance(error, SyntaxError):
        line = error.lineno if error.filename == str(file) else None
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = lines[-1] if lines else None
    return "" if line is None else f" at line {line}"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _file_of(module: ModuleType) -> Path | None:
    return None if module.__file__ is None else Path(module.__file__)


# -- from a path to a module's name and back ------------------------------------------------------------------------


def _module_name(file: Path) -> str:
    stem = re.sub(r"\W", "_", file.stem)
    code = b32encode(str(file).encode()).decode().rstrip("=").lower()
    return f"{__name__}.{stem}_{code}"


def _path(name: str) -> Path | None:
    """The file of a module's name, None for other modules."""
    match = re.fullmatch(rf"{re.escape(__name__)}\.\w*_([a-z2-7]+)", name)
    if match is None:
        return None
    code = match[1].upper()
    return Path(b32decode(code + "=" * (-len(code) % 8)).decode())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = _path(fullname)
        return None if file is None else spec_from_file_location(fullname, file)


sys.meta_path.append(_Finder())
