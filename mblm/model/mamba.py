"""The Mamba-2 stage: a selective state space with a state of fixed size, as checkpoints of mamba-ssm expect it.

Per layer x += Mixer(RMSNorm(x)), eps 1e-5, and a final RMSNorm (arXiv 2405.21060; parameter names, layout and
initialisation of mamba-ssm's `Mamba2` and `MixerModel`). On a CPU everything runs in PyTorch; on CUDA the scan may be
mamba-ssm's. Nothing is swapped silently: `kernel` says which, and `MBLM.kernels` what it came to.

Shapes: B rows, S positions, D width, I = expand·D inner channels in H heads of P, N state size, K taps of the
convolution, n = B·K rows after branching.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from mblm.model.block import StageBlock, group_rows
from mblm.model.fused import causal_conv, gained_linear, gated_norm, unit_norm
from mblm.model.kernels import Kernel, fused_ssd, resolve_kernel
from mblm.model.precision import wide
from mblm.model.ssd import ssd, ssd_step

EPS = 1e-5
# mamba-ssm's initial ranges: dt log-uniform, -A uniform.
DT_RANGE, DT_FLOOR, A_RANGE = (1e-3, 1e-1), 1e-4, (1.0, 16.0)


class MambaBlock(StageBlock):
    """Configuration of a Mamba-2 stage; `kernel` chooses who runs the recurrence (see `mblm.model.kernels`)."""

    d_state: int = Field(ge=1)
    d_conv: int = Field(ge=1)
    expand: int = Field(ge=1)
    headdim: int = Field(ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the last layer's output, in training only")
    kernel: Kernel = "auto"
    block_type: str = "mamba2"

    @model_validator(mode="after")
    def _check(self) -> MambaBlock:
        if self.block_type == "mamba1":
            raise ValueError(
                "block_type: expected 'mamba2', got 'mamba1': that is the model the reference falls back to where "
                "mamba-ssm is missing, with other weights; train it anew with a Mamba-2 stage"
            )
        if self.block_type != "mamba2":
            raise ValueError(f"block_type: expected 'mamba2', got {self.block_type!r}")
        return self

    def to_model(self, model_dim: int, num_layers: int) -> MambaStage:
        return MambaStage(model_dim, num_layers, self)


class RMSNorm(nn.Module):
    """The gain of x / sqrt(mean(x²) + 1e-5) · weight; the layer after it takes it into its own weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        return unit_norm(x, EPS) * self.weight


@dataclass(frozen=True)
class MixerState:
    """One layer's memory: the last inputs of the convolution (n, K-1, I + 2N) and the SSM state (n, H, P, N)."""

    conv: Tensor
    ssm: Tensor


@dataclass(frozen=True)
class MambaState:
    """What a Mamba-2 stage remembers for n rows."""

    layers: tuple[MixerState, ...]

    def expand(self, branches: int) -> MambaState:
        """Every row becomes `branches` neighbours; the state has a fixed size, so this is cheap."""
        return MambaState(
            tuple(
                MixerState(layer.conv.repeat_interleave(branches, 0), layer.ssm.repeat_interleave(branches, 0))
                for layer in self.layers
            )
        )

    def select(self, width: int, parents: Tensor) -> MambaState:
        """Rows in groups of `width` continue as `parents` of their group."""
        rows = group_rows(self.layers[0].ssm.shape[0], width, parents)
        return MambaState(tuple(MixerState(layer.conv[rows], layer.ssm[rows]) for layer in self.layers))


