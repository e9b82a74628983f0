"""Generation a patch at a time: what has the same shapes in every patch is one call, on CUDA one graph launch.

A step of one byte launches hundreds of small kernels, and on a GPU their launches take longer than the weights they
read. A sequence of a later stage begins anew from its start vector, so writing one is a function of fixed shapes, from
what conditions it to its bytes; so is a step of a Mamba-2 first stage, whose state has a fixed size. Both are captured
once and replayed, drawing included, and the host looks at the bytes once a call. The operations are those of `step`,
with the same shapes in the same order, so the bytes are too.

A transformer above them is called as ever, once for all bytes of its patch: its keys grow with every position, and one
graph for all of them would read and mask a buffer of the whole context for each. Where a patch of the first stage is
long, only the sequences of the stages at its end are captured, for the same reason and to keep the graph small.

Off CUDA the same calls run uncaptured between the same buffers, so that a CPU's tests see all but the capture.
Knows models and their decoding; not prompts, ends of rows or streams.

Shapes: n rows at the beginning, m ≤ n that are left, V vocabulary, D_i the stages' widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mblm.decode import DecodeState, LaterState, Step, complete_patch, descend, read_byte
from mblm.model.block import StageState
from mblm.model.mamba import MambaStage, MambaState, MixerState
from mblm.model.transformer import TransformerStage
from mblm.sampling import Sampler

if TYPE_CHECKING:
    from mblm.model.mblm import MBLM

# Bytes of one graph at the most: a byte is some hundred kernels, and a graph of 10⁵ takes seconds to make.
LONGEST_CALL = 256
# A graph costs about as much as this many of its calls without it: the warm-up, the capture, its instantiation.
PAYS_FROM_CALLS = 4
# Before a capture everything runs as often: libraries load kernels and choose among them, which no capture may do.
WARM_UPS = 2


@dataclass(frozen=True)
class Plan:
    """How generation goes patch by patch, see `find_plan`.

    call_bytes: bytes that one call writes. stage: the stage (0-based) of which a call writes one sequence; 1 in a
    single-stage model, which has none below its first. keeps_first: whether the first stage's step is such a call too.
    graph: captured on CUDA, or run uncaptured.
    """

    call_bytes: int
    stage: int
    keeps_first: bool
    graph: bool


def find_plan(model: MBLM, count: int, graphs: bool | None = None) -> Plan | None:
    """How `generate` writes `count` bytes a row with this `graphs`; None for byte by byte.

    None stands for what is quicker: on CUDA stages of ours, from a few calls on; byte by byte anywhere else. Raises
    ValueError for True where nothing has fixed shapes.
    """
    if graphs is False or (graphs is None and model.device.type != "cuda"):
        return None
    first, *later = (_uncompiled(stage) for stage in model.stage_models)
    keeps_first = isinstance(first, MambaStage)
    lengths = model.patch_bytes[:-1]  # bytes of one sequence of each later stage
    stage = next((at for at, length in enumerate(lengths, 1) if length <= LONGEST_CALL), None)
    if (stage is None and later) or not (later or keeps_first):
        if graphs is None:
            return None
        got = f"local sequences of {lengths[-1]} bytes" if later else f"a single {type(first).__name__}"
        raise ValueError(
            f"graphs: expected local sequences of at most {LONGEST_CALL} bytes or a single Mamba-2 stage, got {got}; "
            "leave graphs out"
        )
    plan = Plan(lengths[stage - 1] if stage else 1, stage or 1, keeps_first, model.device.type == "cuda")
    ours = all(isinstance(module, (MambaStage, TransformerStage)) for module in later)
    if graphs is None and not (ours and count >= PAYS_FROM_CALLS * plan.call_bytes):
        return None
    return plan


class Captured:
    """A function of tensors with fixed shapes and its buffers: inputs are copied in, outputs stay where they are.

    All tensors have n rows in front. A call may give fewer; as many rows of the outputs come back, views that the next
    call writes over. The last `kept` inputs stay in place: a call gives only those before them, and the function's
    last `kept` outputs, of the same shapes and types, replace them. With `graph` a call is one launch of a CUDA graph
    that is captured here, else the function itself.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
        *,
        kept: int = 0,
        graph: bool,
    ) -> None:
        self._function, self._given = function, len(inputs) - kept
        with _no_gradients():
            self._buffers = [x.clone() for x in inputs]
            self._replay: Callable[[], None] | None = None
            self._outputs: list[Tensor] = []
            if graph:
                self._replay, self._outputs = self._capture()
            for buffer, x in zip(self._buffers, inputs, strict=True):  # the warm-up has moved what is kept
                buffer.copy_(x)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with _no_gradients():
            for buffer, x in zip(self._buffers[: self._given], inputs, strict=True):
                buffer[: len(x)].copy_(x)
            if self._replay is not None:
                self._replay()
            else:
                outputs = self._run()
                self._outputs = self._outputs or [torch.empty_like(x) for x in outputs]
                for buffer, x in zip(self._outputs, outputs, strict=True):
                    buffer.copy_(x)
            return tuple(output[: len(inputs[0])] for output in self._outputs)

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Of what stays in place, the given rows become the first m."""
        with _no_gradients():
            for buffer in self._buffers[self._given :]:
                buffer[: len(rows)] = buffer[rows]

    def _run(self) -> list[Tensor]:
        """The function on its buffers; what is kept goes back into them."""
        buffers = self._buffers[self._given :]
        # Weights that autocast has cast and remembers: a graph makes its own, once a call, and nobody else sees them.
        torch.clear_autocast_cache()
        outputs = list(self._function(*self._buffers))
        torch.clear_autocast_cache()
        first_kept = len(outputs) - len(buffers)
        for buffer, x in zip(buffers, outputs[first_kept:], strict=True):
            assert buffer.shape == x.shape
            assert buffer.dtype == x.dtype
            buffer.copy_(x)
        return outputs[:first_kept]

    def _capture(self) -> tuple[Callable[[], None], list[Tensor]]:
        """The launch of everything `_run` does, and where its outputs will lie.

        As PyTorch's notes on CUDA graphs ask: warmed up and captured on a stream beside the current one.
        """
        device = self._buffers[0].device
        with torch.cuda.device(device):
            side, current = _side_stream(device), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    self._run()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                outputs = self._run()
        return graph.replay, outputs


class KeptState:
    """The state of a Mamba-2 stage in buffers that every step writes over: of use to one owner alone."""

    def __init__(self, stage: MambaStage, state: MambaState, x: Float[Tensor, "n d"], *, graph: bool) -> None:
        """x: an input of the stage's step, for its shape and type."""
        tensors = _tensors(state)

        def step(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            layers = (MixerState(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True))
            y, after = stage.step(x, MambaState(tuple(layers)))
            return (y, *_tensors(after))

        self._captured = Captured(step, (x, *tensors), kept=len(tensors), graph=graph)

    def step(self, x: Float[Tensor, "m d"], state: Any) -> tuple[Float[Tensor, "m d"], KeptState]:
        """As `MambaStage.step`, in place."""
        assert state is self
        (y,) = self._captured(x)
        return y, self

    def expand(self, branches: int) -> StageState:
        raise NotImplementedError("a state that is kept in place has no branches: branch the one it was made of")

    def select(self, width: int, parents: Int[Tensor, " m"]) -> KeptState:
        """As `StageState.select` for one group of all rows, in place."""
        self._captured.keep(parents)
        return self


class PatchWriter:
    """Goes on with n rows, a call's bytes at a time. On CUDA, building it captures the graphs."""

    def __init__(
        self, model: MBLM, plan: Plan, sampler: Sampler, *, logits: Float[Tensor, "n v"], state: DecodeState
    ) -> None:
        """logits, state: behind a whole number of calls' bytes of the patch in progress."""
        assert state.patch.shape[1] % plan.call_bytes == 0
        self.call_bytes = plan.call_bytes
        self._model, self._sampler, self._logits = model, sampler, logits
        self._above = range(1, plan.stage)
        self._step: Step | None = None
        first = state.first_stage()
        if plan.keeps_first:
            stage = cast(MambaStage, _uncompiled(model.stage_models[0]))
            first = KeptState(stage, cast(MambaState, first), state.context, graph=plan.graph)
            self._step = first.step
        self._state = replace(state, first=first, later=state.later[: len(self._above)], moves=())
        self._sequence: Captured | None = None
        if model.num_stages > 1:
            n, V = logits.shape
            context = state.context.new_zeros(n, model.config.hidden_dims[plan.stage - 1])
            numbers = [torch.ones(n, plan.call_bytes, V, device=logits.device)] if sampler.draws else []
            function = sequence_writer(model, plan, sampler)
            self._sequence = Captured(function, (context, *numbers, logits), kept=1, graph=plan.graph)

    def write(self, numbers: Float[Tensor, "m k v"] | None) -> Int[Tensor, "m k"]:
        """The next bytes of every row; they are written over by the next call."""
        model, state = self._model, self._state
        if state.patch.shape[1] == model.patch_bytes[0]:
            state = complete_patch(model, state, self._step)
        model.check_context(state.longest + 1)
        if self._sequence is None:
            ids = self._sampler.choose(self._logits, None if numbers is None else numbers[:, 0])[:, None]
            self._state = complete_patch(model, replace(state, patch=ids), self._step)
            self._logits = model.to_logits(self._state.context)
            return ids
        later, context = descend(model, state.context, state.patch, state.later, self._above)
        (ids,) = self._sequence(context, *([] if numbers is None else [numbers]))
        self._state = replace(state, patch=torch.cat((state.patch, ids), dim=1), later=tuple(later))
        return ids

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Go on with the given ones of the rows only, at least one."""
        self._state = self._state.keep(rows)
        self._logits = self._logits[rows]
        if self._sequence is not None:
            self._sequence.keep(rows)


def sequence_writer(model: MBLM, plan: Plan, sampler: Sampler) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function that writes one sequence of the plan's stage, and those of all stages below it.

    From context (n, D), random numbers (n, k, V) where any are drawn, and the logits (n, V) of the first byte, to ids
    (n, k) and the logits of the byte behind them.
    """
    stages = range(plan.stage, model.num_stages)

    def write(context: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        *numbers, logits = rest
        patch = torch.empty(len(context), 0, dtype=torch.long, device=context.device)
        later: list[LaterState] = []
        for at in range(plan.call_bytes):
            ids = sampler.choose(logits, numbers[0][:, at] if numbers else None)
            later = read_byte(model, context, patch, later, ids, stages)
            patch = torch.cat((patch, ids[:, None]), dim=1)
            logits = model.to_logits(later[-1].output)
        return patch, logits

    return write


def _uncompiled(stage: nn.Module) -> nn.Module:
    return cast(nn.Module, getattr(stage, "_orig_mod", stage))


def _tensors(state: MambaState) -> list[Tensor]:
    return [tensor for layer in state.layers for tensor in (layer.conv, layer.ssm)]


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: a matrix library keeps a workspace for every stream it has been used on."""
    return torch.cuda.Stream(device)


@contextmanager
def _no_gradients() -> Iterator[None]:
    """No gradients, and tensors that may be written to from anywhere: PyTorch keeps some of its own for later captures,
    and one made in inference mode could not be used outside of it."""
    with torch.inference_mode(False), torch.no_grad():
        yield
