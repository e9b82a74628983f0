"""Our code on a device against float64 on the same inputs: how far apart, as ‖found - exact‖ / ‖exact‖.

Every function draws fresh random inputs and runs what is asked for in the type and by the kernel that are asked for.
Knows the library; neither limits nor tables.

Shapes: b rows, l positions, h heads of p channels, n state size, L bytes, K suffixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from benchmarks.gpu.shapes import PaperShape, build
from benchmarks.shapes import NUM_TOKENS, PAD
from mblm import MBLM, MambaBlock, MBLMReturnType
from mblm.decode import prefill, step
from mblm.model.embedding import PatchEmbedding
from mblm.model.kernels import Kernel, fused_ssd
from mblm.model.mamba import Mamba2Mixer, MambaStage
from mblm.model.ssd import ssd, ssd_step

SEED = 0
# Steps (drawn log-uniformly) and decays that let what was read long ago weigh in what comes out: a model begins with
# steps so short that a state which is lost hardly shows. LATER is by how much its parameters move from there.
STEPS, DECAYS = (1e-2, 1.0), (0.1, 4.0)
LATER = {"dt_bias": 3.0, "A_log": -2.0}

# An error a quantity. "gradients" has those of single parameters, some of which are a few sums of terms that cancel;
# "outputs" has all others, that of all parameters' gradients as one vector among them.
Errors = dict[str, dict[str, float]]
ALL_GRADIENTS = "all gradients"


@dataclass(frozen=True, kw_only=True)
class ScanSizes:
    """What the scan is tried on; lengths are positions, some of them whole chunks and some not."""

    rows: int
    heads: int
    head: int
    state: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StageSizes:
    """A Mamba-2 stage and its input."""

    block: MambaBlock
    width: int
    layers: int
    rows: int
    length: int


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found - exact‖ / ‖exact‖ in float64; of an exact zero the difference itself."""
    exact = exact.detach().double()
    difference = (found.detach().double() - exact).norm()
    return float(difference / exact.norm() if exact.any() else difference)


# -- the recurrence ---------------------------------------------------------------------------------------------------


def scan_errors(kernel: Kernel, kind: torch.dtype, sizes: ScanSizes, device: torch.device) -> Errors:
    """y, the state behind the last position and all gradients, for every length, with and without a state before.

    x, B and C are of type `kind`; dt, A, D and the state are float32, as a stage in autocast has them.
    """
    torch.manual_seed(SEED)
    run = fused_ssd if kernel == "triton" else ssd
    errors: dict[str, float] = {}
    for length in sizes.lengths:
        inputs = scan_inputs(kind, sizes, length, device)
        for behind, given in (("", inputs[:-1]), (" behind a state", inputs)):
            outputs = [torch.randn_like(inputs[0]), torch.randn_like(inputs[-1])]  # gradients of y and of the state
            found = _with_gradients(run, given, outputs)
            exact = _with_gradients(_one_by_one, [tensor.double() for tensor in given], outputs)
            names = ("y", "state after", *(f"d{name}" for name in ("x", "dt", "A", "B", "C", "D", "state")))
            for name, a, b in zip(names, found, exact, strict=False):  # no gradient of a state that is not there
                errors[f"{name}, {length} positions{behind}"] = relative_error(a, b)
    return {"outputs": errors, "gradients": {}}


def scan_inputs(kind: torch.dtype, sizes: ScanSizes, length: int, device: torch.device) -> list[Tensor]:
    """x, dt, A, B, C, D and a state."""
    b, h, p, n = sizes.rows, sizes.heads, sizes.head, sizes.state
    low, high = (torch.tensor(bound).log() for bound in STEPS)
    dt = (low + (high - low) * torch.rand(b, length, h)).exp()
    A = -torch.empty(h).uniform_(*DECAYS)
    x, B, C = (torch.randn(b, length, *shape).to(kind) for shape in ((h, p), (n,), (n,)))
    return [tensor.to(device) for tensor in (x, dt, A, B, C, torch.randn(h), torch.randn(b, h, p, n))]


