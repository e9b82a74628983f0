"""Words of a question and their ids, for the baselines that read words. Knows nothing of models or images.

The rule is that of the CLEVR baselines (clevr-iep): words are split at spaces, `;` and `,` are words of
their own, `?` and `.` are dropped, upper and lower case differ. Unlike there, a double space makes no
empty word, and there are no start and end words: the encoder reads the state at the last word.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor

PAD = 0
UNKNOWN = 1
SPECIAL_WORDS = ("<pad>", "<unknown>")

_WORD = re.compile(r"[;,]|[^\s;,?.]+")


def tokenize(question: str) -> list[str]:
    """The words of a question: `"Is it red; or blue?"` -> `["Is", "it", "red", ";", "or", "blue"]`."""
    return _WORD.findall(question)


class WordVocabulary:
    """A fixed list of words; a word's id is its place in it. Id 0 is padding, id 1 any word not listed."""

    def __init__(self, words: Sequence[str]) -> None:
        """`words` are all words with the two special ones in front; `build` makes them from questions."""
        self.words = tuple(words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        if self.words[:2] != SPECIAL_WORDS:
            raise ValueError(f"expected a word list that starts with {SPECIAL_WORDS}, got {self.words[:2]}")
        if len(self._ids) != len(self.words):
            raise ValueError(
                f"expected distinct words, got {len(self._ids)} distinct ones in a list of {len(self.words)}"
            )

    @classmethod
    def build(cls, questions: Iterable[str]) -> Self:
        """All words of the training questions, sorted: the ids do not depend on the questions' order."""
        words = {word for question in questions for word in tokenize(question)}
        return cls([*SPECIAL_WORDS, *sorted(words)])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, questions: Sequence[str]) -> tuple[Int[Tensor, "N T"], Int[Tensor, " N"]]:
        """Ids of N questions, padded on the right to the longest (T words), and the N true lengths.

        Raises ValueError for no question at all and for one without a word.
        """
        if len(questions) == 0:
            raise ValueError("expected at least one question to encode, got none")
        rows = [[self._ids.get(word, UNKNOWN) for word in tokenize(question)] for question in questions]
        lengths = torch.tensor([len(row) for row in rows])
        if not lengths.all():
            wordless = questions[int(lengths.argmin())]
            raise ValueError(f"expected words in every question, got {wordless!r}; drop or mend it")
        tokens = torch.full((len(rows), int(lengths.max())), PAD, dtype=torch.long)
        is_word = torch.arange(tokens.shape[1]) < lengths[:, None]  # (N, T)
        tokens[is_word] = torch.tensor(list(chain.from_iterable(rows)))
        return tokens, lengths

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; `from_dict` reads it back."""
        return {"words": list(self.words)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """Raises ValueError if `state` is not what `to_dict` gives."""
        words = state.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"expected {{'words': [str, ...]}} as from to_dict, got keys {sorted(state)}")
        return cls(words)
