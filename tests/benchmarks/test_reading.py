"""The reading benchmark end to end at toy size; its memory process is played inside this one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import reading
from vqa_bench.data.questions import Questions

LINUX_ONLY = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")


@pytest.fixture
def memory_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stand-in for `measure_apart`: the same text in and out, no process."""

    def measure(name: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
        assert (name, threads) == (reading.MODULE, 1)
        capsys.readouterr()
        reading.main(arguments)
        measured: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return measured

    monkeypatch.setattr(reading, "measure_apart", measure)


@LINUX_ONLY
@pytest.mark.usefixtures("memory_here")
def test_rows(tmp_path: Path) -> None:
    reading.main(["--quick", "--repeats", "1", "--workers", "0", "--out", str(tmp_path)])
    saved = json.loads((tmp_path / "reading.json").read_text(encoding="utf-8"))
    assert [row["what"] for row in saved["rows"]] == [
        "iqa, in the training process",
        "iqa, in the training process, of a copy's speed",
        "qia, in the training process",
        "qia, in the training process, of a copy's speed",
        "memory, 16 images over 8",
    ]
    assert all(row["value"] > 0 for row in saved["rows"])
    assert saved["rows"][0]["target"] == {"relation": "≥", "value": 20000}
    # ids of two bytes, an image once for its ten questions or once a question; rows, answers and borders beside them
    of_qia = saved["measured"]["qia, in the training process"]["bytes_per_sample"]
    assert 7_626 * 2 < of_qia < 8_192 * 2 + 50
    assert saved["measured"]["iqa, in the training process"]["bytes_per_sample"] < of_qia / 5
    assert "reached" in (tmp_path / "reading.md").read_text(encoding="utf-8")


def test_the_longest_sequence_has_8192_ids(tmp_path: Path) -> None:
    reading.write_split(tmp_path, 4)
    made = reading.Reading(tmp_path, "qia", 4, 0)
    longest = Questions(np.empty(0, np.uint8), np.array([0]), np.array([205]), np.array([0]))
    assert made.collate.func.sequencer.lengths(longest).tolist() == [reading.SEQUENCE]


def test_toy_numbers_are_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reading.main(["--quick", "--record"])
    assert "toy numbers do not belong" in capsys.readouterr().err


@pytest.mark.slow
@LINUX_ONLY
def test_workers_and_memory_in_their_own_processes(tmp_path: Path) -> None:
    reading.main(["--quick", "--repeats", "1", "--workers", "1", "--out", str(tmp_path)])
    assert len(json.loads((tmp_path / "reading.json").read_text(encoding="utf-8"))["rows"]) == 5
