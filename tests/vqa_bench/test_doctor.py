"""What `doctor` finds, what it takes for a problem, and that a broken host is a finding and not a crash."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from vqa_bench import doctor
from vqa_bench.data import host_check
from vqa_bench.data.encodings import PngSpec, WebpSpec
from vqa_bench.data.golden import GOLDEN
from vqa_bench.data.host_check import check_encoding, check_encodings
from vqa_bench.doctor import Disk, Report, examine, report_text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision and datasets take seconds to import; `slow` tests import them."""
    monkeypatch.setattr(doctor, "MODULES", ("torch",))


@pytest.fixture
def ours_only(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed here does not matter."""
    monkeypatch.setattr(doctor, "required", lambda: ["torch", "numpy"])


@pytest.mark.usefixtures("ours_only")
def test_a_report_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SECRET_TOKEN", "do not print")
    report = examine({"data": tmp_path / "not" / "there"})
    assert report.exit_code == 0
    assert report.packages["torch"] is not None
    assert report.devices["cores"] == os.cpu_count()
    assert set(report.encodings) == set(GOLDEN)
    assert report.environment["HF_HUB_OFFLINE"] == "1"
    assert 0 < report.disks["data"].free <= report.disks["data"].total
    assert any("HF_HUB_OFFLINE" in note for note in report.notes)
    assert json.loads(json.dumps(report.to_dict()))["disks"]["data"]["path"] == str(tmp_path / "not" / "there")
    shown = report_text(report).plain
    for title in ("Host", "Packages", "Devices", "GPU kernels", "Disks", "Environment", "Image libraries", "Encodings"):
        assert f"{title}\n" in shown
    assert "no problem found" in shown
    assert "do not print" not in shown + json.dumps(report.to_dict())


def test_our_own_requirements_are_looked_up() -> None:
    assert {"vqa-bench", "torch", "torchvision", "accelerate", "datasets", "pillow", "numpy"} <= set(doctor.required())
    assert "mamba-ssm" not in doctor.required()
    assert doctor.installed("no-such-package-at-all") is None


def test_lossless_encodings_come_back() -> None:
    checks = check_encodings()
    for spec, found in checks.items():
        assert found.fault is None, spec
        assert found.round_trip is (None if "jpeg" in spec or "webp:48x32,q=80" in spec else True), spec
        assert found.same_bytes or found.host_dependent or "x14" in spec or "crop" in spec, spec


def test_other_bytes_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "0" * 64
    png, jpeg = (check_encoding(spec, wrong) for spec in ("png:48x32,level=6", "jpeg:48x32,q=80"))
    assert (png.same_bytes, png.same_picture, png.round_trip) == (False, True, True)
    assert (jpeg.same_bytes, jpeg.same_picture, jpeg.round_trip) == (False, None, None)
    assert check_encoding("pixels:20x14", wrong).same_picture is False
    monkeypatch.setattr(host_check, "GOLDEN", dict.fromkeys(("png:48x32,level=6", "bmp:48x32"), wrong))
    monkeypatch.setattr(doctor, "MODULES", ())
    monkeypatch.setattr(doctor, "required", list)
    report = examine()
    assert report.exit_code == 0
    assert any(note.startswith("png, bmp: other bytes than on the reference host (2 of 2") for note in report.notes)
    assert "OTHER bytes, the same picture; comes back exactly" in report_text(report).plain


@pytest.mark.usefixtures("ours_only")
def test_what_would_make_results_wrong_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(spec: WebpSpec, data: bytes) -> Image.Image:
        raise OSError("no decoder\nfor this")

    monkeypatch.setattr(PngSpec, "decode", lambda spec, data: Image.new("RGB", (48, 32)))
    monkeypatch.setattr(WebpSpec, "decode", fails)
    monkeypatch.setattr(doctor, "MODULES", ("torch", "no_such_module"))
    monkeypatch.setattr(doctor, "required", lambda: ["no-such-package"])
    report = examine()
    assert report.exit_code == 1
    found = "\n".join(report.problems)
    assert "no_such_module cannot be imported: ModuleNotFoundError" in found
    assert "no-such-package is not installed" in found
    assert "encoding webp:48x32,q=80 fails: OSError: no decoder for this" in found
    assert found.count("is lossless, but its bytes do not give the picture back") == 3
    shown = report_text(report).plain
    assert shown.count("problem: ") == len(report.problems)
    assert "no problem found" not in shown


def test_a_module_that_breaks_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_on_import.py").write_text("raise RuntimeError('built for\\n another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.import_fault("broken_on_import") == "RuntimeError: built for another torch"
    assert doctor.import_fault("json") is None
    assert "broken_on_import" not in sys.modules


def made_up(**changes: object) -> Report:
    devices = {
        "cores": 8,
        "cores_allowed": 2,
        "threads": 4,
        "memory": 2**34,
        "memory_free": None,
        "torch_cuda": "13.0",
        "cuda": [{"name": "H200", "memory": 139 * 2**30, "capability": "9.0"}],
        "mps": False,
        "mamba_kernel": "torch",
        "attention": {"flash": True, "memory-efficient": True, "cudnn": False},
    }
    fields = {
        "host": {"python": "3.11"},
        "packages": {},
        "devices": devices,
        "kernels": {"mamba-ssm": doctor.Kernel(None, "ModuleNotFoundError: none"), "triton": doctor.Kernel("3", None)},
        "disks": {"shared memory": Disk("/dev/shm", 2**26, 2**26)},
        "environment": {"WORLD_SIZE": "2"},
        "codecs": {},
        "encodings": {},
    }
    return Report(**(fields | changes))  # type: ignore[arg-type]


def test_notes_say_what_to_do() -> None:
    notes = "\n".join(doctor._notes(made_up()))
    assert "pip install 'vqa-bench[cuda]'" in notes
    assert "set OMP_NUM_THREADS" in notes
    assert "cores / processes" in notes
    assert "/dev/shm has 0.06 GiB free" in notes
    assert doctor._notes(made_up(devices={}, disks={}, environment={})) == []


def test_devices_are_shown() -> None:
    shown = report_text(made_up()).plain
    assert "8 cores (2 allowed), 4 threads" in shown
    assert "16.0 GiB, free not known" in shown
    assert "H200, 139.0 GiB, capability 9.0" in shown
    assert "flash yes, memory-efficient yes, cudnn no" in shown
    assert "not installed; ModuleNotFoundError: none" in shown
    assert "not known: torch cannot be imported" in report_text(made_up(devices={})).plain


@pytest.mark.slow
def test_everything_of_this_host() -> None:
    report = examine()
    assert not [problem for problem in report.problems if "cannot be imported" in problem or "encoding" in problem]
