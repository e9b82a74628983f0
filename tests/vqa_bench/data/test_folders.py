"""Files that are whole or not there; whole folders are tested where shards are written."""

from pathlib import Path

import pytest

from vqa_bench.data.folders import whole_file


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with whole_file(path) as partial:
        partial.write_text("old", encoding="utf-8")
        assert not path.exists()
    (tmp_path / "table.csv.partial").touch()
    with pytest.raises(FileNotFoundError, match="missing"), whole_file(path) as partial:
        partial.write_bytes(b"ne" + (tmp_path / "missing").read_bytes())
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
