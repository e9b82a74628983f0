"""One side of the comparison: builds a model and times what it is asked, one JSON request a line.

The same file runs in this project's environment and in the reference's, whose package is called `mblm` too. So it
imports nothing of this project but `mblm`, of that only what both have; what only ours has is imported in the command
that needs it. It knows neither what the other side does nor what a number is good for.

Request: {"command": name, "arguments": {...}}; reply: {"ok": {...}} or {"error": one line}. Ids travel as lists.
Seconds are wall-clock time around the work alone, inputs already being tensors on the device, which has finished
before and after. precision: "float32", or "bfloat16" for autocast to it over float32 weights.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import mblm

BLOCK_CLASSES = {"S": "MambaBlock", "T": "TransformerBlock"}
PRECISIONS = ("float32", "bfloat16")
FUSED_LAYER = "mamba_ssm.ops.triton.ssd_combined"  # where mamba-ssm's layer finds causal-conv1d, or None
BETAS, CLIP = (0.9, 0.95), 1.0  # of the reference's trainer, and the paper's pretraining
Reply = dict[str, Any]


def build_model(specification: dict[str, Any], seed: int) -> mblm.MBLM:
    """The model of a configuration in plain values, see `benchmarks.shapes`, with weights drawn from `seed`.

    Raises ValueError for a kind of stage that the installed library lacks.
    """
    blocks = []
    for entry in specification["block"]:
        ((kind, fields),) = entry.items()
        block_class = getattr(mblm, BLOCK_CLASSES[kind], None)
        if block_class is None:
            raise ValueError(f"expected an mblm with {BLOCK_CLASSES[kind]}, got one without; choose another family")
        blocks.append(block_class(**fields))
    torch.manual_seed(seed)
    return mblm.MBLM(mblm.MBLMModelConfig.model_validate({**specification, "block": blocks}))


def find_library() -> str:
    """The distribution that `mblm` comes from; this checkout's own need not be installed."""
    if Path(mblm.__file__ or "").resolve().parent != Path(__file__).resolve().parents[2] / "mblm":
        with contextlib.suppress(PackageNotFoundError):
            return f"mblm {version('mblm')}"
    try:
        return f"vqa-bench {version('vqa-bench')}"
    except PackageNotFoundError:
        return "vqa-bench"


def leave_fused_convolution(model: torch.nn.Module) -> list[str]:
    """Without causal-conv1d mamba-ssm's layers take the path that does without it; what is to be said of that.

    Their default is a path that calls causal-conv1d without asking whether it is there (mamba-ssm 2.3.2).
    """
    layers = [layer for layer in model.modules() if hasattr(layer, "use_mem_eff_path")]
    if not layers or getattr(sys.modules.get(FUSED_LAYER), "causal_conv1d_fwd_function", None) is not None:
        return []
    for layer in layers:
        vars(layer)["use_mem_eff_path"] = False
    return ["causal-conv1d is not there: its Mamba-2 layers convolve with PyTorch, scan and norm are mamba-ssm's."]


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def gradient_norm(model: torch.nn.Module) -> float:
    """The Euclidean norm of all gradients together: shows that two backward passes did the same work."""
    squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


