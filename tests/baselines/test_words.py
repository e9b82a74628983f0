"""Logistic regression on bags of words against scikit-learn on the questions one by one."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from baselines.words import BagOfWords

VOCABULARY = 12


def questions_and_answers(count: int, answers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Questions of 1-6 words with repeated ones among them, and answers that the words say something about."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 7, count)
    tokens = random.integers(2, VOCABULARY, (count, 6))
    tokens[::3], lengths[::3] = tokens[0], lengths[0]
    tokens[np.arange(6) >= lengths[:, None]] = 0
    scores = np.eye(VOCABULARY)[tokens].sum(axis=1) @ random.normal(size=(VOCABULARY, answers))
    classes = (scores - scores.mean(axis=0) + random.normal(size=scores.shape)).argmax(axis=1)
    assert len(np.unique(classes)) == answers
    return torch.from_numpy(tokens), torch.from_numpy(lengths), torch.from_numpy(classes)


def counts_of(tokens: Tensor, lengths: Tensor) -> np.ndarray:
    """(questions, words), a loop."""
    counts = np.zeros((len(tokens), VOCABULARY))
    for row, length in enumerate(lengths.tolist()):
        for word in tokens[row, :length].tolist():
            counts[row, word] += 1
    return counts


@pytest.mark.parametrize("answers", [2, 3, 5])
def test_equals_scikit_learn(answers: int) -> None:
    tokens, lengths, classes = questions_and_answers(300, answers)
    model = BagOfWords(vocab_size=VOCABULARY, num_answers=answers)
    model.fit(tokens, lengths, classes)
    expected = LogisticRegression(max_iter=1000).fit(counts_of(tokens, lengths), classes.numpy())
    got = model(tokens, lengths).log_softmax(dim=-1).numpy()
    # The solver stops near the optimum, and sums repeated questions otherwise.
    np.testing.assert_allclose(got, expected.predict_log_proba(counts_of(tokens, lengths)), atol=2e-3)
    assert (got.argmax(axis=1) == classes.numpy()).mean() > 1.2 / answers


def test_fitting_twice_gives_the_same_numbers_and_the_state_dict_carries_them() -> None:
    tokens, lengths, classes = questions_and_answers(200, 4)
    first, second = (BagOfWords(vocab_size=VOCABULARY, num_answers=6) for _ in range(2))
    first.fit(tokens, lengths, classes)
    second.fit(tokens[:50], lengths[:50], classes[:50])  # a fit leaves nothing to the next
    second.fit(tokens, lengths, classes)
    restored = BagOfWords(vocab_size=VOCABULARY, num_answers=6)
    restored.load_state_dict(first.state_dict())
    for model in (second, restored):
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in first.state_dict().items())
        assert torch.equal(model(tokens, lengths), first(tokens, lengths))
    assert not list(first.parameters())


def test_answers_never_seen_are_the_least_likely_and_the_others_keep_their_odds() -> None:
    tokens, lengths, classes = questions_and_answers(300, 3)
    places = torch.tensor([1, 4, 5])  # of 7 answers
    model = BagOfWords(vocab_size=VOCABULARY, num_answers=7)
    model.fit(tokens, lengths, places[classes])
    only = BagOfWords(vocab_size=VOCABULARY, num_answers=3)
    only.fit(tokens, lengths, classes)
    scores = model(tokens, lengths)
    torch.testing.assert_close(scores[:, places], only(tokens, lengths))
    unseen = scores[:, [0, 2, 3, 6]]
    assert scores.isfinite().all()
    assert torch.equal(unseen, unseen[:, :1].expand(-1, 4))
    expected = scores[:, places].amin(dim=1) - torch.tensor(300.0).log()
    torch.testing.assert_close(unseen[:, 0], expected, check_dtype=False)


def test_padding_and_unknown_words_count_for_nothing() -> None:
    tokens, lengths, classes = questions_and_answers(300, 3)
    model = BagOfWords(vocab_size=VOCABULARY, num_answers=3)
    model.fit(tokens, lengths, classes)
    scores = model(tokens, lengths)
    longer = torch.cat([tokens, torch.full((300, 2), 5)], dim=1)
    torch.testing.assert_close(model(longer, lengths), scores)
    with_unknown = torch.cat([torch.ones(300, 1, dtype=torch.long), tokens], dim=1)
    torch.testing.assert_close(model(with_unknown, lengths + 1), scores)
    torch.testing.assert_close(model(tokens, torch.zeros_like(lengths)), model.bias.expand(300, -1))


def test_a_single_answer_wins() -> None:
    tokens, lengths, _ = questions_and_answers(30, 3)
    model = BagOfWords(vocab_size=VOCABULARY, num_answers=3)
    model.fit(tokens, lengths, torch.full((30,), 2))
    assert model(tokens, lengths).argmax(dim=1).tolist() == [2] * 30


def test_errors_say_what_came() -> None:
    tokens, lengths, classes = questions_and_answers(300, 5)
    model = BagOfWords(vocab_size=VOCABULARY, num_answers=5)
    with pytest.raises(ValueError, match="converge in 2 iterations"):
        model.fit(tokens, lengths, classes, max_iterations=2)
    with pytest.raises(ValueError, match="at least one question"):
        model.fit(tokens[:0], lengths[:0], classes[:0])
