"""Which pixels of a picture of grey ground show objects, found from the picture alone.

Objects differ from the ground behind them in hue, or are far darker or brighter, or have sharp edges; shadows do
neither: they are soft and darken all channels alike. Knows pictures only, neither scenes nor our renderer.

Shapes:
    pictures are sRGB (H, W, 3); light is the logarithm of linear light, float32 (H, W, 3).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# What counts as an object, in logarithms of light; the same for all pictures, chosen on every other picture of the
# 284 of the release.
HUE = 0.25  # a channel's distance from the mean of the three
DARKER, BRIGHTER = 0.6, 0.4  # deep shadows keep more than half of the light
EDGE = 0.3  # change from a pixel to the next
THRESHOLD = 1.0
BLACK = 0.01  # linear light added before the logarithm, so that black pixels do not run away

_ORDER = 3  # of the polynomials in x and y that fit the typical background to a picture
_STEP = 4  # every so many pixels along each axis take part in that fit
_WIDE, _NARROW = 0.3, 0.04  # misfits that the first rounds of the fit, and the last, take for noise
_ROUNDS = 12


def log_light(picture: Array) -> Array:
    """The logarithm of the linear light of an sRGB picture with values 0..255 (IEC 61966-2-1)."""
    shares = np.asarray(picture, dtype=np.float32) / np.float32(255)
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return np.log(linear + BLACK).astype(np.float32)


def typical_background(pictures: Array) -> Array:
    """The log light of most pictures (N, H, W, 3) at each pixel: their median, of which objects are no part."""
    rows = range(0, pictures.shape[1], 16)  # a band at a time, for memory
    return log_light(np.concatenate([np.median(pictures[:, row : row + 16], axis=0) for row in rows]))


def fit_background(light: Array, typical: Array) -> Array:
    """The background of one picture: the typical one times a smooth factor of its own, as lamps and cameras move.

    The factor is a polynomial in each channel, by least squares that leave out what does not fit (Tukey's biweight).
    """
    terms = _terms(*light.shape[:2])
    chosen = terms[::_STEP, ::_STEP].reshape(-1, terms.shape[-1])
    ratio = (light - typical)[::_STEP, ::_STEP].reshape(-1, 3).astype(np.float64)
    factors = np.zeros((terms.shape[-1], 3))
    factors[0] = np.median(ratio, axis=0)
    scale = _WIDE
    for _ in range(_ROUNDS):
        misfit = np.abs(ratio - chosen @ factors).max(axis=1)
        weights = np.maximum(1 - (misfit / (3 * scale)) ** 2, 0)[:, None] ** 2
        weighted = (weights * chosen).T
        factors = np.linalg.solve(weighted @ chosen + 1e-6 * np.eye(len(factors)), weighted @ ratio)
        scale = max(_NARROW, 0.75 * scale)
    return typical + (terms @ factors).astype(np.float32)


@lru_cache(maxsize=1)
def _terms(height: int, width: int) -> Array:
    """The monomials in x and y, both from -1 to 1, (H, W, terms); the constant comes first."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    powers = [(i, j) for i in range(_ORDER + 1) for j in range(_ORDER + 1 - i)]
    return np.stack([x**i * y**j for i, j in powers], axis=-1)


def difference(light: Array, background: Array) -> Array:
    """How unlike the background each pixel is (H, W); above THRESHOLD it belongs to an object."""
    ratio = light - background
    mean = ratio.mean(axis=2)
    hue = np.abs(ratio - mean[..., None]).max(axis=2)
    edge = np.hypot(*np.gradient(light.mean(axis=2)))
    return np.maximum.reduce((hue / HUE, -mean / DARKER, mean / BRIGHTER, edge / EDGE))


def silhouette(picture: Array, typical: Array) -> NDArray[np.bool_]:
    """Whether each pixel shows an object (H, W): different pixels, with what they enclose, without thin lines."""
    from scipy import ndimage

    light = log_light(picture)
    different = difference(light, fit_background(light, typical)) > THRESHOLD
    opened: NDArray[np.bool_] = ndimage.binary_opening(ndimage.binary_fill_holes(different))
    return opened


def intersection_over_union(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Of two masks of the same shape, 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
