"""A small fixed picture and the hash of its bytes in many encodings, to tell whether this host writes the same bytes.

The hashes were made with the library versions in `GOLDEN_VERSIONS`; encodings that do not depend on the host must give
them everywhere. Knows encodings, not shards or files.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from vqa_bench.data.encodings import parse_spec


def golden_picture() -> Image.Image:
    """A picture (RGB, 48×32) with gradients, a disc, sharp edges and noise, by integer arithmetic alone."""
    y, x = np.divmod(np.arange(32 * 48, dtype=np.int64), 48)
    values = np.stack([5 * x, 7 * y + x, 255 - 4 * x - y], axis=1) & 255  # (H·W, C)
    values[(x - 30) ** 2 + (y - 14) ** 2 < 90] = (173, 35, 35)
    values[(x >= 6) & (x < 18) & (y >= 12)] = (41, 208, 208)
    # Noise in the top rows: the high bits of a linear congruential step, with the low half of Knuth's MMIX multiplier.
    noisy = y < 6
    noise = (np.arange(3 * 32 * 48, dtype=np.int64).reshape(-1, 3) * 1_284_865_837 + 12_345) % 2**31 >> 23
    values[noisy] = noise[noisy]
    return Image.frombytes("RGB", (48, 32), values.astype(np.uint8).tobytes())


def golden_hash(spec: str) -> str:
    """SHA-256 of the bytes that this host makes of the golden picture."""
    return hashlib.sha256(parse_spec(spec).encode(golden_picture())).hexdigest()


GOLDEN_VERSIONS: Mapping[str, str] = {
    "pil": "13.0.0",
    "zlib": "1.2.13",
    "zlib_ng": "2.3.3",
    "libjpeg_turbo": "3.2.0",
    "webp": "1.6.0",
}
"""The libraries that made `GOLDEN`, as `codec_versions` names them."""

GOLDEN: Mapping[str, str] = {
    "pixels:48x32": "7f821c64264c6ea698694237ff53fdbcda7d7ed860ea0bad3e5cea2997dc2600",
    "pixels:48x32,order=block4": "04e33a8b25df5323ded2bbf54f7d7b6dc8ce31dc75fce489fb565dadec46674d",
    "pixels:20x14,bits=4,order=hilbert,color=ycbcr": "834318a602a810bb90a4adde9ff7b5f5be4bc84d39703bbbb274717ec79246c4",
    "pixels:20x14,bits=2,color=gray,codes=1": "c9877eec6e016324f73b9c5ae1e5af1e0ab25fa8abef4de6624187dc27337a84",
    "pixels:62x41,crop=10%,order=planar": "d39db64d8190934d26f031a949488998479f5234e3acf229feba1aca6db2c1f8",
    "pixels:62x41,crop=10%,bits=3,order=planar": "e2b50b71ef8441881560806b67ce510a4b895626df8a38edd935be1fe12277e0",
    "png:48x32,level=0": "37344b128cbaaf6a5ef38698ff5359e37024298677d3e1967dd0c06bc53fd06a",
    "png:48x32,level=6": "a5bf4d0d4988e13fcad8e2054b5213375aeab50a91d67e8c167b924e905e69eb",
    "png:48x32,level=9": "59f605d08ad190c3bb43d2ebcae58e08e61c8a9bf35fc9865adca1ca29bbaa12",
    "jpeg:48x32,q=0": "dac18e20a0ab50c98d236665d3603c85ec1b8714772e2c71775dd6d124ea6ddb",
    "jpeg:48x32,q=80": "9cee0aac53172d4c1dfa897562e21ea54af262bd82c4dc17933fe03ccbd0b971",
    "jpeg:48x32,q=80,color=rgb,tables=drop": "0161c486547b2f1a834c1b301584573573607c614c048fcc181f51ec761bcd5c",
    "webp:48x32,q=80": "7084113ef831ef7ec4608fd20feb5e7017f87d8217ce8503d47b6b72b99b5513",
    "webp:48x32,q=lossless": "f442372a8f56ce094cc832d36ff7439f68b7f44b303a031ab446129f5b7714db",
    "bmp:20x14": "02be6195076f3b38b8dddd3c84c19a2bc0d2da1b70963fa2cc3b5d854f8b5259",
}
"""Spec → SHA-256 of the golden picture's bytes, as `golden_hash` makes them."""
