"""One side of the comparison: builds a model and times what it is asked, one JSON request a line.

The same file runs in this project's environment and in the reference's, whose package is called `mblm` too. So it
imports nothing of this project but `mblm`, of that only what both have; what only ours has is imported in the command
that needs it. It knows neither what the other side does nor what a number is good for.

Request: {"command": name, "arguments": {...}}; reply: {"ok": {...}} or {"error": one line}. Ids travel as lists.
Seconds are wall-clock time around the work alone, inputs already being tensors.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import mblm

BLOCK_CLASSES = {"S": "MambaBlock", "T": "TransformerBlock"}
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


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def gradient_norm(model: torch.nn.Module) -> float:
    """The Euclidean norm of all gradients together: shows that two backward passes did the same work."""
    squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


class Worker:
    """The commands; each public method is one."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model: mblm.MBLM | None = None

    # -- what both libraries can do -------------------------------------------------------------------------------

    def hello(self) -> Reply:
        """Who answers: the distribution that `mblm` comes from, and what it runs on."""
        try:
            library = f"mblm {version('mblm')}"
        except PackageNotFoundError:
            library = f"vqa-bench {version('vqa-bench')}"
        return {
            "library": library,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }

    def build(self, *, specification: dict[str, Any], seed: int, load: str | None, save: str | None) -> Reply:
        """Build a model, load its weights (every name must fit) or save them."""
        self.model = None
        model = build_model(specification, seed)
        if load is not None:
            model.load_state_dict(torch.load(load, weights_only=True), strict=True)
        if save is not None:
            torch.save(model.state_dict(), save)
        self.model = model
        stages = [f"{type(stage).__module__}.{type(stage).__qualname__}" for stage in model.stage_models]
        return {"parameters": count_parameters(model), "stages": stages}

    def train_step(self, ids: list[list[int]], mask: list[list[float]] | None) -> Reply:
        """Clear the gradients, forward, backward; no optimiser. No mask is the loss of every byte."""
        model = self._model().train()
        inputs, weights = torch.tensor(ids), None if mask is None else torch.tensor(mask)
        start = perf_counter()
        model.zero_grad()
        loss = model.forward(inputs, return_type=mblm.MBLMReturnType.LOSS, loss_mask=weights)
        assert isinstance(loss, Tensor)
        loss.backward()
        seconds = perf_counter() - start
        return {"seconds": seconds, "loss": loss.item(), "gradient_norm": gradient_norm(model)}

    @torch.inference_mode()
    def forward(self, ids: list[int]) -> Reply:
        """All logits of one sequence; `logits` are those of the byte after it."""
        model, inputs = self._model().eval(), torch.tensor([ids])
        start = perf_counter()
        logits = model.forward(inputs, return_type=mblm.MBLMReturnType.LOGITS)
        assert isinstance(logits, Tensor)
        return {"seconds": perf_counter() - start, "logits": logits[0, -1].tolist()}

    def generate(self, ids: list[int], count: int) -> Reply:
        """The library's own `generate`, greedy, the prompt's reading included."""
        model, prime = self._model().eval(), torch.tensor(ids)
        start = perf_counter()
        new = model.generate(prime, num_tokens_to_generate=count, enable_progress=False, filter_thres=1.0)
        return {"seconds": perf_counter() - start, "ids": new[len(ids) :].tolist()}

    def trim(self) -> Reply:
        """Drop the gradients and hand free memory back, so that the other side has room."""
        if self.model is not None:
            self.model.zero_grad()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        return {}

    # -- what only ours can do --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> Reply:
        """Read one sequence into a state; `logits` are those of the byte after it."""
        from mblm.decode import prefill

        model, inputs = self._model().eval(), torch.tensor([ids])
        start = perf_counter()
        logits, _ = prefill(model, inputs)
        return {"seconds": perf_counter() - start, "logits": logits[0].tolist()}

    @torch.inference_mode()
    def decode(self, ids: list[int], count: int) -> Reply:
        """`count` greedy bytes behind a sequence, its reading not timed."""
        from mblm.decode import prefill, step

        model = self._model().eval()
        logits, state = prefill(model, torch.tensor([ids]))
        new = []
        start = perf_counter()
        for _ in range(count):
            best = logits.argmax(-1)
            new.append(int(best))
            logits, state = step(model, state, best)
        return {"seconds": perf_counter() - start, "ids": new}

    @torch.inference_mode()
    def score(self, ids: list[int], candidates: list[list[int]]) -> Reply:
        """Read one sequence, then score every candidate behind it; `seconds` are those of both."""
        from mblm.decode import prefill, score_continuations

        model, inputs = self._model().eval(), torch.tensor([ids])
        lengths = torch.tensor([len(candidate) for candidate in candidates])
        rows = [torch.tensor(candidate) for candidate in candidates]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad_token_id)
        start = perf_counter()
        _, state = prefill(model, inputs)
        read_at = perf_counter()
        scores = score_continuations(model, state, padded, lengths)
        end = perf_counter()
        return {"seconds": end - start, "prefill_seconds": read_at - start, "scores": scores.flatten().tolist()}

    def _model(self) -> mblm.MBLM:
        if self.model is None:
            raise ValueError("expected a model, got none; send `build` first")
        return self.model


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
    serve(Worker(parser.parse_args().threads))
