"""The arithmetic of the hierarchy written out plainly, step by step, with a model's own weights: the oracle.

Nothing is skipped, shared or tabulated here: every stage runs on every position, as the paper's section on the forward
pass has it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mblm import MBLM, MBLMModelConfig, TransformerBlock

TRANSFORMER = {"attn_head_dims": 6, "attn_num_heads": 2, "attn_use_rot_embs": True, "pos_emb_type": "fixed"}
MAMBA = {"d_state": 5, "d_conv": 3, "expand": 2, "headdim": 4, "pos_emb_type": None}


def stages(letters: str) -> list[dict]:
    """Blocks by letter: T for a transformer stage, S for a Mamba-2 stage."""
    return [{"T": TRANSFORMER, "S": MAMBA}[letter] for letter in letters]


def build(seq_lens: list[int], *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object) -> MBLM:
    """A small random model in evaluation mode; `changes` overrides fields of the block or of the config."""
    torch.manual_seed(seed)
    N = len(seq_lens)
    block = dict(TRANSFORMER)
    config = {"hidden_dims": [16, 12, 10][3 - N :], "num_layers": [2, 1, 1][:N], "train_checkpoint_chunks": None}
    for name, value in changes.items():
        (block if name in TransformerBlock.model_fields else config)[name] = value
    config.setdefault("block", block)
    model = MBLM(MBLMModelConfig.model_validate({"num_tokens": 40, "pad_token_id": 32, "seq_lens": seq_lens} | config))
    with torch.no_grad():  # biases and gains away from their neutral start, so that a forgotten one shows
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def plain_predictions(model: MBLM, ids: Tensor) -> Tensor:
    """Logits that predict byte 0..L-1, (B, L, V)."""
    lens, N, (B, L) = model.config.seq_lens, model.num_stages, ids.shape
    padded = F.pad(ids, (0, -L % model.patch_bytes[0]), value=model.pad_token_id)
    conditioned: Tensor | None = None
    for stage in range(N):
        positions = padded.shape[1] // model.patch_bytes[0] if stage == 0 else lens[stage]
        groups = padded.reshape(-1, positions, model.patch_bytes[stage])
        table = model.token_embs_rev[N - 1 - stage]
        tokens = table.embedding(groups)
        tokens = tokens.squeeze(-2) if stage == N - 1 else table._post(tokens)
        tokens = model.pos_embs[stage](tokens)
        if conditioned is not None:
            tokens = tokens + conditioned
        start = model.start_tokens[stage].expand(len(tokens), 1, -1)
        out = model.stage_models[stage](torch.cat((start, tokens), dim=1))
        if stage < N - 1:
            projected = model.to_next_stage_proj[stage](out[:, :-1])
            conditioned = projected.reshape(-1, lens[stage + 1], model.config.hidden_dims[stage + 1])
    out = out.unflatten(0, (B, -1))  # (B, local sequences, 1 + P_N, D_N)
    hidden = torch.cat((out[:, 0, :1], out[:, :, 1:].flatten(1, 2)), dim=1)[:, :L]
    return model.to_logits(hidden)


def plain_loss_sum(model: MBLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy summed over the bytes of separate sequences, (B, L) each."""
    logits = plain_predictions(model, ids)
    losses = F.cross_entropy(logits.transpose(1, 2), ids, ignore_index=model.pad_token_id, reduction="none")
    return (losses * weights).sum()


def gradients(model: MBLM, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of every parameter, zeros where it took no part."""
    model.zero_grad()
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
