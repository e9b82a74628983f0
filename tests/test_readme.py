"""README holds what it says: its commands are commands, its table is the recorded one."""

import re
import shlex

import pytest

from benchmarks.common import RECORDED, ROOT
from benchmarks.record_runs import SHOWN, with_table
from vqa_bench.cli import _parser
from vqa_bench.config import load_matrix

README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line.split("   #")[0].strip() for block in CODE for line in block.splitlines()]
COMMANDS = [re.sub(r"^torchrun .* -m vqa_bench", "vqa-bench", line) for line in LINES if "vqa" in line]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("vqa-bench ")])
def test_commands_are_understood(command: str) -> None:
    options = _parser().parse_args(shlex.split(command)[1:])
    assert callable(options.run)
    if command.startswith("vqa-bench train"):
        assert load_matrix(ROOT / options.config).cell(options.cell).name == options.cell


def test_there_are_commands_of_every_kind() -> None:
    kinds = {command.split()[1] for command in COMMANDS if command.startswith("vqa-bench ")}
    assert {"data", "serialize", "inspect", "matrix", "train", "pretrain", "finetune", "evaluate"} <= kinds
    assert {"report", "compare", "verify", "ask", "demo", "doctor"} <= kinds


def test_the_table_is_the_recorded_one() -> None:
    assert with_table(README, RECORDED / SHOWN) == README


def test_what_it_links_to_is_there() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []
