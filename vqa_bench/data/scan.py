"""Scan orders: in which order the pixels of a picture are written one after another.

Pure index arithmetic; knows nothing of colours, bytes or files. Glossary: W, H the picture's width and height.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def parse_block(order: str) -> tuple[int, int] | None:
    """Width and height of the tiles of a `blockN` or `blockWxH` order; None for any other text."""
    sides = order.removeprefix("block").split("x")
    if (
        not order.startswith("block")
        or len(sides) > 2
        or not all(side.isascii() and side.isdecimal() for side in sides)
    ):
        return None
    width, height = int(sides[0]), int(sides[-1])
    return (width, height) if width and height else None


@lru_cache(maxsize=64)
def scan_order(order: str, width: int, height: int) -> NDArray[np.intp]:
    """The raster indices (y·W + x) of all pixels in the order in which they are written.

    Args:
        order: `raster` (row by row), `blockN` or `blockWxH` (tile by tile, row by row inside a tile; tiles at the
            right and lower edges may be cut off) or `hilbert` (the Hilbert curve over the smallest power-of-two
            square that covers the picture, the pixels outside left out).

    Returns:
        (H·W,) a permutation of range(H·W), read-only because it is shared.

    Raises:
        ValueError: an order that is none of these.
    """
    y, x = np.divmod(np.arange(width * height), width)
    block = parse_block(order)
    if order == "raster":
        indices = np.arange(width * height)
    elif block is not None:
        # The last key of lexsort sorts first: tile row, tile column, then row and column inside the tile.
        indices = np.lexsort((x, y, x // block[0], y // block[1]))
    elif order == "hilbert":
        indices = np.argsort(_hilbert_distance(x, y, side=max(width, height)))
    else:
        raise ValueError(f"expected a scan order raster, blockN, blockWxH or hilbert, got '{order}'")
    indices.flags.writeable = False
    return indices


def _hilbert_distance(x: NDArray[np.intp], y: NDArray[np.intp], *, side: int) -> NDArray[np.intp]:
    """How far along the Hilbert curve each point lies; x, y and the result (H·W,), side at least max(x, y) + 1.

    From the coarsest quadrant to the finest: the curve visits the quadrants in the order (0,0), (0,1), (1,1), (1,0)
    and enters the first and the last of them mirrored, so coordinates are mirrored before descending.
    """
    distance = np.zeros_like(x)
    step = 1 << max(side - 1, 0).bit_length()
    while step > 1:
        step //= 2
        right, low = (x & step) > 0, (y & step) > 0
        distance += step * step * ((3 * right) ^ low)
        x, y = x & (step - 1), y & (step - 1)
        flipped = right & ~low
        x, y = np.where(flipped, step - 1 - x, x), np.where(flipped, step - 1 - y, y)
        x, y = np.where(low, x, y), np.where(low, y, x)
    return distance
