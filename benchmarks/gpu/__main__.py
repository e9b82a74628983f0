"""`make gpu`: kernels, speed, length, the reference and accuracy on one GPU, each part in a process of its own.

`python -m benchmarks.gpu [--part NAME …] [--minutes M]`, under any Python that has torch ≥ 2.6. Without a GPU it is a
dry run: every part at tiny sizes on the CPU, which shows that the scripts work and nothing else. Its parts share this
process: there is no memory to give back, and torch is imported once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu import wheels

if TYPE_CHECKING:
    from benchmarks.gpu.device import Device

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("kernels", "speed", "length", "peer", "accuracy")
MINUTES = 9.0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts asked for together")
    parser.add_argument("--device", help="as torch spells it, such as cuda:1; default: the first GPU, or a dry run")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, help="folder for the results; default: results/recorded/gpu-NAME")
    # For a child, which runs one part: when it has to end, on the clock that all processes of a machine share.
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if not parsed.minutes > 0:
        parser.error(f"expected minutes above 0, got {parsed.minutes}")
    if parsed.dry_run and parsed.device not in (None, "cpu"):
        parser.error(f"expected a dry run on the CPU, got --device {parsed.device}; leave one of the two out")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts; status 1 where one failed or found numbers that differ where they must not."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    # Triton tries kernels in many ways before it runs them: parts, each a process, shall learn that from each other.
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    try:
        if options.until is None:  # a child has its parent's path
            wheels.use(os.environ)  # type: ignore[arg-type]
            wheels.check_modules()
        from benchmarks.gpu.bench import read_results
        from benchmarks.gpu.device import find_device
        from benchmarks.gpu.run import DRY, find_out, run_part

        device = find_device(options.device, dry_run=options.dry_run)
        out = (options.out or find_out(device)).resolve()  # parts run in the checkout, wherever this was called
        out.mkdir(parents=True, exist_ok=True)
        for part in options.part:  # before any of them takes its minutes
            read_results(out / f"{part}.json")
    except (wheels.WheelError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    except OSError as error:
        raise SystemExit(f"error: expected a folder to write results into, got {error}; give another --out") from error
    if options.until is not None:
        failures = run_part(options.part[0], device, out, options.until - time.monotonic(), given)
        raise SystemExit(1 if failures else 0)
    if device.tiny:
        print(DRY, file=sys.stderr, flush=True)
        failed = run_all(options, partial(run_here, device=device, out=out, given=given))
        print(DRY, file=sys.stderr, flush=True)
    else:
        failed = run_all(options, partial(run_apart, out=out, given=given))
    if failed:
        raise SystemExit(f"error: expected all parts to run and to agree, got failures in {', '.join(failed)}")


def run_all(options: argparse.Namespace, run: Callable[[str, float], bool]) -> list[str]:
    """Each part with what time is left by the shares of those to come; who failed.

    run: runs a part in so many seconds; whether all is well.
    """
    from benchmarks.gpu.parts import SHARES

    end = time.monotonic() + 60 * options.minutes
    failed = []
    for place, part in enumerate(options.part):
        share = SHARES[part] / sum(SHARES[name] for name in options.part[place:])
        if not run(part, max(1.0, share * (end - time.monotonic()))):
            failed.append(part)
    return failed


def run_apart(part: str, seconds: float, *, out: Path, given: Sequence[str]) -> bool:
    """In a process of its own, whose end frees all of the GPU's memory."""
    # Of an option that is given twice argparse takes the last.
    command = [sys.executable, "-m", "benchmarks.gpu", *given, "--part", part, "--out", str(out)]
    until = time.monotonic() + seconds  # what starting takes is part of it
    done = subprocess.run([*command, "--until", f"{until:.1f}"], cwd=ROOT, check=False)
    return done.returncode == 0


def run_here(part: str, seconds: float, *, device: Device, out: Path, given: Sequence[str]) -> bool:
    """In this process; what goes wrong in a part is told and stops no other."""
    from benchmarks.gpu.run import run_part

    try:
        return not run_part(part, device, out, seconds, given)
    except Exception:
        traceback.print_exc()
        return False


if __name__ == "__main__":
    main()
