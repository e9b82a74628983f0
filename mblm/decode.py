"""Incremental decoding over the hierarchy: read a prefix once, branch it into suffixes, go on byte by byte.

Equals the full forward at every position. A stage reads a patch only when a byte after it is asked for, so an answer
that ends inside its patch never touches the stages above it. `read_prefix`, `branch` and `step` are the parts;
`prefill` and `score_continuations` put them together for whole prompts and for candidate answers.

Shapes: n rows, R bytes in a patch of the first stage, V vocabulary, D_i the stages' widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mblm.model.block import StageState, group_rows, incremental
from mblm.model.mblm import MBLM
from mblm.model.precision import wide
from mblm.model.targets import chains

# What continues every row of a stage by one position, as `IncrementalStage.step`.
Step = Callable[[Tensor, Any], tuple[Tensor, StageState]]


@dataclass(frozen=True)
class LaterState:
    """A later stage inside its current sequence: its state, what the stage above adds, its last output.

    owner (n,): which row of `conditioning` each row has; None where each has its own. Rows that continue one another
    share theirs: a copy for each of 28 answers would take longer than reading their bytes.
    """

    state: StageState
    conditioning: Tensor  # (m, P_i, D_i)
    output: Tensor  # (n, D_i)
    owner: Tensor | None = None

    def added(self, position: int) -> Float[Tensor, "n d"]:
        """What the stage above adds at a position of the sequence."""
        at = self.conditioning[:, position]
        return at if self.owner is None else at[self.owner]

    def select(self, width: int, parents: Tensor, rows: Tensor) -> LaterState:
        """As `DecodeState.select`; rows: the old row of every new one."""
        owner = rows if self.owner is None else self.owner[rows]
        return LaterState(self.state.select(width, parents), self.conditioning, self.output[rows], owner)


@dataclass(frozen=True)
class DecodeState:
    """n rows that have read the same number of bytes of their current patch.

    first: the first stage behind the completed patches. context (n, D_1): its output there. completed (n,): patches
    it has read, `longest` at most. patch (n, k): the bytes of the patch in progress, 0 ≤ k ≤ R. later: stages 2..N,
    once k > 0. moves: selections that `first` has yet to follow, see `first_stage`.
    """

    first: StageState
    context: Tensor
    completed: Tensor
    longest: int
    patch: Tensor
    later: tuple[LaterState, ...]
    moves: tuple[tuple[int, Tensor], ...] = ()

    def first_stage(self) -> StageState:
        """The first stage's state of these n rows.

        It is needed where a patch is completed only: most answers end before, and a Mamba-2 state for each of 28
        would be the largest thing to copy.
        """
        first = self.first
        for width, parents in self.moves:
            first = first.select(width, parents)
        return first

    def select(self, width: int, parents: Int[Tensor, " w"]) -> DecodeState:
        """Rows are groups of `width`; in each, new row i continues old row `parents[i]`. Nothing shared is copied."""
        rows = group_rows(self.completed.shape[0], width, parents)
        later = tuple(item.select(width, parents, rows) for item in self.later)
        return replace(
            self,
            context=self.context[rows],
            completed=self.completed[rows],
            patch=self.patch[rows],
            later=later,
            moves=(*self.moves, (width, parents)),
        )

    def keep(self, rows: Int[Tensor, " w"]) -> DecodeState:
        """Only the given rows (at least one, or none)."""
        state = self.select(self.completed.shape[0], rows)
        return replace(state, longest=int(state.completed.max()) if len(rows) else 0)


def read_prefix(model: MBLM, ids: Int[Tensor, "n l"], patches: Int[Tensor, " n"] | None = None) -> DecodeState:
    """Read whole patches from the beginning: L is a multiple of R; only the first `patches` (0 or more) are real."""
    return _read(model, ids, patches)[1]


def _read(model: MBLM, ids: Tensor, patches: Tensor | None) -> tuple[Tensor, DecodeState]:
    """`read_prefix`, and the first stage's output at every position, start included."""
    tokens = _whole_patches(model, ids)
    n, count, _ = tokens.shape
    model.check_context(count)
    stage = incremental(model.stage_models[0])
    x = model.with_start(0, model.embed(0, tokens))
    if patches is None:
        y, first = stage.prefix(x)
        completed = torch.full((n,), count, dtype=torch.long, device=ids.device)
    else:
        y, first = stage.prefix(x, patches + 1)  # the start vector is a position too
        completed = patches
    context = y[torch.arange(n, device=ids.device), completed]
    return y, DecodeState(first, context, completed, count, ids[:, :0], ())


