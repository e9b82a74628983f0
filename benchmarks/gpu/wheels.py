"""Packages as files, for a machine with a GPU and without network: `VQA_WHEELS=folder make gpu`.

`python -m benchmarks.gpu.wheels --python 3.12 --out folder`, on a machine with network, fetches what such a machine
usually lacks; with `--mamba` mamba-ssm too, with `--peer` the reference implementation. The folder's own wheels go in
front of what is installed; those in its folder `peer` are seen by the reference's process alone, whose package has the
name of ours, and which sees the folder's own behind them.

Knows the standard library only: it runs before anything else can be imported.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE = "VQA_WHEELS"
NEEDED = (
    ("torch", "torch"),
    ("numpy", "numpy"),
    ("pydantic", "pydantic"),
    ("jaxtyping", "jaxtyping"),
    ("safetensors", "safetensors"),
    ("tqdm", "tqdm"),
    ("yaml", "pyyaml"),
    ("rich", "rich"),
)
"""Modules that every part imports, and the packages that have them."""

# What images with PyTorch for GPUs lacked of what the parts need. causal-conv1d is not among them: none is called.
FETCHED = (
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "jaxtyping",
    "wadler-lindig",
    "datasets",
    "dill",
    "multiprocess",
    "xxhash",
    "filelock",
    "httpx2",
)
# The reference implementation, and what it imports beside the above: the transformer it builds on, and for mamba-ssm,
# whose package imports more than its Mamba-2 needs, transformers with its hub. mambapy is for a GPU without mamba-ssm.
PEER = "peer"  # their folder within the folder of wheels
PEER_FETCHED = (
    "mblm",
    "megabyte-pytorch",
    "mambapy",
    "einops",
    "beartype",
    "packaging",
    "transformers",
    "tokenizers",
    "regex",
    "safetensors",
    "huggingface-hub",
    "httpcore2",
    "h11",
    "anyio",
    "idna",
    "truststore",
)
# Published as source with CUDA code that only its Mamba-1 calls; what Mamba-2 runs is Triton, compiled where it runs.
MAMBA = "mamba-ssm==2.3.2.post1"
MAMBA_SETTINGS = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}  # of its setup.py
MAMBA_FETCHED = ("einops",)  # what it imports for us beside torch and triton

PLATFORMS = tuple(
    f"manylinux{version}_x86_64"
    for version in ("1", "2014", *(f"_2_{minor}" for minor in (5, 12, 17, 24, 27, 28, 31, 34)))
)


class WheelError(Exception):
    """Wheels that cannot be used; the message is one line."""


def unpack(folder: Path) -> Path:
    """A folder with the contents of all wheels in `folder`, made once for the same files.

    Raises WheelError where there is none, where one is no wheel, and for two versions of one package.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise WheelError(f"expected wheels (*.whl) in {folder}, got none; fetch them or unset {VARIABLE}")
    projects = [wheel.name.split("-")[0].lower() for wheel in wheels]
    twice = sorted({name for name in projects if projects.count(name) > 1})
    if twice:
        raise WheelError(f"expected one wheel of {twice[0]} in {folder}, got {projects.count(twice[0])}; remove others")
    foreign = [wheel.name for wheel in wheels if not _is_for_this_python(wheel.name)]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise WheelError(
            f"expected wheels for Python {sys.version_info.major}.{sys.version_info.minor} in {folder}, got "
            f"{foreign[0]}{more}; fetch those of this Python, or take the other Python"
        )
    digest = hashlib.sha256()
    for wheel in wheels:
        digest.update(f"{wheel.name} {wheel.stat().st_size} {wheel.stat().st_mtime_ns}\n".encode())
    target = Path(tempfile.gettempdir()) / f"vqa-wheels-{os.getuid()}-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as making:
        for wheel in wheels:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(making)
            except (zipfile.BadZipFile, zlib.error) as error:
                raise WheelError(f"expected a wheel, got {wheel}: {error}; fetch it again") from error
        Path(making).rename(target)
        Path(making).mkdir()  # for the context manager to remove
    return target


