"""Data that plugins make: one registry of data sets with questions about pictures, and one of text.

A maker is a function of options, an empty folder to fill, and a number of processes. Its folder is named after it and
its options, made once, and exists whole or not at all. Knows nothing of plugins and of what becomes of the data.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from re import fullmatch
from typing import Any, TypeVar

from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.data.folders import new_folder
from vqa_bench.errors import UserError

WHOLE = "custom.json"
"""The file that says what a folder was made by; there is no folder without it."""

Maker = Callable[[dict[str, Any], Path, int], object]
MakerType = TypeVar("MakerType", bound=Maker)


@dataclass(frozen=True)
class CustomData:
    """A registry of makers.

    Attributes:
        what: they make, in a word or two.
        check: raises UserError for a folder that does not hold that.
        makers: by their names.
    """

    what: str
    check: Callable[[Path], object]
    makers: dict[str, Maker] = field(default_factory=dict)

    def register(self, name: str) -> Callable[[MakerType], MakerType]:
        """A decorator that adds a maker, as `@register_dataset("name")`.

        The maker gets the options (from the configuration), the folder and the number of processes it may use, and
        should make the same from the same.

        Raises:
            ValueError: not a name, or taken by another function.
        """
        if fullmatch("[a-z][a-z0-9_-]*", name) is None:
            raise ValueError(f"expected a name of small letters, digits, _ and -, got {name!r}")

        def add(maker: MakerType) -> MakerType:
            known = self.makers.setdefault(name, maker)
            if (known.__module__, known.__qualname__) != (maker.__module__, maker.__qualname__):
                raise ValueError(
                    f"expected a name for {self.what} that is not taken, got {name!r}, which {known.__qualname__} has"
                )
            self.makers[name] = maker
            return maker

        return add

    def expect(self, name: str) -> Maker:
        """The maker of that name; UserError naming those there are."""
        if name not in self.makers:
            known = ", ".join(sorted(self.makers)) or "none are registered; give its file with --plugin"
            raise UserError(f"expected a plugin's {self.what} by its name ({known}), got {name!r}")
        return self.makers[name]

    def folder(self, name: str, options: Mapping[str, Any], data: Path) -> Path:
        """Where the data is, or will be, in the folder `data`: other options, another folder."""
        text = json.dumps(options, sort_keys=True, default=str)
        return data / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def make(self, name: str, options: Mapping[str, Any], data: Path, *, workers: int) -> Path:
        """Make the data unless it is there; returns its folder.

        Raises:
            UserError: no such maker, or what it made is not what it should be. Errors of the maker are its own.
        """
        maker, out = self.expect(name), self.folder(name, options, data)
        if not (out / WHOLE).is_file():
            with new_folder(out) as folder:
                maker(dict(options), folder, workers)
                try:
                    self.check(folder)
                except UserError as error:
                    raise UserError(f"{self.what} {name!r}: {error}") from error
                facts = {"name": name, "options": options}
                (folder / WHOLE).write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")
        return out


def _check_texts(folder: Path) -> None:
    if not any(folder.glob("train/*.txt")):
        raise UserError(f"expected texts as train/*.txt, and validation/*.txt, test/*.txt, got none in {folder}")


DATASETS = CustomData("data set", ClevrFolder)
"""Their makers write a folder in the layout of the CLEVR release: `images/<split>/*` and
`questions/CLEVR_<split>_questions.json` for the splits `train` and `val`, with CLEVR's answers."""

TEXTS = CustomData("text", _check_texts)
"""Their makers write files of text in PG19's layout: `train/*.txt`, and `validation/*.txt` and `test/*.txt`."""

register_dataset = DATASETS.register
register_text = TEXTS.register
