"""Questions as bags of words: their mean vector, and a logistic regression over their counts. Never sees an image.

Shapes: N questions, T words, E embedding, V words of the vocabulary, A answers.
"""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from baselines.text import PAD


class MeanOfWords(nn.Module):
    """Word ids (N, T) to one vector a question (N, E): the mean of its words' learned vectors.

    CLEVR's paper averages word vectors trained on news; these are learned with the rest.
    """

    def __init__(self, *, vocab_size: int, embedding: int = 300) -> None:
        """Id 0 is padding; its embedding stays zero."""
        super().__init__()
        self.width = embedding
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=PAD)

    def forward(self, tokens: Int[Tensor, "N T"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "N E"]:
        """`lengths` counts the true words of each question; a row of length 0 gives zeros."""
        is_word = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]  # (N, T)
        vectors = self.embedding(tokens) * is_word[..., None]  # (N, T, E)
        return vectors.sum(dim=1) / lengths.clamp(min=1)[:, None]


class BagOfWords(nn.Module):
    """Multinomial logistic regression on word counts, fitted by scikit-learn; nothing here has a gradient.

    The fitted numbers are buffers, so they are saved and loaded with the state dict. An answer that no training
    question has is, for every question, less likely than the least likely other one, by a factor of the number of
    training questions.
    """

    weight: Tensor
    bias: Tensor
    seen: Tensor
    num_questions: Tensor

    def __init__(self, *, vocab_size: int, num_answers: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_answers, vocab_size, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(num_answers, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(num_answers, dtype=torch.bool))
        self.register_buffer("num_questions", torch.tensor(0))

    def fit(
        self,
        tokens: Int[Tensor, "N T"],
        lengths: Int[Tensor, " N"],
        answers: Int[Tensor, " N"],
        *,
        inverse_penalty: float = 1.0,
        max_iterations: int = 1000,
    ) -> None:
        """Fit to N training questions; the same numbers every time.

        inverse_penalty: scikit-learn's C, large for a weak L2 penalty on the weights.
        Raises ValueError for no questions, and where the solver has not converged after `max_iterations`.
        """
        if len(lengths) == 0:
            raise ValueError("expected at least one question to fit to, got none")
        bags, classes, times = _distinct(tokens, lengths, answers)
        self.weight.zero_()
        self.bias.zero_()
        found = torch.from_numpy(np.unique(classes)).long()
        self.seen.zero_()[found] = True
        self.num_questions.fill_(len(lengths))
        if len(found) > 1:  # with one answer there is nothing to tell apart
            weight, bias = _regression(
                bags,
                classes,
                times,
                vocab_size=self.weight.shape[1],
                inverse_penalty=inverse_penalty,
                max_iterations=max_iterations,
            )
            self.weight[found], self.bias[found] = torch.from_numpy(weight), torch.from_numpy(bias)

    def forward(self, tokens: Int[Tensor, "N T"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "N A"]:
        """Unnormalised scores; an unknown word counts for nothing, as does the padding."""
        is_word = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]  # (N, T)
        weights = self.weight.T[tokens] * is_word[..., None]  # (N, T, A)
        scores = weights.sum(dim=1) + self.bias
        least = scores.masked_fill(~self.seen, torch.inf).amin(dim=1, keepdim=True)  # (N, 1)
        return torch.where(self.seen, scores, least - self.num_questions.to(scores.dtype).log())


def _distinct(tokens: Tensor, lengths: Tensor, answers: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every bag with an answer once: its words in order, padded in front (n, T); answers (n,); how often it is there.

    Questions made from templates repeat: of 194,295 there are 7,053 different bags.
    """
    is_word = torch.arange(tokens.shape[1]) < lengths[:, None]  # (N, T)
    bags = tokens.masked_fill(~is_word, PAD).sort(dim=1).values
    table = torch.cat((bags, answers[:, None]), dim=1).to(torch.int32).numpy()
    # As one value a row, which sorts many times faster than np.unique(axis=0).
    rows = table.view(np.dtype((np.void, table.itemsize * table.shape[1]))).ravel()
    distinct, times = np.unique(rows, return_counts=True)
    found = distinct.view(np.int32).reshape(len(distinct), -1)
    return found[:, :-1], found[:, -1], times


def _regression(
    bags: np.ndarray,
    answers: np.ndarray,
    times: np.ndarray,
    *,
    vocab_size: int,
    inverse_penalty: float,
    max_iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (classes, V) and biases (classes,) of the classes that occur, at least two, in rising order."""
    from scipy.sparse import csr_matrix
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows, places = np.nonzero(bags != PAD)
    counts = csr_matrix((np.ones(len(rows)), (rows, bags[rows, places])), shape=(len(bags), vocab_size))
    regression = LogisticRegression(C=inverse_penalty, max_iter=max_iterations)
    try:
        # On one thread, so that sums are taken in one order.
        with threadpool_limits(limits=1), warnings.catch_warnings(action="error", category=ConvergenceWarning):
            regression.fit(counts, answers, sample_weight=times)
    except ConvergenceWarning as warning:
        raise ValueError(
            f"expected the regression to converge in {max_iterations} iterations, got: {str(warning).splitlines()[0]}"
        ) from warning
    weight, bias = regression.coef_, regression.intercept_
    if len(weight) == 1:  # of two classes scikit-learn gives the second one's advantage over the first
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    return weight, bias
