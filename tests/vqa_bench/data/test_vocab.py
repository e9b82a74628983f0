"""The fixed tables: ids, answers, letters, question types."""

import pytest

from vqa_bench.data import vocab
from vqa_bench.errors import UserError


def test_special_ids_lie_above_all_byte_values_and_differ():
    special = [vocab.PAD, vocab.START_TEXT, vocab.START_IMAGE, vocab.END_PART]
    assert special == [256, 257, 258, 259]
    assert max(special) < vocab.VOCAB_SIZE == 264


def test_the_28_answers_stand_in_the_order_of_the_clevr_facts():
    text = (
        "yes no 0 1 2 3 4 5 6 7 8 9 10 cube sphere cylinder small large rubber metal "
        "gray red blue green brown purple cyan yellow"
    )
    assert list(vocab.ANSWERS) == text.split()
    assert len(vocab.ANSWERS) == 28


def test_letters_are_one_distinct_byte_per_answer_and_counts_keep_their_digit():
    assert set(vocab.LETTERS) == set(vocab.ANSWERS)
    assert sorted(vocab.LETTERS.values()) == list("0123456789ABCDEFGHIJKLMNOPQR")
    assert all(vocab.LETTERS[digit] == digit for digit in "0123456789")
    picked = {answer: vocab.LETTERS[answer] for answer in ("10", "blue", "no", "yellow", "yes")}
    assert picked == {"10": "A", "blue": "B", "no": "K", "yellow": "Q", "yes": "R"}


def test_the_13_types_fall_into_5_groups():
    assert len(vocab.QUESTION_TYPES) == 13
    assert vocab.GROUPS == ("exist", "count", "compare_integer", "query", "compare_attribute")
    sizes = {group: sum(value == group for value in vocab.GROUP_OF_TYPE.values()) for group in vocab.GROUPS}
    assert sizes == {"exist": 1, "count": 1, "compare_integer": 3, "query": 4, "compare_attribute": 4}


@pytest.mark.parametrize("key", ["function", "type"])
def test_question_type_is_the_last_function_in_either_dialect(key: str):
    assert vocab.question_type([{key: "scene"}, {key: "count"}, {key: "less_than"}]) == "less_than"


@pytest.mark.parametrize(
    ("program", "got"), [([{"function": "exist"}, {"function": "unique"}], "'unique'"), ([{}], "'None'"), ([], "empty")]
)
def test_question_type_names_the_function_that_is_none(program: list[dict[str, object]], got: str):
    with pytest.raises(UserError, match=got) as error:
        vocab.question_type(program)
    if program:
        assert all(known in str(error.value) for known in vocab.QUESTION_TYPES)
