"""Reads a folder in the layout of the CLEVR release: which splits it has, their questions, scenes and image files.

    images/<split>/*       questions/CLEVR_<split>_questions.json   scenes/CLEVR_<split>_scenes.json (optional)

Both dialects of the questions are understood: the release's, and its public generator's (node key `type`, cache key
`_output`, answers as JSON booleans and integers). Other data sets have answers of their own, and questions without a
program, whose type is what they say under `question_type`. This file opens no image and knows nothing of encodings or
shards.
"""

import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.json_entries import json_entries
from vqa_bench.data.vocab import PLAIN_TYPE, question_type
from vqa_bench.errors import UserError

SHOWN_ANSWERS = 30  # of those that are expected, in an error: all of CLEVR's


class Question(NamedTuple):
    """A question with its answer.

    Attributes:
        image_filename: the image's name inside `images/<split>`.
        answer: one of the folder's candidates.
        question_type: one of `vocab.QUESTION_TYPES`; without a program the file's own, or `vocab.PLAIN_TYPE`.
        family_index: the template the question was made from, if the file says so.
        program: compact JSON, a list of nodes {"function", "inputs", "value_inputs"}; empty if there is none.
    """

    question_index: int
    image_index: int
    image_filename: str
    question: str
    answer: str
    question_type: str
    family_index: int | None
    program: str


class Scene(NamedTuple):
    """What is kept of a scene: its image, that image's number if the file gives one, and how many objects it has."""

    image_filename: str
    image_index: int | None
    num_objects: int


class ClevrFolder:
    """A folder in the release's layout.

    Attributes:
        root: the folder.
        answers: the candidates of its questions.
        splits: the sorted names of the splits that have a questions file.
        image_splits: the sorted names of the splits that have a folder of images.

    Raises:
        UserError: on construction, if the folder has no `images`; or no questions file, unless `images_only`.
    """

    def __init__(self, root: Path, *, images_only: bool = False, answers: Answers = CLEVR_ANSWERS) -> None:
        self.root, self.answers = root, answers
        files = sorted((root / "questions").glob("CLEVR_*_questions.json"))
        self.splits = tuple(file.name.removeprefix("CLEVR_").removesuffix("_questions.json") for file in files)
        if not (root / "images").is_dir() or not (self.splits or images_only):
            raise UserError(
                f"expected a CLEVR folder with images/ and questions/CLEVR_<split>_questions.json, got {root}; "
                "give the folder that holds those two"
            )
        self.image_splits = tuple(sorted(entry.name for entry in (root / "images").iterdir() if entry.is_dir()))

    def image_folder(self, split: str) -> Path:
        """Where the images of a split lie, if it has any."""
        return self.root / "images" / split

    def files(self, split: str) -> Iterator[str]:
        """The names of the files beside each other in a split's image folder, in no order; none without a folder."""
        folder = self.image_folder(split)
        if folder.is_dir():
            with os.scandir(folder) as entries:
                yield from (entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())

    def questions_path(self, split: str) -> Path:
        """Where the questions of a split lie.

        Raises:
            UserError: there is no such file.
        """
        path = self.root / "questions" / f"CLEVR_{split}_questions.json"
        if not path.is_file():
            raise UserError(f"expected the questions of split {split} at {path}, got no such file")
        return path

    def scenes_path(self, split: str) -> Path | None:
        """Where the scenes of a split lie; None if it has none."""
        path = self.root / "scenes" / f"CLEVR_{split}_scenes.json"
        return path if path.is_file() else None

    def questions(self, split: str) -> Iterator[Question]:
        """The questions of a split, one by one, in the order of the file.

        Raises:
            UserError: no such file, invalid JSON, a missing field, an answer that is none of `answers`, an unknown
                question function.
        """
        path = self.questions_path(split)
        for number, entry in enumerate(json_entries(path, "questions")):
            try:
                yield _question(entry, self.answers)
            except UserError as error:
                raise UserError(f"{path}: question number {number}: {error}") from error

    def scenes(self, split: str) -> Iterator[Scene]:
        """The scenes of a split, one by one; none if it has no scenes file.

        Raises:
            UserError: invalid JSON, or a scene without a name or objects.
        """
        path = self.scenes_path(split)
        if path is None:
            return
        for number, entry in enumerate(json_entries(path, "scenes")):
            try:
                name, objects = _field(entry, "image_filename", str), _field(entry, "objects", list)
                index = entry.get("image_index")
                yield Scene(name, None if index is None else _field(entry, "image_index", int), len(objects))
            except UserError as error:
                raise UserError(f"{path}: scene number {number}: {error}") from error


