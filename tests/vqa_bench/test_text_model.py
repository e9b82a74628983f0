"""Models of text: their summed loss is the byte model's own on the same bytes, at any length; what they save loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mblm import MBLMEncoder, MBLMReturnType
from mblm.checkpoint import from_pretrained
from tests.vqa_bench.texts import CAUSAL, MASKED, make_config, noise
from vqa_bench.data.vocab import PAD
from vqa_bench.data.windows import Masking, Window, WindowBatch, collate_windows
from vqa_bench.errors import UserError
from vqa_bench.models import LanguageModel, MaskedModel, TextModel, build_text

MASKING = Masking(MASKED["mask_rate"], 0, "training")
STATES = {"kind": "mamba", "d_state": 8, "head_dim": 16}
LONG: dict[str, Any] = {
    "kind": "mblm",
    "hidden_dims": [32, 16, 8],
    "seq_lens": [100, 20, 10],
    "num_layers": [1, 1, 1],
    "stages": [STATES, {"heads": 2, "head_dim": 8}, {"heads": 1, "head_dim": 8}],
}


def make_batch(*lengths: int, masking: Masking | None = None) -> WindowBatch:
    windows = [Window(row, np.frombuffer(noise(length, row), np.uint8)) for row, length in enumerate(lengths)]
    return collate_windows(windows, masking=masking).to(torch.device("cpu"))


def make(model: dict[str, Any], **changes: Any) -> TextModel:
    """In float64, so that differences show."""
    torch.manual_seed(0)
    return build_text(make_config(model, **changes)).double().eval()


def rows(batch: WindowBatch) -> list[Tensor]:
    """Each window by itself, (1, L), without padding."""
    return [row[row != PAD][None] for row in batch.ids]


@pytest.mark.parametrize("lengths", [(32, 32), (32, 7, 13), (1,)], ids=str)
def test_the_causal_loss_is_the_byte_models_own(lengths: tuple[int, ...]) -> None:
    model, batch = make(CAUSAL), make_batch(*lengths)
    assert isinstance(model, LanguageModel)
    sums = model(batch)
    expected = sum(model.mblm(ids, MBLMReturnType.LOSS) * ids.numel() for ids in rows(batch))
    torch.testing.assert_close(sums.total, expected)
    assert sums.targets == sum(lengths)


@pytest.mark.parametrize("lengths", [(32, 32), (32, 7, 13)], ids=str)
@pytest.mark.parametrize("reduce", ["any", "all"])
def test_the_masked_loss_is_the_byte_models_own(lengths: tuple[int, ...], reduce: str) -> None:
    model, batch = make(MASKED | {"reduce": reduce}), make_batch(*lengths, masking=MASKING)
    assert isinstance(model, MaskedModel)
    assert isinstance(model.mblm, MBLMEncoder)
    assert model.mask_rate == MASKED["mask_rate"]
    sums = model(batch)
    hidden = batch.hidden
    assert hidden is not None
    real = batch.ids != PAD
    shown = batch.ids.masked_fill(hidden, model.mblm.config.mask_token_id)
    labels = batch.ids.masked_fill(~hidden, -100)
    loss = model.mblm(shown, labels=labels, attention_mask=real.long())
    torch.testing.assert_close(sums.total, loss * hidden.sum())
    assert sums.targets == hidden.sum() > 0


def test_any_length_trains_in_recomputed_chunks() -> None:
    chunked = LONG | {"checkpoint_chunks": [4, 8]}
    batch, gradients = make_batch(1234), []
    for config in (LONG, chunked):
        model = make(config).train()
        model(batch).total.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    model = make(chunked).float().train()
    sums = model(make_batch(20_000))
    assert sums.targets == 20_000
    assert 4 < sums.total.item() / 20_000 < 8, "a byte of 256 costs ln 256 = 5.5 nats before training"
    sums.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_window_may_be_shorter_or_longer_than_the_hierarchy() -> None:
    assert make_config(LONG).window == 20_000
    short = LONG | {"seq_lens": [3, 4, 5]}
    assert make(short, context=17)(make_batch(17)).targets == 17
    assert make(short, context=777)(make_batch(777)).targets == 777  # its first stage has no fixed positions
    with pytest.raises(UserError, match=r"text: expected a context of at most 32 bytes, .* got 33"):
        make(CAUSAL, context=33)


@pytest.mark.parametrize("config", [CAUSAL, MASKED, LONG], ids=["causal", "masked", "long"])
def test_what_is_saved_is_a_checkpoint_of_the_byte_model(config: dict[str, Any], tmp_path: Path) -> None:
    model = build_text(make_config(config))
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = from_pretrained(tmp_path, architecture=type(model.mblm))
    again = build_text(make_config(config))
    again.load_state_dict(again.stored(tmp_path))
    assert again.parameters_count == sum(p.numel() for p in loaded.parameters())
    for name, tensor in model.mblm.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(again.mblm.state_dict()[name], tensor), name


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    build_text(make_config(MASKED)).save(tmp_path)
    model = build_text(make_config())
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"expected the weights of text in .*, got") as error:
            model.stored(folder)
        assert "\n" not in str(error.value)


def test_bytes_begin_as_configured() -> None:
    smooth = build_text(make_config(CAUSAL | {"byte_init": "smooth"}))
    table = smooth.mblm.token_embs_rev[0].embedding.weight.detach()
    neighbours, strangers = (table[1:256] - table[:255]).norm(dim=1), (table[:128] - table[128:256]).norm(dim=1)
    assert neighbours.mean() < strangers.mean()
