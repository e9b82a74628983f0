"""The sighted baseline: a small CNN over the image, an LSTM over the question, an MLP over both.

The shape of CLEVR's "CNN+LSTM" (arXiv 1612.06890), with a network trained from scratch where the
paper has a frozen ResNet-101: at low resolution there is nothing for ImageNet features to see.

Shapes: B images, Q questions an image, T words, C channels, h x w the last feature map, F = C*h*w,
H hidden, M units of the MLP, A answers.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from baselines.lstm import QuestionEncoder


class ImageEncoder(nn.Module):
    """3 x 3 convolutions with ReLU; the last feature map is flattened, so positions stay apart."""

    def __init__(self, *, image_size: tuple[int, int], channels: Sequence[int], strides: Sequence[int]) -> None:
        """`image_size` is (height, width) in pixels; `channels` and `strides` have one entry a layer.

        Raises ValueError if the two have different lengths or are empty.
        """
        super().__init__()
        if len(channels) != len(strides) or len(channels) == 0:
            raise ValueError(
                f"expected one stride for each of at least one channel count, "
                f"got channels {list(channels)} and strides {list(strides)}"
            )
        self.image_size = image_size
        height, width = image_size
        blocks: list[nn.Module] = []
        for inputs, outputs, stride in zip((3, *channels), channels, strides, strict=False):
            blocks += [nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1), nn.ReLU()]
            height, width = -(-height // stride), -(-width // stride)  # with this padding: divide, round up
        self.blocks = nn.Sequential(*blocks)
        self.num_features = channels[-1] * height * width

    def forward(self, images: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B F"]:
        """`images` in [0, 1]. Raises ValueError for another size than the encoder was made for."""
        if tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"expected images of (height, width) {self.image_size}, got {tuple(images.shape[-2:])}; "
                "resize them or set image_size"
            )
        return self.blocks(images * 2 - 1).flatten(start_dim=1)


class CNNLSTM(nn.Module):
    """Answer logits for all questions of an image, the image read once."""

    def __init__(
        self,
        *,
        vocab_size: int,
        num_answers: int,
        image_size: tuple[int, int],
        channels: Sequence[int] = (32, 64, 64),
        strides: Sequence[int] = (1, 2, 2),
        embedding: int = 300,
        hidden: int = 256,
        layers: int = 2,
        mlp_hidden: int = 1024,
        dropout: float = 0.0,
    ) -> None:
        """The default strides suit 16 x 12 to 32 x 24 pixels; 64 x 48 wants one more layer of stride 2."""
        super().__init__()
        self.image_encoder = ImageEncoder(image_size=image_size, channels=channels, strides=strides)
        self.question_encoder = QuestionEncoder(
            vocab_size=vocab_size, embedding=embedding, hidden=hidden, layers=layers, dropout=dropout
        )
        # One linear layer over [image, question], split at the seam: the image's part, by far the
        # wider, is computed once an image instead of once a question.
        self.from_image = nn.Linear(self.image_encoder.num_features, mlp_hidden)
        self.from_question = nn.Linear(hidden, mlp_hidden, bias=False)
        self.classifier = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_hidden, num_answers))

    def forward(
        self,
        images: Float[Tensor, "B 3 height width"],
        tokens: Int[Tensor, "B Q T"],
        lengths: Int[Tensor, "B Q"],
    ) -> Float[Tensor, "B Q A"]:
        """`images` in [0, 1]; length 0 marks a question that only pads the batch (finite, meaningless)."""
        batch, questions = lengths.shape
        image = self.from_image(self.image_encoder(images))  # (B, M)
        question = self.question_encoder(tokens.flatten(0, 1), lengths.flatten())  # (B·Q, H)
        question = self.from_question(question).view(batch, questions, -1)  # (B, Q, M)
        return self.classifier(image[:, None] + question)
