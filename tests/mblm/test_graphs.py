"""Patch by patch equals byte by byte, to the byte; what a graph may not do is found on the meta device."""

import io
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mblm import MBLM, graphs
from mblm.decode import prefill
from mblm.graphs import Captured, PatchWriter, Plan, find_plan
from mblm.sampling import GREEDY, Draws, Sampler
from mblm.utils.stream import ByteStreamer
from tests.mblm.reference import TRANSFORMER, build, stages
from tests.mblm.test_decode import RunningBlock
from tests.mblm.test_generate import hierarchies
from tests.mblm.test_mblm import random_ids

MODELS = [
    ([60], "S"),
    ([16, 4], "TT"),
    ([16, 4], "ST"),
    ([16, 4], "TS"),
    ([16, 4], "SS"),
    ([8, 2, 4], "STT"),
    ([8, 2, 4], "TSS"),
    ([8, 4, 2], "TTT"),
]


def assert_the_same(model: MBLM, prompts: Sequence[Tensor], count: int | None = None, **options: Any) -> list[Tensor]:
    """Written byte by byte and patch by patch; the result."""
    expected = model.generate(prompts, num_tokens_to_generate=count, graphs=False, **options)
    made = model.generate(prompts, num_tokens_to_generate=count, graphs=True, **options)
    for ours, theirs in zip(made, expected, strict=True):
        assert torch.equal(ours, theirs)
    return made


