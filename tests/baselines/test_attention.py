"""Stacked attention against plain loops over questions and positions."""

import pytest
import torch
from torch import Tensor

from baselines.attention import SoftAttention, StackedAttention
from tests.baselines.networks import attention, checked, random_questions


def looked(look: SoftAttention, vectors: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
    """One question at one image, position by position: its vector after the look, and the weights."""
    scores = [
        look.score.weight[0] @ torch.tanh(look.from_image(vector) + look.from_question.weight @ question)
        for vector in vectors
    ]
    exponentials = [score.exp() for score in scores]
    weights = torch.stack([value / sum(exponentials) for value in exponentials])
    total = question.clone()
    for weight, vector in zip(weights, vectors, strict=True):
        total = total + weight * vector
    return total, weights


def test_a_look_equals_a_loop_and_its_weights_sum_to_one() -> None:
    look = SoftAttention(width=6, attention_width=4).double()
    vectors, questions = torch.randn(3, 7, 6, dtype=torch.double), torch.randn(3, 5, 6, dtype=torch.double)
    weights = look.weights(vectors, questions)
    assert weights.shape == (3, 5, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 5, dtype=torch.double))
    found = checked(look)(vectors, questions)
    for image in range(3):
        for question in range(5):
            expected, expected_weights = looked(look, vectors[image], questions[image, question])
            torch.testing.assert_close(weights[image, question], expected_weights)
            torch.testing.assert_close(found[image, question], expected)


@pytest.mark.parametrize("mlp_hidden", [None, 24])
def test_the_model_equals_a_loop_over_its_questions(mlp_hidden: int | None) -> None:
    model = attention(mlp_hidden=mlp_hidden).double().eval()
    images = torch.rand(2, 3, 12, 16, dtype=torch.double)
    tokens, lengths = random_questions(2, 3)
    logits = model(images, tokens, lengths)
    maps = model.image_encoder(images)
    for image in range(2):
        positions = [maps[image, :, row, column] for row in range(maps.shape[2]) for column in range(maps.shape[3])]
        kernel = model.projection.weight[:, :, 0, 0]
        vectors = torch.stack([kernel @ position + model.projection.bias for position in positions])
        for question in range(3):
            vector = model.question_encoder(tokens[image, question][None], lengths[image, question][None])[0]
            for look in model.looks:
                vector, _ = looked(look, vectors, vector)
            torch.testing.assert_close(logits[image, question], model.classifier(vector))


def test_the_classifier_is_linear_without_an_mlp() -> None:
    def linear_layers(model: StackedAttention) -> int:
        return sum(isinstance(layer, torch.nn.Linear) for layer in model.classifier)

    assert linear_layers(attention()) == 1
    assert linear_layers(attention(mlp_hidden=24)) == 2
    assert len(attention().looks) == 2
