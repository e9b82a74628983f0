"""Wheels for a machine without network: what is fetched, from a folder in the place of an index, and where to."""

import os
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import wheels

ROOT = Path(wheels.__file__).resolve().parents[2]


def make_wheel(folder: Path, name: str, version: str, module: str = "") -> Path:
    """A wheel for any Python with one module."""
    project = name.replace("-", "_")
    path = folder / f"{project}-{version}-py3-none-any.whl"
    about = f"{project}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module or project}.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and from nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetch_takes_the_pinned_versions(index: Path, tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(index, "some-thing", version)
    pins = tmp_path / "pins.txt"
    pins.write_text("# pinned\nsome-thing==1.0\nanother==3\n", encoding="utf-8")
    wheels.fetch(tmp_path / "out", "3.12", ["some-thing"], pins)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["some_thing-1.0-py3-none-any.whl"]
    with pytest.raises(
        wheels.WheelError, match=r"expected the wheels named above for Python 3\.12, got an error of pip"
    ):
        wheels.fetch(tmp_path / "out", "3.12", ["another"], pins)
    with pytest.raises(wheels.WheelError, match=r"expected missing in .*pins\.txt, got no line of it"):
        wheels.fetch(tmp_path / "out", "3.12", ["missing"], pins)


def test_what_the_command_fetches_and_where_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[list[str], dict[str, str] | None]] = []
    monkeypatch.setattr(wheels, "_pip", lambda arguments, what, settings=None: ran.append((arguments, settings)))
    wheels.main(["--python", "3.12", "--out", str(tmp_path)])
    wheels.main(["--python", "3.12", "--out", str(tmp_path), "--peer", "--mamba"])
    plain, again, mamba, beside_mamba, reference = ran
    assert plain == again
    assert plain[0][0] == "download"
    assert mamba == (
        ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), wheels.MAMBA],
        wheels.MAMBA_SETTINGS,
    )
    assert beside_mamba[0][-1].startswith("einops==")
    assert "mblm==0.4.2" in reference[0]
    assert reference[0][reference[0].index("--dest") + 1] == str(tmp_path / "peer")
    assert "cp312" in reference[0]


def test_all_that_is_fetched_is_pinned() -> None:
    peer_pins = ROOT / "benchmarks" / "peer" / "requirements.txt"
    ours = dict(line.split("==") for line in wheels._pinned(wheels.FETCHED, ROOT / "constraints.txt"))
    theirs = dict(line.split("==") for line in wheels._pinned(wheels.PEER_FETCHED, peer_pins))
    wheels._pinned(wheels.MAMBA_FETCHED, peer_pins)
    assert not ours.keys() & theirs.keys()  # the reference sees ours behind its own
    shared = [name for name in wheels.FETCHED if f"\n{name}==" in peer_pins.read_text(encoding="utf-8")]
    assert wheels._pinned(shared, peer_pins) == [f"{name}=={ours[name]}" for name in shared]


def test_wheels_of_another_python_are_told(tmp_path: Path) -> None:
    for name in ("a-1-cp39-cp39-linux_x86_64.whl", "b-1-cp310-cp310-win32.whl"):
        (tmp_path / name).touch()
    with pytest.raises(wheels.WheelError, match=r"expected wheels for Python 3\.\d+ in .*, got a-1-.* and 1 more"):
        wheels.unpack(tmp_path)
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    names = ("a-1-py2.py3-none-any.whl", f"b-1-{here}-{here}-manylinux_2_17_x86_64.whl", "c-1-1build-cp38-abi3-any.whl")
    assert all(map(wheels._is_for_this_python, names))
    assert not wheels._is_for_this_python("d-1-cp399-abi3-any.whl")


def test_no_such_python(tmp_path: Path) -> None:
    with pytest.raises(wheels.WheelError, match=r"expected a Python such as 3\.12, got banana"):
        wheels.fetch(tmp_path, "banana", [], tmp_path / "pins.txt")
