"""Who may import whom: the graph of DESIGN flows one way, and the command line starts without heavy packages."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mblm", "vqa_bench", "baselines", "data_scripts")

# From each part, by the longest matching prefix: which parts of ours it may import besides itself.
ALLOWED: dict[str, tuple[str, ...]] = {
    "mblm": (),
    "baselines": (),
    "data_scripts": (),
    "vqa_bench.errors": (),
    "vqa_bench.progress": (),
    "vqa_bench.data": ("vqa_bench.errors",),
    "vqa_bench.config": ("vqa_bench.data", "vqa_bench.errors"),
    "vqa_bench.runs": tuple(f"vqa_bench.{part}" for part in ("config", "data", "errors", "launch", "models")),
    "vqa_bench.models": ("mblm", "baselines", "vqa_bench.config", "vqa_bench.data", "vqa_bench.errors"),
    "vqa_bench.scoring": (
        *("vqa_bench.config", "vqa_bench.data", "vqa_bench.errors", "vqa_bench.estimate", "vqa_bench.launch"),
        *("vqa_bench.models", "vqa_bench.progress", "vqa_bench.runs"),
    ),
    "vqa_bench.launch": ("vqa_bench.config", "vqa_bench.errors"),
    "vqa_bench.train": tuple(
        f"vqa_bench.{part}" for part in ("config", "data", "errors", "launch", "models", "progress", "runs", "scoring")
    ),
    "vqa_bench.report": ("vqa_bench.scoring", "vqa_bench.config", "vqa_bench.data", "vqa_bench.errors"),
    "vqa_bench.plugins": ("vqa_bench.errors",),
    # Costs follow from what the model does, so they are counted with its own numbers.
    "vqa_bench.estimate": (
        "mblm",
        *(f"vqa_bench.{part}" for part in ("config", "data", "errors", "launch", "models")),
    ),
    "vqa_bench.matrix": tuple(
        f"vqa_bench.{part}"
        for part in (
            *("config", "data", "errors", "estimate", "launch", "models", "plugins", "progress", "runs"),
            *("scoring", "train"),
        )
    ),
    "vqa_bench.ask": tuple(f"vqa_bench.{part}" for part in ("config", "data", "errors", "models", "runs", "scoring")),
    "vqa_bench.demo": tuple(f"vqa_bench.{part}" for part in ("ask", "data", "errors", "models", "scoring")),
    "vqa_bench.verify": tuple(
        f"vqa_bench.{part}"
        for part in ("config", "data", "errors", "matrix", "models", "progress", "report", "runs", "scoring")
    ),
    "vqa_bench.doctor": ("mblm", "vqa_bench.data", "vqa_bench.runs"),
    "vqa_bench.cli": ("vqa_bench", "data_scripts"),
    "vqa_bench.__main__": ("vqa_bench.cli",),
    "vqa_bench": (),
}


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            if node.module == "vqa_bench":  # its parts, not the package
                yield from (f"vqa_bench.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def part_of(module: str) -> str:
    return max((part for part in ALLOWED if module == part or module.startswith(f"{part}.")), key=len)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_flow_one_way(package: str) -> None:
    seen = 0
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        part = part_of(module)
        for name in imports_of(path):
            if name.split(".")[0] in PACKAGES:
                seen += 1
                allowed = (part, *ALLOWED[part])
                assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{module} imports {name}"
    assert seen > 0


def test_help_needs_nothing_heavy() -> None:
    program = (
        "import sys, vqa_bench.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(*[m for m in ('torch', 'numpy', 'datasets', 'pandas', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == ""
    assert "matrix" in done.stdout
