"""A GPU that is not at hand: tensors have shapes and no memory, and code takes the ways it takes on CUDA.

Inside `ImaginedGPU` weights and activations are on the meta device. What steers them (byte ids, loss weights, positions
and orders) is real, on the CPU, as a training step looks at it: which sequences run, how far, in which groups. So the
very code of training runs, with its shapes and lifetimes, in seconds and next to no memory. Every tensor says that it
is on CUDA; attention goes to the fused kernels that CUDA has; autocast casts as CUDA's does. No number is computed: a
value that is read off a tensor without memory is 1.

It knows torch, neither models nor what is counted. The caller builds the model inside, too.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
_DEVICE_OF = torch.Tensor.device.__get__
_READ = ("__float__", "__int__", "__bool__", "item")
# Functions that have another name than the operation which autocast knows, or are made of it.
_MADE_OF = {
    "__matmul__": "matmul",
    "__rmatmul__": "matmul",
    "__pow__": "pow",
    "square": "pow",
    "cross_entropy": "nll_loss",
}


class ImaginedGPU(TorchFunctionMode):
    """The context to build and run a model in, see above. `torch.autocast("cuda", …)` works inside."""

    def __init__(self) -> None:
        super().__init__()
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}
        self._patches = ExitStack()

    def __enter__(self) -> ImaginedGPU:
        # Without a GPU autocast for CUDA switches itself off, also where a checkpointed piece enters it again.
        common = "torch.cuda.amp.common.amp_definitely_not_available"
        self._patches.enter_context(mock.patch(common, return_value=False))
        self._patches.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        # The autocast that a recomputed piece enters again, where no argument tells a device.
        default = "torch.utils.checkpoint.DefaultDeviceType.get_device_type"
        self._patches.enter_context(mock.patch(default, return_value=CUDA.type))
        clear = torch.clear_autocast_cache

        def clear_casts() -> None:
            self._casts.clear()
            clear()

        self._patches.enter_context(mock.patch("torch.clear_autocast_cache", clear_casts))
        # What is saved within a function is seen without this mode, what is compared later with it: not by its device.
        checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
        self._patches.enter_context(mock.patch.dict(checks, {"default": lambda x: {"size": x.shape, "type": x.dtype}}))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._patches.close()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE_OF:
            return CUDA
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        if func is torch.Tensor.backward:
            return self._backward(args[0])
        tensors = list(tensors_in((args, kwargs)))
        imagined = any(tensor.is_meta for tensor in tensors)
        if name == "to":  # all are where they are to be
            args = tuple(arg for arg in args if not isinstance(arg, torch.device))
            kwargs.pop("device", None)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = CPU if _makes_integers(func, args, kwargs) else META
        if imagined and name in _READ:
            return 1.0 if name in ("__float__", "item") else 1
        if imagined and not all(tensor.is_meta for tensor in tensors):
            assert not (name.endswith("_") and not name.startswith("__") and not tensors[0].is_meta), name
            args, kwargs = _map((args, kwargs), _without_memory)
        if torch.is_autocast_enabled("cuda") and not (name.endswith("_") and not name.startswith("__")):
            args, kwargs = self._autocast(_MADE_OF.get(name, name), args, kwargs)
        if name == "scaled_dot_product_attention" and imagined:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _backward(self, loss: Tensor) -> None:
        """The backward of a single number; its Python code is to see this mode, which `Tensor.backward` hides."""
        super().__enter__()
        try:
            engine = torch.autograd.Variable._execution_engine
            ones = (torch.ones_like(loss),)
            engine.run_backward((loss,), ones, False, False, (), allow_unreachable=True, accumulate_grad=True)
        finally:
            super().__exit__(None, None, None)

    def _autocast(self, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments as autocast for CUDA hands them on."""
        low, wide, wide_result = _autocast_lists()
        if kwargs.get("out") is not None:
            return args, kwargs
        if name in low:
            half = torch.get_autocast_dtype("cuda")
            return _map((args, kwargs), lambda tensor: self._cast(tensor, half))
        if name in wide:
            return _map((args, kwargs), lambda tensor: self._cast(tensor, torch.float32))
        if name in wide_result and "dtype" not in kwargs:
            first = next(tensors_in((args, kwargs)), None)
            if first is not None and first.dtype in (torch.bfloat16, torch.float16):
                return args, kwargs | {"dtype": torch.float32}
        return args, kwargs

    def _cast(self, tensor: Tensor, kind: torch.dtype) -> Tensor:
        """As autocast does it: a weight is cast once, the cast kept until the outermost autocast ends."""
        if not tensor.is_floating_point() or tensor.dtype in (kind, torch.float64):
            return tensor
        keeps = tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32 and tensor._base is None
        if not keeps:
            return tensor.to(kind)
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = (tensor, tensor.to(kind))
        return self._casts[id(tensor)][1]


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors among arguments: in lists, tuples and dicts, as operations take them."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from tensors_in(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from tensors_in(part)


def _map(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _makes_integers(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function that makes a tensor makes integers or booleans: those steer, and are real."""
    kind = kwargs.get("dtype")
    if kind is not None:
        return not kind.is_floating_point
    return func is torch.arange and not any(isinstance(bound, float) for bound in args)


def _without_memory(tensor: Tensor) -> Tensor:
    """A real tensor's twin on the meta device, which keeps the real one: its memory is the GPU's."""
    if tensor.is_meta:
        return tensor
    with _disable_current_modes():
        twin = tensor.detach().to(META)
        weakref.finalize(twin.untyped_storage(), lambda _: None, tensor.untyped_storage())
    return twin


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """The kernel that CUDA takes: flash attention where type and no mask allow it, else the memory-efficient one."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    if half and attn_mask is None:
        flash = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)
        return flash[0]
    keeps = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, keeps, dropout_p, is_causal)[0]


@cache
def _autocast_lists() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """What autocast for CUDA runs in low precision, in float32, and with a result in float32.

    Read off the header that torch is installed with, so that they are this version's. Raises RuntimeError where it has
    another form.
    """
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    text = header.read_text(encoding="utf-8") if header.is_file() else ""
    found = []
    for macro in ("AT_FORALL_LOWER_PRECISION_FP", "AT_FORALL_FP32", "AT_FORALL_FP32_SET_OPT_DTYPE"):
        block = re.search(rf"#define {macro}\(_\)((?:[^\n]*\\\n)*[^\n]*)\n", text)
        if block is None:
            raise RuntimeError(f"expected {macro} in {header}, got none; count without autocast, or on a GPU")
        found.append(frozenset(re.findall(r"_\((\w+)", block[1])))
    low, wide, wide_result = found
    return low, wide, wide_result
