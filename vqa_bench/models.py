"""From a cell's configuration to a model that can be trained and asked. The only file that imports mblm and baselines.

A `VQAModel` makes its own batches (`collate`), gives the summed loss of one (`forward`) and either log-probabilities
over the candidates (`log_probs`) or, for byte models, what next-byte decoding needs (`ask`, `step`).

Shapes: B images, K questions of an image (short rows filled up, `present` says where), n = B·K, A candidates, R bytes
in a patch of the first stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.cnn_lstm import CNNLSTM
from baselines.lstm import QuestionLSTM
from baselines.majority import Majority
from baselines.text import WordVocabulary
from mblm import MBLM, LossSums, MBLMModelConfig, StageBlock, TransformerBlock
from mblm.decode import DecodeState, branch, read_prefix, step
from mblm.model.embedding import smooth_init_
from vqa_bench.config import CellConfig, CNNLSTMConfig, LSTMConfig, MajorityConfig, MBLMConfig
from vqa_bench.data.collate import Batch, ByteBatch, ByteCollate, places, prefix_weights, suffix_weights
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import Group
from vqa_bench.data.questions import questions_of
from vqa_bench.data.sequences import Sequencer, candidates
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.data.vocab import ANSWERS, PAD, QUESTION_TYPES, VOCAB_SIZE

MAX_CACHED_BYTES = 1 << 30  # decoded pictures are kept in memory up to this size


@dataclass(frozen=True)
class ClassifierBatch(Batch):
    """tokens (B, K, T) word ids with lengths (B, K), 0 where absent; images (B, 3, H, W) in [0, 1]; question types."""

    tokens: Tensor
    lengths: Tensor
    images: Tensor | None
    types: list[str]


class VQAModel(nn.Module, ABC):
    """Everything that answers. `built` is what the training data decided (JSON-able), saved beside the weights."""

    blind: ClassVar[bool]

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__()
        self.cell, self.built = cell, built

    @classmethod
    @abstractmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        """What the data decides about the model, for `built`."""

    @property
    @abstractmethod
    def collate(self) -> Callable[[SplitReader, Sequence[Group]], Batch]:
        """Makes a batch on the CPU. It is what a worker process is sent, so weights should not hang on it."""

    @abstractmethod
    def forward(self, batch: Any) -> LossSums:
        """Loss summed over the weighted targets of a batch, and their count."""

    def check(self, shard: Shard) -> None:
        """Raises UserError if something in the shard can never become a batch."""

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class ByteModel(VQAModel):
    """The Multiscale Byte Language Model on one sequence a question, an image read once for all of its questions."""

    blind = False

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        config = cast(MBLMConfig, cell.model)
        self.mblm = MBLM(_model_config(config))
        if config.byte_init == "smooth":
            for table in self.mblm.token_embs_rev:
                smooth_init_(cast(nn.Embedding, table.embedding))
        self.sequencer = Sequencer(
            cell.sequence, self.mblm.config.patch_size, self.mblm.config.context, built["image_bytes"]
        )
        self.candidates = candidates(cell.sequence.answer)
        self._collate = ByteCollate(self.sequencer)

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        return {"image_bytes": max(info.image_bytes.max for info in shard.manifest.splits.values())}

    def check(self, shard: Shard) -> None:
        self.sequencer.image(bytes(max(info.image_bytes.max for info in shard.manifest.splits.values())))

    @property
    def collate(self) -> ByteCollate:
        return self._collate

    def forward(self, batch: ByteBatch) -> LossSums:
        weights = suffix_weights(batch, self.sequencer)
        if not self.sequencer.shares_prefix:
            return self.mblm.loss_sums(batch.suffixes.flatten(0, 1), weights.flatten(0, 1))
        trunk = prefix_weights(batch, self.sequencer) if self.cell.sequence.weights.image > 0 else None
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


def _model_config(config: MBLMConfig) -> MBLMModelConfig:
    blocks: list[StageBlock] = [
        TransformerBlock(
            attn_head_dims=stage.head_dim,
            attn_num_heads=stage.heads,
            attn_use_rot_embs=stage.rotary,
            attn_dropout=stage.dropout,
            ff_multiplier=stage.ff_multiplier,
            ff_dropout=stage.dropout,
            pos_emb_type=stage.positions,
        )
        for stage in config.stages
    ]
    return MBLMModelConfig(
        num_tokens=VOCAB_SIZE,
        pad_token_id=PAD,
        hidden_dims=config.hidden_dims,
        seq_lens=config.seq_lens,
        num_layers=config.num_layers,
        block=blocks,
    )


class Classifier(VQAModel):
    """A baseline that gives a logit a candidate: words, and for a sighted one the decoded picture."""

    net: nn.Module

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        self.words = WordVocabulary.from_dict(built["words"])
        self._pictures: dict[int, np.ndarray] = {}
        self._pictures_of: SplitReader | None = None

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        train = shard.split("train")
        built: dict[str, Any] = {"words": WordVocabulary.build(train.question).to_dict()}
        if cell.encoding is not None:
            picture = parse_spec(cell.encoding).decode(train.image_bytes(0).tobytes())
            built["image_size"] = [picture.height, picture.width]
        return built

    @property
    def collate(self) -> Callable[[SplitReader, Sequence[Group]], ClassifierBatch]:
        return self._batch

    def _batch(self, split: SplitReader, groups: Sequence[Group]) -> ClassifierBatch:
        found = places(split, groups)
        rows, present = found["rows"], found["present"]
        tokens, lengths = self.words.encode([split.question[row] for row in rows.flatten().tolist()])
        lengths = lengths.view_as(rows) * present
        images = None
        if not self.blind:
            pictures = np.stack([self._picture(split, group.image) for group in groups])
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        types = [split.question_type[row] for row in rows.flatten().tolist()]
        return ClassifierBatch(
            **found, tokens=tokens.unflatten(0, rows.shape), lengths=lengths, images=images, types=types
        )

    def forward(self, batch: ClassifierBatch) -> LossSums:
        logits, targets = self._logits(batch)[batch.present], batch.targets[batch.present]
        return LossSums(F.cross_entropy(logits, targets, reduction="sum"), batch.present.sum())

    def log_probs(self, batch: ClassifierBatch) -> Tensor:
        """(B·K, A) natural logs."""
        return self._logits(batch).flatten(0, 1).double().log_softmax(-1)

    @abstractmethod
    def _logits(self, batch: ClassifierBatch) -> Tensor:
        """(B, K, A)."""

    def _picture(self, split: SplitReader, row: int) -> np.ndarray:
        """The decoded picture (H, W, 3) uint8, kept while all of them fit."""
        if self._pictures_of is not split:
            self._pictures, self._pictures_of = {}, split
        if row not in self._pictures:
            spec = parse_spec(cast(str, self.cell.encoding))
            picture = np.asarray(spec.decode(split.image_bytes(row).tobytes()))
            if picture.nbytes * len(split) > MAX_CACHED_BYTES:
                return picture
            self._pictures[row] = picture
        return self._pictures[row]


class CNNLSTMModel(Classifier):
    """CNN over the picture, LSTM over the question."""

    blind = False

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        options = cast(CNNLSTMConfig, cell.model).model_dump(exclude={"kind"})
        height, width = built["image_size"]
        self.net = CNNLSTM(vocab_size=len(self.words), num_answers=len(ANSWERS), image_size=(height, width), **options)

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        return cast(Tensor, self.net(batch.images, batch.tokens, batch.lengths))


class LSTMModel(Classifier):
    """The question alone."""

    blind = True

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        options = cast(LSTMConfig, cell.model).model_dump(exclude={"kind"})
        self.net = QuestionLSTM(vocab_size=len(self.words), num_answers=len(ANSWERS), **options)

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        logits = self.net(batch.tokens.flatten(0, 1), batch.lengths.flatten())
        return cast(Tensor, logits.unflatten(0, batch.lengths.shape))


class MajorityModel(Classifier):
    """Counted, not trained: `fit` instead of steps."""

    blind = True

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        per_type = cast(MajorityConfig, cell.model).per_type
        self.net = Majority(len(ANSWERS), QUESTION_TYPES if per_type else None)

    def fit(self, split: SplitReader) -> None:
        """Count the answers of a split."""
        answers = torch.from_numpy(questions_of(split).answers.astype(np.int64))
        cast(Majority, self.net).update(split.question_type, answers)

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        return cast(Tensor, self.net(batch.types)).unflatten(0, batch.present.shape)


MODELS: dict[str, type[VQAModel]] = {
    "mblm": ByteModel,
    "cnn_lstm": CNNLSTMModel,
    "lstm": LSTMModel,
    "majority": MajorityModel,
}


def build(cell: CellConfig, built: dict[str, Any]) -> VQAModel:
    """A fresh model of a cell, with what the data decided about it."""
    return MODELS[cell.model.kind](cell, built)
