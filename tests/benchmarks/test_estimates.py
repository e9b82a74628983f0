"""The comparison of estimates end to end at toy size; its process is played inside this one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import estimates

LINUX_ONLY = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)


@LINUX_ONLY
def test_the_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()

    def here(module: str, arguments: list[str], threads: int) -> dict[str, Any]:
        options = estimates.parse_options(arguments)
        return estimates.measure(estimates.QUICK[options.measure], threads=threads)

    monkeypatch.setattr(estimates, "measure_apart", here)
    monkeypatch.setattr(estimates, "PAPER", {(8192,): 30.5})
    try:
        estimates.main(["--quick", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    saved = json.loads((tmp_path / "estimates.json").read_text(encoding="utf-8"))
    assert [row["what"] for row in saved["rows"]] == ["T/T, memory", "T/T, time", "the paper's 1D-T at 8,192 bytes"]
    assert all(row["value"] > 0 for row in saved["rows"])
    assert 0.5 < saved["rows"][-1]["value"] < 2
    assert saved["measured"]["T/T"]["flops"] > 0


def test_quick_numbers_are_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        estimates.main(["--quick", "--record"])
    assert "expected --out" in capsys.readouterr().err
