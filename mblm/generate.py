"""Generation: prompts in, bytes out, one incremental step a byte whatever the length of what came before.

Prompts of different lengths run together: each is read up to its last whole patch at once, the bytes of the patch in
progress that not all of them have are fed one by one, and a row whose prompt is used up goes on with its own bytes.

Shapes: n rows, V vocabulary, R bytes in a patch of the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mblm.decode import DecodeState, enter_patch, read_prefix, step
from mblm.model.embedding import FixedPositions

if TYPE_CHECKING:
    from mblm.model.mblm import MBLM
    from mblm.utils.stream import ByteStreamer


@dataclass(frozen=True)
class Sampler:
    """How the next byte is chosen from its logits: the most likely one, or drawn.

    temperature: logits are divided by it. top_k: only the k most likely stay. top_p: only the most likely that together
    reach this probability stay (at least one). Ties at the k-th place all stay.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_k != 1 and not self.temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")

    def __call__(self, logits: Float[Tensor, "n v"], generator: torch.Generator | None) -> Int[Tensor, " n"]:
        """One id a row."""
        if self.top_k == 1:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        probabilities = logits.softmax(-1)
        if self.top_p is not None:
            ranked, order = probabilities.sort(dim=-1, descending=True)
            beyond = ranked.cumsum(-1) - ranked >= self.top_p  # what comes before already suffices
            ranked = ranked.masked_fill(beyond, 0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


GREEDY = Sampler(top_k=1)


def choose_sampler(
    vocabulary: int, *, temperature: float, filter_thres: float | None, top_k: int | None, top_p: float | None
) -> Sampler:
    """From `generate`'s arguments; `filter_thres` is the reference's: the fraction of the ids that is thrown away."""
    if filter_thres is None:
        # Nothing said is greedy, as in the reference.
        top_k = 1 if top_k is None and top_p is None else top_k
    else:
        if top_k is not None or top_p is not None:
            raise ValueError("expected filter_thres alone or top_k and top_p, got both: leave one out")
        if not 0 <= filter_thres <= 1:
            raise ValueError(f"filter_thres: expected 0 to 1, got {filter_thres}")
        top_k = max(int((1 - filter_thres) * vocabulary), 1)
    return Sampler(temperature, top_k, top_p)


def generate(
    model: MBLM,
    prompts: Sequence[Int[Tensor, " l"]],
    *,
    count: int | None = None,
    sampler: Sampler = GREEDY,
    stop_id: int | None = None,
    seed: int | None = None,
    stream: ByteStreamer | None = None,
    progress: bool = False,
) -> list[Int[Tensor, " m"]]:
    """Each prompt (L,) with the bytes generated behind it; a row ends after its `stop_id`, which is included.

    `count` bytes a row, or as many as the context holds (None). `seed` makes sampling repeatable, whatever the global
    generator has been through. `stream` takes the bytes of a single row as they come.
    """
    if stream is not None and len(prompts) != 1:
        raise ValueError(f"a stream takes the bytes of one prompt, got {len(prompts)} prompts")
    budget = _budget(model, prompts, count)
    generator = None if seed is None else torch.Generator(device=model.device).manual_seed(seed)
    made: list[list[int]] = [[] for _ in prompts]
    rows = [row for row, limit in enumerate(budget) if limit > 0]  # still running
    if rows:
        logits, state, waiting = _read(model, [prompts[row] for row in rows])
    bar = tqdm(
        total=max(budget, default=0), unit="B", leave=False, disable=None if progress and stream is None else True
    )
    while rows:
        chosen = sampler(logits, generator).tolist()
        for at, row in enumerate(rows):
            if waiting[at]:
                chosen[at] = waiting[at].pop(0)
                continue
            made[row].append(chosen[at])
            if stream is not None:
                stream.write(chosen[at])
        bar.update()
        going = [at for at, row in enumerate(rows) if len(made[row]) < budget[row] and made[row][-1:] != [stop_id]]
        if len(going) < len(rows):
            state = state.keep(torch.tensor(going, dtype=torch.long, device=model.device))
            rows, chosen = [rows[at] for at in going], [chosen[at] for at in going]
            waiting = [waiting[at] for at in going]
        if rows:
            logits, state = step(model, state, torch.tensor(chosen, device=model.device))
    bar.close()
    if stream is not None:
        stream.flush()
    return [torch.cat((prompt, prompt.new_tensor(ids))) for prompt, ids in zip(prompts, made, strict=True)]


def _budget(model: MBLM, prompts: Sequence[Tensor], count: int | None) -> list[int]:
    """How many bytes each row may get; ValueError where fixed positions do not hold them."""
    context = model.config.context
    if count is None:
        return [max(0, context - len(prompt)) for prompt in prompts]
    if count < 0:
        raise ValueError(f"expected 0 or more bytes to generate, got {count}")
    longest = max((len(prompt) for prompt in prompts), default=0)
    if longest + count > context and isinstance(model.pos_embs[0], FixedPositions):
        raise ValueError(
            f"expected prompt and generated bytes to fit the {context} fixed positions of the context, got "
            f"{longest} + {count}: shorten the prompt or generate at most {max(0, context - longest)} bytes"
        )
    return [count] * len(prompts)


def _read(model: MBLM, prompts: Sequence[Tensor]) -> tuple[Tensor, DecodeState, list[list[int]]]:
    """Logits and state behind what all prompts have of their last patch, and the bytes that each still waits for."""
    R, device = model.patch_bytes[0], model.device
    whole = [max(0, len(prompt) - 1) // R for prompt in prompts]
    prompts = [model.checked_ids(prompt).to(device) for prompt in prompts]
    rest = [prompt[R * patches :] for prompt, patches in zip(prompts, whole, strict=True)]
    ids = torch.full((len(prompts), R * max(whole)), model.pad_token_id, dtype=torch.long, device=device)
    for row, (prompt, patches) in enumerate(zip(prompts, whole, strict=True)):
        ids[row, : R * patches] = prompt[: R * patches]
    ragged = None if len(set(whole)) == 1 else torch.tensor(whole, device=device)
    state = read_prefix(model, ids, ragged)
    common = min(len(bytes_) for bytes_ in rest)
    if common == 0:
        # A row without a prompt begins with `forward_empty`; what the others get here is not looked at.
        return model.forward_empty(len(prompts))[:, 0], state, [bytes_.tolist() for bytes_ in rest]
    logits, state = enter_patch(model, state, torch.stack([bytes_[:common] for bytes_ in rest]))
    return logits, state, [bytes_[common:].tolist() for bytes_ in rest]
