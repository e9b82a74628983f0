"""In which type sums are taken: float32 at least, whatever is stored."""

import torch
from torch import Tensor


def wide_type(kind: torch.dtype) -> torch.dtype:
    """float64 stays, everything else becomes float32."""
    return torch.promote_types(kind, torch.float32)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least; integers and booleans too."""
    return x.to(wide_type(x.dtype))