def parse_questions(entries: str, answers: Answers) -> list[tuple[Any, ...]]:
    """The columns of `Question` for entries of a questions file given as JSON with commas between; runs in any process.

    Raises:
        UserError, ValueError: something is wrong. `ClevrFolder.questions` says what, and where in the file.
    """
    return list(zip(*(_question(entry, answers) for entry in json.loads(f"[{entries}]")), strict=True))


def is_image(file_name: str) -> bool:
    """Whether a file's name ends as one of the formats that Pillow reads."""
    return os.path.splitext(file_name)[1].lower() in _image_endings()


@lru_cache(maxsize=1)
def _image_endings() -> frozenset[str]:
    from PIL import Image

    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _field(entry: Any, name: str, kind: type) -> Any:
    """A field of a JSON object, which must be there and of that type (where Python takes a boolean for an integer)."""
    if not isinstance(entry, dict) or type(entry.get(name)) is not kind:
        got = f"{entry[name]!r:.40}" if isinstance(entry, dict) and name in entry else "none"
        raise UserError(f"expected a field '{name}' of type {kind.__name__}, got {got}")
    if kind is int and not 0 <= entry[name] < 1 << 63:
        raise UserError(f"expected a field '{name}' that counts from 0 and fits 63 bits, got {entry[name]}")
    if kind is str and not entry[name].isprintable():
        _check_text(name, entry[name])
    return entry[name]


def _check_text(name: str, text: str) -> None:
    """JSON can escape halves of characters, which no encoding writes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"expected a field '{name}' of whole characters, got {text!r:.60}: {error.reason}") from error


def _question(entry: Any, answers: Answers) -> Question:
    nodes = _nodes(entry)
    program = "[]" if nodes is None else _program(nodes)
    image_filename = _field(entry, "image_filename", str)
    if "/" in image_filename or "\\" in image_filename:
        raise UserError(f"expected the name of an image file, got '{image_filename}'")
    family_index = entry.get("question_family_index")
    return Question(
        question_index=_field(entry, "question_index", int),
        image_index=_field(entry, "image_index", int),
        image_filename=image_filename,
        question=_field(entry, "question", str),
        answer=_answer(entry, answers),
        question_type=_own_type(entry) if nodes is None else question_type(nodes),
        family_index=family_index if family_index is None else _field(entry, "question_family_index", int),
        program=program,
    )


def _nodes(entry: Any) -> list[Any] | None:
    """The program; None where there is none: no field, null, or an empty list beside a type of the file's own."""
    if isinstance(entry, dict):
        program = entry.get("program")
        if program is None or (program == [] and "question_type" in entry):
            return None
    return _field(entry, "program", list)


def _own_type(entry: Mapping[str, Any]) -> str:
    """The type that a question without a program says it has."""
    if entry.get("question_type") is None:
        return PLAIN_TYPE
    name = _field(entry, "question_type", str)
    if not name.strip() or not name.isprintable():
        raise UserError(f"expected a question_type of one line of text, got {name!r:.60}; name it or leave it out")
    return name


def _program(nodes: list[Any]) -> str:
    """The nodes in the release's dialect, without caches, as compact JSON. Written tightly: it runs a million times."""
    try:
        texts = [
            _node(
                node["function"] if "function" in node else node["type"],
                len(node["inputs"]),
                *node["inputs"],
                *node.get("value_inputs", ()),
            )
            for node in nodes
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected program nodes with `function` (or `type`) and `inputs`, got one without: {error}"
        ) from error
    return f"[{','.join(texts)}]"


@lru_cache(maxsize=1 << 16, typed=True)
def _node(function: str, inputs: int, *literals: int | str) -> str:
    """A node as JSON; of `literals` the first `inputs` are its inputs. Remembered: all programs share few nodes."""
    indices, values = literals[:inputs], literals[inputs:]
    if not (all(type(index) is int for index in indices) and all(type(value) is str for value in values)):
        raise UserError(f"expected program nodes with integers as inputs and texts as values, got {literals}")
    if len(values) > 1:
        raise UserError(f"expected program nodes with one value at most, got {function} with {values}")
    return json.dumps({"function": function, "inputs": indices, "value_inputs": values}, separators=(",", ":"))


def _answer(entry: Mapping[str, Any], answers: Answers) -> str:
    """The answer as the release spells it; the generator writes booleans and integers."""
    answer = entry.get("answer")
    if answer is None:
        raise UserError("expected an answer, got none (CLEVR's own test split has no answers: use val)")
    name = ("yes" if answer else "no") if isinstance(answer, bool) else str(answer)
    if name not in answers.index:
        shown = ", ".join(answers.names[:SHOWN_ANSWERS]) + (", …" if len(answers) > SHOWN_ANSWERS else "")
        raise UserError(
            f"expected one of the {len(answers)} answers {shown}, got {answer!r}; list all answers of the data set in "
            "a file (serialize --answers FILE, or answers under a configuration's data)"
        )
    return name
