"""Makes small folders in the layout of the CLEVR release: noise images, and hand-made questions of all five groups."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Dialect = Literal["release", "generator"]
Node = tuple[str, list[int], list[str]]

# Text, answer (as the generator writes it) and program; the answers are not those of any scene.
QUESTIONS: tuple[tuple[str, Any, list[Node]], ...] = (
    ("Is there a cube?", True, [("scene", [], []), ("filter_shape", [0], ["cube"]), ("exist", [1], [])]),
    ("How many things are there?", 10, [("scene", [], []), ("count", [0], [])]),
    (
        "Are there more cubes than  balls; is that so?",
        False,
        [
            ("scene", [], []),
            ("filter_shape", [0], ["cube"]),
            ("count", [1], []),
            ("scene", [], []),
            ("filter_shape", [3], ["sphere"]),
            ("count", [4], []),
            ("greater_than", [2, 5], []),
        ],
    ),
    ("What color is the thing?", "purple", [("scene", [], []), ("unique", [0], []), ("query_color", [1], [])]),
    (
        "Is the cube as large as the ball?",
        True,
        [
            ("scene", [], []),
            ("filter_shape", [0], ["cube"]),
            ("unique", [1], []),
            ("query_size", [2], []),
            ("scene", [], []),
            ("filter_shape", [4], ["sphere"]),
            ("unique", [5], []),
            ("query_size", [6], []),
            ("equal_size", [3, 7], []),
        ],
    ),
)
TYPES = ("exist", "count", "greater_than", "query_color", "equal_size")
ANSWERS_AS_RELEASED = ("yes", "10", "no", "purple", "yes")


def make_clevr_folder(
    root: Path,
    images: Mapping[str, int],
    *,
    size: tuple[int, int] = (32, 24),
    dialect: Dialect = "release",
    scenes: bool = True,
) -> Path:
    """Writes `images[split]` images with five questions each into `root`; image i has 3 + i % 8 objects."""
    (root / "questions").mkdir(parents=True)
    (root / "scenes").mkdir()
    for split, count in images.items():
        (root / "images" / split).mkdir(parents=True)
        names = [f"CLEVR_{split}_{index:06d}.png" for index in range(count)]
        for index, name in enumerate(names):
            noise_image(size, seed=index + 1000 * len(split)).save(root / "images" / split / name)
        questions = [
            question_entry(len(QUESTIONS) * index + template, index, name, template, dialect=dialect)
            for index, name in enumerate(names)
            for template in range(len(QUESTIONS))
        ]
        write_json(questions_path(root, split), {"info": {"split": split}, "questions": questions})
        if scenes:
            entries = [
                {"image_index": index, "image_filename": name, "objects": [{}] * (3 + index % 8)}
                for index, name in enumerate(names)
            ]
            write_json(root / "scenes" / f"CLEVR_{split}_scenes.json", {"info": {}, "scenes": entries})
    return root


def question_entry(
    question_index: int, image_index: int, image_filename: str, template: int, *, dialect: Dialect = "release"
) -> dict[str, Any]:
    """One entry of a questions file, as the release or as its generator writes it."""
    text, answer, nodes = QUESTIONS[template]
    released = dialect == "release"
    key = "function" if released else "type"
    program = [{key: function, "inputs": inputs, "value_inputs": values} for function, inputs, values in nodes]
    return {
        "image_index": image_index,
        "program": program if released else [{**node, "_output": [1, 2]} for node in program],
        "question_index": question_index,
        "image_filename": image_filename,
        "question_family_index": template,
        "answer": ANSWERS_AS_RELEASED[template] if released else answer,
        "question": text,
    }


def noise_image(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    """An image of random pixels."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def questions_path(root: Path, split: str) -> Path:
    """Where the questions of a split lie."""
    return root / "questions" / f"CLEVR_{split}_questions.json"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, in place."""
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_questions(root: Path, split: str, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes the entries of a questions file in place."""
    path = questions_path(root, split)
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content["questions"])
    write_json(path, content)
