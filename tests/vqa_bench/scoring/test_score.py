"""Trie scores against separate full forwards, for every layout and form of answer, and what follows from them."""

import numpy as np
import pytest
import torch

from tests.vqa_bench.cells import make_shard
from tests.vqa_bench.scoring.full_forward import SHAPES, FullForward, byte_model
from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.data.vocab import ANSWERS, END_PART
from vqa_bench.models import ByteModel
from vqa_bench.scoring.score import Scores, _constrained_greedy, _Steps, score
from vqa_bench.scoring.trie import AnswerTrie, answer_trie

ROW = 7  # the third question of the second image
# What is tested of each shape every time: together every layout, every form of answer, every family of stages.
QUICK: dict[str, list[tuple[str, str]]] = {
    "T/T, an answer a patch": [("iqa", "text"), ("iqa", "letter"), ("qia", "letter"), ("qiqa", "text")],
    "T/T, crossing": [("iqa", "text"), ("iqa", "letter"), ("qia", "text"), ("qiqa", "letter")],
    "S/T, crossing": [("iqa", "text"), ("qia", "letter")],
    "S/S, crossing": [("iqa", "letter"), ("qiqa", "text")],
    "S/T/T, crossing": [("iqa", "text"), ("qiqa", "letter")],
    "T/S/S, crossing": [("qia", "text"), ("iqa", "letter")],
    "T": [("iqa", "letter"), ("qia", "text")],
    "S": [("qiqa", "letter")],
}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("score"))


def scored(shard: Shard, model: ByteModel, *, images: int = 2, answers: Answers | None = None) -> Scores:
    split = shard.split("test")
    with torch.inference_mode():
        return score(model, model.collate(split, evaluation_groups(split)[:images]), answers)


COMBINATIONS = [
    pytest.param(shape, layout, answer, marks=[] if (layout, answer) in QUICK[shape] else [pytest.mark.slow])
    for shape in SHAPES
    for layout in ("iqa", "qia", "qiqa")
    for answer in ("text", "letter")
]


@pytest.mark.parametrize(("shape", "layout", "answer"), COMBINATIONS)
def test_trie_scores_equal_full_forwards(shard: Shard, shape: str, layout: str, answer: str) -> None:
    # Aligned or not, by turns, so that each layout and form of answer meets both.
    align = (list(SHAPES).index(shape) + (answer == "text")) % 2 == 0
    model = byte_model(shard, shape, layout=layout, answer=answer, align=align)
    scores = scored(shard, model)
    expected = FullForward(model, shard, ROW).answer_log_probs()
    torch.testing.assert_close(scores.log_probs[ROW], expected, rtol=0, atol=1e-9)
    assert scores.mass is not None
    torch.testing.assert_close(scores.mass, scores.log_probs.exp().sum(-1))
    assert ((scores.mass > 0) & (scores.mass < 1)).all()


def test_float32_is_near_enough(shard: Shard) -> None:
    """And some answers by forwards of their own."""
    model = byte_model(shard, "S/T/T, crossing", answer="text").float()
    got = scored(shard, model).log_probs[ROW]
    full = FullForward(model, shard, ROW)
    for place, answer in list(enumerate(ANSWERS))[::9]:
        sample = full.sample(answer)
        log_probs = full.id_log_probs([np.concatenate((sample.prefix, sample.suffix))])[0]
        weighted = len(sample.prefix) + np.flatnonzero(sample.suffix_weights)
        assert float(got[place]) == pytest.approx(float(log_probs[weighted].sum()), abs=1e-4)


def leaving(full: FullForward, candidates: list[tuple[int, ...]]) -> float:
    """The probability of ever going where no candidate goes on: node by node, each by a full forward."""
    inner = sorted({candidate[:depth] for candidate in candidates for depth in range(len(candidate))})
    after = dict(zip(inner, full.after(inner).exp(), strict=True))

    def leaving_from(node: tuple[int, ...]) -> float:
        steps = {candidate[len(node)] for candidate in candidates if candidate[: len(node)] == node}
        left = sum(float(p) for id_, p in enumerate(after[node]) if id_ not in steps)
        return left + sum(
            float(after[node][id_]) * leaving_from((*node, id_)) for id_ in steps if (*node, id_) not in candidates
        )

    return leaving_from(())


@pytest.mark.parametrize(
    ("shape", "answer"),
    [
        ("T/T, crossing", "text"),
        ("S/T/T, crossing", "letter"),
        pytest.param("S/T/T, crossing", "text", marks=pytest.mark.slow),
        pytest.param("S", "text", marks=pytest.mark.slow),
        pytest.param("T", "letter", marks=pytest.mark.slow),
    ],
)
def test_candidates_and_leaving_the_trie_are_everything(shard: Shard, shape: str, answer: str) -> None:
    model = byte_model(shard, shape, answer=answer)
    scores, full = scored(shard, model), FullForward(model, shard, ROW)
    assert scores.mass is not None
    assert float(scores.mass[ROW]) + leaving(full, CLEVR_ANSWERS.ids(answer)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("shape", "answer"), [("T/T, crossing", "text"), ("S/S, crossing", "letter")])
