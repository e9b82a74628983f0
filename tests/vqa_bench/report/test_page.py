"""The page as text: what it says, that nothing in it is read as markup, and that its packed data are the runs'."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vqa_bench.report.page_runs import (
    HOSTILE,
    QUESTIONS,
    SCRIPT,
    make_cell,
    make_page,
    make_results,
    make_shard,
    picture_of,
    program_of,
    question_text,
    report_of,
    unpacked,
)
from tests.vqa_bench.report.run_folder import make_pretraining, make_run
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.vocab import ANSWERS
from vqa_bench.errors import UserError
from vqa_bench.report import page as page_module
from vqa_bench.report.collect import collect
from vqa_bench.report.figures import KINDS
from vqa_bench.report.page import blocks
from vqa_bench.report.page.blocks import HEAD, TAIL
from vqa_bench.report.page.samples import SCALE
from vqa_bench.report.page.sections import FIGURES
from vqa_bench.scoring.predictions import Prediction, read_predictions


class Markup(HTMLParser):
    """The tags of a page with their attributes, and the text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data


def read(text: str) -> Markup:
    markup = Markup()
    markup.feed(text)
    return markup


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    make_page(results, results / "report.html")
    return (results / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cells(results: Path, page: str) -> list[tuple[dict, list[Prediction]]]:
    """Every cell as the page describes it, with its predictions."""
    described = report_of(page)["sets"][0]["cells"]
    return [(cell, read_predictions(results / cell["cell"] / "predictions.jsonl")) for cell in described]


def test_nothing_in_it_comes_from_elsewhere(page: str) -> None:
    assert not re.search(r"https?:|\burl\(|@import", page, re.IGNORECASE)
    for tag, attributes in read(page).tags:
        assert tag != "link"
        assert all(str(attributes.get(name, "#")).startswith(("#", "data:")) for name in ("src", "href"))
    assert "default-src 'none'" in page


def test_text_of_data_is_never_markup(page: str) -> None:
    assert SCRIPT not in page
    assert "onerror" not in page
    markup = read(page)
    assert {attributes.get("type") for tag, attributes in markup.tags if tag == "script"} == {
        *("text/plain", "application/json", "module")
    }
    assert f"Blind {SCRIPT}" in markup.text
    assert f"Accuracy {SCRIPT}" in markup.text
    assert report_of(page)["sets"][0]["cells"][0]["title"] == f"Blind {SCRIPT}"


def test_main_result_names_the_best_cell_and_what_it_is_held_against(page: str, results: Path) -> None:
    text = read(page).text
    overall = json.loads((results / "pixels" / "result.json").read_text())["metrics"]["overall"]
    interval = f"{100 * overall['accuracy']:.1f} % [{100 * overall['low']:.1f}, {100 * overall['high']:.1f}]"
    assert f"pixels is best: it answers {interval} of the questions right." in text
    assert f"Without the image Blind {SCRIPT} is best, with " in text
    assert f"chance is {100 * overall['chance']:.1f} %." in text


def test_tables_hold_every_accuracy_with_its_interval(page: str, results: Path) -> None:
    for cell in ("pixels", "jpeg", "blind"):
        metrics = json.loads((results / cell / "result.json").read_text())["metrics"]
        parts = [
            metrics["overall"],
            *(e for k in ("groups", "types", "num_objects", "answers") for e in metrics[k].values()),
        ]
        for entry in parts:
            text = f"{100 * entry['accuracy']:.1f}"
            ends = f"[{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
            assert re.search(rf"<(b|span)>{re.escape(text)}</\1> <small>{re.escape(ends)}</small>", page), (cell, entry)


def test_index_is_what_the_predictions_say(page: str, cells: list[tuple[dict, list[Prediction]]]) -> None:
    _, index = unpacked(page, "index-0")
    described = report_of(page)["sets"][0]
    assert (described["browsable"], described["images"], described["questions"]) == (13, 13, QUESTIONS)
    predictions = cells[0][1]
    assert index["question_index"].tolist() == [p.question_index for p in predictions]
    assert [described["types"][kind]["name"] for kind in index["type"]] == [p.question_type for p in predictions]
    assert [ANSWERS[place] for place in index["answer"]] == [p.answer for p in predictions]
    assert [cell["cell"] for cell, _ in cells] == ["blind", "jpeg", "pixels"]
    for number, (_, predictions) in enumerate(cells):
        assert [ANSWERS[place] for place in index[f"given{number}"]] == [p.prediction for p in predictions]


def test_blocks_are_what_the_shards_and_predictions_say(page: str, cells: list[tuple[dict, list[Prediction]]]) -> None:
    _, index = unpacked(page, "index-0")
    sources = report_of(page)["sets"][0]["sources"]
    packs = [(unpacked(page, f"texts-0-{n}")[0], *unpacked(page, f"details-0-{n}")) for n in range(1)]
    for row, prediction in enumerate(cells[0][1]):
        texts, head, arrays = packs[index["block"][row]]
        place, number = int(index["place"][row]), prediction.question_index
        assert texts["texts"][place] == question_text(number)
        image = head["image"][place]
        assert head["images"][image] == prediction.image
        program = [[node["function"], node["inputs"], node.get("value_inputs", [])] for node in program_of(number)]
        assert head["programs"][place] == program
        for cell, (_, predictions) in enumerate(cells):
            scores = arrays[f"scores{cell}"].reshape(-1, len(ANSWERS))[place]
            shares = np.exp(np.array(predictions[row].log_probs))
            np.testing.assert_allclose((scores / SCALE) ** 2, shares / shares.sum(), atol=0.004)
            assert index[f"sure{cell}"][row] == scores[ANSWERS.index(predictions[row].prediction)] == scores.max()
        for source, described in enumerate(sources):
            check_picture(head, arrays, source, image, described["spec"], int(prediction.image[10:16]))


def check_picture(head: dict, arrays: dict, source: int, image: int, spec: str, original: int) -> None:
    """The picture shown is the decoded one, its bytes are the first and last of the encoded one."""
    encoded = parse_spec(spec).encode(picture_of(original))
    lengths = head[f"pictures{source}"]
    start = sum(lengths[:image])
    file = arrays[f"pictures{source}"][start : start + lengths[image]].tobytes()
    with Image.open(io.BytesIO(file)) as shown:
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(parse_spec(spec).decode(encoded)))
    assert head[f"bytes{source}"][image] == len(encoded)
    kept = [min(length, HEAD + TAIL) for length in head[f"bytes{source}"]]
    start = sum(kept[:image])
    expected = encoded if len(encoded) <= HEAD + TAIL else encoded[:HEAD] + encoded[-TAIL:]
    assert arrays[f"bytes{source}"][start : start + kept[image]].tobytes() == expected


