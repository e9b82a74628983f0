"""The commonest training answer, overall or per question type. Reads neither the words nor the image.

Per question type this is the "Q-type mode" row of the CLEVR paper (arXiv 1612.06890).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Majority(nn.Module):
    """Answer frequencies counted on training questions; nothing here has a gradient.

    With `question_types` there is one row of counts per type; without (`None`) one row for all
    questions, and the types given to `update` and `forward` only say how many questions there are. A type that was not
    named when the model was made is answered from the counts of all types.
    The counts are a buffer, so they are saved and loaded with the state dict.
    """

    counts: Tensor

    def __init__(self, num_answers: int, question_types: Sequence[str] | None = None) -> None:
        super().__init__()
        self.num_answers = num_answers
        self._rows: dict[str, int] | None = None
        if question_types is not None:
            self._rows = {name: row for row, name in enumerate(question_types)}
        num_rows = 1 if self._rows is None else len(self._rows)
        self.register_buffer("counts", torch.zeros(num_rows, num_answers, dtype=torch.long))

    def update(self, question_types: Sequence[str], answers: Int[Tensor, " N"]) -> None:
        """Count N training questions by type and answer class; may be called batch by batch.

        Raises ValueError if the two lengths differ, a type was not named or a class is out of range.
        """
        if len(question_types) != len(answers):
            raise ValueError(f"expected one answer a question, got {len(answers)} for {len(question_types)}")
        if ((answers < 0) | (answers >= self.num_answers)).any():
            raise ValueError(
                f"expected answer classes 0..{self.num_answers - 1}, got {int(answers.min())}..{int(answers.max())}"
            )
        if self._rows is not None and (unknown := sorted(set(question_types) - self._rows.keys())):
            raise ValueError(f"expected question types among {sorted(self._rows)}, got {unknown}")
        cells = self._rows_of(question_types) * self.num_answers + answers.to(self.counts.device)
        self.counts += torch.bincount(cells, minlength=self.counts.numel()).view_as(self.counts)

    def forward(self, question_types: Sequence[str]) -> Float[Tensor, "N A"]:
        """Log of (count + 1) / (total + A): add-one (Laplace) smoothing, so no answer is impossible."""
        counts = torch.cat((self.counts, self.counts.sum(dim=0, keepdim=True)))  # the last row: of all types
        smoothed = (counts + 1).to(torch.get_default_dtype())  # (K types + 1, A)
        log_probs = smoothed.log() - smoothed.sum(dim=1, keepdim=True).log()
        return log_probs[self._rows_of(question_types)]

    def _rows_of(self, question_types: Sequence[str]) -> Int[Tensor, " N"]:
        """The row of each type, one behind the last for those that were not named."""
        found = [0] * len(question_types)
        if self._rows is not None:
            found = [self._rows.get(name, len(self._rows)) for name in question_types]
        return torch.tensor(found, dtype=torch.long, device=self.counts.device)
