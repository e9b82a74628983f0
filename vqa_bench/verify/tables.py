"""The checks of what is not a cell's run: pretraining runs, and the tables that a report wrote of a results folder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vqa_bench.data.manifest import file_info
from vqa_bench.errors import UserError
from vqa_bench.runs import RESULT, WEIGHTS, read_json
from vqa_bench.verify.checks import Check, Checker

TEXTS = (".md", ".csv", ".tex")
FIRST = "table.md"  # which every report writes
CONTEXT = 20  # bytes shown on both sides of the first that differs
WHAT_TO_DO = "write the report again"


def pretraining_checks(run: Path, name: str) -> Iterator[Check]:
    """The checks of a finished pretraining run, called `name` in what is found."""
    from vqa_bench.report.schema import PretrainResult, read_result

    checker = Checker(name)

    def readable() -> list[str]:
        got = read_result(run, PretrainResult).name
        return [] if got == run.name else [f"name: expected {run.name!r}, got {got!r}; move the folder back"]

    def hashes() -> list[str]:
        faults = []
        for path, expected in read_json(run / RESULT)["hashes"].items():
            got = file_info(run / path).sha256
            if got != expected:
                faults.append(f"{path}: expected SHA-256 {expected:.12}…, got {got:.12}…; pretrain again")
        return faults

    result = checker.check(RESULT, "result", readable)
    yield result
    if result.faults:
        return
    if isinstance(read_json(run / RESULT).get("hashes"), dict):
        yield checker.check(RESULT, "hashes", hashes)
    else:
        yield checker.unchecked(WEIGHTS, "hashes", "a pretraining run's result holds none")
    yield checker.unchecked(RESULT, "bits per byte", "a model measured them; pretrain again to compare")


def table_checks(results: Path) -> Iterator[Check]:
    """The tables of a results folder are, byte for byte, what its runs give; figures and the page are not looked at."""
    checker = Checker(results.resolve().name)
    there = {path.name: path.read_bytes() for path in sorted(results.iterdir()) if path.suffix in TEXTS}
    if FIRST not in there:
        yield checker.unchecked(FIRST, "tables", "no report was written here")
        return
    try:
        made = _made_again(results, published=False)
        if made[FIRST] != there[FIRST]:
            beside = _made_again(results, published=True)
            made = beside if beside[FIRST] == there[FIRST] else made
    except UserError as error:
        yield Check(checker.run, FIRST, "tables", (f"expected runs to make the tables of, got: {error}",))
        return
    for name in sorted({*made, *there}):
        yield checker.check(name, name, partial(_faults, made.get(name), there.get(name)))


def _made_again(results: Path, *, published: bool) -> dict[str, bytes]:
    """The tables as `report.write_report` writes them, by their names."""
    from vqa_bench.report.collect import collect  # imported here, as pandas comes with it
    from vqa_bench.report.texts import frames_of, texts_of

    found = collect(results)
    texts = texts_of(found, frames_of(found, published=published))
    return {name: text.encode() for name, text in texts.items() if text is not None}


def _faults(made: bytes | None, there: bytes | None) -> list[str]:
    """The first place at which two files differ."""
    if made is None or there is None:
        expected, got = ("no such file", "one") if made is None else ("one", "no such file")
        return [f"expected {expected}, got {got}; {WHAT_TO_DO}"]
    if made == there:
        return []
    shorter = min(len(made), len(there))
    place = next((at for at in range(shorter) if made[at] != there[at]), shorter)
    expected, got = (
        repr(text[max(0, place - CONTEXT) : place + CONTEXT].decode("utf-8", errors="replace"))
        for text in (made, there)
    )
    line = made.count(b"\n", 0, place) + 1
    return [f"line {line}: expected …{expected}…, got …{got}…; {WHAT_TO_DO}"]
