"""The frame of the GPU suite: kept items, time, memory, failing parts, wheels, and one part from the command line."""

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.common import Samples, amount
from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import length, run, speed, wheels
from benchmarks.gpu.bench import OUT_OF_MEMORY, Bench
from benchmarks.gpu.device import Device, find_device
from benchmarks.gpu.parts import Report
from benchmarks.gpu.run import code_digest, find_out, run_part

ROOT = Path(suite.__file__).resolve().parents[2]
TINY = Device(torch.device("cpu"), tiny=True)


class Counted:
    """A measurement that counts how often it is taken."""

    def __init__(self, result: dict[str, Any] | None = None) -> None:
        self.calls, self.result = 0, {"answer": 42} if result is None else result

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return self.result


def make_bench(file: Path, *, seconds: float | None = None, **about: Any) -> Bench:
    return Bench("some", TINY, file, True, seconds, about)


# -- items ------------------------------------------------------------------------------------------------------------


def test_an_item_is_measured_once_for_its_settings_and_surroundings(tmp_path: Path) -> None:
    file, measure = tmp_path / "out" / "some.json", Counted()
    settings = {"size": 3, "lens": (1, 2)}
    for _ in range(2):
        assert make_bench(file, code="a").item("x", settings, measure) == {"answer": 42}
    assert measure.calls == 1
    make_bench(file, code="a").item("x", settings | {"size": 4}, measure)
    assert measure.calls == 2
    make_bench(file, code="b").item("x", settings | {"size": 4}, measure)
    assert measure.calls == 3
    make_bench(file, code="b").item("y", settings, measure)
    assert measure.calls == 4


def test_a_suite_that_was_cut_keeps_what_it_had(tmp_path: Path) -> None:
    file, first, second = tmp_path / "some.json", Counted(), Counted({"answer": 7})

    def cut() -> dict[str, Any]:
        raise KeyboardInterrupt

    bench = make_bench(file)
    bench.item("first", {}, first)
    bench.item("second", {}, second)
    with pytest.raises(KeyboardInterrupt):
        bench.item("third", {}, cut)
    again = make_bench(file)
    again.item("zeroth", {}, Counted())  # a new item before them loses none of them
    with pytest.raises(KeyboardInterrupt):
        again.item("third", {}, cut)
    once_more = make_bench(file)
    assert once_more.item("first", {}, first) == {"answer": 42}
    assert once_more.item("second", {}, second) == {"answer": 7}
    assert (first.calls, second.calls) == (1, 1)


def test_out_of_memory_is_a_result_and_other_errors_are_not(tmp_path: Path) -> None:
    def too_large() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has …")

    def wrong() -> dict[str, Any]:
        raise RuntimeError("expected something else")

    bench = make_bench(tmp_path / "some.json")
    assert bench.item("x", {}, too_large) == {OUT_OF_MEMORY: "CUDA out of memory"}
    assert make_bench(bench.file).item("x", {}, Counted()) == {OUT_OF_MEMORY: "CUDA out of memory"}  # kept as well
    with pytest.raises(RuntimeError, match="something else"):
        bench.item("y", {}, wrong, passed_on=(RuntimeError,))
    assert bench.raised == []
    assert bench.item("y", {}, wrong) is None
    assert bench.raised == ["y: RuntimeError: expected something else"]
    measure = Counted()
    assert make_bench(bench.file).item("y", {}, measure) == {"answer": 42}  # not kept
    assert measure.calls == 1


def test_without_time_an_item_is_skipped_but_a_kept_one_is_there(tmp_path: Path) -> None:
    file, measure = tmp_path / "some.json", Counted()
    make_bench(file).item("kept", {}, measure)
    bench = make_bench(file, seconds=5.0)
    assert bench.item("kept", {}, measure, needs=1e6) == {"answer": 42}
    assert bench.item("long", {}, measure, needs=1e6) is None
    assert bench.item("short", {}, measure, needs=0.1) == {"answer": 42}
    assert bench.skipped == ["long"]
    assert 0 < bench.left < 5
    assert make_bench(file).left == float("inf")


