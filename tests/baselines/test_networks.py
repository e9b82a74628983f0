"""The trained baselines: shapes, what padding may not change, one pass an image, and that they can learn."""

from collections.abc import Callable, Iterator

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence

from baselines.cnn_lstm import CNNLSTM, ImageEncoder
from baselines.lstm import QuestionEncoder, QuestionLSTM

SMALL = {"vocab_size": 20, "embedding": 8, "hidden": 16, "layers": 2}


def checked(model: nn.Module) -> Callable[..., Tensor]:
    """The model's forward with its shape annotations enforced."""
    return jaxtyped(typechecker=beartype)(type(model).forward).__get__(model)


def random_questions(*shape: int, words: int = 9) -> tuple[Tensor, Tensor]:
    """Tokens (*shape, words) padded with 0, and lengths (*shape) from 1 to `words`."""
    lengths = torch.randint(1, words + 1, shape)
    tokens = torch.randint(1, 20, (*shape, words))
    return tokens.masked_fill(torch.arange(words) >= lengths[..., None], 0), lengths


@pytest.fixture(autouse=True)
def _seeded_and_on_one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, most of all on a busy machine."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_question_encoder_equals_packing() -> None:
    encoder = QuestionEncoder(**SMALL)
    tokens, lengths = random_questions(7)
    packed = pack_padded_sequence(encoder.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
    _, (last_states, _) = encoder.lstm(packed)
    torch.testing.assert_close(checked(encoder)(tokens, lengths), last_states[-1])


def test_padding_does_not_change_logits() -> None:
    model = QuestionLSTM(**SMALL, num_answers=5, mlp_hidden=12).eval()
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
def test_image_features_for_many_sizes(
    image_size: tuple[int, int], channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    encoder = ImageEncoder(image_size=image_size, channels=channels, strides=strides)
    features = checked(encoder)(torch.rand(2, 3, *image_size))
    assert features.shape == (2, encoder.num_features)


def tiny_cnn_lstm(**changes: object) -> CNNLSTM:
    settings = dict(SMALL, num_answers=5, image_size=(12, 16), channels=(8, 8), strides=(2, 2), mlp_hidden=24)
    return CNNLSTM(**(settings | changes))  # type: ignore[arg-type]


def test_all_questions_of_an_image_share_one_pass() -> None:
    model = tiny_cnn_lstm().eval()
    images_seen: list[int] = []
    model.image_encoder.register_forward_hook(lambda _, inputs, __: images_seen.append(len(inputs[0])))
    images = torch.rand(3, 3, 12, 16)
    tokens, lengths = random_questions(3, 4)
    logits = checked(model)(images, tokens, lengths)
    assert logits.shape == (3, 4, 5)
    assert images_seen == [3]
    for question in range(4):
        alone = model(images, tokens[:, question : question + 1], lengths[:, question : question + 1])
        torch.testing.assert_close(alone[:, 0], logits[:, question], rtol=1e-4, atol=1e-5)


def test_split_linear_equals_a_linear_over_the_concatenation() -> None:
    model = tiny_cnn_lstm().eval()
    images = torch.rand(2, 3, 12, 16)
    tokens, lengths = random_questions(2, 3)
    image = model.image_encoder(images)[:, None].expand(-1, 3, -1)
    question = model.question_encoder(tokens.view(6, -1), lengths.view(6)).view(2, 3, -1)
    weight = torch.cat([model.from_image.weight, model.from_question.weight], dim=1)
    hidden = torch.cat([image, question], dim=-1) @ weight.T + model.from_image.bias
    torch.testing.assert_close(model(images, tokens, lengths), model.classifier(hidden))


def test_a_question_that_pads_the_batch_changes_no_other() -> None:
    model = tiny_cnn_lstm().eval()
    images, (tokens, lengths) = torch.rand(2, 3, 12, 16), random_questions(2, 3)
    logits = model(images, tokens, lengths)
    padded_tokens = torch.cat([tokens, torch.zeros(2, 1, 9, dtype=torch.long)], dim=1)
    padded_lengths = torch.cat([lengths, torch.zeros(2, 1, dtype=torch.long)], dim=1)
    padded = model(images, padded_tokens, padded_lengths)
    torch.testing.assert_close(padded[:, :3], logits)
    assert padded.isfinite().all()


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
    model = QuestionLSTM(**SMALL, num_answers=5, mlp_hidden=32)
    assert fit(model, (tokens, lengths), torch.randint(5, (64,))) >= 0.99


def test_cnn_lstm_learns_answers_that_only_the_image_tells() -> None:
    tokens, lengths = torch.ones(16, 4, 3, dtype=torch.long), torch.full((16, 4), 3)
    tokens[..., 1] = torch.arange(2, 6)  # the same four questions about each of 16 images
    answers = torch.randint(5, (16, 4))
    assert fit(tiny_cnn_lstm(), (torch.rand(16, 3, 12, 16), tokens, lengths), answers) >= 0.99


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"channels \[8\] and strides \[1, 2\]"):
        tiny_cnn_lstm(channels=(8,), strides=(1, 2))
    with pytest.raises(ValueError, match=r"\(12, 16\), got \(16, 12\)"):
        tiny_cnn_lstm()(torch.rand(1, 3, 16, 12), *random_questions(1, 1))
