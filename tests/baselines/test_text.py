"""Words and ids: the tokeniser's rule, the vocabulary's round trips, its errors."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.text import PAD, UNKNOWN, WordVocabulary, tokenize

WORDS = st.text(alphabet="abcABC-", min_size=1, max_size=6)
QUESTIONS = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Is it red?", ["Is", "it", "red"]),
        (
            "Big thing; is it a cube, or not?",
            ["Big", "thing", ";", "is", "it", "a", "cube", ",", "or", "not"],
        ),
        ("the same as  the ball.", ["the", "same", "as", "the", "ball"]),
        ("?", []),
    ],
)
def test_tokenize(question: str, words: list[str]) -> None:
    assert tokenize(question) == words


def test_vocabulary_is_sorted_behind_the_special_words() -> None:
    vocabulary = WordVocabulary.build(["What size is it?", "Is it red; or blue?"])
    assert vocabulary.words == (
        *("<pad>", "<unknown>"),
        *(";", "Is", "What", "blue", "is", "it", "or", "red", "size"),
    )


def test_vocabulary_of_real_questions(real_clevr: Path | None) -> None:
    """87 words and the semicolon in CLEVR's first 2,000 validation questions; two have a double space."""
    if real_clevr is None:
        questions, words = ["Is the  ball red; or blue?", "How big is it?"], 11
    else:
        read = json.loads((real_clevr / "questions" / "CLEVR_val_questions.json").read_text())["questions"]
        questions, words = [entry["question"] for entry in read], 88
    vocabulary = WordVocabulary.build(questions)
    assert len(vocabulary) == words + 2
    assert not {"", "?"} & set(vocabulary.words)


def test_encode_pads_on_the_right_and_marks_unknown_words() -> None:
    vocabulary = WordVocabulary(["<pad>", "<unknown>", "a", "b"])
    tokens, lengths = vocabulary.encode(["b a b?", "a zebra?", "a"])
    assert tokens.tolist() == [[3, 2, 3], [2, UNKNOWN, PAD], [2, PAD, PAD]]
    assert lengths.tolist() == [3, 2, 1]


@given(st.lists(QUESTIONS, min_size=1, max_size=6))
def test_encoding_then_looking_up_gives_the_words_back(questions: list[str]) -> None:
    vocabulary = WordVocabulary.from_dict(json.loads(json.dumps(WordVocabulary.build(questions).to_dict())))
    tokens, lengths = vocabulary.encode(questions)
    for question, row, length in zip(questions, tokens, lengths, strict=True):
        assert [vocabulary.words[index] for index in row[:length]] == tokenize(question)
        assert (row[length:] == PAD).all()
    assert tokens.dtype == lengths.dtype == torch.long


@given(st.lists(QUESTIONS, max_size=6), st.randoms())
def test_ids_do_not_depend_on_the_order_of_the_questions(questions: list[str], random) -> None:
    shuffled = random.sample(questions, len(questions))
    assert WordVocabulary.build(shuffled).words == WordVocabulary.build(questions).words


def test_errors_say_what_came() -> None:
    vocabulary = WordVocabulary.build(["a"])
    with pytest.raises(ValueError, match="at least one question"):
        vocabulary.encode([])
    with pytest.raises(ValueError, match=r"words in every question, got '\?'"):
        vocabulary.encode(["a", "?"])
    with pytest.raises(ValueError, match="distinct words"):
        WordVocabulary(["<pad>", "<unknown>", "a", "a"])
    with pytest.raises(ValueError, match="starts with"):
        WordVocabulary(["a"])
    with pytest.raises(ValueError, match=r"got keys \['word'\]"):
        WordVocabulary.from_dict({"word": []})