@pytest.mark.parametrize(("seq_lens", "letters"), MODELS, ids=str)
def test_the_same_bytes(seq_lens: list[int], letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(seq_lens, block=stages(letters))
    R = model.patch_bytes[0]
    prompts = [random_ids(length, seed=length) for length in (0, 1, R, R + 1, 2 * R + 3)]
    assert_the_same(model, prompts, 2 * R + 3)
    assert_the_same(model, prompts[2:3], 2 * R)
    assert_the_same(model, prompts[:1], 1)
    if len(seq_lens) > 2:
        monkeypatch.setattr(graphs, "LONGEST_CALL", 4)  # the stages in between are not in the calls then
        assert_the_same(model, prompts, 2 * R + 3)


@pytest.mark.parametrize(("seq_lens", "letters"), MODELS, ids=str)
def test_the_same_draws_whichever_rows_stop(seq_lens: list[int], letters: str) -> None:
    model = build(seq_lens, block=stages(letters))
    prompts = [random_ids(length, seed=length) for length in (3, 6, 5, 7)]
    for options in ({"top_k": 20, "temperature": 2.0}, {"top_p": 1.0, "temperature": 3.0}):
        made = assert_the_same(model, prompts, 17, seed=4, end_of_gen_token_id=7, **options)
    # Some stop while others go on, or this shows nothing; and what goes on is what it draws without a stop.
    lengths = {len(row) - len(prompt) for row, prompt in zip(made, prompts, strict=True)}
    assert len(lengths) > 1
    free = model.generate(prompts, num_tokens_to_generate=17, seed=4, top_p=1.0, temperature=3.0)
    for ours, without in zip(made, free, strict=True):
        assert torch.equal(ours, without[: len(ours)])


def test_rows_end_at_the_context() -> None:
    for letters in ("TT", "ST"):
        model = build([16, 4], block=stages(letters))
        made = assert_the_same(model, [random_ids(61), random_ids(3), random_ids(64), random_ids(40)])
        assert [len(row) for row in made] == [64] * 4
    assert len(assert_the_same(build([16, 4], block=stages("ST")), [random_ids(62)], 9)[0]) == 71


@settings(max_examples=20, deadline=None, derandomize=True)
@given(hierarchies(), st.lists(st.integers(0, 20), min_size=1, max_size=3), st.integers(0, 14), st.booleans())
def test_any_hierarchy_writes_the_same(model: MBLM, lengths: list[int], count: int, drawn: bool) -> None:
    options = {"top_p": 0.8, "seed": 1} if drawn else {}
    try:
        find_plan(model, count, True)
    except ValueError:
        assert model.num_stages == 1
        assert type(model.stage_models[0]).__name__ == "TransformerStage"
        return
    assert_the_same(model, [random_ids(length, seed=length) for length in lengths], count, **options)


def test_custom_stages_and_streams() -> None:
    model = build([16, 4], block=[RunningBlock()] * 2)
    assert_the_same(model, [random_ids(6), random_ids(9)], 7)
    model, outputs = build([16, 4], num_tokens=258, pad_token_id=256), []
    for asked in (False, True):
        out = io.BytesIO()
        made = model.generate(random_ids(6), ByteStreamer(out), 21, end_of_gen_token_id=3, graphs=asked)
        assert list(out.getvalue()) == [id_ for id_ in made[6:].tolist() if id_ < 256]
        outputs.append(made)
    assert torch.equal(*outputs)


def test_plans() -> None:
    model = build([16, 4], block=stages("ST"))
    assert find_plan(model, 1000) is None  # a CPU has nothing to gain
    assert find_plan(model, 1000, False) is None
    assert find_plan(model, 1, True) == Plan(call_bytes=4, stage=1, keeps_first=True, graph=False)
    assert find_plan(build([16, 4], block=stages("TT")), 1, True) == Plan(4, 1, keeps_first=False, graph=False)
    assert find_plan(build([60], block=stages("S")), 1, True) == Plan(1, 1, keeps_first=True, graph=False)
    whole = build([4, 16, 8], block=stages("STT"))
    assert find_plan(whole, 1, True) == Plan(128, 1, keeps_first=True, graph=False)
    deep = build([4, 200, 25], block=stages("STT"))
    assert find_plan(deep, 1, True) == Plan(25, 2, keeps_first=True, graph=False)
    with pytest.raises(ValueError, match="or a single Mamba-2 stage, got a single TransformerStage; leave graphs out"):
        build([60], block=stages("T")).generate(random_ids(3), graphs=True)
    with pytest.raises(ValueError, match=r"at most 256 bytes or .*, got local sequences of 300 bytes"):
        find_plan(build([2, 300], block=stages("ST")), 1, True)


class OnCuda(MBLM):
    """Says that it is on a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


def test_plans_on_a_gpu() -> None:
    def plan(letters: str | list, count: int, graphs: bool | None = None) -> Plan | None:
        lens = [60] if len(letters) == 1 else [16, 4]
        model = build(lens, block=stages(letters) if isinstance(letters, str) else letters)
        model.__class__ = OnCuda
        return find_plan(model, count, graphs)

    worth = graphs.PAYS_FROM_CALLS * 4
    assert plan("ST", worth) == Plan(4, 1, keeps_first=True, graph=True)
    assert plan("ST", worth - 1) is None
    assert plan("ST", 1, True) == plan("ST", worth)
    assert plan("ST", worth, False) is None
    assert plan("TT", worth) == Plan(4, 1, keeps_first=False, graph=True)
    assert plan("S", worth) == Plan(1, 1, keeps_first=True, graph=True)
    assert plan("T", worth) is None
    assert plan([TRANSFORMER, RunningBlock()], worth) is None  # a stage of others may do what no graph can hold
    assert plan([RunningBlock(), TRANSFORMER], worth) == Plan(4, 1, keeps_first=False, graph=True)


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_buffers_stay_where_they_are(graph: bool) -> None:
    device = "cuda" if graph else "cpu"
    runs = []

    def add(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        runs.append(1)
        return x + total, total + 1

    begin = torch.zeros(3, 2, device=device)
    captured = Captured(add, (torch.ones(3, 2, device=device), begin), kept=1, graph=graph)
    (first,) = captured(torch.full((3, 2), 5.0, device=device))
    assert first.tolist() == [[5, 5]] * 3  # making it has not moved what is kept
    (second,) = captured(torch.full((3, 2), 5.0, device=device))
    assert second.tolist() == [[6, 6]] * 3
    assert second.data_ptr() == first.data_ptr()  # and so the first result is gone
    captured.keep(torch.tensor([2, 0], device=device))
    (fewer,) = captured(torch.tensor([[10.0, 10], [20, 20]], device=device))
    assert fewer.tolist() == [[12, 12], [22, 22]]
    assert not begin.any()
    assert len(runs) == (graphs.WARM_UPS + 1 if graph else 3)


def test_autocast_goes_on_behind_a_call() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        captured = Captured(lambda x: (F.linear(x, weight),), (torch.ones(1, 4),), graph=False)
        (ours,) = captured(torch.ones(1, 4))
        assert ours.dtype == torch.bfloat16
        F.linear(torch.ones(1, 4), weight).sum().backward()
    assert weight.grad is not None  # not through a copy of the weight that was made without gradients


def test_rows_that_are_left_keep_what_is_theirs() -> None:
    def count(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        return total.clone(), total + x

    captured = Captured(count, (torch.zeros(3), torch.zeros(3)), kept=1, graph=False)
    captured(torch.tensor([1.0, 2, 3]))
    captured.keep(torch.tensor([0, 2]))
    assert captured(torch.tensor([10.0, 10]))[0].tolist() == [1, 3]
    captured.keep(torch.tensor([1]))
    assert captured(torch.tensor([0.0]))[0].tolist() == [13]


def test_drawing_is_torch_multinomial() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.Generator().manual_seed(2) for _ in range(2))
    sampler, probabilities = Sampler(temperature=0.7), (logits / 0.7).softmax(-1)
    for _ in range(20):
        expected = torch.multinomial(probabilities, 1, generator=theirs).squeeze(1)
        assert torch.equal(sampler(logits, ours), expected)
    with pytest.raises(RuntimeError, match="expected logits to draw from"):
        sampler(logits.fill_(float("nan")), ours)
    draws = Draws(sampler, torch.Generator().manual_seed(3), (4, 40), torch.device("cpu"))
    alone = Draws(sampler, torch.Generator().manual_seed(3), (4, 40), torch.device("cpu"))
    expected = torch.cat([alone.numbers(1) for _ in range(6)], dim=1)
    assert torch.equal(draws.numbers(4), expected[:, :4])
    draws.keep(torch.tensor([1, 2, 3]))
    draws.keep(torch.tensor([0, 2]))
    assert torch.equal(draws.numbers(2), expected[[1, 3], 4:])


class OneDevice(TorchDispatchMode):
    """No operation may take or make a tensor elsewhere: a copy to a GPU waits for it, and no graph may wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor)]
        assert {tensor.device.type for tensor in tensors} <= {"meta"}, func
        return made


