"""Prompts, candidates and generation against the full forward, one byte at a time; properties over random models."""

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mblm import MBLM, MBLMReturnType
from mblm.decode import branch, enter_patch, prefill, read_prefix, score_continuations, step
from mblm.sampling import Sampler, choose_sampler
from mblm.utils.stream import ByteStreamer
from tests.mblm.reference import build, plain_predictions, stages
from tests.mblm.test_decode import RunningBlock
from tests.mblm.test_mblm import random_ids

MODELS = [([60], "T"), ([60], "S"), ([16, 4], "TT"), ([16, 4], "ST"), ([16, 4], "TS"), ([8, 2, 4], "STT")]


def recomputed(model: MBLM, prompt: Tensor, count: int) -> Tensor:
    """Greedy generation by the whole forward for every byte."""
    ids = prompt[None]
    for _ in range(count):
        logits = model(ids, MBLMReturnType.LOGITS)[:, -1]
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return ids[0]


@pytest.mark.parametrize(("seq_lens", "letters"), MODELS, ids=str)
@torch.no_grad()
def test_prompts_of_any_lengths_together(seq_lens: list[int], letters: str) -> None:
    model = build(seq_lens, block=stages(letters))
    R = model.patch_bytes[0]
    prompts = [random_ids(length, seed=length) for length in (0, 1, R, R + 1, 2 * R + 3, 3 * R, 5)]
    together = model.generate(prompts, num_tokens_to_generate=9, enable_progress=False)
    for prompt, made in zip(prompts, together, strict=True):
        expected = recomputed(model, prompt, 9)
        assert torch.equal(made, expected), len(prompt)
        assert torch.equal(model.generate(prompt, num_tokens_to_generate=9, enable_progress=False), expected)


@torch.no_grad()
def test_a_custom_block_without_steps_generates() -> None:
    model = build([16, 4], block=[RunningBlock()] * 2)
    prompts = [random_ids(6), random_ids(9)]
    for prompt, made in zip(prompts, model.generate(prompts, num_tokens_to_generate=7), strict=True):
        assert torch.equal(made, recomputed(model, prompt, 7))


