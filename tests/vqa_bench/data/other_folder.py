"""Makes small folders of a data set that is not CLEVR's: answers and types of its own, no programs, no scenes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.vqa_bench.data.clevr_folder import noise_image, questions_path, write_json

OWN_ANSWERS = ("red", "reddish", "ja", "nein")  # one begins as another does
OWN_TYPES = ("Farbe", "ja/nein", None)  # None: the question says nothing of its type


def make_other_folder(
    root: Path, images: Mapping[str, int], *, answers: Sequence[str] = OWN_ANSWERS, size: tuple[int, int] = (12, 8)
) -> Path:
    """Writes `images[split]` images with three questions each into `root`; the answers follow each other in order."""
    (root / "questions").mkdir(parents=True)
    for split, count in images.items():
        (root / "images" / split).mkdir(parents=True)
        entries = []
        for index in range(count):
            name = f"bild {index}.png"
            noise_image(size, seed=index + 1000 * len(split)).save(root / "images" / split / name)
            entries += [_entry(len(OWN_TYPES) * index + place, index, name, answers) for place in range(len(OWN_TYPES))]
        write_json(questions_path(root, split), {"questions": entries})
    return root


def write_answers(path: Path, answers: Sequence[str] = OWN_ANSWERS) -> Path:
    """A file that lists answers."""
    path.write_text("".join(f"{answer}\n" for answer in answers), encoding="utf-8")
    return path


def _entry(number: int, image: int, name: str, answers: Sequence[str]) -> dict[str, Any]:
    entry = {
        "question_index": number,
        "image_index": image,
        "image_filename": name,
        "question": f"Wie ist das {number % len(OWN_TYPES)}. Bild – schön?",
        "answer": answers[number % len(answers)],
    }
    own_type = OWN_TYPES[number % len(OWN_TYPES)]
    return entry if own_type is None else entry | {"question_type": own_type}
