"""Generation: prompts in, bytes out, one incremental step a byte whatever the length of what came before.

Prompts of different lengths run together: each is read up to its last whole patch at once, the bytes of the patch in
progress that not all of them have are fed one by one, and a row whose prompt is used up goes on with its own bytes.
From a patch border on, whole patches may be written at once (`mblm.graphs`); the bytes are the same.

Shapes: n rows, V vocabulary, R bytes in a patch of the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from mblm.decode import DecodeState, enter_patch, read_prefix, step
from mblm.graphs import PatchWriter, Plan, find_plan
from mblm.model.embedding import FixedPositions
from mblm.sampling import GREEDY, Draws, Sampler

if TYPE_CHECKING:
    from mblm.model.mblm import MBLM
    from mblm.utils.stream import ByteStreamer


class ByteWriter:
    """Goes on with n rows byte by byte; a byte is read when the one behind it is asked for."""

    call_bytes = 1

    def __init__(self, model: MBLM, sampler: Sampler, *, logits: Float[Tensor, "n v"], state: DecodeState) -> None:
        self._model, self._sampler, self._logits, self._state = model, sampler, logits, state
        self._unread: Tensor | None = None

    def write(self, numbers: Float[Tensor, "m k v"] | None) -> Int[Tensor, "m k"]:
        """The next byte of every row, k = 1, by the `numbers` of `Draws`."""
        self._read()
        self._unread = self._sampler.choose(self._logits, None if numbers is None else numbers[:, 0])
        return self._unread[:, None]

    def replace(self, ids: Sequence[int]) -> None:
        """What is read in place of the byte that every row has got last."""
        self._unread = torch.tensor(ids, device=self._model.device)

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Go on with the given ones of the rows only, at least one."""
        self._logits, self._state = self._logits[rows], self._state.keep(rows)
        self._unread = None if self._unread is None else self._unread[rows]

    def can_change_to(self, plan: Plan) -> bool:
        """Whether a call of the plan may come next."""
        done = self._state.patch.shape[1] % self._model.patch_bytes[0] + (self._unread is not None)
        return done % plan.call_bytes == 0

    def changed_to(self, plan: Plan) -> PatchWriter:
        """What goes on by the plan."""
        self._read()
        return PatchWriter(self._model, plan, self._sampler, logits=self._logits, state=self._state)

    def _read(self) -> None:
        if self._unread is not None:
            self._logits, self._state = step(self._model, self._state, self._unread)
            self._unread = None


class _Rows:
    """What every row has got, and which go on."""

    def __init__(self, budget: Sequence[int], stop_id: int | None, stream: ByteStreamer | None, progress: bool) -> None:
        self.made: list[list[int]] = [[] for _ in budget]
        self.going = [row for row, limit in enumerate(budget) if limit > 0]
        self._budget, self._stop_id, self._stream = budget, stop_id, stream
        hidden = None if progress and stream is None else True
        self._bar = tqdm(total=max(budget, default=0), unit="B", leave=False, disable=hidden)

    def take(self, written: Sequence[Sequence[int]]) -> list[int] | None:
        """Add each row's next bytes up to its end; which of the rows are left, None where all are."""
        before = self.longest
        for row, ids in zip(self.going, written, strict=True):
            for id_ in ids:
                if self._ended(row):
                    break
                self.made[row].append(id_)
                if self._stream is not None:
                    self._stream.write(id_)
        self._bar.update(self.longest - before)
        left = [at for at, row in enumerate(self.going) if not self._ended(row)]
        if len(left) == len(self.going):
            return None
        self.going = [self.going[at] for at in left]
        return left

    @property
    def longest(self) -> int:
        return max(map(len, self.made), default=0)

    def close(self) -> None:
        self._bar.close()
        if self._stream is not None:
            self._stream.flush()

    def _ended(self, row: int) -> bool:
        return len(self.made[row]) >= self._budget[row] or self.made[row][-1:] == [self._stop_id]


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
    graphs: bool | None = None,
) -> list[Int[Tensor, " m"]]:
    """Each prompt (L,) with the bytes generated behind it; a row ends after its `stop_id`, which is included.

    `count` bytes a row, or as many as the context holds (None). `seed` makes sampling repeatable, whatever the global
    generator has been through. `stream` takes the bytes of a single row as they come. `graphs`: whether whole patches
    are written at once, see `mblm.graphs.find_plan`, which also says what None comes to; the bytes are the same, up to
    what another number of rows in a batch does to rounding.
    """
    if stream is not None and len(prompts) != 1:
        raise ValueError(f"a stream takes the bytes of one prompt, got {len(prompts)} prompts")
    budget = _budget(model, prompts, count)
    plan = find_plan(model, max(budget, default=0), graphs)
    generator = None if seed is None else torch.Generator(device=model.device).manual_seed(seed)
    rows = _Rows(budget, stop_id, stream, progress)
    if rows.going:
        logits, state, waiting = read_prompts(model, [prompts[row] for row in rows.going])
        draws = Draws(sampler, generator, (len(logits), logits.shape[1]), logits.device)
        _write(rows, waiting, draws, ByteWriter(model, sampler, logits=logits, state=state), plan)
    rows.close()
    return [torch.cat((prompt, prompt.new_tensor(ids))) for prompt, ids in zip(prompts, rows.made, strict=True)]


def _write(rows: _Rows, waiting: list[list[int]], draws: Draws, begin: ByteWriter, plan: Plan | None) -> None:
    """Until all rows have ended: byte by byte, then by the plan once no prompt waits and a call can begin."""
    writer: ByteWriter | PatchWriter = begin
    while rows.going:
        if isinstance(writer, ByteWriter) and plan is not None and not any(waiting) and writer.can_change_to(plan):
            writer = writer.changed_to(plan)
        written = writer.write(draws.numbers(writer.call_bytes)).tolist()
        if isinstance(writer, ByteWriter) and any(waiting):
            writer.replace([rest[0] if rest else ids[0] for rest, ids in zip(waiting, written, strict=True)])
            written = [[] if rest else ids for rest, ids in zip(waiting, written, strict=True)]
            waiting = [rest[1:] for rest in waiting]
        left = rows.take(written)
        if left:
            waiting = [waiting[at] for at in left]
            kept = torch.tensor(left, device=draws.device)
            writer.keep(kept)
            draws.keep(kept)


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


def read_prompts(model: MBLM, prompts: Sequence[Tensor]) -> tuple[Tensor, DecodeState, list[list[int]]]:
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