def _with_gradients(run: Callable[..., Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    """What `run` returns, and the gradients of its inputs where those of its outputs are `outputs`."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    found = run(*leaves, *(None,) * (7 - len(leaves)))
    return [*found, *torch.autograd.grad(found, leaves, [w.to(y.dtype) for w, y in zip(outputs, found, strict=True)])]


def _one_by_one(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is defined, position by position."""
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[-1]) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


# -- modules ----------------------------------------------------------------------------------------------------------


def stage_errors(kernel: Kernel, kind: torch.dtype, sizes: StageSizes, device: torch.device) -> Errors:
    """A stage, its first mixer alone, and its states behind ragged rows; bfloat16 is autocast of float32 weights."""
    torch.manual_seed(SEED)
    stage, exact = (
        sizes.block.model_copy(update={"kernel": name}).to_model(sizes.width, sizes.layers).to(device)
        for name in (kernel, "torch")
    )
    exact = _moved_alike(stage, exact)
    x = torch.randn(sizes.rows, sizes.length, sizes.width).to(device)
    weight, lengths = torch.randn_like(x), torch.randint(1, sizes.length, (sizes.rows,)).to(device)

    def run(part: MambaStage, *, autocast: bool) -> dict[str, Tensor]:
        given = x.to(part.norm_f.weight.dtype, copy=True).requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            mixed, _ = cast(Mamba2Mixer, part.layers[0].mixer)(given, torch.ones_like(given[0, 0]))
            y, (_, state) = part(given), part.prefix(given, lengths)
        (((y + mixed) * weight).sum() + state.layers[-1].ssm.sum()).backward()
        states = {f"state of layer {i}": layer.ssm for i, layer in enumerate(state.layers)}
        return {"stage": y, "mixer": mixed, "gradient of the input": cast(Tensor, given.grad), **states}

    found, wanted = run(stage, autocast=kind == torch.bfloat16), run(exact, autocast=False)
    return _compared(stage, exact, {name: (found[name], wanted[name]) for name in wanted})


def embedding_errors(patches: int, patch_size: int, width: int, device: torch.device) -> Errors:
    """Vectors of patches by the table against embedding, concatenating and projecting."""
    torch.manual_seed(SEED)
    module, exact = (PatchEmbedding(NUM_TOKENS, width, patch_size, width, PAD).to(device) for _ in range(2))
    exact = _moved_alike(module, exact)
    ids = torch.randint(NUM_TOKENS, (patches, patch_size)).to(device)
    weight = torch.randn(patches, width).to(device)
    found, wanted = module.by_table(ids), exact._post(exact.embedding(ids))
    for y in (found, wanted):
        (y * weight).sum().backward()
    return _compared(module, exact, {"vectors": (found, wanted)})


# -- whole models -----------------------------------------------------------------------------------------------------


def loss_errors(kernel: Kernel, kind: torch.dtype, shape: PaperShape, device: torch.device) -> Errors:
    """The loss of a few weighted bytes, later stages run only there, against all stages run everywhere."""
    model, exact = _pair(kernel, shape, device)
    R = model.patch_bytes[0]
    ids = torch.randint(256, (2, shape.context - R // 2)).to(device)
    weights = (torch.rand(ids.shape) < 1 / (2 * R)).float()
    weights[:, 0] = weights[:, -1] = 0.5  # the first byte has a prediction of its own
    weights = weights.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
        sums = model.loss_sums(ids, weights)
    dense, _ = exact(ids, MBLMReturnType.LOSS_LOGITS, weights.double())
    loss = sums.total / sums.targets
    loss.backward()
    dense.backward()
    return _compared(model, exact, {"loss": (loss, dense)})


def shared_errors(kernel: Kernel, kind: torch.dtype, shape: PaperShape, device: torch.device) -> Errors:
    """A prefix that is read once for its K suffixes against K separate sequences."""
    model, exact = _pair(kernel, shape, device)
    R, K = model.patch_bytes[0], 3
    prefix = torch.randint(256, (2, shape.seq_lens[0] // 2 * R)).to(device)
    suffixes = torch.randint(256, (2, K, 2 * R + 1)).to(device)
    weights = torch.rand(suffixes.shape).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=kind == torch.bfloat16):
        total = model.shared_loss_sums(prefix, suffixes, weights).total
    separate = torch.cat((prefix[:, None].expand(2, K, -1), suffixes), dim=2).flatten(0, 1)
    padded = nn.functional.pad(weights.flatten(0, 1), (prefix.shape[1], 0)).double()
    wanted = exact.loss_sums(separate, padded).total
    total.backward()
    wanted.backward()
    return _compared(model, exact, {"loss": (total, wanted)})


@torch.no_grad()
def decode_errors(kernel: Kernel, shape: PaperShape, device: torch.device) -> Errors:
    """Logits of a prompt read at once and more bytes one by one, through patches and across their borders."""
    model, exact = _pair(kernel, shape, device)
    R = model.patch_bytes[0]
    ids = torch.randint(256, (2, shape.context)).to(device)
    begin = shape.context - 2 * R - 1
    logits, state = prefill(model, ids[:, :begin])
    found = []
    for t in range(begin, shape.context - 1):
        more, state = step(model, state, ids[:, t])
        found.append(more)
    wanted = cast(Tensor, exact(ids, MBLMReturnType.LOGITS))[:, begin - 1 : -1]
    steps = relative_error(torch.stack(found, dim=1), wanted[:, 1:])
    return {"outputs": {"prefill": relative_error(logits, wanted[:, 0]), "steps": steps}, "gradients": {}}


def _pair(kernel: Kernel, shape: PaperShape, device: torch.device) -> tuple[MBLM, MBLM]:
    """A model by the given kernel, and the same in float64 by ours."""
    model = build(shape, device, kernel)
    return model, _moved_alike(model, build(shape, device, "torch"))


Module = TypeVar("Module", bound=nn.Module)


def _moved_alike(found: nn.Module, exact: Module) -> Module:
    """`found` away from where a model begins, and `exact` with its weights in float64.

    Gains of one and biases of zero would hide one that is left out.
    """
    torch.manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(LATER.get(name.split(".")[-1], 0.0) + 0.1 * torch.randn_like(parameter))
    exact = exact.double()
    exact.load_state_dict(found.state_dict())
    return exact


def _compared(found: nn.Module, exact: nn.Module, outputs: Mapping[str, tuple[Tensor, Tensor]]) -> Errors:
    """Errors of the outputs (found and exact), and of the gradients that both modules have by now."""
    pairs = {
        name: (torch.zeros_like(right) if ours.grad is None else ours.grad, right.grad)
        for (name, ours), right in zip(found.named_parameters(), exact.parameters(), strict=True)
        if right.grad is not None
    }
    every = (torch.cat([tensor.flatten().double() for tensor in side]) for side in zip(*pairs.values(), strict=True))
    errors = {name: relative_error(*pair) for name, pair in outputs.items()}
    return {
        "outputs": errors | {ALL_GRADIENTS: relative_error(*every)},
        "gradients": {name: relative_error(*pair) for name, pair in pairs.items()},
    }
