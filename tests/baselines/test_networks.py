"""The trained baselines: shapes, what padding may not change, one pass an image, gradients, and that they can learn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence

from baselines.image import FeatureEncoder, ImageEncoder
from baselines.lstm import QuestionEncoder, QuestionLSTM
from tests.baselines.networks import READER, SIGHTED, checked, cnn_lstm, mean_of_words, random_questions

Case = tuple[Callable[[], nn.Module], tuple[int, int, int]]
every_sighted = pytest.mark.parametrize("case", SIGHTED.values(), ids=SIGHTED)


def test_question_encoder_equals_packing() -> None:
    encoder = QuestionEncoder(**READER)
    tokens, lengths = random_questions(7)
    packed = pack_padded_sequence(encoder.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
    _, (last_states, _) = encoder.lstm(packed)
    torch.testing.assert_close(checked(encoder)(tokens, lengths), last_states[-1])


def test_mean_of_words_is_the_mean_of_the_true_words() -> None:
    encoder = mean_of_words()
    tokens, lengths = random_questions(7)
    lengths[3], tokens[3] = 0, 0
    means = checked(encoder)(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        vectors = [encoder.embedding.weight[word] for word in tokens[row, :length]]
        expected = sum(vectors, torch.zeros(16)) / max(length, 1)
        torch.testing.assert_close(means[row], expected)
    order = torch.randperm(9)
    tokens, lengths = torch.randint(1, 20, (4, 9)), torch.full((4,), 9)
    torch.testing.assert_close(encoder(tokens[:, order], lengths), encoder(tokens, lengths))


def test_padding_does_not_change_logits() -> None:
    model = QuestionLSTM(**READER, num_answers=5, mlp_hidden=12).eval()
    tokens, lengths = random_questions(6)
    logits = checked(model)(tokens, lengths)
    assert logits.shape == (6, 5)
    longer = torch.cat([tokens, torch.zeros(6, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(longer, lengths), logits)
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, :length], length[None])
        torch.testing.assert_close(alone[0], logits[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("image_size", "channels", "strides"),
    [((12, 16), (8, 8), (1, 2)), ((24, 32), (8, 16, 16), (1, 2, 2)), ((48, 64), (8, 8, 8, 8), (2, 2, 2, 1)),
     ((41, 62), (8, 8), (2, 3))],
)  # fmt: skip
def test_image_maps_for_many_sizes(
    image_size: tuple[int, int], channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    encoder = ImageEncoder(image_size=image_size, channels=channels, strides=strides)
    assert checked(encoder)(torch.rand(2, 3, *image_size)).shape == (2, *encoder.map_shape)


@pytest.mark.parametrize(
    ("shape", "width", "pool", "expected"),
    [((8, 14, 14), 4, 2, (4, 7, 7)), ((8, 14, 14), None, 1, (8, 14, 14)), ((8, 5, 7), None, 2, (8, 2, 3))],
)
def test_feature_maps(
    shape: tuple[int, int, int], width: int | None, pool: int, expected: tuple[int, int, int]
) -> None:
    encoder = FeatureEncoder(shape=shape, width=width, pool=pool)
    assert encoder.map_shape == expected
    features = torch.rand(2, *shape)
    assert checked(encoder)(features).shape == (2, *expected)
    if width is None and pool == 1:
        assert torch.equal(encoder(features), features)


@every_sighted
def test_all_questions_of_an_image_share_one_pass(case: Case) -> None:
    make, shape = case
    model = make().eval()
    images_seen: list[int] = []
    model.image_encoder.register_forward_hook(lambda _, inputs, __: images_seen.append(len(inputs[0])))
    images = torch.rand(3, *shape)
    tokens, lengths = random_questions(3, 4)
    logits = checked(model)(images, tokens, lengths)
    assert logits.shape == (3, 4, 5)
    assert images_seen == [3]
    for question in range(4):
        alone = model(images, tokens[:, question : question + 1], lengths[:, question : question + 1])
        torch.testing.assert_close(alone[:, 0], logits[:, question], rtol=1e-4, atol=1e-5)


@every_sighted
def test_a_question_that_pads_the_batch_changes_no_other(case: Case) -> None:
    make, shape = case
    model = make().eval()
    images, (tokens, lengths) = torch.rand(2, *shape), random_questions(2, 3)
    logits = model(images, tokens, lengths)
    padded_tokens = torch.cat([tokens, torch.zeros(2, 1, 9, dtype=torch.long)], dim=1)
    padded_lengths = torch.cat([lengths, torch.zeros(2, 1, dtype=torch.long)], dim=1)
    padded = model(images, padded_tokens, padded_lengths)
    torch.testing.assert_close(padded[:, :3], logits)
    assert padded.isfinite().all()


@every_sighted
def test_every_parameter_has_a_gradient_and_one_image_does_not_reach_another(case: Case) -> None:
    make, shape = case
    model = make()
    images = torch.rand(2, *shape, requires_grad=True)
    tokens, lengths = random_questions(2, 3)
    model(images, tokens, lengths)[0].square().sum().backward()
    assert images.grad is not None
    assert images.grad[0].abs().sum() > 0
    assert images.grad[1].abs().sum() == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_split_linear_equals_a_linear_over_the_concatenation() -> None:
    model = cnn_lstm().eval()
    images = torch.rand(2, 3, 12, 16)
    tokens, lengths = random_questions(2, 3)
    image = model.image_encoder(images).flatten(1)[:, None].expand(-1, 3, -1)
    question = model.question_encoder(tokens.view(6, -1), lengths.view(6)).view(2, 3, -1)
    weight = torch.cat([model.from_image.weight, model.from_question.weight], dim=1)
    hidden = torch.cat([image, question], dim=-1) @ weight.T + model.from_image.bias
    torch.testing.assert_close(model(images, tokens, lengths), model.classifier(hidden))


def fit(model: nn.Module, inputs: tuple[Tensor, ...], answers: Tensor, steps: int = 80) -> float:
    """Train on one batch and return its accuracy."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(*inputs).flatten(0, -2), answers.flatten()).backward()
        optimizer.step()
    return (model(*inputs).argmax(dim=-1) == answers).float().mean().item()