class Worker:
    """The commands; each public method is one."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.model: mblm.MBLM | None = None
        self.optimiser: torch.optim.Optimizer | None = None

    # -- what both libraries can do -------------------------------------------------------------------------------

    def hello(self) -> Reply:
        """Who answers: the distribution that `mblm` comes from, and what it runs on."""
        return {
            "library": find_library(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }

    def build(self, *, specification: dict[str, Any], seed: int, load: str | None, save: str | None) -> Reply:
        """Build a model, load its weights (every name must fit) or save them."""
        self.model = self.optimiser = None
        if self.device.type == "cuda":  # two models at once need not fit
            self.trim()
        with self.device:
            model = build_model(specification, seed)
        self.model = model
        if load is not None:
            self.load(path=load)
        if save is not None:
            torch.save(model.state_dict(), save)
        stages = [f"{type(stage).__module__}.{type(stage).__qualname__}" for stage in model.stage_models]
        return {"parameters": count_parameters(model), "stages": stages, "notes": leave_fused_convolution(model)}

    def load(self, *, path: str) -> Reply:
        """Weights that a worker saved in `build`; every name must fit."""
        weights = torch.load(path, map_location=self.device, weights_only=True)
        self._model().load_state_dict(weights, strict=True)
        return {}

    def train_step(
        self,
        ids: list[list[int]],
        mask: list[list[float]] | None,
        *,
        precision: str = "float32",
        optimise: bool = False,
        warmup: int = 0,
    ) -> Reply:
        """Clear the gradients, forward, backward; no mask is the loss of every byte.

        optimise: clipping and Adam too, with a learning rate of zero: all of its work, and every step sees the same
        weights. warmup: steps before the timed one. `peak`: most bytes of the GPU's memory that tensors held.
        """
        model, inputs = self._model().train(), self._tensor(ids)
        weights = None if mask is None else self._tensor(mask)

        def step() -> tuple[Tensor, Tensor | None]:
            model.zero_grad()
            with self._arithmetic(precision):
                loss = model.forward(inputs, return_type=mblm.MBLMReturnType.LOSS, loss_mask=weights)
            assert isinstance(loss, Tensor)
            loss.backward()
            if not optimise:
                return loss, None
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            self._adam().step()
            return loss, norm

        for _ in range(warmup):
            step()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = self._now()
        loss, norm = step()
        seconds = self._now() - start
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        length = gradient_norm(model) if norm is None else float(norm)  # of the gradients before they were clipped
        return {"seconds": seconds, "loss": loss.item(), "gradient_norm": length, "peak": peak}

    @torch.inference_mode()
    def forward(self, ids: list[int], *, precision: str = "float32") -> Reply:
        """All logits of one sequence; `logits` are those of the byte after it."""
        model, inputs = self._model().eval(), self._tensor([ids])
        start = self._now()
        with self._arithmetic(precision):
            logits = model.forward(inputs, return_type=mblm.MBLMReturnType.LOGITS)
        assert isinstance(logits, Tensor)
        return {"seconds": self._now() - start, "logits": logits[0, -1].tolist()}

    def generate(self, ids: list[int], count: int, *, precision: str = "float32") -> Reply:
        """The library's own `generate`, greedy, the prompt's reading included."""
        model, prime = self._model().eval(), self._tensor(ids)
        start = self._now()
        with self._arithmetic(precision):
            new = model.generate(prime, num_tokens_to_generate=count, enable_progress=False, filter_thres=1.0)
        return {"seconds": self._now() - start, "ids": new[len(ids) :].tolist()}

    def trim(self) -> Reply:
        """Drop the gradients and hand free memory back, so that the other side has room."""
        if self.model is not None:
            self.model.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        return {}

    # -- what only ours can do --------------------------------------------------------------------------------------

    def kernel(self) -> Reply:
        """Who runs the recurrence of S stages here: mamba-ssm's kernels (`triton`), or PyTorch (`torch`)."""
        from mblm.model.kernels import resolve_kernel

        return {"kernel": resolve_kernel("auto", self.device)}

    @torch.inference_mode()
    def prefill(self, ids: list[int], *, precision: str = "float32") -> Reply:
        """Read one sequence into a state; `logits` are those of the byte after it."""
        from mblm.decode import prefill

        model, inputs = self._model().eval(), self._tensor([ids])
        start = self._now()
        with self._arithmetic(precision):
            logits, _ = prefill(model, inputs)
        return {"seconds": self._now() - start, "logits": logits[0].tolist()}

    @torch.inference_mode()
    def decode(self, ids: list[int], count: int) -> Reply:
        """`count` greedy bytes behind a sequence, its reading not timed."""
        from mblm.decode import prefill, step

        model = self._model().eval()
        logits, state = prefill(model, self._tensor([ids]))
        new = []
        start = self._now()
        for _ in range(count):
            best = logits.argmax(-1)
            new.append(int(best))
            logits, state = step(model, state, best)
        return {"seconds": self._now() - start, "ids": new}

    @torch.inference_mode()
    def score(self, ids: list[int], candidates: list[list[int]]) -> Reply:
        """Read one sequence, then score every candidate behind it; `seconds` are those of both."""
        from mblm.decode import prefill, score_continuations

        model, inputs = self._model().eval(), self._tensor([ids])
        lengths = self._tensor([len(candidate) for candidate in candidates])
        rows = [self._tensor(candidate) for candidate in candidates]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad_token_id)
        start = self._now()
        _, state = prefill(model, inputs)
        read_at = self._now()
        scores = score_continuations(model, state, padded, lengths)
        end = self._now()
        return {"seconds": end - start, "prefill_seconds": read_at - start, "scores": scores.flatten().tolist()}

    def _model(self) -> mblm.MBLM:
        if self.model is None:
            raise ValueError("expected a model, got none; send `build` first")
        return self.model

    def _adam(self) -> torch.optim.Optimizer:
        """The same for both libraries, whatever their trainers take; its state is made in its first step."""
        if self.optimiser is None:
            fused = self.device.type == "cuda"
            self.optimiser = torch.optim.Adam(self._model().parameters(), lr=0.0, betas=BETAS, fused=fused)
        return self.optimiser

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _arithmetic(self, precision: str) -> torch.autocast:
        if precision not in PRECISIONS:
            raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")

    def _now(self) -> float:
        """Seconds by the clock once the device has done what it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()


def serve(worker: Worker) -> None:
    """Answer requests until the input ends. Libraries may print: their output goes to stderr, only replies go out."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            reply: Reply
            try:
                command: Callable[..., Reply] = getattr(worker, request["command"])
                reply = {"ok": command(**request["arguments"])}
            except Exception as error:  # the driver stops on it, with this line
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", default="cpu", help="as torch spells it")
    options = parser.parse_args()
    serve(Worker(options.threads, options.device))