def branch(
    model: MBLM, state: DecodeState, ids: Int[Tensor, "n k l"], patches: Int[Tensor, "n k"] | None = None
) -> DecodeState:
    """Continue each row with K suffixes of whole patches; only the first `patches` (at least 1) of each are real.

    The rows must stand on a patch border. The result has n·K rows; the prefix is neither read again nor copied.
    """
    if state.patch.shape[1] != 0:
        raise ValueError(f"expected a state on a patch border, got one {state.patch.shape[1]} bytes into a patch")
    n, K, _ = ids.shape
    tokens = _whole_patches(model, ids.flatten(0, 1)).unflatten(0, (n, K))  # (n, K, S, R)
    model.check_context(state.longest + tokens.shape[2])
    x = model.embed(0, tokens, start=state.completed[:, None].expand(n, K))
    y, first = incremental(model.stage_models[0]).branch(x, state.first_stage(), patches)
    S = tokens.shape[2]
    real = torch.full((n, K), S, device=ids.device) if patches is None else patches
    context = y.flatten(0, 1)[torch.arange(n * K, device=ids.device), real.flatten() - 1]
    completed = (state.completed[:, None] + real).flatten()
    return DecodeState(first, context, completed, state.longest + S, ids.new_empty(n * K, 0), ())


def step(model: MBLM, state: DecodeState, ids: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n v"], DecodeState]:
    """Read one more byte of every row: logits of the byte after it, and the state behind it.

    Raises ValueError past the context where the first stage has fixed positions.
    """
    ids = model.checked_ids(ids)
    if state.patch.shape[1] == model.patch_bytes[0]:
        state = complete_patch(model, state)
    model.check_context(state.longest + 1)
    if model.num_stages == 1:
        state = complete_patch(model, replace(state, patch=ids[:, None]))
        return model.to_logits(state.context), state
    later = read_byte(model, state.context, state.patch, state.later, ids, range(1, model.num_stages))
    patch = torch.cat((state.patch, ids[:, None]), dim=1)
    return model.to_logits(later[-1].output), replace(state, patch=patch, later=tuple(later))


def read_byte(
    model: MBLM, context: Tensor, patch: Tensor, later: Sequence[LaterState], ids: Int[Tensor, " n"], stages: range
) -> list[LaterState]:
    """`stages`, the last of them the local one, behind one more byte of every row; for the rest see `descend`."""
    reached, _ = descend(model, context, patch, later, stages)
    local, last = reached[-1], model.num_stages - 1
    slot = patch.shape[1] % model.config.seq_lens[-1]
    x = model.embed(last, ids[:, None, None], start=slot)[:, 0] + local.added(slot)
    y, state = incremental(model.stage_models[last]).step(x, local.state)
    return [*reached[:-1], replace(local, state=state, output=y)]


def prefill(model: MBLM, ids: Int[Tensor, "n l"]) -> tuple[Float[Tensor, "n v"], DecodeState]:
    """Read any number of bytes: logits of the byte after them, and the state behind them.

    Nothing read gives the logits of `forward_empty`. Raises ValueError past the context where the first stage has fixed
    positions.
    """
    (n, L), R = ids.shape, model.patch_bytes[0]
    whole = L // R * R
    y, state = _read(model, ids[:, :whole], None)
    if L == 0:
        return model.forward_empty(n)[:, 0], state
    if whole < L:
        return enter_patch(model, state, ids[:, whole:])
    if model.num_stages == 1:
        return model.to_logits(state.context), state
    # The first stage has read the last patch with all others; the later ones read it behind what came before it.
    before = replace(state, context=y[:, -2], longest=state.longest - 1)
    logits, entered = enter_patch(model, before, ids[:, L - R :])
    return logits, replace(state, later=entered.later)


def enter_patch(model: MBLM, state: DecodeState, ids: Int[Tensor, "n k"]) -> tuple[Float[Tensor, "n v"], DecodeState]:
    """From a patch border, read the first k bytes of the next patch at once, 1 ≤ k ≤ R: as k times `step`."""
    ids = model.checked_ids(ids)
    k, R = ids.shape[1], model.patch_bytes[0]
    if state.patch.shape[1] != 0 or not 1 <= k <= R:
        raise ValueError(
            f"expected a state on a patch border and 1 to {R} bytes, "
            f"got one {state.patch.shape[1]} bytes into a patch and {k} bytes"
        )
    model.check_context(state.longest + 1)
    if model.num_stages == 1:
        state = complete_patch(model, replace(state, patch=ids))
        return model.to_logits(state.context), state
    later: list[LaterState] = []
    context = state.context
    for stage in range(1, model.num_stages):
        per_sequence, per_position = model.patch_bytes[stage - 1], model.patch_bytes[stage]
        begin = (k - 1) // per_sequence * per_sequence  # of the sequence that holds the last byte
        # The local stage has read the last byte; one in between reads a position when a byte after it is asked for.
        count = k - begin if stage == model.num_stages - 1 else (k - 1 - begin) // per_position
        conditioning = model.condition(stage, context)
        tokens = ids[:, begin : begin + count * per_position].unflatten(1, (count, per_position))
        x = model.embed(stage, tokens) + conditioning[:, :count]
        y, reached = incremental(model.stage_models[stage]).prefix(model.with_start(stage, x))
        later.append(LaterState(reached, conditioning, y[:, -1]))
        context = y[:, -1]
    return model.to_logits(context), replace(state, patch=ids, later=tuple(later))


def score_continuations(
    model: MBLM, state: DecodeState, candidates: Int[Tensor, "a m"], lengths: Int[Tensor, " a"] | None = None
) -> Float[Tensor, "n a"]:
    """log p of each candidate (its first `lengths` ids, at least 1) behind every row: sums over its ids, (n, A).

    The state is one that `prefill`, `enter_patch` or `step` left: it knows what its last byte predicts. All candidates
    are scored in one pass a stage: the prefix is neither read again nor copied.
    """
    if not state.later and model.num_stages > 1:
        raise ValueError("expected a state that knows what comes next, as `prefill` leaves it; got one on a border")
    n, (A, m) = state.patch.shape[0], candidates.shape
    lengths = torch.as_tensor(m if lengths is None else lengths, device=candidates.device)
    lengths = lengths.expand(A) if lengths.ndim == 0 else lengths
    if A == 0 or lengths.shape != (A,) or int(lengths.min()) < 1 or int(lengths.max()) > m:
        raise ValueError(f"expected lengths from 1 to {m} for each of {A} candidates, got {lengths.tolist()}")
    unasked = torch.arange(m, device=candidates.device) >= lengths[:, None]
    candidates = model.checked_ids(candidates.masked_fill(unasked, model.pad_token_id))
    output = state.later[-1].output if state.later else state.context
    scores = wide(model.to_logits(output)).log_softmax(-1)[:, candidates[:, 0]]
    if state.patch.shape[1] == model.patch_bytes[0]:
        state = complete_patch(model, state)
    k = state.patch.shape[1]
    model.check_context(state.longest + -(-(k + int(lengths.max())) // model.patch_bytes[0]))
    ids = torch.cat((state.patch[:, None].expand(n, A, k), candidates.expand(n, A, m)), dim=2)
    positions = torch.arange(k + m, device=ids.device)
    weights = ((positions > k) & (positions < (k + lengths)[:, None])).to(scores.dtype).expand(n, A, k + m)
    patches = model.to_patches(ids.flatten(0, 1)).unflatten(0, (n, A))  # (n, A, S, R)
    S, R = patches.shape[2:]
    weights = F.pad(weights, (0, S * R - k - m)).view(patches.shape)
    # A candidate's last id is predicted from the patch of the id before it; in a single stage from its own context.
    last = (k + lengths - (1 if model.num_stages == 1 else 2)).clamp(min=0)
    contexts = _continued_contexts(model, state, patches, last // R)
    chain = chains(patches.flatten(0, 1), weights.flatten(0, 1))
    targets = chain.targets(None)
    if targets.ids.numel() == 0:
        return scores
    losses = model.losses(contexts.flatten(0, 2), chain, targets)
    return scores.flatten().index_add(0, targets.patches // S, -losses).view(n, A)


def _continued_contexts(
    model: MBLM, state: DecodeState, patches: Int[Tensor, "n a s r"], needed: Int[Tensor, " a"]
) -> Float[Tensor, "n a s d"]:
    """What conditions the patches of A suffixes; only `needed[a]` patches after the first of suffix a are asked for."""
    n, A, S, _ = patches.shape
    contexts = state.context[:, None, None].expand(n, A, S, -1).contiguous()
    long = needed.nonzero().squeeze(1)
    if len(long):
        start = state.completed[:, None].expand(n, len(long))
        x = model.embed(0, patches[:, long, : S - 1], start=start)
        y, _ = incremental(model.stage_models[0]).branch(x, state.first_stage())
        contexts[:, long, 1:] = y.to(contexts.dtype)
    return contexts


def descend(
    model: MBLM, context: Float[Tensor, "n d"], patch: Int[Tensor, "n k"], later: Sequence[LaterState], stages: range
) -> tuple[list[LaterState], Float[Tensor, "n d"]]:
    """Consecutive later stages, advanced to where the byte behind `patch` needs them, and the last one's output.

    context: what conditions the first of them. patch: the bytes since a sequence of that stage began. later: their
    states, as far as they have begun. Without any stages the context comes back.
    """
    k, reached = patch.shape[1], list(later)
    for at, stage in enumerate(stages):
        per_sequence, per_position = model.patch_bytes[stage - 1], model.patch_bytes[stage]
        module = incremental(model.stage_models[stage])
        if k % per_sequence == 0:
            start = model.with_start(stage, context.new_empty(len(context), 0, model.config.hidden_dims[stage]))
            y, fresh = module.prefix(start)
            reached[at:] = [LaterState(fresh, model.condition(stage, context), y[:, 0])]
        elif k % per_position == 0 and stage < model.num_stages - 1:
            position = (k % per_sequence) // per_position - 1
            now = reached[at]
            x = model.embed(stage, patch[:, None, k - per_position :], start=position)[:, 0]
            y, advanced = module.step(x + now.added(position), now.state)
            reached[at] = replace(now, state=advanced, output=y)
        context = reached[at].output
    return reached, context


def complete_patch(model: MBLM, state: DecodeState, step: Step | None = None) -> DecodeState:
    """The first stage reads the full patch in progress, by a `step` that is not the stage's own where one is given."""
    x = model.embed(0, state.patch[:, None], start=state.completed)[:, 0]
    y, first = (step or incremental(model.stage_models[0]).step)(x, state.first_stage())
    return DecodeState(first, y, state.completed + 1, state.longest + 1, state.patch[:, :0], ())


def _whole_patches(model: MBLM, ids: Tensor) -> Tensor:
    R = model.patch_bytes[0]
    if ids.shape[1] % R:
        raise ValueError(
            f"expected whole patches: a multiple of {R} bytes, got {ids.shape[1]}; pad with id {model.pad_token_id}"
        )
    return model.checked_ids(ids).unflatten(1, (-1, R))