def _is_for_this_python(name: str) -> bool:
    """By the tags that a wheel's name ends in: PYTHON-ABI-PLATFORM, where several stand side by side with dots."""
    pythons, abis = (part.split(".") for part in f"--{name.removesuffix('.whl')}".rsplit("-", 3)[1:3])
    major, minor = sys.version_info[:2]
    if f"py{major}" in pythons or f"cp{major}{minor}" in pythons:
        return True
    oldest = [int(tag[3:]) for tag in pythons if tag.startswith(f"cp{major}") and tag[3:].isdecimal()]
    return "abi3" in abis and bool(oldest) and min(oldest) <= minor


def use(environment: dict[str, str]) -> None:
    """Put the wheels of `VQA_WHEELS`, if it is set, in front of what this process and its children import."""
    folder = environment.get(VARIABLE)
    if not folder:
        return
    target = str(unpack(Path(folder)))
    sys.path.insert(0, target)
    rest = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = target if not rest else os.pathsep.join((target, rest))


def check_modules() -> None:
    """WheelError, naming all of them, where modules that every part needs cannot be found."""
    missing = [package for module, package in NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        raise WheelError(
            f"expected a Python with {', '.join(package for _, package in NEEDED)}, got {sys.executable} without "
            f"{', '.join(missing)}; install them, or give wheels: {VARIABLE}=folder (see benchmarks/gpu/wheels.py)"
        )


def fetch(out: Path, python: str, names: Sequence[str], pins: Path) -> None:
    """Download wheels in the pinned versions, for a Python such as 3.12 on x86-64 Linux.

    Raises WheelError for a package without a pinned version, and where pip fails.
    """
    if re.fullmatch(r"3\.\d+", python) is None:
        raise WheelError(f"expected a Python such as 3.12, got {python}")
    tag = f"cp{python.replace('.', '')}"
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(out), *platforms]
    command += ["--python-version", python, "--implementation", "cp", "--abi", tag, "--abi", "abi3", "--abi", "none"]
    _pip([*command, *_pinned(names, pins)], f"the wheels named above for Python {python}")


def build_mamba(out: Path) -> None:
    """A wheel of mamba-ssm for any Python, without its compiled extension: no CUDA compiler is needed.

    Its build imports torch, so this Python must have it. Raises WheelError where pip fails.
    """
    command = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(out), MAMBA]
    _pip(command, f"a wheel of {MAMBA}", settings=MAMBA_SETTINGS)


def _pip(arguments: Sequence[str], what: str, settings: Mapping[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False, env={**os.environ, **(settings or {})}).returncode != 0:
        raise WheelError(f"expected {what}, got an error of pip, above; mend what it says")


def _pinned(names: Sequence[str], pins: Path) -> list[str]:
    """`names` as NAME==VERSION; WheelError for a package without a pinned version."""
    lines = (line.strip() for line in pins.read_text(encoding="utf-8").splitlines())
    versions = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    missing = [name for name in names if name not in versions]
    if missing:
        raise WheelError(f"expected {missing[0]} in {pins}, got no line of it; pin it there")
    return [f"{name}=={versions[name]}" for name in names]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch wheels into a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="such as 3.12")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peer", action="store_true", help=f"the reference implementation too, into OUT/{PEER}")
    parser.add_argument("--mamba", action="store_true", help="mamba-ssm too, for both, built by a Python with torch")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parents[2]
    peer_pins = root / "benchmarks" / "peer" / "requirements.txt"
    try:
        fetch(options.out, options.python, FETCHED, root / "constraints.txt")
        if options.mamba:
            build_mamba(options.out)
            fetch(options.out, options.python, MAMBA_FETCHED, peer_pins)
        if options.peer:
            fetch(options.out / PEER, options.python, PEER_FETCHED, peer_pins)
    except WheelError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
