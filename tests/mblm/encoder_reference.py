"""The masked model's arithmetic written out plainly, one sequence and one head at a time: the oracle of its tests."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mblm import MBLMEncoder, MBLMEncoderModelConfig
from mblm.model.transformer_encoder import TransformerEncoderStage

PAD, MASK, V = 32, 33, 40


def settings_of(seq_lens: list[int], **block: object) -> dict:
    """The configuration of a small model, as parsed from YAML."""
    N = len(seq_lens)
    return {
        "num_tokens": V,
        "pad_token_id": PAD,
        "seq_lens": seq_lens,
        "hidden_dims": [16, 12, 10][3 - N :],
        "num_layers": [2, 1, 1][:N],
        "block": {"attn_head_dims": 6, "attn_num_heads": 2, "attn_use_rot_embs": True, "pos_emb_type": "fixed"} | block,
    }


def build(
    seq_lens: list[int], *, strategy: str = "any", chunks: list[int] | None = None, **block: object
) -> MBLMEncoder:
    """A small random model in float64 and evaluation mode, gains and biases away from their neutral start."""
    torch.manual_seed(0)
    hierarchy = settings_of(seq_lens, **block) | {"train_checkpoint_chunks": chunks}
    config = {"mask_token_id": MASK, "mblm_config": hierarchy, "mask_reduce_strat": strategy}
    model = MBLMEncoder(MBLMEncoderModelConfig.model_validate(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def random_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(seed))


def plain_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-8) * gain


def plain_rotation(x: Tensor, inv_freq: Tensor) -> Tensor:
    """(S, E): channel c turns with channel c + E/2."""
    angles = torch.arange(len(x))[:, None] * inv_freq
    first, second = x.chunk(2, dim=-1)
    turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    return torch.cat(turned, dim=-1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """One head of one sequence, (S, E) each; nothing to read gives zeros."""
    if not real.any():
        return torch.zeros_like(v)
    return (q @ k[real].T / math.sqrt(q.shape[-1])).softmax(-1) @ v[real]


def plain_stage(stage: TransformerEncoderStage, x: Tensor, real: Tensor) -> Tensor:
    """A stage on one sequence (S, D)."""
    for attention, feed_forward in stage.layers:
        normed = plain_norm(x, attention.norm.g)
        q, (k, v) = attention.to_q(normed), attention.to_kv(normed).chunk(2, dim=-1)
        read = []
        for q_head, k_head, v_head in zip(*(y.chunk(attention.heads, dim=-1) for y in (q, k, v)), strict=True):
            if stage.rotary_emb is not None:
                q_head, k_head = (plain_rotation(y, stage.rotary_emb.inv_freq) for y in (q_head, k_head))
            read.append(plain_attention(q_head, k_head, v_head, real))
        x = x + attention.to_out(torch.cat(read, dim=-1))
        norm, widen, _, _, narrow = feed_forward
        x = x + narrow(F.gelu(widen(plain_norm(x, norm.g))))
    return plain_norm(x, stage.norm.g)


def plain_hidden(model: MBLMEncoder, ids: Tensor, real: Tensor) -> Tensor:
    """Local outputs of one row, (L, D_N)."""
    hierarchy, R = model.config.mblm_config, model.patch_bytes[0]
    reduce = torch.any if model.config.mask_reduce_strat == "any" else torch.all

    def descend(stage: int, ids: Tensor, real: Tensor, condition: Tensor | None) -> Tensor:
        """From the (S, R_i) bytes of one sequence of a stage to the local outputs under it."""
        table = model.token_embs_rev[model.num_stages - 1 - stage]
        is_local = stage == model.num_stages - 1
        tokens = table.embedding(ids[:, 0]) if is_local else table._post(table.embedding(ids))
        tokens = model.pos_embs[stage](tokens)
        tokens = tokens if condition is None else tokens + condition
        outputs = plain_stage(model.stage_models[stage], tokens, reduce(real, dim=1))
        if is_local:
            return outputs
        P, D = hierarchy.seq_lens[stage + 1], hierarchy.hidden_dims[stage + 1]
        below = [
            descend(
                stage + 1, ids[j].view(P, -1), real[j].view(P, -1), model.to_next_stage_proj[stage](output).view(P, D)
            )
            for j, output in enumerate(outputs)
        ]
        return torch.cat(below)

    missing = -len(ids) % R
    padded = F.pad(ids, (0, missing), value=PAD).view(-1, R)
    return descend(0, padded, F.pad(real, (0, missing), value=False).view(-1, R), None)[: len(ids)]


def plain_loss(model: MBLMEncoder, ids: Tensor, real: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over bytes that have a label and a weight and are real, one by one."""
    losses = []
    for row in range(len(ids)):
        log_probs = model.to_logits(plain_hidden(model, ids[row], real[row])).log_softmax(-1)
        losses += [
            -log_probs[t, labels[row, t]] * weights[row, t]
            for t in range(ids.shape[1])
            if real[row, t] and labels[row, t] != -100 and weights[row, t] != 0
        ]
    return torch.stack(losses).mean()


def padded_rows(lengths: list[int], total: int) -> tuple[Tensor, Tensor]:
    """Rows of random ids of the given lengths and what is real in them, (B, total) each."""
    real = torch.arange(total) < torch.tensor(lengths)[:, None]
    return random_ids(len(lengths), total).masked_fill(~real, PAD), real
