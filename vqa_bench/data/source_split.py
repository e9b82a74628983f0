"""One pass over a split of a CLEVR folder: every question checked, and which images there are to encode.

The questions go to a file on disk, as Arrow, so that a split of any size takes little memory: what is held is the name
of each image and some forty bytes beside it. This file opens no image and knows nothing of encodings.
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from vqa_bench.data.clevr import ClevrFolder, Question, is_image, parse_questions
from vqa_bench.data.image_pool import ImagePool
from vqa_bench.data.json_entries import json_runs
from vqa_bench.data.shards import QUESTION_SCHEMA, QuestionRow, read_batches, write_rows
from vqa_bench.errors import UserError

NO_ROW = -1
UNKNOWN = -1


@dataclass(frozen=True)
class SourceSplit:
    """What one split of a folder holds. I images to encode, N images that are known by name (there or not).

    Attributes:
        split: its name in the release.
        folder: where its image files lie.
        images: (I,) the sorted names of the images to encode.
        image_index: (I,) int64, the source's number of each. Where no questions or scenes file tells it, the number
            that the file's name ends with; UNKNOWN if there is none.
        json_files: the questions file and the scenes file, those that were read.
        missing_images: how many images have questions but no file.
        missing_questions: how many questions were left out because their image is missing.
        unasked_images: how many image files were left out because no question asks about them.
    """

    split: str
    folder: Path
    images: tuple[str, ...]
    image_index: np.ndarray
    json_files: tuple[Path, ...]
    missing_images: int
    missing_questions: int
    unasked_images: int
    _questions: Path | None  # rows of QUESTION_SCHEMA, where `image` is a number in 0..N-1
    _place_of_number: np.ndarray  # (N,) int64, the place in `images` of each of these numbers, NO_ROW if it has none

    def paths(self, places: np.ndarray) -> Iterator[Path]:
        """The image files at some places of `images`."""
        return (self.folder / self.images[place] for place in places.tolist())

    def questions(self, row_of_image: np.ndarray) -> Iterator[QuestionRow]:
        """The questions about some images, in the order of the file.

        Args:
            row_of_image: (I,) int64, what `image` says for each of `images`; NO_ROW leaves its questions out.
        """
        if self._questions is None:
            return
        # An image without a place has NO_ROW for its place, which is the last of these rows: NO_ROW again.
        row_of_number = np.append(row_of_image, NO_ROW)[self._place_of_number]
        for batch in read_batches(self._questions):
            columns = {
                field.name: column.to_pylist() for field, column in zip(batch.schema, batch.columns, strict=True)
            }
            columns["image"] = row_of_number[columns["image"]].tolist()
            for row in map(QuestionRow, *columns.values()):
                if row.image != NO_ROW:
                    yield row


def survey(
    folder: ClevrFolder,
    split: str,
    spill: Path,
    *,
    pool: ImagePool,
    allow_missing: bool,
    keep_unasked: bool,
    asked: bool = True,
) -> SourceSplit:
    """Reads a split's scenes and questions and lists its images; opens no image.

    Args:
        folder: where.
        split: a name in the release's sense: `train`, `val`.
        spill: path of a new file for the questions, which the result reads.
        pool: whose processes decode and check the questions.
        allow_missing: leave out questions whose image is missing, and count them, instead of raising.
        keep_unasked: keep images without questions too; a split without a questions file is then one without questions.
        asked: whether to read its questions at all; False for a split without answers.

    Raises:
        UserError: invalid JSON or an invalid question or scene; files that disagree about an image's number; questions
            whose image file is missing (unless `allow_missing`).
    """
    has_questions = asked and (split in folder.splits or not keep_unasked)
    known = _Images()
    for scene in folder.scenes(split):
        known.add_scene(scene.image_filename, scene.image_index, scene.num_objects)
    if has_questions:
        write_rows(spill, QUESTION_SCHEMA, map(known.question_row, _questions(folder, split, pool)))
    there, unasked = _match_files(folder, split, known, keep_unasked=keep_unasked)
    counts = np.array(known.questions)
    missing = (counts > 0) & ~there
    if missing.any() and not allow_missing:
        first = min(name for name, number in known.numbers.items() if missing[number])
        raise UserError(
            f"expected an image file for each question of split {split}, got {counts[missing].sum()} questions "
            f"whose {missing.sum()} images are missing, the first {folder.image_folder(split) / first}; "
            "add them or allow missing images"
        )
    kept = there if keep_unasked else there & (counts > 0)
    images = tuple(sorted(name for name, number in known.numbers.items() if kept[number]))
    numbers = np.array([known.numbers[name] for name in images], np.int64)
    place_of_number = np.full(len(known.numbers), NO_ROW)
    place_of_number[numbers] = np.arange(len(images))
    files = (folder.questions_path(split) if has_questions else None, folder.scenes_path(split))
    return SourceSplit(
        split=split,
        folder=folder.image_folder(split),
        images=images,
        image_index=np.array([known.index_of(name) for name in images], np.int64),
        json_files=tuple(path for path in files if path is not None),
        missing_images=int(missing.sum()),
        missing_questions=int(counts[missing].sum()),
        unasked_images=0 if keep_unasked else unasked,
        _questions=spill if has_questions else None,
        _place_of_number=place_of_number,
    )


def _questions(folder: ClevrFolder, split: str, pool: ImagePool) -> Iterator[Question]:
    """The questions of a split in the order of the file, decoded and checked by the pool's processes."""
    done = 0
    if pool.workers > 1:
        runs = ((run, folder.answers) for run in json_runs(folder.questions_path(split), "questions"))
        try:
            for columns in pool.in_order(parse_questions, runs):
                for question in map(Question, *columns):
                    yield question
                    done += 1
        except (UserError, ValueError):
            pass  # the questions from here on are read one by one below, which says what is wrong and where
        else:
            return
    yield from islice(folder.questions(split), done, None)


