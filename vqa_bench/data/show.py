"""How a shard and a sample look on a screen: text that is complete without colour, and clearer with it.

Knows what look.py gathers, and `rich`; reads no files.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text
from tabulate import tabulate

from vqa_bench.data.answers import CLEVR_ANSWERS
from vqa_bench.data.look import Gap, IdRow, SampleView, ShardView, sequence_rows
from vqa_bench.data.manifest import ByteLengths
from vqa_bench.data.vocab import END_PART, PAD, START_IMAGE, START_TEXT

MARKS = {PAD: "··", START_TEXT: "T>", START_IMAGE: "I>", END_PART: "<<"}
LEGEND = "T> I> begin a text or an image, << ends a part, ·· is padding; * has a loss weight"
PART_STYLES = {"question": "cyan", "image": "green", "answer": "bold magenta"}
FIRST_ANSWERS = 8  # of a data set's own, named beside their number
UPPER_HALF = "▀"
HEADING = "bold"


def shard_text(view: ShardView) -> Text:
    """The manifest, lengths and state of a shard."""
    manifest, text = view.manifest, Text()
    append_heading(text, str(view.path))
    state = "every file hashed again: as written" if view.verified else "sizes as written; --verify hashes them"
    dev = manifest.dev
    append_facts(
        text,
        [
            ("encoding", manifest.spec),
            ("source", manifest.source.name),
            ("fingerprint", manifest.source.fingerprint),
            ("answers", _answers(manifest.answers)),
            ("dev split", "none" if dev is None else f"{dev.fraction:g} of the training images, seed {dev.seed}"),
            ("files", f"{view.files} with {view.total_bytes:,} bytes ({state})"),
        ],
    )
    append_heading(text, "\nSplits")
    columns = ["", "from", "images", "questions", "images missing", "their questions", "images not asked about"]
    rows = [
        [name, info.source_split, *map(_count, (info.images, info.questions)),
         *map(_count, (info.missing_images, info.missing_questions, info.unasked_images))]
        for name, info in manifest.splits.items()
    ]  # fmt: skip
    append_table(text, columns, rows)
    config = view.config
    append_heading(text, "\nLengths")
    lengths = [_lengths(f"{name}, image bytes", info.image_bytes) for name, info in manifest.splits.items()]
    lengths += [_lengths(f"{name}, question bytes", info.question_bytes) for name, info in manifest.splits.items()]
    lengths += [_lengths(f"{name}, sequence ids", found) for name, found in view.sequences.items()]
    append_table(text, ["", "least", "median", "95 %", "most"], lengths)
    text.append(
        f"Sequences: layout {config.layout}, answer as {config.answer}, parts in whole patches of {view.patch}.\n"
    )
    append_heading(text, "\nLibraries")
    codecs = [[name, *(version or "none" for version in pair), _same(pair)] for name, pair in view.codecs.items()]
    append_table(text, ["", "wrote the shard", "this host", ""], codecs)
    return text


def sample_text(view: SampleView, *, width: int = 16, full: bool = False, columns: int | None = None) -> Text:
    """One sample: picture, question, answer, program and the sequence id by id.

    width: ids a line. full: long parts are not abbreviated. columns: how wide the picture may be drawn with coloured
    half blocks; None leaves it out, for where there is no colour.
    """
    text, question, image = Text(), view.question, view.image
    append_heading(text, f"Sample {view.row:,} of {view.questions:,} in {view.split}")
    picture = view.picture
    family, objects = question["family_index"], question["num_objects"]
    append_facts(
        text,
        [
            ("image", f"{image['image_filename']}, {image['width']}×{image['height']} pixels at its source"),
            ("decoded", f"{picture.width}×{picture.height} pixels from {view.image_bytes:,} bytes"),
            ("objects", "not known" if objects is None else str(objects)),
            ("question", f"{question['question']} (number {question['question_index']})"),
            ("answer", f"{question['answer']}, written as {view.written!r}"),
            ("type", f"{question['question_type']}, group {view.group}"),
            ("family", "not known" if family is None else str(family)),
        ],
    )
    if columns is not None:
        text.append("\n")
        text.append_text(picture_text(picture, columns))
    append_heading(text, "\nProgram")
    text.append("".join(f"  {line}\n" for line in view.program or ["none"]))
    append_heading(text, "\nSequence")
    weights = view.config.weights
    length = len(view.sample.prefix) + len(view.sample.suffix)
    text.append(f"  {length:,} ids: {', '.join(view.parts)}; patches of {view.patch}; loss weights: ")
    text.append(f"question {weights.question:g}, image {weights.image:g}, answer {weights.answer:g}\n")
    if len(view.sample.prefix):
        text.append(f"  the first {len(view.sample.prefix):,} are shared by all questions of the image\n")
    text.append(f"  {LEGEND}\n", "dim")
    text.append_text(sequence_text(sequence_rows(view.sample, view.parts, width=width, full=full), width))
    return text


def sequence_text(rows: Iterable[IdRow | Gap], width: int) -> Text:
    """Lines of a sequence: offset, part, two characters an id with a star where it has a weight, and ASCII."""
    text = Text()
    for row in rows:
        style = PART_STYLES[row.part]
        text.append(f"{row.offset:>8} ", "dim")
        text.append(f"{row.part:<9}", style)
        if isinstance(row, Gap):
            text.append(f"… {row.left_out:,} ids, shown with --full …\n", "dim")
            continue
        for id_, weight in zip(row.ids.tolist(), row.weights.tolist(), strict=True):
            shown = MARKS.get(id_) or f"{id_:02x}"
            look = "dim" if id_ == PAD else "yellow" if id_ in MARKS else style
            text.append(shown, f"{look} underline" if weight > 0 else look)
            text.append("*" if weight > 0 else " ")
        text.append(" " * 3 * (width - len(row.ids)) + "|")
        text.append("".join(map(_printable, row.ids.tolist())), style)
        text.append("|\n")
    return text


def picture_text(picture: Image.Image, columns: int) -> Text:
    """A picture in half blocks, two pixels a character, one above the other; shrunk if it is wider than `columns`."""
    if picture.width > columns:
        size = (columns, max(1, round(picture.height * columns / picture.width)))
        picture = picture.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(picture.convert("RGB"))  # (H, W, 3)
    if len(pixels) % 2:
        pixels = np.concatenate((pixels, np.zeros_like(pixels[:1])))
    text = Text()
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append(UPPER_HALF, Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text


def _printable(id_: int) -> str:
    return chr(id_) if 32 <= id_ < 127 else " " if id_ == PAD else "."


def append_heading(text: Text, title: str) -> None:
    """A heading on a line of its own."""
    text.append(f"{title}\n", HEADING)


def append_facts(text: Text, facts: Sequence[tuple[str, str]]) -> None:
    """Names and values, a line each."""
    wide = max(len(name) for name, _ in facts)
    for name, value in facts:
        text.append(f"  {name:<{wide}}  ", "dim")
        text.append(f"{value}\n")


def append_table(text: Text, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, its first column on the left."""
    align = ["left", *("right" for _ in columns[1:])]
    text.append(tabulate(rows, columns, tablefmt="simple", disable_numparse=True, colalign=align) + "\n")


def _lengths(name: str, lengths: ByteLengths) -> list[str]:
    return [name, *map(_count, (lengths.min, lengths.median, lengths.p95, lengths.max))]


def _answers(names: Sequence[str] | None) -> str:
    """How many candidates, and the first of them; None for CLEVR's."""
    if names is None:
        return f"CLEVR's {len(CLEVR_ANSWERS)}"
    return f"{_count(len(names))}: {', '.join(names[:FIRST_ANSWERS])}{', …' if len(names) > FIRST_ANSWERS else ''}"


def _count(number: int) -> str:
    return f"{number:,}"


def _same(pair: tuple[str | None, str | None]) -> str:
    return "same" if pair[0] == pair[1] else "other"
