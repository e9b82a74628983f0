"""The byte model as a cell of the benchmark: one sequence a question, an image read once for all of its questions.

Shapes: B images, K questions of an image (short rows filled up, `present` says where), n = B·K, A candidates, R bytes
in a patch of the first stage.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mblm import MBLM, LossSums
from mblm.decode import DecodeState, branch, read_prefix, step
from vqa_bench.config import CellConfig, MBLMConfig
from vqa_bench.data.collate import ByteBatch, ByteCollate, prefix_weights, suffix_weights
from vqa_bench.data.sequences import PartWeights, Sequencer
from vqa_bench.data.shards import Shard
from vqa_bench.data.vocab import PAD
from vqa_bench.models.base import VQAModel, answers_of
from vqa_bench.models.hierarchy import begin_bytes, hierarchy_config


class ByteModel(VQAModel):
    """The Multiscale Byte Language Model on one sequence a question, an image read once for all of its questions."""

    blind = False

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        config = cast(MBLMConfig, cell.model)
        self.mblm = MBLM(hierarchy_config(config))
        begin_bytes(self.mblm, config)
        self.sequencer = Sequencer(
            cell.sequence,
            self.mblm.config.patch_size,
            self.mblm.config.context,
            built["image_bytes"],
            answers=self.answers,
        )
        self.candidates = self.answers.ids(cell.sequence.answer)
        self._collate = ByteCollate(self.sequencer)

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        return {"image_bytes": max(info.image_bytes.max for info in shard.manifest.splits.values())} | answers_of(shard)

    def check(self, shard: Shard) -> None:
        infos = shard.manifest.splits.values()
        self.sequencer.image(bytes(max(info.image_bytes.max for info in infos)))
        self.sequencer.answering(shard.answers).check(max(info.question_bytes.max for info in infos))

    @property
    def takes_any_answers(self) -> bool:
        return self.cell.sequence.answer == "text"

    @property
    def collate(self) -> ByteCollate:
        return self._collate

    def forward(self, batch: ByteBatch) -> LossSums:
        return self.loss(batch, self.cell.sequence.weights)

    def loss(self, batch: ByteBatch, parts: PartWeights) -> LossSums:
        """`forward` with these weights of the parts in place of the cell's."""
        weights = suffix_weights(batch, self.sequencer, parts)
        if not self.sequencer.shares_prefix:
            return self.mblm.loss_sums(batch.suffixes.flatten(0, 1), weights.flatten(0, 1))
        trunk = prefix_weights(batch, self.sequencer, parts) if parts.image > 0 else None
        return self.mblm.shared_loss_sums(batch.prefix, batch.suffixes, weights, trunk)

    def ask(self, batch: ByteBatch) -> DecodeState:
        """Read images and questions, nothing of the answers: the state of B·K rows before the answer's start id."""
        R = self.sequencer.patch_size
        limit = int(batch.answer_patches.max()) * R
        positions = torch.arange(limit, device=batch.suffixes.device)
        asked = batch.suffixes[..., :limit].masked_fill(positions >= batch.answer_patches[..., None] * R, PAD)
        if self.sequencer.shares_prefix:
            return branch(self.mblm, read_prefix(self.mblm, batch.prefix), asked, batch.answer_patches)
        rows = asked.flatten(0, 1)
        return branch(self.mblm, read_prefix(self.mblm, rows[:, :0]), rows[:, None], batch.answer_patches.view(-1, 1))

    def step(self, state: DecodeState, ids: Tensor) -> tuple[Tensor, DecodeState]:
        """One more id for every row: logits (n, V) of the id after it, and the new state."""
        return step(self.mblm, state, ids)
