"""What a shard and one of its samples hold, gathered for a person to look at.

Facts only: how they look on a screen is for show.py. Knows no models; a sequence is made as a model with the given
patch size would read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vqa_bench.data.encodings import codec_versions, parse_spec
from vqa_bench.data.folders import whole_file
from vqa_bench.data.manifest import ByteLengths, Manifest
from vqa_bench.data.questions import questions_of
from vqa_bench.data.sequences import Part, Sample, SequenceConfig, Sequencer
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.data.vocab import START_IMAGE, START_TEXT, group_of
from vqa_bench.errors import UserError

DEFAULT_SEQUENCE = SequenceConfig()
DEFAULT_PATCH = 8
EDGE_ROWS = 4  # of a long part, shown at its beginning and at its end
_UNLIMITED = 1 << 40  # a context that everything fits


@dataclass(frozen=True)
class ShardView:
    """A shard's manifest, what follows from it here, and how long its sequences are.

    codecs: name → version that wrote the shard, and this host's (None where it has none or the shard had none).
    sequences: split → lengths of whole sequences in ids, for splits with questions. files, total_bytes: of the tables.
    verified: whether every file was hashed again; otherwise only its size was compared.
    """

    path: Path
    manifest: Manifest
    codecs: dict[str, tuple[str | None, str | None]]
    config: SequenceConfig
    patch: int
    sequences: dict[str, ByteLengths]
    files: int
    total_bytes: int
    verified: bool


@dataclass(frozen=True)
class SampleView:
    """One question of a split with its picture (decoded from the shard's bytes) and its sequence.

    question, image: the rows of the tables as dictionaries, the image's without its bytes. image_bytes: how many those
    are. written: the answer as the sequence has it. program: its steps, one a line; empty if it has none.
    """

    split: str
    row: int
    questions: int
    question: dict[str, Any]
    image: dict[str, Any]
    image_bytes: int
    group: str
    written: str
    program: list[str]
    picture: Image.Image
    config: SequenceConfig
    patch: int
    parts: tuple[Part, ...]
    sample: Sample


class IdRow(NamedTuple):
    """A line of a sequence: where it begins, the part it belongs to, its ids and their loss weights."""

    offset: int
    part: Part
    ids: np.ndarray
    weights: np.ndarray


class Gap(NamedTuple):
    """Ids that are left out."""

    offset: int
    part: Part
    left_out: int


def look_at_shard(
    path: Path, *, config: SequenceConfig = DEFAULT_SEQUENCE, patch: int = DEFAULT_PATCH, verify: bool = False
) -> ShardView:
    """Everything about a shard but its samples.

    Raises:
        UserError: not a shard; a file that is missing or, by its size (by its hash with `verify`), not as written.
    """
    shard = open_shard(path)
    _check_sizes(shard)
    if verify:
        shard.verify()
    sequencer = _sequencer(shard, config, patch)
    sequences = {
        name: ByteLengths.of(sequencer.lengths(questions_of(shard.split(name))))
        for name, info in shard.manifest.splits.items()
        if info.questions
    }
    written, here = shard.manifest.codecs, codec_versions()
    return ShardView(
        path=path,
        manifest=shard.manifest,
        codecs={name: (written.get(name), here.get(name)) for name in dict.fromkeys([*written, *here])},
        config=config,
        patch=patch,
        sequences=sequences,
        files=len(shard.manifest.files),
        total_bytes=sum(info.bytes for info in shard.manifest.files.values()),
        verified=verify,
    )


def look_at_sample(
    path: Path,
    row: int,
    *,
    split: str | None = None,
    config: SequenceConfig = DEFAULT_SEQUENCE,
    patch: int = DEFAULT_PATCH,
) -> SampleView:
    """The question in a row of a split (None: the shard's first split that has any), counted from 0.

    Raises:
        UserError: not a shard, no such split, no such row.
    """
    shard = open_shard(path)
    name = _asked_split(shard) if split is None else split
    reader = shard.split(name)
    count = len(reader.questions)
    if not 0 <= row < count:
        allowed = f"0 to {count - 1:,}" if count else "none, it has no questions"
        raise UserError(f"expected a sample of split {name} of {path} ({allowed}), got {row}")
    question = reader.questions.slice(row, 1).to_pylist()[0]
    data = reader.image_bytes(question["image"])
    sequencer = _sequencer(shard, config, patch)
    columns = [column for column in reader.images.column_names if column != "bytes"]
    return SampleView(
        split=name,
        row=row,
        questions=count,
        question=question,
        image=reader.images.select(columns).slice(question["image"], 1).to_pylist()[0],
        image_bytes=len(data),
        group=group_of(question["question_type"]),
        written=shard.answers.written(question["answer"], config.answer).decode(),
        program=program_lines(reader.program(row)),
        picture=parse_spec(shard.manifest.spec).decode(data.tobytes()),
        config=config,
        patch=patch,
        parts=sequencer.parts,
        sample=sequencer.sample(data, question["question"], question["answer"]),
    )


def save_picture(view: SampleView, path: Path) -> None:
    """The picture as a PNG file, whatever its name."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"expected a file to write the picture to, in a folder that exists, got {path}; name another")
    with whole_file(path) as partial:
        view.picture.save(partial, format="png")


def program_lines(program: Sequence[dict[str, Any]]) -> list[str]:
    """A program's steps as text: number, function, its words, and the steps that it takes its input from."""
    lines = []
    for number, node in enumerate(program):
        words = " ".join(map(str, node.get("value_inputs", [])))
        inputs = ", ".join(map(str, node.get("inputs", [])))
        text = f"{number}. {node.get('function', node.get('type'))}"
        lines.append(text + (f" {words}" if words else "") + (f" ({inputs})" if inputs else ""))
    return lines


def sequence_rows(sample: Sample, parts: Sequence[Part], *, width: int = 16, full: bool = False) -> list[IdRow | Gap]:
    """A whole sequence in lines of up to `width` ids, each part beginning a new one.

    Of parts with many lines the middle is left out, unless `full`.
    """
    ids = np.concatenate((sample.prefix, sample.suffix))
    weights = np.concatenate((sample.prefix_weights, sample.suffix_weights))
    begins = np.flatnonzero((ids == START_TEXT) | (ids == START_IMAGE)).tolist()
    rows: list[IdRow | Gap] = []
    for part, begin, end in zip(parts, begins, [*begins[1:], len(ids)], strict=True):
        offsets = range(begin, end, width)
        lines = [IdRow(o, part, ids[o : min(o + width, end)], weights[o : min(o + width, end)]) for o in offsets]
        if full or len(lines) <= 2 * EDGE_ROWS + 1:
            rows += lines
            continue
        last = lines[-EDGE_ROWS:]
        after = lines[EDGE_ROWS].offset
        rows += [*lines[:EDGE_ROWS], Gap(after, part, last[0].offset - after), *last]
    return rows


def _sequencer(shard: Shard, config: SequenceConfig, patch: int) -> Sequencer:
    if patch < 1:
        raise UserError(f"expected a patch of at least 1 byte, got {patch}")
    longest = max(info.image_bytes.max for info in shard.manifest.splits.values())
    return Sequencer(config, patch, _UNLIMITED, longest, answers=shard.answers)


def _asked_split(shard: Shard) -> str:
    asked = [name for name, info in shard.manifest.splits.items() if info.questions]
    if not asked:
        raise UserError(f"expected a shard with questions, got {shard.path} without any; there is no sample to show")
    return asked[0]


def _check_sizes(shard: Shard) -> None:
    for name, info in shard.manifest.files.items():
        path = shard.path / name
        size = path.stat().st_size if path.is_file() else None
        if size != info.bytes:
            got = "no such file" if size is None else f"{size:,}"
            raise UserError(
                f"expected {path} with {info.bytes:,} bytes as the manifest says, got {got}; serialize again"
            )
