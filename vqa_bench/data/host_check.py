"""Whether this host makes of a fixed picture the bytes that the reference host made: one check an encoding.

Says which encodings depend on the host, by being run rather than by belief. Knows no shards.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from vqa_bench.data.encodings import codec_versions, parse_spec
from vqa_bench.data.golden import GOLDEN, GOLDEN_VERSIONS, golden_picture


@dataclass(frozen=True)
class EncodingCheck:
    """An encoding of the golden picture on this host.

    Attributes:
        same_bytes: as on the reference host.
        same_picture: whether the bytes stand for the reference's picture; None where that cannot be told (lossy).
        round_trip: for a lossless encoding, whether the picture comes back from its bytes; None for a lossy one.
        host_dependent: whether other bytes are to be expected on other hosts.
        reason: what the bytes depend on beside the picture.
        fault: why it cannot be encoded or decoded here, None where it can.
    """

    same_bytes: bool
    same_picture: bool | None
    round_trip: bool | None
    host_dependent: bool
    reason: str
    fault: str | None = None


def check_encodings() -> dict[str, EncodingCheck]:
    """Every golden encoding, made on this host and compared."""
    return {spec: check_encoding(spec, expected) for spec, expected in GOLDEN.items()}


def check_encoding(text: str, expected: str) -> EncodingCheck:
    """One encoding of the golden picture against the SHA-256 that the reference host's bytes have."""
    spec, picture = parse_spec(text), golden_picture()
    try:
        data = spec.encode(picture)
        decoded = np.asarray(spec.decode(data))
    except Exception as error:  # a codec that is missing or broken is a finding, whatever it raises
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        return EncodingCheck(False, None, None, spec.host_dependent, spec.host_reason, fault)
    same_bytes = hashlib.sha256(data).hexdigest() == expected
    mode = spec.lossless_mode()
    round_trip = same_picture = None
    if mode is not None:
        round_trip = np.array_equal(decoded, np.asarray(spec.picture(picture, mode).convert("RGB")))
        same_picture = np.array_equal(decoded, np.asarray(picture))
    return EncodingCheck(same_bytes, same_bytes or same_picture, round_trip, spec.host_dependent, spec.host_reason)


def find_codecs() -> dict[str, dict[str, str | None]]:
    """The libraries that write image files: their versions here and on the reference host."""
    here = codec_versions()
    names = dict.fromkeys([*GOLDEN_VERSIONS, *here])
    return {name: {"here": here.get(name), "reference": GOLDEN_VERSIONS.get(name)} for name in names}
