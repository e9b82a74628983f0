"""Packages as files, for a machine with a GPU and without network: `VQA_WHEELS=folder make gpu`.

`python -m benchmarks.gpu.wheels --python 3.12 --out folder`, on a machine with network, fetches what such a machine
usually lacks. The folder's own wheels go in front of what is installed; those in its folder `peer` are seen by the
reference implementation's process alone, whose package has the name of ours.

Knows the standard library only: it runs before anything else can be imported.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "VQA_WHEELS"
NEEDED = (
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
            except zipfile.BadZipFile as error:
                raise WheelError(f"expected a wheel, got {wheel}: {error}; fetch it again") from error
        Path(making).rename(target)
        Path(making).mkdir()  # for the context manager to remove
    return target


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


def fetch(out: Path, python: str, constraints: Path) -> None:
    """Download wheels of `FETCHED` in the pinned versions, for a Python such as 3.12 on x86-64 Linux."""
    tag = f"cp{python.replace('.', '')}"
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--abi", tag, "--abi", "abi3", "--abi", "none"]
    command += [*platforms, "--dest", str(out), *_pinned(constraints)]
    if subprocess.run(command, check=False).returncode != 0:
        raise WheelError(f"expected to download the wheels named above, got an error of pip for Python {python}")


def _pinned(constraints: Path) -> list[str]:
    """`FETCHED` as NAME==VERSION; WheelError for a package without a pinned version."""
    lines = (line.strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    versions = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    missing = [name for name in FETCHED if name not in versions]
    if missing:
        raise WheelError(f"expected {missing[0]} in {constraints}, got no line of it; pin it there")
    return [f"{name}=={versions[name]}" for name in FETCHED]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch wheels into a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="such as 3.12")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        fetch(options.out, options.python, Path(__file__).resolve().parents[2] / "constraints.txt")
    except WheelError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
