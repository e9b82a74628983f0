"""How the next byte is chosen from its logits, and the random numbers that it takes.

Drawing is apart from choosing: all random numbers of a byte exist before its logits do, so that choosing many bytes one
after another has fixed shapes and never waits for a GPU. Knows logits, not models.

Shapes: n rows, m ≤ n that are left, k bytes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """How the next byte is chosen from its logits: the most likely one, or drawn.

    temperature: logits are divided by it. top_k: only the k most likely stay. top_p: only the most likely that together
    reach this probability stay (at least one). Ties at the k-th place all stay.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_k != 1 and not self.temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")

    @property
    def draws(self) -> bool:
        """Whether anything is left to chance."""
        return self.top_k != 1

    def __call__(self, logits: Float[Tensor, "n v"], generator: torch.Generator | None) -> Int[Tensor, " n"]:
        """One id a row."""
        return self.choose(logits, self.numbers((len(logits), logits.shape[1]), logits.device, generator))

    def numbers(
        self, shape: tuple[int, int], device: torch.device, generator: torch.Generator | None
    ) -> Float[Tensor, "n v"] | None:
        """Random numbers for one id of each row, exponentially distributed; None where nothing is drawn."""
        if not self.draws:
            return None
        return torch.empty(shape, device=device).exponential_(generator=generator)

    def choose(self, logits: Float[Tensor, "n v"], numbers: Float[Tensor, "n v"] | None) -> Int[Tensor, " n"]:
        """One id a row by its random numbers: nothing here waits for a GPU, so that it can be part of a graph.

        Of exponential numbers with rates p_i the i-th is the least with probability p_i, as in `torch.multinomial`.
        """
        if numbers is None:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        probabilities = logits.softmax(-1)
        torch._assert_async((probabilities >= 0).all(), "expected logits to draw from, got some that are not numbers")
        if self.top_p is not None:
            ranked, order = probabilities.sort(dim=-1, descending=True)
            beyond = ranked.cumsum(-1) - ranked >= self.top_p  # what comes before already suffices
            ranked = ranked.masked_fill(beyond, 0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
        return (probabilities / numbers).argmax(-1)


GREEDY = Sampler(top_k=1)


def choose_sampler(
    vocabulary: int, *, temperature: float, filter_thres: float | None, top_k: int | None, top_p: float | None
) -> Sampler:
    """From `generate`'s arguments; `filter_thres` is the reference's: the fraction of the ids that is thrown away."""
    if filter_thres is None:
        # Nothing said is greedy, as in the reference.
        top_k = 1 if top_k is None and top_p is None else top_k
    else:
        if top_k is not None or top_p is not None:
            raise ValueError("expected filter_thres alone or top_k and top_p, got both: leave one out")
        if not 0 <= filter_thres <= 1:
            raise ValueError(f"filter_thres: expected 0 to 1, got {filter_thres}")
        top_k = max(int((1 - filter_thres) * vocabulary), 1)
    return Sampler(temperature, top_k, top_p)


class Draws:
    """Random numbers byte by byte, for all rows that began: what a row draws does not depend on when another ends."""

    def __init__(
        self, sampler: Sampler, generator: torch.Generator | None, shape: tuple[int, int], device: torch.device
    ) -> None:
        """shape: (n, V), of the first byte's logits; generator: None for the device's own."""
        self.device = device
        self._sampler, self._generator, self._shape = sampler, generator, shape
        self._left: Tensor | None = None  # of the n rows, None for all

    def numbers(self, count: int) -> Float[Tensor, "m k v"] | None:
        """For the next `count` bytes of the rows that are left; None where nothing is drawn."""
        drawn = [self._sampler.numbers(self._shape, self.device, self._generator) for _ in range(count)]
        numbers = [one if self._left is None else one[self._left] for one in drawn if one is not None]
        return torch.stack(numbers, dim=1) if numbers else None

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Only the given ones of those that were left are."""
        self._left = rows if self._left is None else self._left[rows]
