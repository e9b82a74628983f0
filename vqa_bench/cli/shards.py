"""The commands around shards: serialize, inspect, doctor."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_bench.cli.arguments import add_plugins, add_workers, positive

if TYPE_CHECKING:
    from rich.text import Text

    from vqa_bench.data.sequences import SequenceConfig


def add_serialize(parser: argparse.ArgumentParser) -> None:
    """`serialize SOURCE --encoding SPEC --out DIR`."""
    parser.add_argument("source", type=Path, help="a folder in the CLEVR release's layout")
    parser.add_argument(
        "--encoding", required=True, metavar="SPEC", help="pixels:62x41, png:62x41,level=6, jpeg:…, or a name: paper"
    )
    parser.add_argument("--out", type=Path, required=True, help="the shard to make")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="of train, dev, test, … (default: all there are)")
    parser.add_argument("--dev-fraction", type=float, default=0.05, help="of the training images (default 0.05)")
    parser.add_argument("--dev-seed", type=int, default=0)
    parser.add_argument("--allow-missing", action="store_true", help="leave out questions without an image file")
    parser.add_argument("--keep-unasked", action="store_true", help="keep images that no question asks about")
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", help="the data's own candidates, one a line (default: CLEVR's 28)"
    )
    add_plugins(parser)
    add_workers(parser)
    parser.set_defaults(run=_serialize)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """`inspect DIR`."""
    parser.add_argument("folder", type=Path, help="a shard, or a folder of packed books")
    parser.add_argument("--sample", type=int, metavar="K", help="show one question, or one book, counted from 0")
    parser.add_argument("--split", help="the sample's split (default: the first that has any)")
    parser.add_argument("--verify", action="store_true", help="hash every file again")
    parser.add_argument("--layout", choices=("iqa", "qia", "qiqa"), default="iqa", help="of the sequence shown")
    parser.add_argument(
        "--answer",
        choices=("letter", "text"),
        help="how the answer is written (default: letter, where that is possible)",
    )
    parser.add_argument("--patch", type=positive, default=8, help="bytes in a patch of the first stage (default 8)")
    parser.add_argument("--width", type=partial(positive, most=1024), default=16, help="ids a line (default 16)")
    parser.add_argument("--full", action="store_true", help="show long parts whole")
    parser.add_argument("--save", type=Path, metavar="FILE", help="save the sample's picture as PNG")
    add_plugins(parser)
    parser.set_defaults(run=_inspect)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """`doctor`."""
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where data sets and shards are to be kept")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are to be kept")
    parser.set_defaults(run=_doctor)


def _serialize(options: argparse.Namespace) -> int:
    from vqa_bench.data.answers import CLEVR_ANSWERS, read_answers
    from vqa_bench.data.encodings import parse_spec
    from vqa_bench.data.serialize import serialize
    from vqa_bench.progress import progress

    spec = parse_spec(options.encoding)
    answers = CLEVR_ANSWERS if options.answers is None else read_answers(options.answers)
    with progress(f"serialize {options.source.name} as {spec}", "images") as report:
        manifest = serialize(
            options.source,
            spec,
            options.out,
            workers=options.workers,
            dev_fraction=options.dev_fraction,
            dev_seed=options.dev_seed,
            splits=options.splits,
            allow_missing=options.allow_missing,
            keep_unasked=options.keep_unasked,
            answers=answers,
            progress=report,
        )
    for name, info in manifest.splits.items():
        left_out = f" ({info.missing_questions:,} left out, no image file)" if info.missing_questions else ""
        print(f"{name}: {info.images:,} images, {info.questions:,} questions{left_out}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from vqa_bench.data.show_books import book_text, books_text, holds_books
    from vqa_bench.errors import UserError

    books = holds_books(options.folder)
    if options.save is not None and (options.sample is None or books):
        got = "books, which have no pictures" if books else "no --sample; say which"
        raise UserError(f"expected --save together with --sample of a shard, got {got}")
    if options.sample is None:
        _print(books_text(options.folder, verify=options.verify) if books else _shard_text(options))
    elif books:
        _print(
            book_text(options.folder, options.sample, split=options.split, width=options.width, full=options.full),
        )
    else:
        _show_sample(options)
    return 0


def _shard_text(options: argparse.Namespace) -> Text:
    from vqa_bench.data.look import look_at_shard
    from vqa_bench.data.show import shard_text

    config = _sequence(options)
    return shard_text(look_at_shard(options.folder, config=config, patch=options.patch, verify=options.verify))


def _sequence(options: argparse.Namespace) -> SequenceConfig:
    """How the sequences that are shown are made."""
    from vqa_bench.data.sequences import SequenceConfig
    from vqa_bench.data.shards import open_shard

    answer = options.answer
    if answer is None:
        answer = "letter" if open_shard(options.folder).answers.have_letters else "text"
    return SequenceConfig(layout=options.layout, answer=answer)


def _show_sample(options: argparse.Namespace) -> None:
    from rich.console import Console

    from vqa_bench.data.look import look_at_sample, save_picture
    from vqa_bench.data.show import sample_text

    config = _sequence(options)
    view = look_at_sample(options.folder, options.sample, split=options.split, config=config, patch=options.patch)
    columns = Console().width if sys.stdout.isatty() else None
    _print(sample_text(view, width=options.width, full=options.full, columns=columns))
    if options.save is not None:
        save_picture(view, options.save)
        print(options.save)


def _print(text: Text) -> None:
    """Colours on a terminal, the same words anywhere; no line is broken."""
    from rich.console import Console

    Console().print(text, soft_wrap=True)


def _doctor(options: argparse.Namespace) -> int:
    from vqa_bench.doctor import examine, report_text

    report = examine({"data": options.data, "runs": options.runs})
    if options.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report_text(report))
    return report.exit_code
