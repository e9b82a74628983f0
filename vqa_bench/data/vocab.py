"""The fixed tables of the benchmark: byte-model ids, the candidate answers, the types of questions and their groups.

Everything else looks these up here. This file knows nothing of images, files, sequences or models.
"""

from collections.abc import Mapping, Sequence

from vqa_bench.errors import UserError

# Ids 0-255 are the bytes themselves; every special id lies above them, so no byte value is ever lost.
PAD = 256
START_TEXT = 257
START_IMAGE = 258
END_PART = 259
VOCAB_SIZE = 264  # ids 260-263 are room to grow without changing the shape of a checkpoint

# CLEVR's answer vocabulary: booleans, counts, shapes, sizes, materials, colours.
ANSWERS: tuple[str, ...] = (
    *("yes", "no"),
    *(str(count) for count in range(11)),
    *("cube", "sphere", "cylinder"),
    *("small", "large"),
    *("rubber", "metal"),
    *("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
)


def _letters() -> dict[str, str]:
    """One ASCII letter per answer: the counts 0..9 as themselves, 10 as A, then the words in alphabetical order."""
    numbers = sorted((answer for answer in ANSWERS if answer.isdecimal()), key=int)
    words = sorted(answer for answer in ANSWERS if not answer.isdecimal())
    return dict(zip([*numbers, *words], "0123456789ABCDEFGHIJKLMNOPQR", strict=True))


LETTERS: dict[str, str] = _letters()
"""Answer → its letter, the byte-level paper's one-letter answers (the same assignment as its reference code)."""

GROUP_OF_TYPE: dict[str, str] = {
    "exist": "exist",
    "count": "count",
    "equal_integer": "compare_integer",
    "less_than": "compare_integer",
    "greater_than": "compare_integer",
    "query_size": "query",
    "query_color": "query",
    "query_material": "query",
    "query_shape": "query",
    "equal_size": "compare_attribute",
    "equal_color": "compare_attribute",
    "equal_material": "compare_attribute",
    "equal_shape": "compare_attribute",
}
"""Question type (the function that ends the program) → the group under which the CLEVR paper reports it."""

QUESTION_TYPES: tuple[str, ...] = tuple(GROUP_OF_TYPE)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(GROUP_OF_TYPE.values()))
PLAIN_TYPE = "question"  # the type of a question of another data set that has neither a program nor a type


def group_of(question_type: str) -> str:
    """The group of a type of question: CLEVR's own, and for a type that CLEVR has not the type itself."""
    return GROUP_OF_TYPE.get(question_type, question_type)


def question_type(program: Sequence[Mapping[str, object]]) -> str:
    """The type of a question: the function of its program's last node, one of `QUESTION_TYPES`.

    A node names its function under `function` in the CLEVR release, under `type` in its generator's output.

    Raises:
        UserError: the program is empty, or ends in a function that yields no answer.
    """
    if not program:
        raise UserError("expected a question program with at least one node, got an empty one; leave it out instead")
    function = program[-1].get("function", program[-1].get("type"))
    if not isinstance(function, str) or function not in GROUP_OF_TYPE:
        known = ", ".join(QUESTION_TYPES)
        raise UserError(f"expected a program that ends in a question type, got '{function}'; known are {known}")
    return function
