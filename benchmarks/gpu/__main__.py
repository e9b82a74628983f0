"""`make gpu`: kernels, speed, length, the reference and accuracy on one GPU, each part in a process of its own.

`python -m benchmarks.gpu [--part NAME …] [--minutes M]`, under any Python that has torch ≥ 2.6. Without a GPU it is a
dry run: every part at tiny sizes on the CPU, which shows that the scripts work and nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import wheels

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("kernels", "speed", "length", "peer", "accuracy")
MINUTES = 9.0
DRY = "dry run: tiny sizes on the CPU show that the scripts work; the numbers say nothing of a GPU"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts asked for together")
    parser.add_argument("--device", help="as torch spells it, such as cuda:1; default: the first GPU, or a dry run")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, help="folder for the results; default: results/recorded/gpu-NAME")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)  # of the one part that a child runs
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
    try:
        if options.seconds is None:  # a child has its parent's path
            wheels.use(os.environ)  # type: ignore[arg-type]
            wheels.check_modules()
        from benchmarks.gpu.device import find_device
        from benchmarks.gpu.run import find_out, run_part

        device = find_device(options.device, dry_run=options.dry_run)
        out = (options.out or find_out(device)).resolve()  # parts run in the checkout, wherever this was called
    except (wheels.WheelError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    if options.seconds is not None:
        failures = run_part(options.part[0], device, out, options.seconds, given)
        raise SystemExit(1 if failures else 0)
    if device.tiny:
        print(DRY, file=sys.stderr, flush=True)
    failed = run_apart(options, out, given)
    if device.tiny:
        print(DRY, file=sys.stderr, flush=True)
    if failed:
        raise SystemExit(f"error: expected all parts to run and to agree, got failures in {', '.join(failed)}")


def run_apart(options: argparse.Namespace, out: Path, given: Sequence[str]) -> list[str]:
    """Each part in a process of its own, with what time is left by the shares of those to come; who failed."""
    from benchmarks.gpu.parts import SHARES

    end = time.monotonic() + 60 * options.minutes
    failed = []
    for place, part in enumerate(options.part):
        share = SHARES[part] / sum(SHARES[name] for name in options.part[place:])
        seconds = max(1.0, share * (end - time.monotonic()))
        # Of an option that is given twice argparse takes the last.
        command = [sys.executable, "-m", "benchmarks.gpu", *given, "--part", part, "--out", str(out)]
        done = subprocess.run([*command, "--seconds", f"{seconds:.1f}"], cwd=ROOT, check=False)
        if done.returncode != 0:
            failed.append(part)
    return failed


if __name__ == "__main__":
    main()
