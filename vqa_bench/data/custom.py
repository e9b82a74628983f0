"""Data that plugins make: one registry of data sets with questions about pictures, and one of text.

A maker is a function of options, an empty folder to fill, and a number of processes. Its folder is named after it and
its options, made once, and exists whole or not at all. Knows nothing of plugins and of what becomes of the data.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.data.folders import new_folder
from vqa_bench.data.registry import Registry
from vqa_bench.errors import UserError

WHOLE = "custom.json"
"""The file that says what a folder was made by; there is no folder without it."""

Maker = Callable[[dict[str, Any], Path, int], object]


@dataclass(frozen=True, kw_only=True)
class CustomData(Registry[Maker]):
    """A registry of makers.

    A maker gets the options (from the configuration), the folder and the number of processes it may use, and should
    make the same from the same.

    Attributes:
        check: raises UserError for a folder that does not hold what they make.
    """

    check: Callable[[Path], object]

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


DATASETS = CustomData(what="data set", check=ClevrFolder)
"""Their makers write a folder in the layout of the CLEVR release: `images/<split>/*` and
`questions/CLEVR_<split>_questions.json` for the splits `train` and `val`, with CLEVR's answers or with those that the
configuration's `answers` lists."""

TEXTS = CustomData(what="text", check=_check_texts)
"""Their makers write files of text in PG19's layout: `train/*.txt`, and `validation/*.txt` and `test/*.txt`."""

register_dataset = DATASETS.register
register_text = TEXTS.register
