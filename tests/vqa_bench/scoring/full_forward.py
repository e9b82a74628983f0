"""The oracle of everything that is scored: one whole sequence, one full forward, nothing of incremental decoding."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from mblm import MBLMReturnType
from tests.vqa_bench.cells import BYTE_MODEL, make_cell, make_model
from vqa_bench.data.answers import Answers
from vqa_bench.data.sequences import Sample
from vqa_bench.data.shards import Shard
from vqa_bench.data.vocab import PAD
from vqa_bench.models import ByteModel

T = {"heads": 1, "head_dim": 8}
S = {"kind": "mamba", "d_state": 8, "head_dim": 8}

# A patch of 4 or 8 bytes makes text answers cross patch borders, one of 12 does not; a single stage has patches of one.
SHAPES: dict[str, dict[str, Any]] = {
    "T/T, an answer a patch": {},
    "T/T, crossing": {"seq_lens": [180, 4]},
    "S/T, crossing": {"seq_lens": [180, 4], "stages": [S, T]},
    "S/S, crossing": {"seq_lens": [180, 4], "stages": [S, S]},
    "S/T/T, crossing": {
        "hidden_dims": [16, 8, 8],
        "seq_lens": [90, 2, 4],
        "num_layers": [1, 1, 1],
        "stages": [S, T, T],
    },
    "T/S/S, crossing": {
        "hidden_dims": [16, 8, 8],
        "seq_lens": [90, 4, 2],
        "num_layers": [1, 1, 1],
        "stages": [T, S, S],
    },
    "T": {"hidden_dims": [16], "seq_lens": [640], "num_layers": [1], "stages": [T]},
    "S": {"hidden_dims": [16], "seq_lens": [640], "num_layers": [1], "stages": [S]},
}


def byte_model(shard: Shard, shape: str, **sequence: object) -> ByteModel:
    """A fresh model in float64, in evaluation mode."""
    model = make_model(make_cell(BYTE_MODEL | SHAPES[shape], sequence=sequence), shard)
    assert isinstance(model, ByteModel)
    return model


class FullForward:
    """What a model says about one question of a shard's test split, by forwards of whole sequences."""

    def __init__(self, model: ByteModel, shard: Shard, row: int, answers: Answers | None = None) -> None:
        self.model, self.row, self.split = model, row, shard.split("test")
        self.answers = model.answers if answers is None else answers
        self.sequencer = model.sequencer.answering(self.answers)

    def sample(self, answer: str) -> Sample:
        image = self.split.image_bytes(int(self.split.image_of_question[self.row]))
        return self.sequencer.sample(image, self.split.question[self.row], answer)

    def answer_log_probs(self) -> torch.Tensor:
        """(A,) log p of every answer and its end: of the ids behind its start id up to the padding."""
        samples = [self.sample(answer) for answer in self.answers.names]
        ids = [np.concatenate((sample.prefix, sample.suffix)) for sample in samples]
        lengths = [len(written) for written in self.answers.ids(self.sequencer.config.answer)]
        begins = [len(sample.prefix) + sample.answer_start + 1 for sample in samples]
        log_probs = self.id_log_probs(ids)
        sums = [
            log_probs[row, begin : begin + n].sum() for row, (begin, n) in enumerate(zip(begins, lengths, strict=True))
        ]
        return torch.stack(sums)

    def id_log_probs(self, sequences: Sequence[np.ndarray]) -> torch.Tensor:
        """(n, L) log p of every id of n sequences given those before it; 0 for the first."""
        ids, log_probs = self._forward(sequences)
        taken = log_probs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        return torch.nn.functional.pad(taken, (1, 0))

    def after(self, paths: Sequence[Sequence[int]]) -> torch.Tensor:
        """(n, V) log p of the id that follows the answer's start id and each of the paths."""
        asked = self.sample(self.answers.names[0])
        before = np.concatenate((asked.prefix, asked.suffix[: asked.answer_start + 1]))
        _, log_probs = self._forward([np.concatenate((before, np.array(path, np.int64))) for path in paths])
        last = torch.tensor([len(before) + len(path) - 1 for path in paths])
        return log_probs[torch.arange(len(paths)), last]

    def _forward(self, sequences: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids (n, L), filled up behind, where nothing before looks, and (n, L, V) log p: `t` predicts `t + 1`."""
        ids = torch.full((len(sequences), max(map(len, sequences))), PAD)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        with torch.inference_mode():
            return ids, cast(torch.Tensor, self.model.mblm(ids, MBLMReturnType.LOGITS)).log_softmax(-1)
