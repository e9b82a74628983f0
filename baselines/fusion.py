"""Question and image through one MLP: CNN+LSTM and, with the mean of word vectors for an LSTM, CNN+BoW.

The shape of CLEVR's baselines of those names (arXiv 1612.06890). Knows neither how images nor how questions are read.

Shapes: B images, Q questions an image, T words, C x h x w the image's map, H a question's vector, M units of the MLP,
A answers; c x i x j what the image encoder takes.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from baselines.image import MapEncoder
from baselines.lstm import QuestionEncoder
from baselines.words import MeanOfWords


class ImageQuestionMLP(nn.Module):
    """Answer logits for all questions of an image, the image read once."""

    def __init__(
        self,
        image_encoder: MapEncoder,
        question_encoder: QuestionEncoder | MeanOfWords,
        *,
        num_answers: int,
        mlp_hidden: int = 1024,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_encoder, self.question_encoder = image_encoder, question_encoder
        channels, height, width = image_encoder.map_shape
        # One linear layer over [image, question], split at the seam: the image's part, by far the
        # wider, is computed once an image instead of once a question.
        self.from_image = nn.Linear(channels * height * width, mlp_hidden)
        self.from_question = nn.Linear(question_encoder.width, mlp_hidden, bias=False)
        self.classifier = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_hidden, num_answers))

    def forward(
        self,
        images: Float[Tensor, "B c i j"],
        tokens: Int[Tensor, "B Q T"],
        lengths: Int[Tensor, "B Q"],
    ) -> Float[Tensor, "B Q A"]:
        """`images` as their encoder takes them; length 0 marks a question that only pads the batch (finite,
        meaningless)."""
        batch, questions = lengths.shape
        # Flattened, so that positions stay apart.
        image = self.from_image(self.image_encoder(images).flatten(start_dim=1))  # (B, M)
        question = self.question_encoder(tokens.flatten(0, 1), lengths.flatten())  # (B·Q, H)
        question = self.from_question(question).view(batch, questions, -1)  # (B, Q, M)
        return self.classifier(image[:, None] + question)
