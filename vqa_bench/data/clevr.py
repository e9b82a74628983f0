"""Reads a folder in the layout of the CLEVR release: which splits it has, their questions, scenes and image files.

    images/<split>/*.png   questions/CLEVR_<split>_questions.json   scenes/CLEVR_<split>_scenes.json (optional)

Both dialects of the questions are understood: the release's, and its public generator's (node key `type`, cache key
`_output`, answers as JSON booleans and integers). This file opens no image and knows nothing of encodings or shards.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_bench.data.json_entries import json_entries
from vqa_bench.data.vocab import ANSWERS, question_type
from vqa_bench.errors import UserError

_ANSWERS = frozenset(ANSWERS)
_TO_JSON = json.JSONEncoder(
    separators=(",", ":"), check_circular=False
).encode  # made once: json.dumps makes one for each call


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer.

    Attributes:
        image_filename: the image's name inside `images/<split>`.
        answer: one of `vocab.ANSWERS`.
        question_type: one of `vocab.QUESTION_TYPES`.
        family_index: the template the question was made from, if the file says so.
        program: compact JSON, a list of nodes {"function", "inputs", "value_inputs"}.
    """

    question_index: int
    image_index: int
    image_filename: str
    question: str
    answer: str
    question_type: str
    family_index: int | None
    program: str


@dataclass(frozen=True)
class SplitSource:
    """What one split of a folder holds.

    Attributes:
        questions: in the order of the file; only questions whose image exists.
        images: the sorted names of the images that have questions.
        num_objects: image name → number of objects in its scene; empty without a scenes file.
        json_files: the questions file and, if there is one, the scenes file.
        missing_images: sorted names of images that have questions but no file.
        missing_questions: how many questions were left out because their image is missing.
        unasked_images: sorted names of image files without any question.
    """

    split: str
    questions: tuple[Question, ...]
    images: tuple[str, ...]
    num_objects: Mapping[str, int]
    json_files: tuple[Path, ...]
    missing_images: tuple[str, ...]
    missing_questions: int
    unasked_images: tuple[str, ...]


class ClevrFolder:
    """A folder in the release's layout.

    Attributes:
        root: the folder.
        splits: the sorted names of the splits that have a questions file.

    Raises:
        UserError: on construction, if the folder has no `images` or no questions file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        files = sorted((root / "questions").glob("CLEVR_*_questions.json"))
        self.splits = tuple(file.name.removeprefix("CLEVR_").removesuffix("_questions.json") for file in files)
        if not (root / "images").is_dir() or not self.splits:
            raise UserError(
                f"expected a CLEVR folder with images/ and questions/CLEVR_<split>_questions.json, got {root}; "
                "give the folder that holds those two"
            )

    def image_path(self, split: str, image_filename: str) -> Path:
        """Where an image lies."""
        return self.root / "images" / split / image_filename

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
            UserError: no such file, invalid JSON, a missing field, an unknown answer or question function.
        """
        path = self.questions_path(split)
        for number, entry in enumerate(json_entries(path, "questions")):
            try:
                yield _question(entry)
            except UserError as error:
                raise UserError(f"{path}: question number {number}: {error}") from error

    def num_objects(self, split: str) -> dict[str, int]:
        """Image name → number of objects in its scene; empty if the split has no scenes file.

        Raises:
            UserError: invalid JSON, or a scene without a name or objects.
        """
        path = self.scenes_path(split)
        if path is None:
            return {}
        counts = {}
        for number, scene in enumerate(json_entries(path, "scenes")):
            try:
                counts[_field(scene, "image_filename", str)] = len(_field(scene, "objects", list))
            except UserError as error:
                raise UserError(f"{path}: scene number {number}: {error}") from error
        return counts

    def read_split(self, split: str, *, allow_missing: bool = False) -> SplitSource:
        """Everything about a split, with its questions held against the image files that are there.

        Args:
            split: a name in the release's sense: `train`, `val`.
            allow_missing: leave out questions whose image is missing, and count them, instead of raising.

        Raises:
            UserError: as `questions` and `num_objects` do; or questions whose image file is missing.
        """
        asked = tuple(self.questions(split))
        folder = self.root / "images" / split
        files = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
        questions = tuple(question for question in asked if question.image_filename in files)
        images = {question.image_filename for question in questions}
        missing_images = sorted({question.image_filename for question in asked} - files)
        missing_questions = len(asked) - len(questions)
        if missing_images and not allow_missing:
            raise UserError(
                f"expected an image file for each question of split {split}, got {missing_questions} questions "
                f"whose {len(missing_images)} images are missing, the first {folder / missing_images[0]}; "
                "add them or allow missing images"
            )
        scenes = self.scenes_path(split)
        return SplitSource(
            split=split,
            questions=questions,
            images=tuple(sorted(images)),
            num_objects=self.num_objects(split),
            json_files=(self.questions_path(split),) if scenes is None else (self.questions_path(split), scenes),
            missing_images=tuple(missing_images),
            missing_questions=missing_questions,
            unasked_images=tuple(sorted(files - images)),
        )


def _field(entry: Any, name: str, kind: type) -> Any:
    """A field of a JSON object, which must be there and of that type."""
    if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
        got = f"{entry[name]!r:.40}" if isinstance(entry, dict) and name in entry else "none"
        raise UserError(f"expected a field '{name}' of type {kind.__name__}, got {got}")
    return entry[name]


def _question(entry: Any) -> Question:
    program = _program(_field(entry, "program", list))
    image_filename = _field(entry, "image_filename", str)
    if "/" in image_filename or "\\" in image_filename:
        raise UserError(f"expected the name of an image file, got '{image_filename}'")
    family_index = entry.get("question_family_index")
    return Question(
        question_index=_field(entry, "question_index", int),
        image_index=_field(entry, "image_index", int),
        image_filename=image_filename,
        question=_field(entry, "question", str),
        answer=_answer(entry),
        question_type=question_type(program),
        family_index=family_index if family_index is None else _field(entry, "question_family_index", int),
        program=_TO_JSON(program),
    )


def _program(nodes: list[Any]) -> list[dict[str, Any]]:
    """The nodes in the release's dialect, without caches. One plain loop: it runs millions of times."""
    try:
        return [
            {
                "function": node["function"] if "function" in node else node["type"],
                "inputs": node["inputs"],
                "value_inputs": node.get("value_inputs", []),
            }
            for node in nodes
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"expected program nodes with `function` (or `type`) and `inputs`, got one without: {error}"
        ) from error


def _answer(entry: Mapping[str, Any]) -> str:
    """The answer as the release spells it; the generator writes booleans and integers."""
    answer = entry.get("answer")
    if answer is None:
        raise UserError("expected an answer, got none (CLEVR's own test split has no answers: use val)")
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if str(answer) not in _ANSWERS:
        raise UserError(f"expected one of the {len(ANSWERS)} answers {', '.join(ANSWERS)}, got {answer!r}")
    return str(answer)
