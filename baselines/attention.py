"""Stacked attention: a question looks at the positions of an image, twice, and then answers. CNN+LSTM+SA.

After CLEVR's baseline of that name (arXiv 1612.06890), with the layers of clevr-iep. With `mlp_hidden` it is SA+MLP.

Shapes: B images, Q questions an image, T words, C x h x w the image's map, P = h·w positions, D the width of a
question's vector, K channels of an attention, A answers; c x i x j what the image encoder takes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from baselines.image import MapEncoder
from baselines.lstm import QuestionEncoder


class SoftAttention(nn.Module):
    """One look: the question's vector, plus the mean of the image's vectors weighted by how well each suits it."""

    def __init__(self, *, width: int, attention_width: int) -> None:
        """Biases stand where they can matter: one for the sum, none for the scores, which a softmax levels."""
        super().__init__()
        self.from_image = nn.Linear(width, attention_width)
        self.from_question = nn.Linear(width, attention_width, bias=False)
        self.score = nn.Linear(attention_width, 1, bias=False)

    def weights(self, vectors: Float[Tensor, "B P D"], questions: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q P"]:
        """How much each question takes from each position; they sum to 1 over the positions."""
        image = self.from_image(vectors)  # (B, P, K): once an image
        question = self.from_question(questions)  # (B, Q, K)
        hidden = torch.tanh(image[:, None] + question[:, :, None])  # (B, Q, P, K)
        return self.score(hidden).squeeze(-1).softmax(dim=-1)

    def forward(self, vectors: Float[Tensor, "B P D"], questions: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        """The questions' vectors after the look."""
        return questions + self.weights(vectors, questions) @ vectors


class StackedAttention(nn.Module):
    """Answer logits for all questions of an image, the image read once."""

    def __init__(
        self,
        image_encoder: MapEncoder,
        question_encoder: QuestionEncoder,
        *,
        num_answers: int,
        attention_width: int = 512,
        looks: int = 2,
        mlp_hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        """`mlp_hidden` None: a linear classifier over the last vector."""
        super().__init__()
        self.image_encoder, self.question_encoder = image_encoder, question_encoder
        width = question_encoder.width
        self.projection = nn.Conv2d(image_encoder.map_shape[0], width, kernel_size=1)
        self.looks = nn.ModuleList(SoftAttention(width=width, attention_width=attention_width) for _ in range(looks))
        last = width if mlp_hidden is None else mlp_hidden
        mlp = [] if mlp_hidden is None else [nn.Linear(width, mlp_hidden), nn.ReLU()]
        self.classifier = nn.Sequential(*mlp, nn.Dropout(dropout), nn.Linear(last, num_answers))

    def forward(
        self,
        images: Float[Tensor, "B c i j"],
        tokens: Int[Tensor, "B Q T"],
        lengths: Int[Tensor, "B Q"],
    ) -> Float[Tensor, "B Q A"]:
        """`images` as their encoder takes them; length 0 marks a question that only pads the batch (finite,
        meaningless)."""
        vectors = self.projection(self.image_encoder(images)).flatten(2).mT.contiguous()  # (B, P, D)
        questions = self.question_encoder(tokens.flatten(0, 1), lengths.flatten())
        questions = questions.view(*lengths.shape, -1)  # (B, Q, D)
        for look in self.looks:
            questions = look(vectors, questions)
        return self.classifier(questions)
