"""Tiny checkpoints of the reference implementation, as it saves them, with what it computes from them.

    python reference_checkpoints.py 0.4.0 tests/mblm/fixtures

Run inside an environment that holds the reference (PyPI `mblm` of that version, and torch), never inside ours: both
packages are called `mblm`. It must not import anything of this project. Writes `NAME-VERSION.pth`, the checkpoint, and
for models that ours can hold `NAME-VERSION.expected.pt`: the configuration, ids and logits, and a greedy continuation.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import torch

from mblm import MBLM, MambaBlock, MBLMModelConfig, MBLMReturnType, TransformerBlock

SEED = 17
ATTENTION = {"attn_head_dims": 6, "attn_num_heads": 2, "attn_use_rot_embs": True}
PATCH_COUNT, GREEDY_BYTES, PROMPT_BYTES = 3, 9, 5


def configs() -> dict[str, MBLMModelConfig]:
    """tt: ids as in the PG19 models (pad 0). ttt-rope: three stages. st-mamba1: the fallback without a kernel."""
    fixed = TransformerBlock(**ATTENTION, pos_emb_type="fixed")
    rope = TransformerBlock(**ATTENTION, pos_emb_type="rope")
    plain = TransformerBlock(**{**ATTENTION, "attn_use_rot_embs": False})
    mamba = MambaBlock(d_state=4, d_conv=2, expand=2, headdim=4)
    shapes = {"hidden_dims": [12, 8], "seq_lens": [6, 4], "num_layers": [1, 2], "train_checkpoint_chunks": None}
    deeper = {**shapes, "hidden_dims": [12, 10, 8], "seq_lens": [5, 3, 2], "num_layers": [1, 1, 1]}
    return {
        "tt": MBLMModelConfig(num_tokens=256, pad_token_id=0, block=fixed, **shapes),
        "ttt-rope": MBLMModelConfig(num_tokens=40, pad_token_id=39, block=[rope, rope, plain], **deeper),
        "st-mamba1": MBLMModelConfig(num_tokens=40, pad_token_id=0, block=[mamba, fixed], **shapes),
    }


def build(config: MBLMModelConfig) -> MBLM:
    torch.manual_seed(SEED)
    model = MBLM(config)
    with torch.no_grad():  # gains and biases away from their neutral start, so that a swapped or forgotten one shows
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def expected(model: MBLM, config: MBLMModelConfig) -> dict[str, object]:
    """Logits of whole patches and of ids that end inside one, and the bytes that follow a prompt greedily."""
    patch = torch.tensor(config.seq_lens[1:]).prod().item()
    full = torch.randint(1, config.num_tokens - 1, (1, PATCH_COUNT * patch))
    part = full[:, : PATCH_COUNT * patch - 1]
    prompt = full[0, :PROMPT_BYTES]
    # One logit is left at the highest threshold, so the noise that the reference adds to it changes nothing.
    greedy = model.generate(prompt, num_tokens_to_generate=GREEDY_BYTES, filter_thres=1.0, enable_progress=False)
    values: dict[str, object] = {"config": config.model_dump(mode="json"), "prompt": prompt, "greedy": greedy}
    for name, ids in (("full", full), ("part", part)):
        values[f"{name}.ids"] = ids
        values[f"{name}.logits"] = model(ids, return_type=MBLMReturnType.LOGITS).clone()
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="the reference's version that is meant")
    parser.add_argument("out", type=Path, help="an existing folder")
    args = parser.parse_args()
    if version("mblm") != args.version:
        raise SystemExit(f"expected mblm {args.version} in this environment, got {version('mblm')}: install that one")
    for name, config in configs().items():
        model = build(config)
        torch.save({"MODEL": model.state_dict(), "LOSS": 1.25}, args.out / f"{name}-{args.version}.pth")
        if "mamba" not in name:
            torch.save(expected(model, config), args.out / f"{name}-{args.version}.expected.pt")


if __name__ == "__main__":
    main()
