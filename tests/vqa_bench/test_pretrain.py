"""Pretraining on text: the same as a bare loop, shared by processes, gone on with; it learns, and says how well."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_scripts.synth.narrate import make_book
from mblm.checkpoint import from_pretrained
from tests.vqa_bench.texts import CAUSAL, MASKED, TRAIN, make_books, make_config, noise
from vqa_bench.config import PRETRAIN_FOLDER, LoopConfig, PretrainConfig
from vqa_bench.data.books import Books
from vqa_bench.data.windows import WindowBatch
from vqa_bench.errors import UserError
from vqa_bench.runs import DONE, METRICS, RESULT, WEIGHTS
from vqa_bench.scoring.bits import text_loss
from vqa_bench.train import optimise
from vqa_bench.train.optimisation import learning_rate_factor
from vqa_bench.train.text import PRETRAIN, TextTask, new_model, pretrain
from vqa_bench.verify import verify

CPU = torch.device("cpu")
MODELS = pytest.mark.parametrize("model", [CAUSAL, MASKED], ids=["causal", "masked"])


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    splits = {"train": noise(2000), "validation": noise(300, 1), "test": noise(200, 2)}
    return make_books(tmp_path_factory.mktemp("books") / "noise", splits)


@pytest.fixture(scope="module")
def narrated(tmp_path_factory: pytest.TempPathFactory) -> Books:
    text = make_book(0, "train", 0)[1]
    splits = {"train": text[:100_000], "validation": text[100_000:104_000], "test": text[104_000:107_500]}
    return make_books(tmp_path_factory.mktemp("books") / "narrated", splits)


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of a kind, without what a clock said."""
    read = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    timed = {"seconds", "samples_per_second", "bytes_per_second", "data_wait", "memory_bytes"}
    return [{key: value for key, value in line.items() if key not in timed} for line in read if line["kind"] == kind]


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# ---- the task


@MODELS
def test_the_harness_trains_like_a_bare_loop(books: Books, tmp_path: Path, model: dict[str, Any]) -> None:
    config = make_config(model, train=TRAIN | {"log_every": 1, "accumulate": 2, "clip": 0.5})
    result = pretrain(config, books, tmp_path)
    bare, losses = bare_loop(config, books)
    assert [line["loss"] for line in lines(tmp_path, "train")] == pytest.approx(losses, rel=1e-6)
    kept = from_pretrained(tmp_path, architecture=type(bare.mblm)).state_dict()
    for name, tensor in bare.mblm.state_dict().items():
        torch.testing.assert_close(kept[name], tensor, rtol=0, atol=5e-5, msg=name)
    assert result["training"]["stopped"] == "steps"


def bare_loop(config: PretrainConfig, books: Books) -> tuple[Any, list[float]]:
    """The model after all steps, and the mean loss of each: nothing but PyTorch."""
    train: LoopConfig = config.train
    task = TextTask(new_model(config), books)
    optimizer = torch.optim.AdamW(task.model.parameters(), train.learning_rate, train.betas, weight_decay=0)
    losses = []
    for step in range(train.steps):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * learning_rate_factor(step, train)
        numbers = range(step * train.accumulate, (step + 1) * train.accumulate)
        sums = [task.model(batch.to(CPU)) for batch in task.batches(numbers, workers=0, pin=False)]
        loss = sum(part.total for part in sums) / sum(part.targets for part in sums)
        optimizer.zero_grad()
        loss.backward()
        assert train.clip is not None
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), train.clip)
        optimizer.step()
        losses.append(loss.item())
    return task.model, losses


@MODELS
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_a_batch(books: Books, model: dict[str, Any], world: int) -> None:
    config = make_config(model)
    whole = TextTask(new_model(config), books)
    net = whole.model.double().eval()
    [batch] = whole.batches(range(3, 4), workers=0, pin=False)
    expected = net(batch.to(CPU))
    total, targets, samples = 0.0, 0, 0
    for rank in range(world):
        task = TextTask(whole.model, books, rank=rank, world=world)
        [share] = task.batches(range(3, 4), workers=0, pin=False)
        sums = net(share.to(CPU))
        total, targets = total + sums.total.item(), targets + int(sums.targets)
        samples += task.amount(share).samples
        assert task.amount(share).bytes == task.amount(share).samples * config.window
        assert task.batches_per_epoch == whole.batches_per_epoch == 61 / 4
    assert (targets, samples) == (expected.targets, 4)
    assert total == pytest.approx(expected.total.item(), rel=1e-9)


@MODELS
def test_processes_share_the_dev_split(books: Books, model: dict[str, Any]) -> None:
    config = make_config(model, train=TRAIN | {"dev": {"every": 2, "samples": 5}})
    whole = TextTask(new_model(config), books)
    net = whole.model.double().eval()
    (nats, count) = whole.develop(net, CPU)["loss"]
    found = text_loss(
        net, books.split("validation"), config.window, batch=4, device=CPU, mask_rate=net.mask_rate, limit=5
    )
    assert (nats, count) == tuple(found)
    if net.mask_rate is None:
        assert count == 5 * config.window
    shares = [TextTask(net, books, rank=rank, world=3).develop(net, CPU)["loss"] for rank in range(3)]
    assert sum(share[1] for share in shares) == count
    assert sum(share[0] for share in shares) == pytest.approx(nats, rel=1e-9)


def test_a_batch_has_a_name(books: Books) -> None:
    task = TextTask(new_model(make_config()), books)
    starts = task.plan.starts(2)
    assert task.name(2) == f"windows of the train split that begin at bytes {', '.join(f'{at:,}' for at in starts)}"
    assert len(starts) == 4