@pytest.mark.parametrize(
    ("letters", "positions", "dtype", "sampler"),
    [
        ("S", "rope", torch.float32, Sampler(top_p=0.9)),
        ("TT", "rope", torch.bfloat16, GREEDY),
        ("SS", "fixed", torch.bfloat16, Sampler(top_k=5)),
        ("STT", "fixed", torch.float32, GREEDY),
    ],
)
@torch.inference_mode()
def test_nothing_waits_for_the_device(
    letters: str, positions: str, dtype: torch.dtype, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor on the meta device has no numbers: to look at one, as `.item()` or a branch does, is an error there."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none on that device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    blocks = [block | {"pos_emb_type": positions} for block in stages(letters)]
    model = build([8, 2, 2][: len(letters)], block=blocks, dtype=dtype).to("meta")
    plan = find_plan(model, 1, True)
    assert plan is not None
    logits, state = prefill(model, torch.zeros(3, model.patch_bytes[0], dtype=torch.long, device="meta"))
    writer = PatchWriter(model, plan, sampler, logits=logits, state=state)
    numbers = torch.empty(3, plan.call_bytes, 40, device="meta") if sampler.draws else None
    with OneDevice():
        for _ in range(2):
            assert writer.write(numbers).shape == (3, plan.call_bytes)


@pytest.mark.gpu
@pytest.mark.parametrize(("seq_lens", "letters"), MODELS, ids=str)
def test_graphs_on_a_gpu(seq_lens: list[int], letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LONGEST_CALL", 4)
    model = build(seq_lens, block=stages(letters), dtype=torch.float32).cuda()
    prompts = [random_ids(length, seed=length).cuda() for length in (5, 9, 6)]
    plan = find_plan(model, 40, None)
    assert plan is not None
    assert plan.graph
    for _ in range(2):  # memory of the first graphs is given back and used again
        assert_the_same(model, prompts, 40)
        assert_the_same(model, prompts, 40, seed=3, top_p=0.9, end_of_gen_token_id=7)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert_the_same(model, prompts[:1], 40)
    assert_the_same(model.bfloat16(), prompts[:1], 40)


@pytest.mark.gpu
def test_capturing_in_inference_mode_leaves_capturing_outside_of_it() -> None:
    model = build([16, 4], block=stages("ST"), dtype=torch.float32).cuda()
    model.generate(random_ids(5).cuda(), num_tokens_to_generate=9, graphs=True)  # in inference mode
    captured = Captured(lambda x: (x + 1,), (torch.zeros(1, device="cuda"),), graph=True)
    assert captured(torch.ones(1, device="cuda"))[0].item() == 2
