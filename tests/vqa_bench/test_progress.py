"""Progress as people see it: plain lines whose time left follows from this start's rate, and the bar with its note."""

import time

import pytest

from vqa_bench.progress import PLAIN_SECONDS, _bar, progress


def test_plain_lines_count_from_the_first_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress("cell: train", "steps") as report:
        now[0] += 500  # what comes before the first report is preparation
        report(900, 1000)
        for done in range(901, 912):
            now[0] += PLAIN_SECONDS / 10
            report(done, 1000, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["cell: train: 910 of 1,000 steps, 90 s left, loss 0.5", "cell: train: done in 511 s"]


def test_a_narrow_terminal_shows_the_bar_and_the_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    with _bar("cell: train", "steps") as report:
        report(5, 10, "loss 0.934, 3.48 k questions/s, 2.12 MB/s, waiting 3%, 1.21 GB")
    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "waiting 3%, 1.21 GB" in shown
