"""In which type sums are taken: float32 at least, whatever is stored."""

import torch
from torch import Tensor


def wide_type(kind: torch.dtype) -> torch.dtype:
    """float64 stays, everything else becomes float32."""
    return torch.promote_types(kind, torch.float32)


def wide(x: Tensor) -> Tensor:
    """The tensor in float32 at least; integers and booleans too."""
    return x.to(wide_type(x.dtype))


def product_type(x: Tensor) -> torch.dtype:
    """The type in which a linear map multiplies x: autocast's where that is on and casts x, else its own."""
    on = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if on else x.dtype
