"""Trie scores against separate full forwards, for every layout and form of answer, and what follows from them."""

from typing import cast

import numpy as np
import pytest
import torch

from mblm import MBLMReturnType
from tests.vqa_bench.cells import BYTE_MODEL, make_cell, make_model, make_shard
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.data.vocab import ANSWERS
from vqa_bench.models import ByteModel
from vqa_bench.scoring.score import Scores, score
from vqa_bench.scoring.trie import AnswerTrie


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("score"))


# A patch of 4 bytes makes text answers cross patch borders, one of 12 does not; 1 stage has patches of one byte.
SHAPES = {
    "one patch": {},
    "crossing": {"seq_lens": [180, 4]},
    "three stages": {
        "hidden_dims": [16, 8, 8],
        "seq_lens": [90, 2, 4],
        "num_layers": [1, 1, 1],
        "stages": [{"heads": 1, "head_dim": 8}] * 3,
    },
    "one stage": {
        "hidden_dims": [16],
        "seq_lens": [640],
        "num_layers": [1],
        "stages": [{"heads": 2, "head_dim": 8}],
    },
}


def scored(shard: Shard, shape: str, *, images: int = 2, **sequence: object) -> tuple[ByteModel, Scores]:
    model = make_model(make_cell(BYTE_MODEL | SHAPES[shape], sequence=sequence), shard)
    split = shard.split("test")
    assert isinstance(model, ByteModel)
    with torch.inference_mode():
        return model, score(model, model.collate(split, evaluation_groups(split)[:images]))


def full_log_prob(model: ByteModel, shard: Shard, row: int, answer: str) -> float:
    """log p of an answer and its end by one full forward of the whole sequence."""
    split = shard.split("test")
    image = split.image_bytes(int(split.image_of_question[row]))
    sample = model.sequencer.sample(image, split.question[row], answer)
    ids = torch.from_numpy(np.concatenate((sample.prefix, sample.suffix)))[None]
    logits = cast(torch.Tensor, model.mblm(ids, MBLMReturnType.LOGITS)).log_softmax(-1)
    weighted = len(sample.prefix) + np.flatnonzero(sample.suffix_weights)
    return sum(float(logits[0, t - 1, ids[0, t]]) for t in weighted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["iqa", "qia", "qiqa"])
@pytest.mark.parametrize("answer", ["text", "letter"])
@torch.inference_mode()
def test_trie_scores_equal_full_forwards(shard: Shard, shape: str, layout: str, answer: str) -> None:
    model, scores = scored(shard, shape, layout=layout, answer=answer)
    for row in (0, 7):  # the first question of the first image, the third of the second
        expected = [full_log_prob(model, shard, row, candidate) for candidate in ANSWERS]
        torch.testing.assert_close(scores.log_probs[row], torch.tensor(expected, dtype=torch.float64))
    assert scores.mass is not None
    torch.testing.assert_close(scores.mass, scores.log_probs.exp().sum(-1))
    assert ((scores.mass > 0) & (scores.mass < 1)).all()


@pytest.mark.parametrize("answer", ["text", "letter"])
def test_scores_do_not_depend_on_the_batch(shard: Shard, answer: str) -> None:
    _, together = scored(shard, "crossing", images=6, answer=answer)
    _, fewer = scored(shard, "crossing", images=1, answer=answer)
    torch.testing.assert_close(together.log_probs[:5], fewer.log_probs, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_constrained_greedy_takes_the_best_step_each_time(shard: Shard) -> None:
    model, scores = scored(shard, "one patch", answer="text")
    trie = AnswerTrie(model.candidates)
    # By definition: among the candidates still alive, go where the next id is likeliest given the ids so far.
    mass = scores.log_probs.exp()
    for row, reached in enumerate(scores.greedy.tolist()):
        alive = list(range(len(ANSWERS)))
        for depth in range(len(trie.candidates[reached])):
            assert reached in alive
            steps = {trie.candidates[a][depth] for a in alive}
            chosen = trie.candidates[reached][depth]
            best = max(steps, key=lambda i: _edge(model, shard, row, trie.candidates[reached][:depth], i))
            assert chosen == best
            alive = [a for a in alive if trie.candidates[a][depth] == chosen]
        assert alive == [reached]
    assert mass.shape == (10, len(ANSWERS))


def _edge(model: ByteModel, shard: Shard, row: int, path: tuple[int, ...], id_: int) -> float:
    """log p of one more id after a path of answer ids, by a full forward."""
    split = shard.split("test")
    sample = model.sequencer.sample(split.image_bytes(int(split.image_of_question[row])), split.question[row], "no")
    ids = np.concatenate((sample.prefix, sample.suffix[: sample.answer_start + 1], path)).astype(np.int64)
    logits = cast(torch.Tensor, model.mblm(torch.from_numpy(ids)[None], MBLMReturnType.LOGITS))
    return float(logits[0, -1].log_softmax(-1)[id_])


def test_the_right_answer_is_never_read(shard: Shard) -> None:
    model, scores = scored(shard, "crossing", answer="text")
    split = shard.split("test")
    batch = model.collate(split, evaluation_groups(split)[:2])
    R = model.sequencer.patch_size
    spoiled = batch.suffixes.clone()
    positions = torch.arange(spoiled.shape[-1])
    spoiled[positions >= batch.answer_patches[..., None] * R] = 65
    with torch.inference_mode():
        again = score(model, type(batch)(**(batch.__dict__ | {"suffixes": spoiled})))
    assert torch.equal(again.log_probs, scores.log_probs)


def test_trie_of_the_28_text_answers() -> None:
    trie = AnswerTrie([(*answer.encode(), 259) for answer in ANSWERS])
    assert trie.inner_nodes == 83
    children: dict[tuple[int, int], set[int]] = {}
    for path in trie.paths:
        for edge in path:
            children.setdefault((edge.depth, edge.node), set()).add(edge.id)
    assert sum(len(ids) > 1 for ids in children.values()) == 9
    with pytest.raises(ValueError, match="none of which begins another"):
        AnswerTrie([(1, 2), (1,)])