class _Images:
    """The images of a split that were named so far, numbered in order of appearance, with what is known of each."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.image_index = array("q")
        self.num_objects = array("q")
        self.questions = array("q")

    def number(self, name: str) -> int:
        """An image's number; a new one for a new name."""
        number = self.numbers.setdefault(name, len(self.numbers))
        if number == len(self.questions):
            self.image_index.append(UNKNOWN)
            self.num_objects.append(UNKNOWN)
            self.questions.append(0)
        return number

    def index_of(self, name: str) -> int:
        """The source's number of an image."""
        index = self.image_index[self.numbers[name]]
        if index == UNKNOWN and (digits := re.search(r"(\d{1,18})$", Path(name).stem, re.ASCII)):
            return int(digits[1])
        return index

    def add_scene(self, name: str, image_index: int | None, num_objects: int) -> None:
        number = self.number(name)
        if self.num_objects[number] not in (UNKNOWN, num_objects):
            raise UserError(
                f"expected one scene of image {name}, got two, with {self.num_objects[number]} and {num_objects} "
                "objects; remove one of them from the scenes file"
            )
        self.num_objects[number] = num_objects
        if image_index is not None:
            self.image_index[number] = image_index

    def question_row(self, question: Question) -> QuestionRow:
        """Counts a question in, and returns its row with the image's number for its row."""
        number = self.number(question.image_filename)
        if self.image_index[number] != question.image_index:
            if self.image_index[number] != UNKNOWN:
                raise UserError(
                    f"expected image_index {self.image_index[number]} for {question.image_filename} as before, "
                    f"got {question.image_index} in question {question.question_index}; mend the source's files"
                )
            self.image_index[number] = question.image_index
        self.questions[number] += 1
        num_objects = self.num_objects[number]
        return QuestionRow(
            question.question_index,
            number,
            question.question,
            question.answer,
            question.question_type,
            question.family_index,
            question.program,
            None if num_objects == UNKNOWN else num_objects,
        )


def _match_files(folder: ClevrFolder, split: str, known: _Images, *, keep_unasked: bool) -> tuple[np.ndarray, int]:
    """Which of the known images are there, (N,) bool, and how many image files no question asks about.

    With `keep_unasked` all image files become known. A file is taken for an image by the ending of its name.
    """
    there, unasked = set(), 0
    for name in folder.files(split):
        number = known.numbers.get(name)
        if number is None or known.questions[number] == 0:
            if not is_image(name):
                continue
            unasked += 1
            if keep_unasked:
                number = known.number(name)
        if number is not None:
            there.add(number)
    mask = np.zeros(len(known.numbers), bool)
    mask[list(there)] = True
    return mask, unasked
