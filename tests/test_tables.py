"""Tables that stand twice, because the packages may not import each other, are the same."""

from data_scripts.synth import programs
from vqa_bench.data import vocab


def test_question_types_groups_and_answers_of_generator_and_harness() -> None:
    assert programs.GROUP_OF_TYPE == vocab.GROUP_OF_TYPE
    assert tuple(programs.QUESTION_TYPES) == vocab.QUESTION_TYPES
    assert tuple(programs.GROUPS) == vocab.GROUPS
    assert tuple(programs.ANSWERS) == vocab.ANSWERS


def test_special_ids_lie_above_the_bytes() -> None:
    special = (vocab.PAD, vocab.START_TEXT, vocab.START_IMAGE, vocab.END_PART)
    assert len(set(special)) == 4
    assert min(special) >= 256
    assert max(special) < vocab.VOCAB_SIZE