def test_constrained_greedy_takes_the_best_step_each_time(shard: Shard, shape: str, answer: str) -> None:
    model = byte_model(shard, shape, answer=answer)
    scores = scored(shard, model)
    candidates = CLEVR_ANSWERS.ids(answer)
    for row in (0, ROW):
        full, path = FullForward(model, shard, row), ()
        while path not in candidates:
            steps = {candidate[len(path)] for candidate in candidates if candidate[: len(path)] == path}
            after = full.after([path])[0]
            path = (*path, max(steps, key=lambda id_: float(after[id_])))
        assert candidates[int(scores.greedy[row])] == path


@pytest.mark.parametrize("end", [0.0, 0.7, 9.0])
def test_free_greedy_takes_any_id(shard: Shard, end: float) -> None:
    """The higher the end id's logit, the sooner answers end: never, in time or not, at once."""
    model = byte_model(shard, "T/T, crossing", answer="text")
    with torch.no_grad():
        model.mblm.to_logits.bias[END_PART] += end
    free = scored(shard, model).free
    assert free is not None
    for row in (0, ROW):
        full, path = FullForward(model, shard, row), []
        while len(path) < len("cylinder") + 1 and END_PART not in path:
            path.append(int(full.after([path])[0].argmax()))
        is_text = path[-1] == END_PART and all(id_ < 256 for id_ in path[:-1])
        assert free[row] == (bytes(path[:-1]) if is_text else None)
    assert (b"" in free) == (end == 9)


def test_of_equal_steps_the_earliest_candidate_is_taken() -> None:
    trie = AnswerTrie([(1, 5, 9), (1, 6, 9), (2, 5, 9), (2, 9)])
    tied, low = -1.0, -2.0
    log_probs = {0: [tied, tied, tied, tied], 1: [low, tied, tied, low], 2: [tied, tied, tied]}
    steps = [
        _Steps(
            torch.tensor(level.candidates),
            torch.tensor(level.nodes) * 10 + torch.tensor(level.steps),
            torch.tensor([log_probs[depth]]),
        )
        for depth, level in enumerate(trie.levels)
    ]
    # 1 before 2, then 6 as the likelier behind it; (2, 5, 9) has the same sum but is behind the other node.
    assert _constrained_greedy(steps, torch.zeros(1, 4)).tolist() == [1]


def test_scores_do_not_depend_on_the_batch(shard: Shard) -> None:
    model = byte_model(shard, "T/T, crossing", answer="text")
    together, fewer = scored(shard, model, images=3), scored(shard, model, images=1)
    torch.testing.assert_close(together.log_probs[:5], fewer.log_probs, rtol=0, atol=1e-12)


def test_the_right_answer_is_never_read(shard: Shard) -> None:
    model = byte_model(shard, "T/T, crossing", answer="text")
    split = shard.split("test")
    batch = model.collate(split, evaluation_groups(split)[:2])
    positions = torch.arange(batch.suffixes.shape[-1])
    spoiled = batch.suffixes.masked_fill(positions >= batch.answer_patches[..., None] * model.sequencer.patch_size, 65)
    with torch.inference_mode():
        again = score(model, type(batch)(**(vars(batch) | {"suffixes": spoiled})))
    assert torch.equal(again.log_probs, scored(shard, model).log_probs)


@pytest.mark.parametrize("layout", ["iqa", "qia"])
def test_other_candidates(shard: Shard, layout: str) -> None:
    """One begins another, one has two bytes a letter, one is longer than every answer of CLEVR's."""
    answers = Answers(("reddish", "red", "größe", "a long way off to the left", "ja", "yes"))
    model = byte_model(shard, "T/T, crossing", layout=layout, answer="text")
    scores = scored(shard, model, answers=answers)
    full = FullForward(model, shard, ROW, answers)
    torch.testing.assert_close(scores.log_probs[ROW], full.answer_log_probs(), rtol=0, atol=1e-9)
    assert scores.mass is not None
    mass = float(scores.mass[ROW]) + leaving(full, answers.ids("text"))
    assert mass == pytest.approx(1, abs=1e-5)


def test_trie_of_the_28_text_answers() -> None:
    candidates = CLEVR_ANSWERS.ids("text")
    trie = AnswerTrie(candidates)
    assert trie.inner_nodes == 83
    assert trie.longest == len("cylinder") + 1
    nodes = [node for level in trie.levels for node in zip(level.nodes, level.steps, strict=True)]
    assert len(nodes) == sum(map(len, candidates))
    branching = 0
    for level in trie.levels:
        following: dict[int, set[int]] = {}
        for node, id_ in zip(level.nodes, level.steps, strict=True):
            following.setdefault(node, set()).add(id_)
        assert following.keys() == set(range(len(level.parents)))
        branching += sum(len(ids) > 1 for ids in following.values())
    assert branching == 9
    assert answer_trie(tuple(candidates)) is answer_trie(tuple(CLEVR_ANSWERS.ids("text")))


@pytest.mark.parametrize("candidates", [[(1, 2), (1,)], [(1, 2), (1, 2)], [()], [(1,), ()]])
def test_candidates_that_make_no_trie(candidates: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="none of which begins another"):
        AnswerTrie(candidates)
