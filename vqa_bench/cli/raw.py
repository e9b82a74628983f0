"""The commands that get or make raw data: `data clevr | pg19 | synth | synth-text`.

With `matrix`, the only part of the harness that reaches `data_scripts`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqa_bench.cli.arguments import add_workers
from vqa_bench.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def add_data(parser: argparse.ArgumentParser) -> None:
    """`data KIND`."""
    kinds = parser.add_subparsers(title="data", metavar="KIND", required=True)
    _add_clevr(kinds.add_parser("clevr", help="download, verify and unpack CLEVR"))
    _add_pg19(kinds.add_parser("pg19", help="pack PG19, or any books, as memory-mapped bytes"))
    _add_synth(kinds.add_parser("synth", help="generate a CLEVR-style data set"))
    _add_synth_text(kinds.add_parser("synth-text", help="generate books that narrate scenes"))


def _add_clevr(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the folder to fill, in the release's layout")
    parser.add_argument("--variant", choices=("clevr", "cogent"), default="clevr")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", help="another address of the archive")
    source.add_argument("--zip", type=Path, metavar="FILE", help="an archive that is here already")
    parser.add_argument("--sha256", metavar="HASH", help="of the archive, where it is not the official one")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="unpack these only, such as val")
    parser.add_argument("--no-images", action="store_true", help="unpack scenes and questions only")
    parser.add_argument("--keep-zip", action="store_true", help="keep the downloaded archive when all is unpacked")
    parser.set_defaults(run=_clevr)


def _add_pg19(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the folder of packed books to make")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", help="another address of the official layout, <split>/<id>.txt")
    source.add_argument("--dataset", metavar="NAME", help="a dataset of the Hugging Face hub, or a folder it can load")
    source.add_argument("--folder", type=Path, help="a folder of .txt files, in PG19's layout or flat")
    parser.add_argument("--column", default="text", help="the dataset's column of text (default: text)")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="of train, validation, test (default: all)")
    parser.add_argument("--validation-fraction", type=float, metavar="F", help="of a flat --folder's books")
    parser.add_argument("--test-fraction", type=float, metavar="F", help="of a flat --folder's books")
    parser.add_argument("--seed", type=int, default=0, help="which books these are")
    parser.add_argument("--cache", type=Path, help="keep the fetched books in this folder, in PG19's layout")
    parser.set_defaults(run=_pg19)


def _add_synth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", required=True, help="mini, tiny, small, clevr, clevr-64, cogent-a, cogent-b")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", nargs="+", metavar="SPLIT=N", help="images a split, where not the preset's own")
    parser.add_argument("--scenes", type=Path, metavar="FILE", help="draw and ask about the scenes of this file")
    parser.add_argument("--no-images", action="store_true", help="write scenes and questions only")
    add_workers(parser)
    parser.set_defaults(run=_synth)


def _add_synth_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the folder to make, in PG19's layout")
    parser.add_argument("--size", type=_bytes, required=True, metavar="BYTES", help="of the training books: 200M, 11G")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packed", action="store_true", help="write packed bytes at once, as `data pg19` does")
    add_workers(parser)
    parser.set_defaults(run=_synth_text)


def _bytes(text: str) -> int:
    """A number of bytes: 1500000, 200M, 1.5G."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a number of bytes such as 200M, got {text!r}")
    return max(1, int(float(match[1]) * _UNITS[match[2].upper()]))


def _clevr(options: argparse.Namespace) -> int:
    from data_scripts.clevr import download_clevr
    from vqa_bench.progress import progress

    done = download_clevr(
        options.out,
        variant=options.variant,
        url=options.url,
        archive=options.zip,
        sha256=options.sha256,
        splits=options.splits,
        images=not options.no_images,
        keep_archive=options.keep_zip,
        progress=progress,
    )
    for notice in done.notices:
        print(f"note: {notice}", file=sys.stderr)
    for split, has_images in done.splits.items():
        print(f"{split}: {'with' if has_images else 'without'} images")
    said = f"{done.written:,} files written" if done.written else "everything was there already, by number and size"
    print(f"{done.path}: {said}")
    return 0


def _pg19(options: argparse.Namespace) -> int:
    from data_scripts.pg19 import pack_pg19
    from vqa_bench.progress import progress

    with progress("pack books", "steps") as report:
        manifest = pack_pg19(
            options.out,
            url=options.url,
            dataset=options.dataset,
            column=options.column,
            folder=options.folder,
            splits=options.splits,
            validation_fraction=options.validation_fraction,
            test_fraction=options.test_fraction,
            seed=options.seed,
            cache=options.cache,
            progress=report,
        )
    _print_books(manifest["splits"])
    return 0


def _synth_text(options: argparse.Namespace) -> int:
    from data_scripts.synth.narrate import generate_text
    from vqa_bench.progress import progress

    with progress("generate books", "bytes") as report:
        info = generate_text(
            options.out,
            size=options.size,
            seed=options.seed,
            workers=options.workers,
            packed=options.packed,
            progress=report,
        )
    _print_books(info["splits"])
    return 0


def _print_books(splits: Mapping[str, Mapping[str, Any]]) -> None:
    for name, split in splits.items():
        print(f"{name}: {split['books']:,} books, {split['bytes']:,} bytes")


def _synth(options: argparse.Namespace) -> int:
    from data_scripts.synth.generate import generate
    from vqa_bench.progress import progress

    images = None if options.images is None else _split_counts(options.images)
    with progress(f"generate {options.preset}", "images") as report:
        info = generate(
            options.preset,
            options.out,
            seed=options.seed,
            workers=options.workers,
            images=images,
            scenes=options.scenes,
            pictures=not options.no_images,
            progress=report,
        )
    for split, counts in info["splits"].items():
        print(f"{split}: {counts['images']:,} images, {counts['questions']:,} questions")
    return 0


def _split_counts(texts: Sequence[str]) -> dict[str, int]:
    """From `train=1000 val=200`."""
    counts: dict[str, int] = {}
    for text in texts:
        split, _, count = text.partition("=")
        if not (count.isascii() and count.isdecimal()):
            raise UserError(f"expected --images SPLIT=NUMBER such as train=1000, got {text!r}")
        if split in counts:
            raise UserError(f"expected each split once in --images, got {split} twice; give one number")
        counts[split] = int(count)
    return counts
