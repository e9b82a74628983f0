"""The report as one self-contained HTML page: no network, no other file. Knows what stands where, and writes it.

What the parts say is in sections.py and origins.py, the samples in samples.py and blocks.py, looks and behaviour in
assets/. Everything that comes from data is escaped: by `html.escape` here, as JSON without `<`, and in the scripts by
text nodes only.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import IO, Any

import pandas as pd

from vqa_bench.data.folders import whole_file
from vqa_bench.data.sequences import PARTS_OF
from vqa_bench.data.vocab import END_PART, PAD, START_IMAGE, START_TEXT, group_of
from vqa_bench.errors import UserError
from vqa_bench.report.collect import Collection, Run
from vqa_bench.report.frame import build_pretraining_frame, by_questions
from vqa_bench.report.page.blocks import HEAD, TAIL, pack_test_set
from vqa_bench.report.page.html import folded, paragraphs
from vqa_bench.report.page.origins import origins
from vqa_bench.report.page.samples import SCALE, TestSet, facts_of, gather
from vqa_bench.report.page.sections import (
    BREAKDOWNS,
    FIGURES,
    answering_table,
    breakdown_table,
    main_result,
    pretraining_table,
    results_table,
)
from vqa_bench.report.tables import by_test_set, describe, notes

SCRIPTS = ("data.js", "dom.js", "tables.js", "confusion.js", "sequence.js", "sample.js", "filters.js", "browser.js")
"""Files of assets/ that make the page's one script, in order."""

LABELS_OF_A_CONFUSION = 40
MEGABYTE = 10**6
DATA = "{{data}}"
Progress = Callable[[int, int], None]


def write_page(
    path: Path,
    collection: Collection,
    frame: pd.DataFrame,
    figures: Mapping[str, str],
    *,
    megabytes: int = 30,
    progress: Progress | None = None,
) -> None:
    """Write the page; `figures` are SVG texts by their titles.

    The page has at most `megabytes` · 1,000,000 bytes, unless its tables and figures alone have more: where not all
    samples fit, whole images are chosen at random with a fixed seed, and the page says how many.

    Raises UserError where predictions cannot be read or the page cannot be written.
    """
    parts = _parts(collection, frame, figures)
    before, _, after = _asset("template.html").partition(DATA)
    before, after = (_filled(text, parts) for text in (before, after))
    budget = megabytes * MEGABYTE - len((before + after).encode())
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            file.write(before.encode())
            _write_data(file, _browsed(collection.runs), budget, progress)
            file.write(after.encode())
    except OSError as error:
        raise UserError(f"expected to write {path}, got: {error.strerror or error}; make room and try again") from error


def _parts(collection: Collection, frame: pd.DataFrame, figures: Mapping[str, str]) -> dict[str, str]:
    """What stands at the template's placeholders, but the data."""
    runs = {run.result.cell: run for run in collection.runs}
    test_sets = list(by_test_set(frame))
    return {
        "style": _asset("style.css"),
        "script": "\n".join(_asset(name) for name in SCRIPTS),
        "summary": "\n".join(_summary(test_set) for test_set in test_sets),
        "results": "\n".join(_results(test_set, runs) for test_set in test_sets),
        "pretraining": pretraining_table(build_pretraining_frame(collection.pretraining)),
        "figures": "\n".join(_figure(title, svg) for title, svg in figures.items()),
        "provenance": origins(collection.runs),
    }


def _summary(test_set: pd.DataFrame) -> str:
    return (
        f'<p class="summary"><span class="over">{escape(describe(test_set))}</span>{escape(main_result(test_set))}</p>'
    )


def _results(test_set: pd.DataFrame, runs: Mapping[str, Run]) -> str:
    """All tables of one test set."""
    cells = [runs[cell] for cell in test_set.loc[test_set["row"] == "cell", "cell"]]
    text = f"<h2>{escape(describe(test_set))}</h2>\n{results_table(test_set)}\n{paragraphs(notes(test_set))}"
    for name, (title, explanation) in BREAKDOWNS.items():
        table = breakdown_table(cells, name)
        if table:
            text += folded(title, f"<p>{escape(explanation)} Percent right [95 % interval].</p>{table}")
    how = "How sure the models are, how they write their answers, and what that costs. Point at a heading to read more."
    return f"{text}\n<h3>How the models answer</h3><p>{how}</p>{answering_table(test_set, cells)}"


