"""What a piece of work costs, counted while it runs: operations, FLOPs, bytes moved, and memory at its fullest.

`Counts` sees every operation below autograd, so forward, backward, custom gradients, recomputed pieces, clipping and
the optimiser alike, on a real device or an imagined one (`benchmarks.gpu.imagined`). It knows tensors, neither models
nor the speed of any machine.

Counting: one launch an operation, none for views and for allocating. FLOPs of matrix products, convolutions and
attention by torch's own formulas, a multiply-add as two; of causal attention its causal half. Bytes: each input tensor
read once (elements that are repeated by a stride of 0 once; of a table that is looked up no more than is taken), what
is new or changed written once: caches make it less, several passes of one kernel more. Memory: storages from their
making to their end. Not seen: what kernels need for themselves (sorting, workspaces), rounding and fragmentation.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu.imagined import tensors_in
from benchmarks.gpu.training import Training

# Make room and write nothing.
_ALLOCATING = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"}
_OVERWRITING = {"copy_", "zero_", "fill_"}  # do not read what they change
_LOOKING_UP = {"embedding", "index", "index_select", "gather"}
_SCATTERING = {"index_put_", "_index_put_impl_", "scatter_", "index_add_", "index_copy_"}
Label = tuple[str, str]  # what made a storage, and the shape and type of the first tensor in it


class Work(NamedTuple):
    """One operation on tensors of certain sizes. kind: type of its first number, such as bfloat16; shape: its inputs'.

    read, written: bytes. launches: 0 where nothing runs on the device.
    """

    name: str
    kind: str
    shape: str
    flops: float
    read: int
    written: int


class Counts(TorchDispatchMode):
    """Counts what runs inside: `calls` of each distinct `Work`, `live` bytes and their `peak`.

    peak_by: at the peak, the live bytes of each `Label`. Storages that are there before are counted from `hold` on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Work] = Counter()
        self.live = self.peak = 0
        self.peak_by: dict[Label, int] = {}
        self._by: Counter[Label] = Counter()
        self._held: dict[int, tuple[int, Label]] = {}
        self._rising = False

    # -- memory -------------------------------------------------------------------------------------------------------

    def hold(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count these from now on, or call what is counted already by another name."""
        for tensor in tensors:
            self._track(tensor, (label, ""))

    def restart(self) -> None:
        """Forget the calls, and the peak but for what is live."""
        self.calls.clear()
        self.peak, self._rising = self.live, True

    def finish(self) -> None:
        """Take note of the peak where nothing was freed since."""
        self._note_peak()

    def _track(self, tensor: Tensor, label: Label) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            size, before = self._held[key]
            if label[1] == "" and before != label:
                self._by[before] -= size
                self._by[label] += size
                self._held[key] = (size, label)
            return
        size = storage.nbytes()
        self._held[key] = (size, label)
        weakref.finalize(storage, self._free, key)
        self.live += size
        self._by[label] += size
        if self.live > self.peak:
            self.peak, self._rising = self.live, True

    def _free(self, key: int) -> None:
        self._note_peak()
        size, label = self._held.pop(key)
        self.live -= size
        self._by[label] -= size

    def _note_peak(self) -> None:
        if self._rising:
            self.peak_by, self._rising = {label: size for label, size in self._by.items() if size > 0}, False

    # -- operations ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # elsewhere autograd has taken a linear map apart before it comes here
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        inputs, outputs = list(tensors_in((args, kwargs))), list(tensors_in(out))
        before = {tensor.untyped_storage()._cdata for tensor in inputs}
        new = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in before]
        name = func.overloadpacket.__name__
        for tensor in new:
            self._track(tensor, (name, _shape_of(tensor)))
        if (new and name not in _ALLOCATING) or func._schema.is_mutable:
            self.calls[_work(func, name, args, kwargs, inputs, new, out)] += 1
        return out

    # -- sums ---------------------------------------------------------------------------------------------------------

    @property
    def launches(self) -> int:
        return self.calls.total()

    @property
    def flops(self) -> float:
        return sum(work.flops * calls for work, calls in self.calls.items())

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return sum((work.read + work.written) * calls for work, calls in self.calls.items())


def count_step(training: Training, batch: Sequence[Tensor]) -> Counts:
    """One optimiser step; its memory with that of weights, AdamW's state and the batch."""
    parameters = list(training.model.parameters())
    with Counts() as counts:
        counts.hold(parameters, "weights")
        counts.hold(training.model.buffers(), "buffers")
        counts.hold(training.state(), "AdamW")
        counts.hold(batch, "batch")
        counts.restart()

        def hold_gradient(parameter: Tensor) -> None:
            counts.hold([] if parameter.grad is None else [parameter.grad], "gradients")

        hooks = [parameter.register_post_accumulate_grad_hook(hold_gradient) for parameter in parameters]
        training.step(batch)
        for hook in hooks:
            hook.remove()
        counts.finish()
    return counts


def _work(func: Any, name: str, args: Any, kwargs: Any, inputs: list[Tensor], new: list[Tensor], out: Any) -> Work:
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    changed = [
        tensor
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in tensors_in(named.get(argument.name))
    ]
    overwritten = changed if name in _OVERWRITING or "out" in named else []
    read = _distinct_bytes(tensor for tensor in inputs if not any(tensor is other for other in overwritten))
    written = _distinct_bytes([*new, *changed])
    if name in _LOOKING_UP and new:
        table = _distinct_bytes(inputs[:1])
        read += min(table, new[0].nbytes) - table
    if name in _SCATTERING:
        table, values = _distinct_bytes(inputs[:1]), inputs[-1].nbytes
        read, written = read - table + min(table, values), min(written, values)
    formula = flop_registry.get(func.overloadpacket)
    flops = 0.0 if formula is None else float(formula(*args, **kwargs, out_val=out))
    if named.get("is_causal"):
        keys = named["key"].shape[-2]
        flops *= (keys + 1) / (2 * keys)
    kinds = [tensor.dtype for tensor in (*inputs, *new) if tensor.is_floating_point()]
    kind = str(kinds[0] if kinds else (*inputs, *new)[0].dtype).removeprefix("torch.")
    shape = " ".join(_shape_of(tensor) for tensor in (inputs or new)[:3])
    return Work(name, kind, shape, flops, read, written)


def _distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Of every element once: those that a stride of 0 repeats, and those of one tensor given twice."""
    seen: dict[tuple[Any, ...], int] = {}
    for tensor in tensors:
        sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
        elements = 0 if tensor.numel() == 0 else torch.Size(sizes).numel()
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(sizes))
        seen[key] = elements * tensor.element_size()
    return sum(seen.values())


def _shape_of(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "1"