def test_what_a_model_writes_otherwise_is_kept(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "shard", "pixels:4x4", questions=20)
    folder = make_cell(tmp_path / "cell", shard, accuracy=0.7, draw=1, questions=20)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    lines[7] = json.dumps(json.loads(lines[7]) | {"free_greedy": HOSTILE})
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    make_page(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    _, index = unpacked(page, "index-0")
    written = unpacked(page, "details-0-0")[0]["written"][0]
    assert written == {str(index["place"][7]): HOSTILE}


@pytest.mark.parametrize("fault", ["gone", "changed", "other answers", "other questions"])
def test_a_shard_that_is_not_as_it_was_leaves_a_page_without_its_texts(tmp_path: Path, fault: str) -> None:
    shard = make_shard(tmp_path / "shard", "pixels:4x4", questions=20)
    if fault == "gone":
        shard["path"] = f"../{SCRIPT}"
    if fault == "changed":
        (tmp_path / "shard" / "manifest.json").write_text((tmp_path / "shard" / "manifest.json").read_text() + "\n")
    if fault in ("other answers", "other questions"):
        shard = make_shard(tmp_path / "other", "pixels:4x4", questions=10 if fault == "other questions" else 20)
    folder = make_cell(tmp_path / "cell", shard, accuracy=0.7, draw=1, questions=20)
    if fault == "other answers":
        change_answers(folder)
    make_page(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    described = report_of(page)["sets"][0]
    says = {
        "gone": "expected a shard",
        "changed": "serialized again since",
        "other answers": "other answers to the questions",
        "other questions": "not all of the questions",
    }
    assert says[fault] in described["sources"][0]["problem"]
    assert described["browsable"] == 2
    head, arrays = unpacked(page, "details-0-0")
    assert unpacked(page, "texts-0-0")[0]["texts"] == head["programs"] == []
    assert set(arrays) == {"scores0"}
    assert SCRIPT not in page


def change_answers(folder: Path) -> None:
    """Makes the right answer of one question another one; no count that is held against the predictions moves."""
    path = folder / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = next(line for line in lines if line["prediction"] != line["answer"])
    changed["answer"] = next(a for a in ANSWERS if a not in (changed["answer"], changed["prediction"]))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_budget_that_does_not_hold_all_takes_whole_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "IMAGES_OF_A_BLOCK", 5)
    shard = make_shard(tmp_path / "shard", "pixels:16x12", questions=500)
    make_cell(tmp_path / "cell", shard, accuracy=0.7, draw=1, questions=500)
    make_page(tmp_path, tmp_path / "all.html")
    everything = (tmp_path / "all.html").stat().st_size
    monkeypatch.setattr(page_module, "MEGABYTE", 1000)
    make_page(tmp_path, tmp_path / "none.html", megabytes=0)
    budget = (2 * everything + (tmp_path / "none.html").stat().st_size) // 3 // 1000
    make_page(tmp_path, tmp_path / "some.html", megabytes=budget)
    make_page(tmp_path, tmp_path / "again.html", megabytes=budget)
    page = (tmp_path / "some.html").read_text()
    assert (tmp_path / "some.html").read_bytes() == (tmp_path / "again.html").read_bytes()
    assert (tmp_path / "some.html").stat().st_size <= budget * 1000
    described = report_of(page)["sets"][0]
    assert 0 < described["browsable"] < described["images"] == 50
    assert described["browsable"] % 5 == 0
    _, index = unpacked(page, "index-0")
    chosen = np.unique(index["question_index"] // 10)
    assert len(chosen) == described["browsable"]
    assert len(index["question_index"]) == 10 * len(chosen)
    assert 15 < chosen.mean() < 35  # from all over the test set
    names = {name for block in range(described["blocks"]) for name in unpacked(page, f"details-0-{block}")[0]["images"]}
    assert names == {f"CLEVR_val_{image:06d}.png" for image in chosen}


def test_a_budget_for_no_sample_leaves_the_tables(results: Path, tmp_path: Path) -> None:
    make_page(results, tmp_path / "report.html", megabytes=0)
    page = (tmp_path / "report.html").read_text()
    assert report_of(page)["sets"][0]["browsable"] == 0
    assert len(unpacked(page, "index-0")[1]["question_index"]) == 0
    assert "is best: it answers" in page


def test_every_figure_of_a_report_has_its_sentence() -> None:
    assert {kind.title for kind in KINDS.values()} == set(FIGURES)


def test_different_candidates_and_test_sets_are_browsed_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "clevr", accuracy=0.5, questions=30)
    make_run(tmp_path / "other", accuracy=0.5, questions=30, dataset={"name": "another"})
    names = [*ANSWERS[:-1], "violet"]
    make_run(tmp_path / "named", accuracy=0.5, questions=30, answers=names)  # whose predictions are never yellow
    make_page(tmp_path, tmp_path / "report.html")
    sets = report_of((tmp_path / "report.html").read_text())["sets"]
    assert [(each["dataset"], [cell["cell"] for cell in each["cells"]]) for each in sets] == [
        *(("another", ["other"]), ("mini", ["clevr"]), ("mini", ["named"]))
    ]
    assert sets[2]["answers"][-1] == "violet"


def test_pretraining_runs_alone_make_a_page(tmp_path: Path) -> None:
    make_pretraining(tmp_path / "pretrain" / "text", {"test": {"bits_per_byte": 1.5, "bytes": 400}}, title=SCRIPT)
    make_page(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert report_of(page)["sets"] == []
    assert "1.500 (400)" in page
    assert SCRIPT not in page


def test_an_old_page_stays_whole_if_the_new_one_fails(results: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    collection = collect(results)
    collection.runs[0].folder.joinpath("predictions.jsonl").rename(tmp_path / "kept")
    try:
        with pytest.raises(UserError, match="no such file"):
            page_module.write_page(tmp_path / "report.html", collection, page_module.pd.DataFrame({"test_set": []}), {})
    finally:
        (tmp_path / "kept").rename(collection.runs[0].folder / "predictions.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"