@pytest.mark.parametrize(("seq_lens", "letters"), MODELS, ids=str)
@torch.no_grad()
def test_candidates_score_as_in_the_full_forward(seq_lens: list[int], letters: str) -> None:
    model = build(seq_lens, block=stages(letters))
    R = model.patch_bytes[0]
    candidates, lengths = random_ids(5, 7, seed=9), torch.tensor([1, 2, 7, 4, 6])
    candidates[2, 3] = model.pad_token_id  # an id like any other once it is asked for
    for read in (1, R, R + 1, 2 * R, 2 * R + R // 2 + 1):
        ids = random_ids(2, read, seed=read)
        logits, state = prefill(model, ids)
        torch.testing.assert_close(logits, model(ids, MBLMReturnType.LOGITS)[:, -1])
        scores = score_continuations(model, state, candidates, lengths)
        for a, (candidate, length) in enumerate(zip(candidates, lengths, strict=True)):
            whole = torch.cat((ids, candidate[:length].expand(2, -1)), dim=1)
            log_probs = plain_predictions(model, whole).log_softmax(-1)[:, read:]
            expected = log_probs.gather(2, whole[:, read:, None]).sum((1, 2))
            torch.testing.assert_close(scores[:, a], expected)


@st.composite
def hierarchies(draw: st.DrawFn) -> MBLM:
    """One to three stages of any kinds and odd sizes."""
    N = draw(st.integers(1, 3))
    blocks = []
    for _ in range(N):
        positions = draw(st.sampled_from([None, "fixed", "rope"]))
        rotary = draw(st.booleans())
        head = draw(st.sampled_from([2, 6])) if rotary else draw(st.integers(1, 5))
        transformer = {"attn_head_dims": head, "attn_num_heads": draw(st.integers(1, 3)), "attn_use_rot_embs": rotary}
        mamba = {"d_state": draw(st.integers(1, 6)), "d_conv": draw(st.integers(1, 5)), "expand": 2}
        mamba["headdim"] = draw(st.sampled_from([1, 2, 4]))
        blocks.append(draw(st.sampled_from([transformer, mamba])) | {"pos_emb_type": positions})
    later = [draw(st.integers(1, 5)) for _ in range(N - 1)]
    return build(
        [-(-40 // math.prod(later)), *later],
        seed=draw(st.integers(0, 1000)),
        block=blocks,
        hidden_dims=[draw(st.sampled_from([2, 4, 6, 10])) for _ in range(N)],
        num_layers=[draw(st.integers(1, 2)) for _ in range(N)],
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(hierarchies(), st.integers(0, 24), st.integers(1, 12), st.integers(1, 3))
@torch.no_grad()
def test_any_hierarchy_decodes_as_its_full_forward(model: MBLM, read: int, more: int, rows: int) -> None:
    ids = random_ids(rows, read + more, seed=read)
    expected = plain_predictions(model, ids)
    torch.testing.assert_close(model(ids, MBLMReturnType.LOGITS)[:, :-1], expected[:, 1:])
    logits, state = prefill(model, ids[:, :read])
    if read == 0:
        torch.testing.assert_close(logits, model.forward_empty(rows)[:, 0])
    for t in range(read, read + more):
        if t > 0:
            torch.testing.assert_close(logits, expected[:, t], msg=lambda text, t=t: f"byte {t}: {text}")
        logits, state = step(model, state, ids[:, t])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(hierarchies(), st.lists(st.integers(0, 3), min_size=2, max_size=3), st.data())
@torch.no_grad()
def test_rows_of_different_lengths_and_their_branches(model: MBLM, counts: list[int], data: st.DataObject) -> None:
    R = model.patch_bytes[0]
    prefixes = random_ids(len(counts), 3 * R)
    state = read_prefix(model, prefixes, torch.tensor(counts))
    patches = torch.tensor([[data.draw(st.integers(1, 2)) for _ in range(2)] for _ in counts])
    suffixes = random_ids(len(counts), 2, 2 * R, seed=2)
    state = branch(model, state, suffixes, patches)
    tail = random_ids(len(counts) * 2, min(R, 3), seed=3)
    logits, state = enter_patch(model, state, tail)
    for row in range(len(tail)):
        at, k = divmod(row, 2)
        whole = torch.cat((prefixes[at, : counts[at] * R], suffixes[at, k, : patches[at, k] * R], tail[row]))
        torch.testing.assert_close(logits[row], model(whole[None], MBLMReturnType.LOGITS)[0, -1])


@torch.no_grad()
def test_the_end_of_generation() -> None:
    model = build([16, 4], block=stages("ST"))
    prompt = random_ids(6)
    free = model.generate(prompt, num_tokens_to_generate=12)
    stop = int(free[9])
    first = 6 + free[6:].tolist().index(stop)
    other = random_ids(3, seed=5)
    both = model.generate([prompt, other], num_tokens_to_generate=12, end_of_gen_token_id=stop)
    assert torch.equal(both[0], free[: first + 1])  # the stop id is included, and the other row went on alone
    expected = recomputed(model, other, 12)
    end = expected[3:].tolist().index(stop) + 4 if stop in expected[3:].tolist() else 15
    assert torch.equal(both[1], expected[:end])
    assert torch.equal(model.generate(prompt, num_tokens_to_generate=0), prompt)
    assert len(model.generate(prompt)) == 64  # without a count the context is filled
    assert len(model.generate(random_ids(64))) == 64
    assert len(model.generate()) == 64
    assert len(model.generate(random_ids(62), num_tokens_to_generate=9)) == 71  # no fixed positions in the first stage
    with pytest.raises(ValueError, match=r"64 fixed positions of the context, got 62 \+ 9"):
        build([16, 4]).generate(random_ids(62), num_tokens_to_generate=9)
    assert len(build([16, 4]).generate(random_ids(62), num_tokens_to_generate=2)) == 64
    lengths = [len(row) for row in build([16, 4]).generate([random_ids(61), random_ids(3)])]
    assert lengths == [64, 64]  # the first row is done long before the other reaches the end


def test_candidates_that_cannot_be_scored() -> None:
    model = build([5, 4])
    _, state = prefill(model, random_ids(1, 17))
    for lengths in ([0, 2], [1, 8]):
        with pytest.raises(ValueError, match=r"lengths from 1 to 7 for each of 2 candidates, got "):
            score_continuations(model, state, random_ids(2, 7), torch.tensor(lengths))
    with pytest.raises(ValueError, match="at most 20 bytes"):
        score_continuations(model, state, random_ids(2, 7))
    assert score_continuations(model, state, random_ids(2, 3)).shape == (1, 2)
    with pytest.raises(ValueError, match="a state that knows what comes next"):
        score_continuations(model, read_prefix(model, random_ids(1, 4)), random_ids(2, 3))


def test_streams_and_bad_arguments() -> None:
    model = build([16, 4], num_tokens=258, pad_token_id=256)
    out = io.BytesIO()
    made = model.generate(torch.tensor([72, 105]), ByteStreamer(out), num_tokens_to_generate=10, seed=1, top_k=200)
    assert list(out.getvalue()) == [id_ for id_ in made[2:].tolist() if id_ < 256]
    with pytest.raises(ValueError, match="bytes of one prompt, got 2"):
        model.generate([torch.tensor([1]), torch.tensor([2])], ByteStreamer(out))
    with pytest.raises(ValueError, match=r"expected prompts of shape \(L,\), got \[\(1, 2\)\]"):
        model.generate([torch.tensor([[1, 2]])])
    with pytest.raises(ValueError, match="0 or more bytes to generate, got -1"):
        model.generate(torch.tensor([1]), num_tokens_to_generate=-1)
    with pytest.raises(ValueError, match="filter_thres alone or top_k and top_p"):
        model.generate(torch.tensor([1]), filter_thres=0.5, top_k=3)
    for arguments, message in (
        ({"temperature": 0.0, "top_p": 0.5}, "temperature: expected a number above 0, got 0.0"),
        ({"top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"top_p": 1.5}, "top_p: expected more than 0 and at most 1, got 1.5"),
        ({"filter_thres": 2.0}, "filter_thres: expected 0 to 1, got 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(torch.tensor([1]), num_tokens_to_generate=1, **arguments)


def test_generation_knows_no_dropout() -> None:
    model = build([16, 4], ff_dropout=0.5, attn_dropout=0.5)
    expected = model.generate(random_ids(5), num_tokens_to_generate=9)
    model.train()
    assert torch.equal(model.generate(random_ids(5), num_tokens_to_generate=9), expected)
    assert model.training


def test_drawing_is_repeatable_and_moves_no_other_generator() -> None:
    model, prompt = build([16, 4]), random_ids(5)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    drawn = [model.generate(prompt, num_tokens_to_generate=20, top_p=1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_what_is_drawn() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(**options: object) -> Tensor:
        return torch.bincount(Sampler(**options)(logits, generator), minlength=4) / len(logits)

    torch.testing.assert_close(shares(), logits[0].softmax(-1), rtol=0, atol=0.015)
    torch.testing.assert_close(shares(temperature=2.0), (logits[0] / 2).softmax(-1), rtol=0, atol=0.015)
    top = logits[0, :2].softmax(-1)
    torch.testing.assert_close(shares(top_k=2)[:2], top, rtol=0, atol=0.015)
    assert not shares(top_k=2)[2:].any()
    assert not shares(top_p=0.7)[2:].any()  # 0.64 + 0.24: the second is needed to reach it
    assert shares(top_p=0.5)[0] == 1
    assert choose_sampler(200, temperature=1.0, filter_thres=0.9, top_k=None, top_p=None).top_k == 19  # int(19.99…)
    assert choose_sampler(200, temperature=1.0, filter_thres=1.0, top_k=None, top_p=None).top_k == 1
    assert choose_sampler(200, temperature=1.0, filter_thres=None, top_k=None, top_p=0.5) == Sampler(top_p=0.5)