class Mamba2Mixer(nn.Module):
    """in_proj → (z, x, B, C, dt); conv and SiLU over x, B, C; the recurrence; norm(y · silu(z)); out_proj."""

    def __init__(self, dim: int, block: MambaBlock) -> None:
        super().__init__()
        inner = block.expand * dim
        if inner % block.headdim:
            raise ValueError(
                f"headdim: expected a divisor of expand·width = {inner}, got {block.headdim}; "
                f"choose a headdim that divides it"
            )
        self.heads, self.headdim, self.state_dim = inner // block.headdim, block.headdim, block.d_state
        self.inner, self.kernel = inner, block.kernel
        channels = inner + 2 * block.d_state
        self.in_proj = nn.Linear(dim, inner + channels + self.heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, block.d_conv, groups=channels, padding=block.d_conv - 1)
        self.dt_bias = nn.Parameter(_initial_dt_bias(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(*A_RANGE).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = RMSNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "n s d"],
        gain: Float[Tensor, " d"],
        state: MixerState | None = None,
        lengths: Tensor | None = None,
        *,
        keep: bool = True,
    ) -> tuple[Float[Tensor, "n s d"], MixerState | None]:
        """Mix a normed input that still lacks its `gain`, behind `state`; the new state stands behind `lengths`.

        Without `keep` there is no new state.
        """
        projected = gained_linear(x, gain, self.in_proj.weight)
        gate, mixed, dt = projected.split([self.inner, self.conv1d.in_channels, self.heads], dim=-1)
        taps = self.conv1d.kernel_size[0]
        lead = 0
        if state is not None:
            mixed, lead = torch.cat((state.conv.to(mixed.dtype), mixed), dim=1), taps - 1
        convolved = causal_conv(mixed, self.conv1d.weight[:, 0], cast(Tensor, self.conv1d.bias), lead)
        values, B, C = convolved.split([self.inner, self.state_dim, self.state_dim], dim=-1)
        steps = self._steps(dt)
        if lengths is not None:  # a step of zero leaves the state as it is
            steps = steps.masked_fill(torch.arange(x.shape[1], device=x.device)[:, None] >= lengths[:, None, None], 0)
        values = values.unflatten(-1, (self.heads, self.headdim))
        before = None if state is None else state.ssm
        after: Tensor | None
        if resolve_kernel(self.kernel, x.device, x.dtype) == "triton":
            y, after = fused_ssd(values, steps, self._decay, B, C, self.D, before)
        else:
            y, after = ssd(values, steps, self._decay, B, C, self.D, before, keep=keep)
        y = gated_norm(y.flatten(2), gate, EPS)
        out = gained_linear(y, self.norm.weight, self.out_proj.weight)
        if not keep:
            return out, None
        assert after is not None
        return out, MixerState(_last_taps(mixed, taps - 1, lead, lengths), after)

    def step(
        self, x: Float[Tensor, "n d"], gain: Float[Tensor, " d"], state: MixerState
    ) -> tuple[Float[Tensor, "n d"], MixerState]:
        """`forward` for one position of every row."""
        projected = gained_linear(x, gain, self.in_proj.weight)
        gate, mixed, dt = projected.split([self.inner, self.conv1d.in_channels, self.heads], dim=-1)
        window = torch.cat((state.conv, mixed[:, None]), dim=1)  # (n, K, I + 2N)
        convolved = torch.einsum("nkc,ck->nc", window, self.conv1d.weight[:, 0])
        convolved = F.silu(convolved + cast(Tensor, self.conv1d.bias))
        values, B, C = convolved.split([self.inner, self.state_dim, self.state_dim], dim=-1)
        values = values.unflatten(-1, (self.heads, self.headdim))
        y, ssm = ssd_step(values, self._steps(dt), self._decay, B, C, self.D, state.ssm)
        y = gated_norm(y.flatten(1), gate, EPS)
        return gained_linear(y, self.norm.weight, self.out_proj.weight), MixerState(window[:, 1:], ssm)

    @property
    def _decay(self) -> Tensor:
        """A = -exp(A_log), (H,)."""
        return -wide(self.A_log).exp()

    def _steps(self, dt: Tensor) -> Tensor:
        """dt = softplus(raw + bias), in float32 at least."""
        return F.softplus(wide(dt) + self.dt_bias)


