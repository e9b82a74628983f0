"""Incremental decoding equals the full forward: prefix, branches of different lengths, steps, selection."""

import pytest
import torch
from torch import Tensor, nn

from mblm import MBLM, MBLMReturnType, StageBlock
from mblm.decode import branch, read_prefix, step
from tests.mblm.reference import build, stages
from tests.mblm.test_mblm import MODELS as CAUSAL_MODELS
from tests.mblm.test_mblm import SHAPES, random_ids


class Running(nn.Module):
    """A causal stage with nothing but `forward`: a recurrent net."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.GRU(dim, dim, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0]


class RunningBlock(StageBlock):
    block_type: str = "running"

    def to_model(self, model_dim: int, num_layers: int) -> nn.Module:
        return Running(model_dim)


def next_logits(model: MBLM, ids: Tensor) -> Tensor:
    """Logits of the byte after the last, (n, V), by the full forward."""
    return model(ids, MBLMReturnType.LOGITS)[:, -1]


MODELS = [*CAUSAL_MODELS]
MODELS += [(seq_lens, {"block": [RunningBlock()] * len(seq_lens)}) for seq_lens in SHAPES]


@pytest.mark.parametrize(("seq_lens", "variant"), MODELS, ids=str)
@torch.no_grad()
def test_decoding_equals_the_full_forward(seq_lens: list[int], variant: dict) -> None:
    model = build([6 * seq_lens[0], *seq_lens[1:]], **variant)
    R, B, K = model.patch_bytes[0], 2, 3
    prefix, suffixes = random_ids(B, 2 * R), random_ids(B, K, 3 * R, seed=2)
    patches = torch.tensor([[3, 1, 2], [1, 1, 3]])
    state = branch(model, read_prefix(model, prefix), suffixes, patches)
    rows = [torch.cat((prefix[b], suffixes[b, k, : int(patches[b, k]) * R])) for b in range(B) for k in range(K)]
    steps = random_ids(2 * R + 1, B * K, seed=3)  # through the patch and across its border, twice
    decoded = []
    for ids in steps:
        logits, state = step(model, state, ids)
        decoded.append(logits)
    for row, more, logits in zip(rows, steps.T, torch.stack(decoded, dim=1), strict=True):
        expected = model(torch.cat((row, more))[None], MBLMReturnType.LOGITS)
        torch.testing.assert_close(logits, expected[0, len(row) :])


@pytest.mark.parametrize(("seq_lens", "variant"), MODELS, ids=str)
@torch.no_grad()
def test_selected_rows_continue_their_parents(seq_lens: list[int], variant: dict) -> None:
    model = build([6 * seq_lens[0], *seq_lens[1:]], **variant)
    R = model.patch_bytes[0]
    prefix, questions = random_ids(2, R), random_ids(2, 2, R, seed=2)
    state = branch(model, read_prefix(model, prefix), questions)
    rows = torch.cat((prefix[:, None].expand(2, 2, R), questions), dim=2).flatten(0, 1)
    width = 1
    for parents in ([0, 0, 0], [2, 0], [1, 1, 0, 1]):
        state = state.select(width, torch.tensor(parents))
        rows = rows.unflatten(0, (-1, width))[:, parents].flatten(0, 1)
        width = len(parents)
        ids = random_ids(len(rows), seed=len(rows))
        rows = torch.cat((rows, ids[:, None]), dim=1)
        logits, state = step(model, state, ids)
        torch.testing.assert_close(logits, next_logits(model, rows))


@pytest.mark.parametrize("letters", ["TT", "ST"])
@torch.no_grad()
def test_any_rows_of_branches_of_branches_go_on(letters: str) -> None:
    """Rows kept from several prefixes, and branches of branches, each with its own past."""
    model = build([20, 4], block=stages(letters))
    prefix, one, two = random_ids(2, 8), random_ids(2, 2, 8, seed=2), random_ids(4, 2, 4, seed=3)
    state = branch(model, branch(model, read_prefix(model, prefix), one), two)
    rows = [torch.cat((prefix[r // 4], one[r // 4, r // 2 % 2], two[r // 2, r % 2])) for r in range(8)]
    for keep in ([1], [0, 3, 6], [7, 2]):
        kept, ids = state.keep(torch.tensor(keep)), torch.stack([rows[r] for r in keep])
        for t in range(6):
            more = random_ids(len(keep), seed=t)
            ids = torch.cat((ids, more[:, None]), dim=1)
            logits, kept = step(model, kept, more)
            torch.testing.assert_close(logits, next_logits(model, ids))
    if letters == "TT":
        with pytest.raises(ValueError, match="at most 80 bytes"):
            branch(model, state, random_ids(8, 1, 80))


@pytest.mark.parametrize("letters", ["T", "S"])
def test_states_stay_what_they_were(letters: str) -> None:
    """Many continuations of one state, in any order and mode, none of which another one sees."""
    stage = build([200], block=stages(letters)).stage_models[0]
    x, others = torch.randn(2, 70, 10, dtype=torch.float64), torch.randn(3, 2, 70, 10, dtype=torch.float64)
    with torch.inference_mode():
        _, state = stage.prefix(x)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            walks = [(other, state) for other in others]
            for t in range(30):
                for at, (other, reached) in enumerate(walks):
                    y, reached = stage.step(other[:, t], reached)
                    walks[at] = other, reached
                    if t % 10 == 0:
                        whole = torch.cat((x, other[:, : t + 1]), dim=1)
                        torch.testing.assert_close(y.detach(), stage(whole)[:, -1].detach())


def test_part_of_a_patch_is_refused() -> None:
    model = build([5, 4])
    with pytest.raises(ValueError, match="multiple of 4 bytes, got 6"):
        read_prefix(model, random_ids(1, 6))
    _, state = step(model, read_prefix(model, random_ids(1, 4)), random_ids(1))
    with pytest.raises(ValueError, match="patch border, got one 1 bytes into a patch"):
        branch(model, state, random_ids(1, 2, 4))
    _, state = step(model, state, random_ids(1))
    full = read_prefix(model, random_ids(1, 16))
    for _ in range(4):
        _, full = step(model, full, random_ids(1))
    with pytest.raises(ValueError, match="at most 20 bytes"):
        step(model, full, random_ids(1))
