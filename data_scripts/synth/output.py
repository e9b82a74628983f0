"""The release's lists of JSON, written item by item. Knows nothing of what is in them."""

import json
from pathlib import Path
from typing import IO


def dump(value: object) -> str:
    """JSON without spaces, on one line."""
    return json.dumps(value, separators=(",", ":"))


class JsonList:
    """`<kind>/CLEVR_<split>_<kind>.json`: a header and one long list, written item by item."""

    def __init__(self, folder: Path, kind: str, split: str, version: str) -> None:
        self.count = 0
        (folder / kind).mkdir(exist_ok=True)
        self._file: IO[str] = open(folder / kind / f"CLEVR_{split}_{kind}.json", "w", encoding="ascii")  # noqa: SIM115
        header = {"split": split, "license": "unspecified", "version": version, "date": ""}
        self._file.write(f'{{"info":{dump(header)},"{kind}":[')

    def __enter__(self) -> "JsonList":
        return self

    def add(self, item: str) -> None:
        """Append one item, given as JSON."""
        self._file.write(("," if self.count else "") + "\n" + item)
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self._file.write("\n]}\n")
        self._file.close()
