"""Several processes, lower precision, compiled stages: the same numbers, and no process waits for another."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mblm import MBLM, LossSums, MBLMReturnType
from mblm.checkpoint import save_pretrained
from mblm.parallel import shard
from tests.mblm.reference import build, gradients, stages
from tests.mblm.test_mblm import random_ids

WORLD = 2
CASES = [([12], "T"), ([5, 4], "ST"), ([3, 2, 4], "STT")]


def shards() -> tuple[Tensor, Tensor]:
    """Ids and weights of each process (process, row, byte): the second process has nothing to predict."""
    ids = random_ids(WORLD, 2, 11)
    weights = torch.zeros(WORLD, 2, 11)
    weights[0, 0, 3:6], weights[0, 1, 8] = 1, 0.5
    return ids, weights


def plain_gradients(seq_lens: list[int], letters: str) -> dict[str, Tensor]:
    model = build(seq_lens, block=stages(letters), dtype=torch.float32, train_checkpoint_chunks=None)
    ids, weights = (tensor.flatten(0, 1) for tensor in shards())
    return gradients(model, model.loss_sums(ids, weights).total)


class Sums(nn.Module):
    """DistributedDataParallel hooks `forward` alone."""

    def __init__(self, model: MBLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, weights: Tensor) -> LossSums:
        return self.model.loss_sums(ids, weights)


def _process(rank: int, folder: str, kind: str) -> None:
    # Run by a fresh interpreter: what it finds, it writes to a file.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{kind}", rank=rank, world_size=WORLD)
    found = {}
    for seq_lens, letters in CASES:
        model = build(seq_lens, block=stages(letters), dtype=torch.float32).train()
        ids, weights = (tensor[rank] for tensor in shards())
        if kind == "ddp":
            parallel = DistributedDataParallel(Sums(model))  # must outlive the backward pass
            total = parallel(ids, weights).total
        else:
            shard(model, mesh=dist.init_device_mesh("cpu", (WORLD,)))
            total = model.loss_sums(ids, weights).total
            with pytest.raises(ValueError, match=r"expected whole tensors, got .*gathered state dict"):
                save_pretrained(model, Path(folder, "sharded"))
            if letters != "T":
                # The suffixes' share of the same loss, from a prefix that is read once.
                R = model.patch_bytes[0]
                shared = model.shared_loss_sums(
                    ids[:, :R], ids[:, None, R:], weights[:, None, R:], weights[:, None, :R]
                )
                torch.testing.assert_close(shared.total, total)
        (WORLD * total).backward()  # both average over the processes
        found[letters] = {
            name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            for name, p in model.named_parameters()
        }
    if rank == 0:
        torch.save(found, f"{folder}/{kind}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_process_without_work_keeps_step(tmp_path: Path, kind: str) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path), kind), nprocs=WORLD)
    found = torch.load(tmp_path / f"{kind}.pt")
    for seq_lens, letters in CASES:
        for name, expected in plain_gradients(seq_lens, letters).items():
            torch.testing.assert_close(found[letters][name], expected, rtol=1e-4, atol=1e-5, msg=f"{letters} {name}")


@pytest.mark.parametrize("letters", ["TT", "ST"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16_is_close(letters: str, weights: torch.dtype) -> None:
    """Autocast over float32 weights, and a model that is bfloat16 throughout."""
    config = {"hidden_dims": [64, 32], "num_layers": [2, 2], "block": stages(letters)}
    exact = build([300, 4], dtype=torch.float32, **config)
    ids = random_ids(2, 1200)
    expected = exact(ids)
    wanted = gradients(exact, expected)
    model = build([300, 4], dtype=weights, **config)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == torch.float32):
        loss = model(ids)
        logits = model(ids, MBLMReturnType.LOGITS)
    assert torch.isfinite(logits).all()
    assert abs(loss - expected) < 0.02 * expected
    found = torch.cat([g.float().flatten() for g in gradients(model, loss).values()])
    right = torch.cat([g.flatten() for g in wanted.values()])
    assert torch.nn.functional.cosine_similarity(found, right, dim=0) > 0.99


@pytest.mark.parametrize("letter", ["T", "S"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_stages_compile_whole(letter: str, backend: str) -> None:
    stage = build([70], block=stages(letter), dtype=torch.float32).train().stage_models[0]
    x = torch.randn(3, 9, 10, requires_grad=True)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = torch.compile(stage, fullgraph=True, backend=backend)(x)
        (grad,) = torch.autograd.grad(compiled.square().sum(), x)
    plain = stage(x)
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(grad, torch.autograd.grad(plain.square().sum(), x)[0], rtol=1e-4, atol=1e-5)


def test_a_model_with_compiled_stages_is_the_same_model() -> None:
    model = build([5, 4], block=stages("ST"), dtype=torch.float32)
    ids = random_ids(2, 18)
    expected = model(ids)
    for stage in model.stage_models:
        stage.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(model(ids), expected)
