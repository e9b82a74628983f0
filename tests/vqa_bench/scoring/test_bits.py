"""Bits per byte: equal to a plain loop over windows, every byte once, whatever the batches and processes."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from mblm import MBLMEncoder, MBLMReturnType
from tests.vqa_bench.texts import CAUSAL, MASKED, make_books, make_config, noise
from vqa_bench.data.books import BookSplit
from vqa_bench.data.windows import Masking, Window
from vqa_bench.models import TextModel, build_text
from vqa_bench.scoring.bits import MASK_SEED, TextLoss, text_loss

CPU = torch.device("cpu")
SIZE, WINDOW = 140, 32  # four windows of 32 bytes and one of 12


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> BookSplit:
    return make_books(tmp_path_factory.mktemp("bits") / "books", {"test": noise(SIZE)}).split("test")


def make(config: dict[str, Any]) -> TextModel:
    torch.manual_seed(0)
    return build_text(make_config(config)).double().eval()


@torch.no_grad()
def test_bits_per_byte_is_that_of_a_plain_loop(split: BookSplit) -> None:
    model, data = make(CAUSAL), noise(SIZE)
    bits = 0.0
    for start in range(0, SIZE, WINDOW):
        ids = torch.tensor([list(data[start : start + WINDOW])])
        log_probs = model.mblm(ids, MBLMReturnType.LOGITS).log_softmax(-1)[0]
        bits -= sum(float(log_probs[at - 1, ids[0, at]]) for at in range(1, ids.shape[1])) / math.log(2)
        first = torch.zeros_like(ids)
        first[0, 0] = 1  # logits begin with the prediction of the second byte
        bits += float(model.mblm(ids, MBLMReturnType.LOSS, first)) / math.log(2)
    found = text_loss(model, split, WINDOW, batch=3, device=CPU)
    assert found.bytes == SIZE
    assert found.bits_per_byte == pytest.approx(bits / SIZE, rel=1e-9)


@torch.no_grad()
def test_bits_per_masked_byte_is_that_of_a_plain_loop(split: BookSplit) -> None:
    model, data = make(MASKED), noise(SIZE)
    assert isinstance(model.mblm, MBLMEncoder)
    masking = Masking(MASKED["mask_rate"], MASK_SEED, "evaluation")
    nats, count = 0.0, 0
    for number, start in enumerate(range(0, SIZE, WINDOW)):
        content = np.frombuffer(data[start : start + WINDOW], np.uint8)
        hidden = torch.from_numpy(masking.hidden(Window(number, content)))
        ids = torch.from_numpy(content.astype(np.int64))
        shown = ids.masked_fill(hidden, model.mblm.config.mask_token_id)[None]
        log_probs = model.mblm(shown, return_type=MBLMReturnType.LOGITS).log_softmax(-1)[0]
        nats -= sum(float(log_probs[at, ids[at]]) for at in torch.nonzero(hidden).flatten().tolist())
        count += int(hidden.sum())
    found = text_loss(model, split, WINDOW, batch=4, device=CPU, mask_rate=model.mask_rate)
    assert found.bytes == count
    assert found.nats == pytest.approx(nats, rel=1e-9)


@pytest.mark.parametrize("config", [CAUSAL, MASKED], ids=["causal", "masked"])
@pytest.mark.parametrize("limit", [None, 3])
def test_processes_and_batches_change_nothing(split: BookSplit, config: dict[str, Any], limit: int | None) -> None:
    model = make(config)
    rate = model.mask_rate
    whole = text_loss(model, split, WINDOW, batch=1, device=CPU, mask_rate=rate, limit=limit)
    if rate is None:
        assert whole.bytes == SIZE if limit is None else limit * WINDOW
    for world, batch in ((1, 4), (2, 2), (7, 1)):
        shares = [
            text_loss(
                model, split, WINDOW, batch=batch, device=CPU, mask_rate=rate, limit=limit, rank=rank, world=world
            )
            for rank in range(world)
        ]
        assert sum(share.bytes for share in shares) == whole.bytes
        assert sum(share.nats for share in shares) == pytest.approx(whole.nats, rel=1e-9)
    assert not any(p.grad is not None for p in model.parameters())


def test_progress_is_told(split: BookSplit) -> None:
    seen = []
    text_loss(
        make(CAUSAL), split, WINDOW, batch=4, device=CPU, report=lambda done, total, note="": seen.append((done, total))
    )
    assert seen == [(4, 5), (5, 5)]


def test_nothing_has_no_mean() -> None:
    assert TextLoss(0.0, 0).bits_per_byte is None
    assert TextLoss(math.log(2) * 12, 4).bits_per_byte == pytest.approx(3)