def _figure(title: str, svg: str) -> str:
    """As an image: what one picture names inside cannot meet the names of another, and no script in it runs."""
    data = base64.b64encode(svg.encode()).decode("ascii")
    text = escape(title)
    sentence = f"<p>{escape(FIGURES[title])}</p>" if title in FIGURES else ""
    image = f'<img alt="{text}" src="data:image/svg+xml;base64,{data}">'
    frame = f'<div class="frame" tabindex="0" role="region" aria-label="{text}">{image}</div>'
    return f"<figure><figcaption><h3>{text}</h3>{sentence}</figcaption>{frame}</figure>"


def _browsed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that the browser shows together: the same questions, and the same candidates."""
    found: dict[tuple[int, tuple[str, ...]], list[Run]] = {}
    for number, together in enumerate(by_questions(runs)):
        for run in together:
            found.setdefault((number, run.result.candidates.names), []).append(run)
    return list(found.values())


def _write_data(file: IO[bytes], browsed: Sequence[Sequence[Run]], budget: int, progress: Progress | None) -> None:
    """The samples of every set in turn, and then what the scripts must know of them."""
    sets = []
    for number, runs in enumerate(browsed):
        test_set = gather(runs)
        described = _described(test_set, runs)
        budget -= len(_json(described).encode()) + 400
        share = budget // (len(browsed) - number)

        def write(block: int, texts: str, details: str, number: int = number) -> None:
            _write_block(file, f"texts-{number}-{block}", texts)
            _write_block(file, f"details-{number}-{block}", details)

        before = file.tell()
        packed = pack_test_set(test_set, share, write, progress=progress)
        _write_block(file, f"index-{number}", packed.index)
        budget -= file.tell() - before
        sets.append(described | {"blocks": len(packed.blocks), "browsable": packed.images})
    ids = {"pad": PAD, "text": START_TEXT, "image": START_IMAGE, "end": END_PART}
    report = {"sets": sets, "ids": ids, "parts": PARTS_OF, "head": HEAD, "tail": TAIL, "scale": SCALE}
    file.write(f'<script type="application/json" id="report">{_json(report)}</script>\n'.encode())


def _write_block(file: IO[bytes], name: str, packed: str) -> None:
    file.write(f'<script type="text/plain" id="{name}">{packed}</script>\n'.encode())


def _described(test_set: TestSet, runs: Sequence[Run]) -> dict[str, Any]:
    """A test set for the scripts: all that is not a sample of it."""
    letters = any(cell.sequence is not None and cell.sequence["answer"] == "letter" for cell in test_set.cells)
    answers = test_set.answers
    return {
        "dataset": test_set.dataset,
        "answers": answers.names,
        "letters": [answers.letters[name] for name in answers.names] if letters else None,
        "types": [{"name": name, "group": group_of(name)} for name in test_set.types],
        "images": len(test_set.images),
        "questions": len(test_set.question_index),
        "sources": [{"spec": source.spec, "problem": source.problem} for source in test_set.sources],
        "cells": [
            {
                "cell": cell.cell,
                "title": cell.title,
                "blind": cell.blind,
                "source": cell.source,
                "sequence": cell.sequence,
                "confusion": _confusion(run),
            }
            for cell, run in zip(test_set.cells, runs, strict=True)
        ],
    }


def _confusion(run: Run) -> dict[str, Any] | None:
    """Right answers against given ones, for the labels that occur; with very many of them for the commonest."""
    confusion = facts_of(run)["metrics"].get("confusion")
    if confusion is None:
        return None
    labels, counts = confusion["labels"], confusion["counts"]
    used = [sum(counts[place]) + sum(row[place] for row in counts) for place in range(len(labels))]
    commonest = sorted((place for place in range(len(labels)) if used[place]), key=lambda place: -used[place])
    kept = sorted(commonest[:LABELS_OF_A_CONFUSION])
    return {
        "labels": [labels[place] for place in kept],
        "counts": [[counts[right][given] for given in kept] for right in kept],
        "left_out": len(commonest) - len(kept),
    }


def _json(value: Any) -> str:
    """JSON that ends no script: `<` is written as its code."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return resources.files("vqa_bench.report.page").joinpath("assets", name).read_text(encoding="utf-8")


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with its placeholders replaced, each once: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
