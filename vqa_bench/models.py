"""From a cell's configuration to a model that can be trained and asked. The only file that imports mblm and baselines.

A `VQAModel` makes its own batches (`collate`), gives the summed loss of one (`forward`) and either log-probabilities
over the candidates (`log_probs`) or, for byte models, what next-byte decoding needs (`ask`, `step`).

Shapes: B images, K questions of an image (short rows filled up, `present` says where), n = B·K, A candidates,
L ids of the prefix, M ids of the longest suffix, R bytes in a patch of the first stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, cast

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
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import Group
from vqa_bench.data.sequences import Sequencer, candidates
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.data.vocab import ANSWERS, PAD, QUESTION_TYPES, VOCAB_SIZE

ANSWER_INDEX = {answer: index for index, answer in enumerate(ANSWERS)}
MAX_CACHED_BYTES = 1 << 30  # decoded pictures are kept in memory up to this size
MAX_CACHED_TEXTS = 300_000  # questions whose ids are kept, about 2 KB each


@dataclass(frozen=True)
class Batch:
    """present (B, K): which places hold a question. rows (B, K): its row in the split. targets (B, K): its answer."""

    present: Tensor
    rows: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Self:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()})


@dataclass(frozen=True)
class ByteBatch(Batch):
    """prefix (B, L): the image part, L = 0 where the layout shares none. suffixes (B, K, M) and their loss weights.

    answer_patches (B, K): whole patches of each suffix before its answer, at least 1.
    """

    prefix: Tensor
    prefix_weights: Tensor
    suffixes: Tensor
    weights: Tensor
    answer_patches: Tensor


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

    @abstractmethod
    def collate(self, split: SplitReader, groups: Sequence[Group]) -> Batch:
        """A batch on the CPU."""

    @abstractmethod
    def forward(self, batch: Any) -> LossSums:
        """Loss summed over the weighted targets of a batch, and their count."""

    def check(self, shard: Shard) -> None:
        """Raises UserError if something in the shard can never become a batch."""

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def _places(split: SplitReader, groups: Sequence[Group]) -> dict[str, Tensor]:
    """The fields of `Batch`."""
    K = max(len(group.questions) for group in groups)
    rows = np.zeros((len(groups), K), np.int64)
    present = np.zeros((len(groups), K), bool)
    targets = np.zeros((len(groups), K), np.int64)
    for b, group in enumerate(groups):
        count = len(group.questions)
        rows[b, :count], present[b, :count] = group.questions, True
        targets[b, :count] = [ANSWER_INDEX[split.answer[row]] for row in group.questions]
    return {k: torch.from_numpy(v) for k, v in (("present", present), ("rows", rows), ("targets", targets))}


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
        self._texts: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
        self._texts_of: SplitReader | None = None

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        return {"image_bytes": max(info.image_bytes.max for info in shard.manifest.splits.values())}

    def check(self, shard: Shard) -> None:
        self.sequencer.image(bytes(max(info.image_bytes.max for info in shard.manifest.splits.values())))

    def collate(self, split: SplitReader, groups: Sequence[Group]) -> ByteBatch:
        sequencer, places = self.sequencer, _places(split, groups)
        prefix = np.stack([sequencer.image(split.image_bytes(group.image)) for group in groups])
        prefix_weights = sequencer.weights(prefix, "image")
        suffixes, weights, starts = self._suffixes(split, groups, places, prefix)
        if not sequencer.shares_prefix:
            prefix, prefix_weights = prefix[:, :0], prefix_weights[:, :0]
        arrays = (prefix, prefix_weights, suffixes, weights, starts // sequencer.patch_size)
        return ByteBatch(**places, **dict(zip(_BYTE_FIELDS, map(torch.from_numpy, arrays), strict=True)))

    def _suffixes(
        self, split: SplitReader, groups: Sequence[Group], places: dict[str, Tensor], images: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and weights (B, K, M), answers' starts (B, K); a place without a question is one patch of padding."""
        if self._texts_of is not split:
            self._texts, self._texts_of = {}, split
        made = []
        for group, image in zip(groups, images, strict=True):
            for row in group.questions.tolist():
                # Without the image, a question's suffix is the same every epoch.
                suffix = self._texts.get(row)
                if suffix is None:
                    suffix = self.sequencer.suffix(split.question[row], split.answer[row], image)
                    if self.sequencer.shares_prefix and len(self._texts) < MAX_CACHED_TEXTS:
                        self._texts[row] = suffix
                made.append(suffix)
        present = places["present"].numpy()
        M = max(len(ids) for ids, _, _ in made)
        suffixes = np.full((*present.shape, M), PAD, np.int64)
        weights = np.zeros(suffixes.shape, np.float32)
        starts = np.full(present.shape, self.sequencer.patch_size, np.int64)
        for b, k, (ids, weight, start) in zip(*np.nonzero(present), made, strict=True):
            suffixes[b, k, : len(ids)], weights[b, k, : len(ids)], starts[b, k] = ids, weight, start
        return suffixes, weights, starts

    def forward(self, batch: ByteBatch) -> LossSums:
        if not self.sequencer.shares_prefix:
            return self.mblm.loss_sums(batch.suffixes.flatten(0, 1), batch.weights.flatten(0, 1))
        trunk = None
        if self.cell.sequence.weights.image > 0:
            trunk = batch.prefix_weights[:, None] * batch.present[..., None]
        return self.mblm.shared_loss_sums(batch.prefix, batch.suffixes, batch.weights, trunk)

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


_BYTE_FIELDS = ("prefix", "prefix_weights", "suffixes", "weights", "answer_patches")


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

    def collate(self, split: SplitReader, groups: Sequence[Group]) -> ClassifierBatch:
        places = _places(split, groups)
        rows, present = places["rows"], places["present"]
        tokens, lengths = self.words.encode([split.question[row] for row in rows.flatten().tolist()])
        lengths = lengths.view_as(rows) * present
        images = None
        if not self.blind:
            pictures = np.stack([self._picture(split, group.image) for group in groups])
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        types = [split.question_type[row] for row in rows.flatten().tolist()]
        return ClassifierBatch(
            **places, tokens=tokens.unflatten(0, rows.shape), lengths=lengths, images=images, types=types
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
        answers = torch.tensor([ANSWER_INDEX[answer] for answer in split.answer])
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