def test_question_lstm_learns_64_questions_by_heart() -> None:
    tokens, lengths = torch.randint(1, 20, (64, 9)), torch.full((64,), 9)
    model = QuestionLSTM(**READER, num_answers=5, mlp_hidden=32)
    assert fit(model, (tokens, lengths), torch.randint(5, (64,))) >= 0.99


@every_sighted
def test_sighted_models_learn_answers_that_only_the_image_tells(case: Case) -> None:
    make, shape = case
    tokens, lengths = torch.ones(8, 4, 3, dtype=torch.long), torch.full((8, 4), 3)
    tokens[..., 1] = torch.arange(2, 6)  # the same four questions about each of 8 images
    answers = torch.randint(5, (8, 4))
    assert fit(make(), (torch.rand(8, *shape), tokens, lengths), answers, steps=200) >= 0.99


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"channels \[8\] and strides \[1, 2\]"):
        ImageEncoder(image_size=(4, 4), channels=(8,), strides=(1, 2))
    with pytest.raises(ValueError, match=r"\(12, 16\), got \(16, 12\)"):
        cnn_lstm()(torch.rand(1, 3, 16, 12), *random_questions(1, 1))
    with pytest.raises(ValueError, match="at most 3 positions of a side, got 4"):
        FeatureEncoder(shape=(8, 3, 5), pool=4)
    with pytest.raises(ValueError, match=r"\(8, 3, 5\), got \(8, 5, 3\)"):
        FeatureEncoder(shape=(8, 3, 5))(torch.rand(2, 8, 5, 3))
