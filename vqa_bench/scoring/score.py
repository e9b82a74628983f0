"""Exact log-probabilities of all candidate answers from one reading of the image and the question.

The image is read once for all of its questions, a question once for all of its candidates; then each inner node of the
answer trie is one step of the decoder, a depth at a time. Metrics never ask what kind of model it was.

Shapes: B images, K questions of an image, n = B·K rows, W inner nodes of one depth, A candidates, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vqa_bench.data.answers import Answers
from vqa_bench.data.vocab import END_PART, START_TEXT
from vqa_bench.models import Batch, ByteBatch, ByteModel, Classifier, ClassifierBatch, DecodeState, VQAModel
from vqa_bench.scoring.trie import AnswerTrie, answer_trie


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

    def cpu(self) -> Scores:
        """The same in main memory."""
        return Scores(
            self.log_probs.cpu(), self.greedy.cpu(), self.free, None if self.mass is None else self.mass.cpu()
        )

    def where(self, present: Tensor) -> Scores:
        """Those of the questions that `present` (n,) is true for."""
        free = self.free
        if free is not None:
            free = [answer for answer, there in zip(free, present.tolist(), strict=True) if there]
        mass = None if self.mass is None else self.mass[present]
        return Scores(self.log_probs[present], self.greedy[present], free, mass)


@torch.no_grad()
def score(model: VQAModel, batch: Batch, answers: Answers | None = None) -> Scores:
    """The scores of all B·K places of a batch; those of places without a question mean nothing.

    answers: the candidates, None for the model's own; others than these a byte model only can score.
    """
    if isinstance(model, ByteModel):
        assert isinstance(batch, ByteBatch)
        candidates = (model.answers if answers is None else answers).ids(model.cell.sequence.answer)
        return score_answers(model, model.ask(batch), answer_trie(tuple(candidates)))
    assert isinstance(model, Classifier)
    assert isinstance(batch, ClassifierBatch)
    assert answers in (None, model.answers), "a classifier has a logit for each of its own answers"
    log_probs = model.log_probs(batch)
    return Scores(log_probs, log_probs.argmax(-1))


class _Steps(NamedTuple):
    """log p (n, C) of what C candidates go on with at one depth; `edges` (C,): equal where the step is the same."""

    candidates: Tensor
    edges: Tensor
    log_probs: Tensor


def score_answers(model: ByteModel, asked: DecodeState, trie: AnswerTrie) -> Scores:
    """Score every candidate behind `asked`, n rows that have read everything before the answer's start id."""
    n, device = len(asked.completed), asked.completed.device
    logits, state = model.step(asked, torch.full((n,), START_TEXT, device=device))
    first = (logits, state)
    steps: list[_Steps] = []
    width = 1
    for depth, level in enumerate(trie.levels):
        if depth > 0:
            state = state.select(width, torch.tensor(level.parents, device=device))
            width = len(level.parents)
            logits, state = model.step(state, torch.tensor(level.ids, device=device).repeat(n))
        nodes, ids = torch.tensor(level.nodes, device=device), torch.tensor(level.steps, device=device)
        candidates = torch.tensor(level.candidates, device=device)
        steps.append(
            _Steps(candidates, nodes * logits.shape[-1] + ids, _taken(logits.unflatten(0, (n, width)), nodes, ids))
        )
    log_probs = torch.zeros(n, len(trie.candidates), dtype=torch.double, device=device)
    for step in steps:
        log_probs[:, step.candidates] += step.log_probs
    free = _free_greedy(model, *first, longest=trie.longest)
    return Scores(log_probs, _constrained_greedy(steps, log_probs), free, log_probs.exp().sum(-1))


def _taken(logits: Tensor, nodes: Tensor, ids: Tensor) -> Tensor:
    """(n, C) log p of going on with `ids` (C,) at `nodes` (C,), from the logits (n, W, V) of every node.

    No more is computed than is asked for: of the many (n, W, V) only the normaliser.
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return wide[:, nodes, ids].double() - wide.logsumexp(-1)[:, nodes].double()


def _constrained_greedy(steps: list[_Steps], log_probs: Tensor) -> Tensor:
    """At every node the likeliest id among those that go on in the trie: (n,) the candidate reached.

    Of steps that are equally likely the one of the earliest candidate.
    """
    alive = torch.ones_like(log_probs, dtype=torch.bool)
    for step in steps:
        # The candidates alive at one depth share a node, so comparing their steps compares that node's continuations.
        going_on = alive[:, step.candidates]
        values = step.log_probs.masked_fill(~going_on, float("-inf"))
        chosen = step.edges[values.argmax(-1)]
        unfinished = going_on.any(-1, keepdim=True)
        alive[:, step.candidates] = torch.where(unfinished, going_on & (step.edges == chosen[:, None]), going_on)
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
