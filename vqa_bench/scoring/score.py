"""Exact log-probabilities of all candidate answers from one reading of the image and the question.

The image is read once for all of its questions, a question once for all of its candidates; then each inner node of the
answer trie is one step of the decoder, a depth at a time. Metrics never ask what kind of model it was.

Shapes: B images, K questions of an image, n = B·K rows, W inner nodes of one depth, A candidates, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqa_bench.data.vocab import END_PART, START_TEXT
from vqa_bench.models import Batch, ByteBatch, ByteModel, Classifier, ClassifierBatch, DecodeState, VQAModel
from vqa_bench.scoring.trie import AnswerTrie


@dataclass(frozen=True)
class Scores:
    """What a model says about each of n questions.

    log_probs: (n, A) natural logs, the raw sum over an answer's ids and its end. greedy: (n,) the candidate that
    constrained next-byte decoding ends in. free: the ids of unconstrained greedy decoding, the end id cut off, or None
    where it did not end. mass: (n,) probability that the candidates have together. The last two are None for models
    that score candidates only.
    """

    log_probs: Tensor
    greedy: Tensor
    free: list[bytes | None] | None = None
    mass: Tensor | None = None

    def cpu(self) -> "Scores":
        """The same in main memory."""
        return Scores(
            self.log_probs.cpu(), self.greedy.cpu(), self.free, None if self.mass is None else self.mass.cpu()
        )


@torch.no_grad()
def score(model: VQAModel, batch: Batch) -> Scores:
    """The scores of all B·K places of a batch; those of places without a question mean nothing."""
    if isinstance(model, ByteModel):
        assert isinstance(batch, ByteBatch)
        return score_answers(model, model.ask(batch), AnswerTrie(model.candidates))
    assert isinstance(model, Classifier)
    assert isinstance(batch, ClassifierBatch)
    log_probs = model.log_probs(batch)
    return Scores(log_probs, log_probs.argmax(-1))


def score_answers(model: ByteModel, asked: DecodeState, trie: AnswerTrie) -> Scores:
    """Score every candidate behind `asked`, n rows that have read everything before the answer's start id."""
    n, device = len(asked.completed), asked.completed.device
    logits, state = model.step(asked, torch.full((n,), START_TEXT, device=device))
    first = (logits, state)
    by_depth = [_log_probs(logits)[:, None]]  # (n, W, V) for each depth
    width = 1
    for level in trie.levels[1:]:
        state = state.select(width, torch.tensor(level.parents, device=device))
        width = len(level.parents)
        logits, state = model.step(state, torch.tensor(level.ids, device=device).repeat(n))
        by_depth.append(_log_probs(logits).unflatten(0, (n, width)))
    log_probs = torch.stack(
        [sum(by_depth[e.depth][:, e.node, e.id] for e in path) for path in trie.paths],  # type: ignore[misc]
        dim=-1,
    )
    free = _free_greedy(model, *first, longest=max(map(len, trie.candidates)))
    return Scores(log_probs, _constrained_greedy(by_depth, trie), free, log_probs.exp().sum(-1))


def _log_probs(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _constrained_greedy(by_depth: list[Tensor], trie: AnswerTrie) -> Tensor:
    """At every node the likeliest id among those that go on in the trie: (n,) the candidate reached."""
    n = by_depth[0].shape[0]
    alive = torch.ones(n, len(trie.paths), dtype=torch.bool, device=by_depth[0].device)
    for depth in range(len(trie.levels)):
        steps = [(a, path[depth]) for a, path in enumerate(trie.paths) if len(path) > depth]
        columns = torch.tensor([a for a, _ in steps], device=alive.device)
        values = torch.stack([by_depth[depth][:, edge.node, edge.id] for _, edge in steps], dim=-1)
        # The candidates alive at one depth share a node, so comparing their edges compares that node's continuations.
        values = values.masked_fill(~alive[:, columns], float("-inf"))
        best = values.amax(-1, keepdim=True)
        keep = (values == best) & (best > float("-inf"))
        unfinished = alive[:, columns].any(-1, keepdim=True)
        alive[:, columns] = torch.where(unfinished, keep & alive[:, columns], alive[:, columns])
    return alive.int().argmax(-1)


def _free_greedy(model: ByteModel, logits: Tensor, state: DecodeState, *, longest: int) -> list[bytes | None]:
    """The likeliest id at every step, whatever it is, until the end id or as many ids as the longest candidate."""
    rows: list[list[int]] = [[] for _ in range(len(logits))]
    ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    for _ in range(longest):
        ids = logits.argmax(-1)
        for row, (id_, done) in enumerate(zip(ids.tolist(), ended.tolist(), strict=True)):
            if not done:
                rows[row].append(id_)
        ended |= ids == END_PART
        if ended.all():
            break
        logits, state = model.step(state, ids)
    return [bytes(row[:-1]) if row[-1] == END_PART and max(row[:-1], default=0) < 256 else None for row in rows]
