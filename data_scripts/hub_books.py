"""Books out of a data set that 🤗 `datasets` can load: on the Hub, in its cache, or a folder of Parquet or JSON files.

Streams: a book at a time is in memory, or as much as one row group of a Parquet file. Without network
(`HF_HUB_OFFLINE=1`) the data set must lie in the Hub's cache. Knows nothing of what is made of the books.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_scripts.errors import DataError

_OTHERWISE = "or use --folder with a folder of .txt files"


class DatasetSource:
    """The rows of a data set as books; `column` is their text. See `pg19.Source`.

    Raises:
        DataError: from `splits` on: it cannot be loaded, is not here and there is no network, or has no such column.
    """

    verified = False

    def __init__(self, dataset: str, column: str) -> None:
        self._dataset, self._column = dataset, column
        name = Path(dataset).resolve().name if Path(dataset).is_dir() else dataset
        self.request: dict[str, Any] = {"kind": "datasets", "dataset": name, "column": column}
        self._loaded: Any = None

    def splits(self) -> list[str]:
        if self._loaded is None:
            self._loaded = _load(self._dataset)
        return list(self._loaded)

    def prepare(self, splits: Sequence[str], progress: Callable[[int, int], None]) -> int:
        return 0

    def count(self, split: str) -> int | None:
        info = self._loaded[split].info.splits
        return None if info is None or split not in info else info[split].num_examples

    def books(self, split: str) -> Iterator[tuple[str, Iterable[bytes]]]:
        with _one_line(self._dataset):
            for number, row in enumerate(self._loaded[split]):
                if self._column not in row:
                    raise DataError(f"expected a column {self._column!r} in {self._dataset}, got {', '.join(row)}")
                text = row[self._column]
                if not isinstance(text, str | bytes):
                    kind = type(text).__name__
                    raise DataError(f"expected text in column {self._column!r} of {self._dataset}, got {kind}")
                yield str(number), [text.encode() if isinstance(text, str) else text]

    def metadata(self) -> bytes | None:
        return None

    def clean(self) -> None:
        """The Hub's cache is the user's."""


def _load(dataset: str) -> Any:
    """The streamed data set: split name -> rows."""
    import datasets
    import huggingface_hub
    from datasets.packaged_modules.text.text import Text

    place = dataset
    if huggingface_hub.constants.HF_HUB_OFFLINE and not Path(dataset).is_dir():
        place = _find_in_cache(dataset)
    with _one_line(dataset):
        builder = datasets.load_dataset_builder(place)
        if isinstance(builder, Text):
            raise DataError(
                f"expected rows of books in {dataset}, got text files, whose lines would be the rows: "
                "download them and use --folder"
            )
        return builder.as_streaming_dataset()


def _find_in_cache(dataset: str) -> str:
    """The folder of a data set in the Hub's cache."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return huggingface_hub.snapshot_download(dataset, repo_type="dataset", local_files_only=True)
    except (LocalEntryNotFoundError, ValueError) as error:
        cache = huggingface_hub.constants.HF_HUB_CACHE
        copied = f"datasets--{dataset.replace('/', '--')}"
        raise DataError(
            f"expected {dataset} in {cache}, as HF_HUB_OFFLINE is set, got nothing: run `hf download --repo-type "
            f"dataset {dataset}` where there is a network and copy the folder {copied} from its cache to there, "
            f"{_OTHERWISE}"
        ) from error


@contextlib.contextmanager
def _one_line(dataset: str) -> Iterator[None]:
    """The many errors of `datasets` as ours."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"expected a data set that can be loaded, got {dataset}: {lines[0]}; {_OTHERWISE}") from error