def test_books_that_do_not_suit_are_refused(books: Books, tmp_path: Path) -> None:
    alone = make_books(tmp_path / "alone", {"train": noise(100)})
    for changes, world, said in (
        ({"train": TRAIN | {"dev": {"every": 2}}}, 1, r"expected a split of .* got 'validation'"),
        ({"model": CAUSAL | {"seq_lens": [64, 4]}}, 1, "expected windows of 1 to 100 bytes, .* got 256"),
        ({}, 5, "expected at least one window a batch for each of 5 processes, got 4"),
    ):
        config = make_config(**changes)
        with pytest.raises(UserError, match=said):
            TextTask(new_model(config), alone, world=world)
    result = pretrain(make_config(), alone, folder(tmp_path / "run"))
    assert result["metrics"] == {}


# ---- a run


@dataclass
class Killed(TextTask):
    """A task whose process ends before a batch."""

    task: TextTask
    at: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batches(self, numbers: range, *, workers: int, pin: bool) -> Iterator[WindowBatch]:
        made = self.task.batches(numbers, workers=workers, pin=pin)

        def some() -> Iterator[WindowBatch]:
            for number in numbers:
                if number == self.at:
                    raise KeyboardInterrupt
                yield next(made)

        return some()


@MODELS
def test_a_run_goes_on_as_if_never_stopped(books: Books, tmp_path: Path, model: dict[str, Any]) -> None:
    dropout = [stage | {"dropout": 0.1} for stage in model["stages"]]
    train = TRAIN | {"checkpoint": {"steps": 2}, "dev": {"every": 3}, "log_every": 1}
    config = make_config(model | {"stages": dropout}, train=train)
    whole, stopped = folder(tmp_path / "whole"), folder(tmp_path / "stopped")
    expected = pretrain(config, books, whole)
    for at in (1, 5):

        def make_task(rank: int, world: int, at: int = at) -> Killed:
            return Killed(TextTask(new_model(config), books, rank=rank, world=world), at)

        with pytest.raises(KeyboardInterrupt):
            optimise(make_task, config.train, stopped, seed=config.seed, name=config.name)
    assert [folder.name for folder in (stopped / "checkpoints").iterdir()] == ["step-00000004"]
    found = pretrain(config, books, stopped)
    assert found["metrics"] == expected["metrics"]
    for kind in ("train", "dev"):
        assert lines(stopped, kind) == lines(whole, kind)
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_trained_run_is_evaluated_and_not_trained_again(books: Books, tmp_path: Path) -> None:
    result = pretrain(make_config(), books, tmp_path)
    for name in (RESULT, DONE):
        (tmp_path / name).unlink()
    before = (tmp_path / METRICS).read_bytes()
    assert pretrain(make_config(), books, tmp_path) == result
    assert (tmp_path / DONE).exists()
    assert (tmp_path / METRICS).read_bytes() == before


def test_a_changed_byte_of_the_weights_is_noticed(books: Books, tmp_path: Path) -> None:
    config = make_config()
    run = tmp_path / "results" / PRETRAIN_FOLDER / config.name
    run.mkdir(parents=True)
    pretrain(config, books, run)

    def faults() -> list[str]:
        return [fault for check in verify(tmp_path / "results") for fault in check.faults]

    assert faults() == []
    weights = bytearray((run / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (run / WEIGHTS).write_bytes(weights)
    [fault] = faults()
    assert fault.startswith(f"{WEIGHTS}: expected SHA-256 ")


def test_it_learns_text(narrated: Books, tmp_path: Path) -> None:
    model = CAUSAL | {"hidden_dims": [32, 32], "seq_lens": [16, 4]}
    train = {"steps": 150, "windows_per_batch": 8, "learning_rate": 2e-2, "threads": 1}
    config = make_config(model, train=train)
    result = pretrain(config, narrated, tmp_path)
    assert result == json.loads((tmp_path / RESULT).read_text())
    assert PretrainConfig.model_validate_json((tmp_path / PRETRAIN).read_text()) == config
    assert (result["kind"], result["objective"], result["context"]) == ("pretrain", "next_byte", 64)
    assert result["model"]["parameters"] == sum(p.numel() for p in from_pretrained(tmp_path).parameters())
    assert result["dataset"]["splits"]["test"]["bytes"] == 3500
    assert [result["metrics"][name]["bytes"] for name in ("validation", "test")] == [4000, 3500]
    assert [result["metrics"][name]["windows"] for name in ("validation", "test")] == [63, 55]
    start = lines(tmp_path, "train")[0]["loss"] / math.log(2)
    for name in ("validation", "test"):
        bits = result["metrics"][name]["bits_per_byte"]
        assert bits < 0.7 * order_zero_entropy(narrated)
        assert bits < start - 1


def test_the_masked_objective_learns(narrated: Books, tmp_path: Path) -> None:
    model = MASKED | {"hidden_dims": [32, 32], "seq_lens": [16, 4], "mask_rate": 0.15}
    train = {"steps": 80, "windows_per_batch": 8, "learning_rate": 2e-2, "threads": 1}
    result = pretrain(make_config(model, train=train), narrated, tmp_path)
    assert result["objective"] == "masked"
    for name in ("validation", "test"):
        found = result["metrics"][name]
        assert "bits_per_byte" not in found, "it predicts less than every byte, and from both sides"
        assert found["bits_per_masked_byte"] < order_zero_entropy(narrated)
        assert 0.1 < found["masked_bytes"] / found["bytes"] < 0.2


def order_zero_entropy(books: Books) -> float:
    """Bits a byte of the best prediction that sees nothing."""
    counts = np.bincount(books.split("train").data)
    share = counts[counts > 0] / counts.sum()
    return -float((share * np.log2(share)).sum())
