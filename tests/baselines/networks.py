"""Small networks and questions that the tests of the trained baselines share."""

from collections.abc import Callable

import torch
from beartype import beartype
from jaxtyping import jaxtyped
from torch import Tensor, nn

from baselines.attention import StackedAttention
from baselines.fusion import ImageQuestionMLP
from baselines.image import FeatureEncoder, ImageEncoder, MapEncoder
from baselines.lstm import QuestionEncoder
from baselines.words import MeanOfWords

IMAGE = (3, 12, 16)
FEATURES = (6, 4, 4)
READER = {"vocab_size": 20, "embedding": 8, "hidden": 16, "layers": 2}


def checked(model: nn.Module) -> Callable[..., Tensor]:
    """The model's forward with its shape annotations enforced."""
    return jaxtyped(typechecker=beartype)(type(model).forward).__get__(model)


def random_questions(*shape: int, words: int = 9) -> tuple[Tensor, Tensor]:
    """Tokens (*shape, words) padded with 0, and lengths (*shape) from 1 to `words`."""
    lengths = torch.randint(1, words + 1, shape)
    tokens = torch.randint(1, 20, (*shape, words))
    return tokens.masked_fill(torch.arange(words) >= lengths[..., None], 0), lengths


def conv() -> ImageEncoder:
    return ImageEncoder(image_size=IMAGE[1:], channels=(8, 8), strides=(2, 2))


def lstm() -> QuestionEncoder:
    return QuestionEncoder(**READER)


def mean_of_words() -> MeanOfWords:
    return MeanOfWords(vocab_size=20, embedding=16)


def cnn_lstm(image_encoder: MapEncoder | None = None) -> ImageQuestionMLP:
    return ImageQuestionMLP(image_encoder or conv(), lstm(), num_answers=5, mlp_hidden=24)


def cnn_bow(image_encoder: MapEncoder | None = None) -> ImageQuestionMLP:
    return ImageQuestionMLP(image_encoder or conv(), mean_of_words(), num_answers=5, mlp_hidden=24)


def attention(image_encoder: MapEncoder | None = None, *, mlp_hidden: int | None = None) -> StackedAttention:
    return StackedAttention(image_encoder or conv(), lstm(), num_answers=5, attention_width=12, mlp_hidden=mlp_hidden)


SIGHTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "CNN+LSTM": (cnn_lstm, IMAGE),
    "CNN+BoW": (cnn_bow, IMAGE),
    "SA": (attention, IMAGE),
    "SA+MLP": (lambda: attention(mlp_hidden=24), IMAGE),
    "CNN+LSTM on features": (lambda: cnn_lstm(FeatureEncoder(shape=FEATURES, width=5, pool=2)), FEATURES),
    "SA+MLP on features": (lambda: attention(FeatureEncoder(shape=FEATURES), mlp_hidden=24), FEATURES),
}
"""Every sighted model, and the shape of the image it takes."""