def test_what_there_is_no_time_to_measure_anew_is_not_lost(tmp_path: Path) -> None:
    file, measure = tmp_path / "some.json", Counted()
    make_bench(file, code="old").item("x", {"seconds": 120}, measure)
    make_bench(file, code="old").item("x", {"seconds": 30}, measure)  # beside it now
    make_bench(file, code="old").item("x", {"seconds": 120}, measure)
    assert measure.calls == 2
    late = make_bench(file, seconds=5.0, code="new")
    assert late.item("x", {"seconds": 120}, measure, needs=1e6) is None
    assert late.item("x", {"seconds": 30}, measure, needs=1e6) is None
    late.item("y", {}, measure)
    for seconds in (120, 30):
        make_bench(file, code="old").item("x", {"seconds": seconds}, measure)
    assert measure.calls == 3


# -- parts ------------------------------------------------------------------------------------------------------------


def good(bench: Bench) -> Report:
    bench.item("x", {}, Counted())
    bench.item("long", {}, Counted(), needs=1e9)
    return Report("Good", "nothing", [amount("x", Samples((2.0,), "GB"), at_most=1)], ["a remark"])


def differing(bench: Bench) -> Report:
    bench.item("broken", {}, lambda: {"answer": 1 // 0})
    return Report("Differing", "nothing", [], [], ["expected 1, got 2"])


def raising(bench: Bench) -> Report:
    raise RuntimeError("no such kernel")


def play_parts(monkeypatch: pytest.MonkeyPatch, parts: dict[str, Callable[[Bench], Report]]) -> list[list[str]]:
    """Parts of these names, their processes played inside this one; the command lines that were started."""
    started: list[list[str]] = []

    def start(command: Sequence[str], *, cwd: Path, check: bool) -> SimpleNamespace:
        assert (cwd, check, command[:3]) == (ROOT, False, [sys.executable, "-m", "benchmarks.gpu"])
        started.append(list(command[3:]))
        try:
            suite.main(started[-1])
        except SystemExit as error:
            return SimpleNamespace(returncode=error.code)
        except RuntimeError:  # a process would print it
            return SimpleNamespace(returncode=1)
        raise AssertionError("expected a part to end with a status")

    monkeypatch.setattr("benchmarks.gpu.run.find_part", parts.__getitem__)
    monkeypatch.setattr(suite, "subprocess", SimpleNamespace(run=start))
    return started


def check_outcome(out: Path, said: str) -> None:
    """What two failing parts and a good one leave behind."""
    assert "error: speed: expected 1, got 2" in said
    table = (out / "speed.md").read_text(encoding="utf-8")
    assert "* FAILED: expected 1, got 2" in table
    assert "* FAILED: broken: ZeroDivisionError" in table
    assert not (out / "kernels.json").exists()
    saved = json.loads((out / "length.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["reached"] is False  # slow is not wrong
    dry, *remarks, machine = saved["remarks"]
    assert "say nothing of a GPU" in dry
    assert remarks == ["a remark", "Not measured, as no time was left: long."]
    assert f"torch {saved['machine']['versions']['torch']}" in machine
    assert saved["dry_run"] is True
    assert saved["items"]["x"]["result"] == {"answer": 42}
    assert torch.__version__.startswith(saved["machine"]["versions"]["torch"])


FAILING: dict[str, Callable[[Bench], Report]] = {"kernels": raising, "speed": differing, "length": good}
ARGUMENTS = ["--dry-run", "--part", "kernels", "speed", "length", "--minutes", "2"]


def test_a_part_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play_parts(monkeypatch, FAILING) == []
    with pytest.raises(SystemExit) as stopped:
        suite.main([*ARGUMENTS, "--out", str(tmp_path)])
    assert stopped.value.code == "error: expected all parts to run and to agree, got failures in kernels, speed"
    said = capsys.readouterr().err
    assert said.count("the numbers say nothing of a GPU") == 2
    assert "RuntimeError: no such kernel" in said
    check_outcome(tmp_path, said)


def test_on_a_gpu_each_part_has_its_process_and_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = play_parts(monkeypatch, FAILING)
    run, begin = partial(suite.run_apart, out=tmp_path, given=ARGUMENTS), time.monotonic()
    assert suite.run_all(suite.parse(ARGUMENTS), run) == ["kernels", "speed"]
    # The time of a part that is done goes to those behind it.
    until = [float(command[command.index("--until") + 1]) - begin for command in started]
    assert until == pytest.approx([120 / 4.5, 120 * 2.5 / 3.5, 120], abs=5)
    check_outcome(tmp_path, capsys.readouterr().err)


def test_all_good_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_parts(monkeypatch, {"length": good})
    suite.main(["--dry-run", "--part", "length", "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["length.json", "length.md"]


def test_a_part_again_takes_its_items_from_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Counted()

    def part(bench: Bench) -> Report:
        bench.item("x", {}, measure)
        return Report("Part", "nothing", [], [])

    monkeypatch.setattr(run, "find_part", lambda name: part)
    for _ in range(2):
        assert run_part("length", TINY, tmp_path, None, []) == []
    assert measure.calls == 1
    monkeypatch.setattr(run, "code_digest", lambda: "other code")
    run_part("length", TINY, tmp_path, None, [])
    assert measure.calls == 2


def test_the_digest_is_that_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_digest() == code_digest()
    monkeypatch.setattr(run, "ROOT", tmp_path)
    found = {code_digest()}
    (tmp_path / "mblm" / "model").mkdir(parents=True)
    source = tmp_path / "mblm" / "model" / "new.py"
    for text in ("a = 1\n", "a = 2\n"):
        source.write_text(text, encoding="utf-8")
        found.add(code_digest())
    source.rename(source.with_name("other.py"))
    found.add(code_digest())
    assert len(found) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cuda:x", "toaster", "meta"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        suite.main(["--device", name, "--part", "kernels"])
    message = str(stopped.value.code)
    assert f"got {name}; leave --device out" in message
    assert "\n" not in message


def test_the_cpu_stands_in_for_a_gpu_at_tiny_sizes() -> None:
    assert find_device(None, dry_run=True).tiny
    assert find_device("cpu", dry_run=False).tiny
    assert "dry-run" in find_out(TINY).name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "expected minutes above 0, got 0.0"),
        (["--dry-run", "--device", "cuda"], "expected a dry run on the CPU, got --device cuda"),
        (["--part", "kernel"], "invalid choice: 'kernel'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suite.main(arguments)
    assert message in capsys.readouterr().err


# -- the device -------------------------------------------------------------------------------------------------------


def test_times_are_those_after_the_warm_up() -> None:
    work = Counted()
    samples = TINY.seconds(work, repeats=3, warmup=2)
    assert work.calls == 5
    assert len(samples.values) == 3
    assert all(value >= 0 for value in samples.values)
    assert TINY.peak_memory(work) is None
    assert work.calls == 6
    assert TINY.matmul_rate > 1e6
    assert TINY.copy_rate > 1e6


# -- wheels -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for wheels; they are unpacked beside it, and this process's path is as before afterwards."""
    monkeypatch.setattr(wheels.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = tmp_path / "given"
    made.mkdir()
    return made


def write_wheel(folder: Path, name: str, version: str, source: str = "answer = 42\n") -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", source)
    return path


def test_wheels_are_unpacked_once_for_the_same_files(folder: Path) -> None:
    write_wheel(folder, "brought", "1.0")
    write_wheel(folder, "other", "2.0")
    target = wheels.unpack(folder)
    assert sorted(path.name for path in target.iterdir()) == ["brought", "other"]
    (target / "mark").touch()
    assert wheels.unpack(folder) == target
    assert (target / "mark").exists()
    write_wheel(folder, "third", "1.0")
    assert wheels.unpack(folder) != target
    assert not [path for path in folder.parent.iterdir() if path.name.startswith("tmp")]  # nothing half-made stays


def test_wheels_go_in_front_of_what_is_installed(folder: Path) -> None:
    write_wheel(folder, "brought", "1.0")
    environment = {wheels.VARIABLE: str(folder), "PYTHONPATH": "/before"}
    wheels.use(environment)
    target = str(wheels.unpack(folder))
    assert sys.path[0] == target
    assert environment["PYTHONPATH"] == os.pathsep.join((target, "/before"))
    alone = {wheels.VARIABLE: str(folder)}
    wheels.use(alone)
    assert alone["PYTHONPATH"] == target
    nothing: dict[str, str] = {}
    wheels.use(nothing)
    assert nothing == {}


def test_wheels_that_cannot_be_used(folder: Path) -> None:
    with pytest.raises(wheels.WheelError, match=r"expected wheels \(\*\.whl\) in .*given, got none"):
        wheels.unpack(folder)
    write_wheel(folder, "brought", "1.0")
    second = write_wheel(folder, "Brought", "2.0")
    with pytest.raises(wheels.WheelError, match=r"expected one wheel of brought in .*, got 2; remove others"):
        wheels.unpack(folder)
    second.write_bytes(b"no archive")
    second.rename(folder / "broken-1.0-py3-none-any.whl")
    with pytest.raises(wheels.WheelError, match=r"expected a wheel, got .*broken-1\.0.*: File is not a zip file"):
        wheels.unpack(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["given"]


def test_missing_modules_are_named_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels.check_modules()
    monkeypatch.setattr(wheels, "NEEDED", (("torch", "torch"), ("brought_", "brought"), ("other_", "other")))
    with pytest.raises(wheels.WheelError, match=r"without brought, other; install them, or give wheels: VQA_WHEELS="):
        wheels.check_modules()


def test_unpinned_packages_are_an_error(tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("# made by hand\nbrought==1.0\n", encoding="utf-8")
    assert wheels._pinned(["brought"], pins) == ["brought==1.0"]
    with pytest.raises(wheels.WheelError, match=r"expected other in .*pins\.txt, got no line of it"):
        wheels._pinned(["brought", "other"], pins)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_dry_run_from_the_command_line(tmp_path: Path) -> None:
    """All parts, here and nowhere else in the fast tests."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the numbers say nothing of a GPU") == 2
    saved = {part: json.loads((tmp_path / f"{part}.json").read_text(encoding="utf-8")) for part in suite.PARTS}
    for part, found in saved.items():
        assert found["rows"], part
        assert not [remark for remark in found["remarks"] if remark.startswith(("FAILED", "Not measured"))]
        assert found["provenance"]["command"][:3] == ["python", "-m", "benchmarks.gpu"]
        assert (tmp_path / f"{part}.md").read_text(encoding="utf-8").strip() in done.stdout
    targets = [row for row in saved["kernels"]["rows"] if row["target"] is not None]
    assert len(targets) >= 20
    assert all(row["reached"] for row in targets)
    assert {"ceilings", *(job.name for job in speed.TINY.jobs)} <= set(saved["speed"]["items"])
    assert set(saved["length"]["items"]) == {step.name for step in length.STEPS}
    for item in saved["length"]["items"].values():
        assert item["result"]["peak"] == pytest.approx(item["result"]["counted"], rel=0.05)


@pytest.mark.slow
def test_a_part_in_a_process_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert suite.run_apart("kernels", 60.0, out=tmp_path, given=["--dry-run"])
    assert (tmp_path / "kernels.md").read_text(encoding="utf-8").strip() in capfd.readouterr().out
    assert not suite.run_apart("kernels", 60.0, out=tmp_path, given=["--device", "toaster"])