class MambaLayer(nn.Module):
    """One mixer with its norm and residual."""

    def __init__(self, dim: int, block: MambaBlock) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = Mamba2Mixer(dim, block)

    def forward(
        self, x: Tensor, state: MixerState | None = None, lengths: Tensor | None = None, *, keep: bool = True
    ) -> tuple[Tensor, MixerState | None]:
        """What the layer adds to (n, S, D), and its state; None without `keep`."""
        mixed = self.mixer(unit_norm(x, EPS, for_product=True), self.norm.weight, state, lengths, keep=keep)
        return cast(tuple[Tensor, MixerState | None], mixed)

    def step(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """What the layer adds to (n, D)."""
        return self.mixer.step(unit_norm(x, EPS), self.norm.weight, state)


class MambaStage(nn.Module):
    """A stack of Mamba-2 layers over (B, S, D), with a state to continue from."""

    def __init__(self, model_dim: int, num_layers: int, block: MambaBlock) -> None:
        super().__init__()
        self.dropout, self.kernel = block.dropout, block.kernel
        self.layers = nn.ModuleList(MambaLayer(model_dim, block) for _ in range(num_layers))
        self.norm_f = RMSNorm(model_dim)
        with torch.no_grad():  # as mamba-ssm begins: the residual stream's variance does not grow with depth
            for layer in self.layers:
                cast(Mamba2Mixer, layer.mixer).out_proj.weight /= math.sqrt(num_layers)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """(B, S, D) → (B, S, D); output s depends on inputs 0..s."""
        added = torch.zeros((), dtype=x.dtype, device=x.device)
        for index, layer in enumerate(self.layers):
            x = x + added if index else x
            added, _ = layer(x, keep=False)
        return self._finish(x, added)

    def prefix(
        self, x: Float[Tensor, "b s d"], lengths: Tensor | None = None
    ) -> tuple[Float[Tensor, "b s d"], MambaState]:
        """Read (B, S, D) from the beginning; see `IncrementalStage`."""
        return self._extend(x, None, lengths)

    def branch(
        self, x: Float[Tensor, "b k s d"], state: MambaState, lengths: Tensor | None = None
    ) -> tuple[Float[Tensor, "b k s d"], MambaState]:
        """Continue each row with K suffixes from its expanded state; see `IncrementalStage`."""
        rows = x.flatten(0, 1)
        y, new = self._extend(rows, state.expand(x.shape[1]), None if lengths is None else lengths.flatten())
        return y.view(x.shape), new

    def step(self, x: Float[Tensor, "n d"], state: MambaState) -> tuple[Float[Tensor, "n d"], MambaState]:
        """Continue every row by one position; see `IncrementalStage`."""
        layers = []
        added = torch.zeros_like(x)
        for layer, memory in zip(self.layers, state.layers, strict=True):
            x = x + added
            added, after = cast(MambaLayer, layer).step(x, memory)
            layers.append(after)
        return self._finish(x, added), MambaState(tuple(layers))

    def kernel_on(self, device: torch.device) -> Literal["torch", "triton"]:
        """Who runs the recurrence on a device."""
        return resolve_kernel(self.kernel, device, self.norm_f.weight.dtype)

    def _extend(self, x: Tensor, state: MambaState | None, lengths: Tensor | None) -> tuple[Tensor, MambaState]:
        layers = []
        added = torch.zeros((), dtype=x.dtype, device=x.device)
        for index, layer in enumerate(self.layers):
            x = x + added if index else x
            added, after = layer(x, None if state is None else state.layers[index], lengths)
            layers.append(after)
        return self._finish(x, added), MambaState(tuple(layers))

    def _finish(self, x: Tensor, added: Tensor) -> Tensor:
        """The last layer's output, dropped out in training, joins the residual before the final norm."""
        return cast(Tensor, self.norm_f(x + F.dropout(added, self.dropout, self.training)))


def _initial_dt_bias(heads: int) -> Tensor:
    """The inverse softplus of steps drawn log-uniformly, (H,)."""
    low, high = (math.log(bound) for bound in DT_RANGE)
    dt = torch.empty(heads).uniform_(low, high).exp().clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))


def _last_taps(mixed: Tensor, count: int, lead: int, lengths: Tensor | None) -> Tensor:
    """The last `count` inputs of the convolution before each row's end, zeros before the first: (n, count, C)."""
    if lead < count:
        mixed = F.pad(mixed, (0, 0, count - lead, 0))
    if lengths is None:
        return mixed[:, mixed.shape[1] - count :]
    rows = torch.arange(mixed.shape[0], device=mixed.device)[:, None]
    return mixed[rows, lengths[:, None] + torch.arange(count, device=mixed.device)]
