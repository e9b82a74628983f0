"""The page in a real browser: no error, filters and sorting by clicking, samples, links, and text that stays text."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vqa_bench.report.page_runs import (
    HOSTILE,
    QUESTIONS,
    SCRIPT,
    make_page,
    make_results,
    picture_of,
    question_text,
    report_of,
    unpacked,
)
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.sequences import SequenceConfig, Sequencer
from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE
from vqa_bench.scoring.predictions import Prediction, read_predictions

pytestmark = pytest.mark.slow
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: neither the variable CHROMIUM nor a command chromium or google-chrome")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = make_results(tmp_path_factory.mktemp("results"))
    make_page(results, results / "report.html")
    return results / "report.html"


@pytest.fixture(scope="module")
def predictions(report: Path) -> dict[str, list[Prediction]]:
    return {cell: read_predictions(report.parent / cell / "predictions.jsonl") for cell in ("blind", "jpeg", "pixels")}


class Opened:
    """A page that is open, and what it complained of."""

    def __init__(self, browser: Any, path: Path, size: str, *, address: str = "", scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append("a dialog"), dialog.dismiss()))
        self.page.on("request", self._requested)
        self.page.goto(f"{path.as_uri()}{address}")
        self.settled()

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.errors.append(f"asked for {request.url}")

    def until(self, expression: str) -> None:
        """Waits for a JavaScript expression; Playwright's own waiting evaluates text, which the page forbids."""
        for _ in range(600):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"expected in time: {expression}")

    def settled(self) -> str:
        """Waits until a sample, or that there is none, is shown; what the position says."""
        self.until("document.getElementById('position').textContent !== '…'")
        return self.page.inner_text("#position")

    def choose(self, name: str, value: str) -> str:
        self.page.select_option(f"#filters [name={name}]", value)
        return self.settled()

    def question(self) -> str:
        return self.page.inner_text("#sample h3")


@pytest.fixture(params=list(SIZES))
def opened(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Opened]:
    """The page at both widths; that nothing went wrong is looked at when the test is done."""
    opened = Opened(browser, report, request.param)
    yield opened
    overflow = opened.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    opened.context.close()
    assert opened.errors == []
    assert overflow == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_without_complaint_and_shows_the_first_sample(browser: Any, report: Path, scheme: str) -> None:
    opened = Opened(browser, report, "narrow", scheme=scheme)
    assert opened.settled() == f"1 of {QUESTIONS}"
    assert opened.question() == question_text(0)
    assert opened.page.evaluate("document.querySelector('#sample img').naturalWidth") == 16
    for summary in opened.page.query_selector_all("summary"):
        summary.click()
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    assert opened.errors == []
    opened.context.close()


def counted(position: str) -> int:
    """How many samples a position says there are."""
    return 0 if position == "no sample" else int(position.split(" of ")[1])


def test_filters_count_what_the_predictions_say(opened: Opened, predictions: dict[str, list[Prediction]]) -> None:
    pixels, jpeg = predictions["pixels"], predictions["jpeg"]
    wrong = [p for p in pixels if p.prediction != p.answer]
    assert counted(opened.choose("result", "wrong")) == len(wrong)
    assert "✗ wrong" in opened.page.inner_text("#sample .verdict")
    assert counted(opened.choose("type", "query_color")) == sum(p.question_type == "query_color" for p in wrong)
    in_group = [p for p in wrong if p.group == "query"]
    assert counted(opened.choose("type", "group:query")) == len(in_group)
    assert set(GROUP_OF_TYPE) >= {p.question_type for p in in_group}
    opened.page.click("#filters button[type=reset]")
    assert opened.settled().endswith(f"of {QUESTIONS}")
    right_alone = [a.prediction == a.answer != b.prediction for a, b in zip(pixels, jpeg, strict=True)]
    assert counted(opened.choose("other", "only:jpeg")) == sum(right_alone)
    differ = sum(a.prediction != b.prediction for a, b in zip(pixels, jpeg, strict=True))
    assert counted(opened.choose("other", "differ:jpeg")) == differ
    opened.choose("other", "")
    given = pixels[0].prediction
    assert counted(opened.choose("given", given)) == sum(p.prediction == given for p in pixels)
    opened.choose("given", "")
    opened.page.fill("#filters [name=text]", "NUMBER 12")
    opened.page.wait_for_timeout(600)
    assert opened.settled().endswith(f"of {sum('number 12' in question_text(index) for index in range(QUESTIONS))}")
    opened.page.fill("#filters [name=text]", "nowhere")
    opened.page.wait_for_timeout(600)
    assert opened.settled() == "no sample"


def test_the_most_sure_wrong_answers_come_first(opened: Opened, predictions: dict[str, list[Prediction]]) -> None:
    opened.choose("result", "wrong")
    opened.choose("order", "sure")
    wrong = [p for p in predictions["pixels"] if p.prediction != p.answer]
    shares = {p.question_index: np.exp(max(p.log_probs)) / np.exp(p.log_probs).sum() for p in wrong}
    opened.page.goto(f"{opened.page.url.split('#')[0]}#cell=pixels&result=wrong&order=sure")
    opened.settled()
    shown = int(opened.page.inner_text("#sample .facts").split()[1])
    assert shares[shown] > max(shares.values()) - 0.01


def test_samples_are_walked_by_buttons_and_keys(opened: Opened) -> None:
    page = opened.page
    assert page.is_disabled("#previous")
    page.click("#next")
    opened.until("document.getElementById('position').textContent === '2 of 130'")
    assert opened.question() == question_text(1)
    page.focus("#sample")
    page.keyboard.press("ArrowRight")
    opened.until("document.getElementById('position').textContent === '3 of 130'")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    opened.until("document.getElementById('position').textContent === '1 of 130'")
    assert opened.question() == question_text(0)


def test_a_link_opens_the_same_sample_and_filters(opened: Opened, browser: Any, report: Path) -> None:
    opened.choose("cell", "jpeg")
    opened.choose("result", "right")
    opened.page.click("#next")
    opened.until("document.getElementById('position').textContent.startsWith('2 of')")
    address = opened.page.get_attribute("#link", "href")
    again = Opened(browser, report, "wide", address=address)
    assert again.settled() == opened.settled()
    assert again.question() == opened.question()
    assert again.page.input_value("#filters [name=cell]") == "jpeg"
    again.context.close()
    alone = Opened(browser, report, "wide", address="#sample=127")
    assert (alone.settled(), alone.question()) == ("128 of 130", question_text(127))
    alone.context.close()
    missing = Opened(browser, report, "wide", address="#sample=99999&cell=nobody&type=nothing")
    assert missing.settled() == f"1 of {QUESTIONS}"
    assert "Question 99999 is not among" in missing.page.inner_text("#sample")
    assert missing.errors == []
    missing.context.close()


def test_a_script_in_a_question_is_text(opened: Opened) -> None:
    opened.page.goto(f"{opened.page.url.split('#')[0]}#sample=3")
    opened.until("document.querySelector('#sample .facts').textContent.includes('question 3 ')")
    assert opened.question() == SCRIPT
    opened.page.goto(f"{opened.page.url.split('#')[0]}#sample=4")
    opened.until("document.querySelector('#sample .facts').textContent.includes('question 4 ')")
    assert opened.question() == HOSTILE
    assert opened.page.query_selector("#sample script, #sample .asked img") is None


def test_tables_sort_by_clicking(opened: Opened) -> None:
    rows = "[...document.querySelector('table.sortable').tBodies[0].rows]"
    names = f"{rows}.map((row) => row.cells[0].innerText.trim())"
    values = f"{rows}.map((row) => Number(row.cells[1].dataset.sort))"
    original = opened.page.evaluate(names)
    head = opened.page.locator("table.sortable").first.locator("thead th button")
    head.nth(1).click()
    assert opened.page.evaluate(values) == sorted(opened.page.evaluate(values), reverse=True)
    assert opened.page.evaluate(names) != original
    head.nth(1).click()
    assert opened.page.evaluate(values) == sorted(opened.page.evaluate(values))
    head.nth(1).click()
    assert opened.page.evaluate(names) == original
    head.nth(0).click()
    assert opened.page.evaluate(names) == sorted(original, key=str.casefold)


def test_mistakes_lead_to_their_samples(opened: Opened, predictions: dict[str, list[Prediction]]) -> None:
    opened.page.select_option("#confusion-cell", "jpeg")
    pairs = [(p.answer, p.prediction) for p in predictions["jpeg"]]
    answer, given = next(pair for pair in pairs if pair[0] != pair[1])
    button = opened.page.get_by_role("button", name=f"with right answer “{answer}” were answered “{given}”")
    assert button.inner_text() == str(pairs.count((answer, given)))
    button.click()
    assert counted(opened.settled()) == pairs.count((answer, given))
    opened.until("document.querySelector('#sample .verdict').textContent.includes('✗')")
    assert f"answers {given}, the right answer is {answer}." in opened.page.inner_text("#sample .verdict")


def test_bars_are_the_probabilities(opened: Opened, predictions: dict[str, list[Prediction]]) -> None:
    prediction = predictions["pixels"][0]
    assert opened.page.locator("#sample .bars li").count() in (5, 6)
    opened.page.click("#sample .answers button")
    shown = opened.page.evaluate(
        "[...document.querySelectorAll('#sample .bars li')].map((bar) => "
        "[bar.querySelector('.answer').firstChild.data, parseFloat(bar.style.getPropertyValue('--share'))])"
    )
    assert len(shown) == len(ANSWERS)
    assert shown[0][0] == prediction.prediction
    shares = np.exp(prediction.log_probs) / np.exp(prediction.log_probs).sum()
    for name, share in shown:
        assert share == pytest.approx(100 * shares[ANSWERS.index(name)], abs=0.4)


@pytest.mark.parametrize("cell", ["pixels", "jpeg"])
def test_bytes_are_those_that_the_model_reads(opened: Opened, report: Path, cell: str) -> None:
    result = json.loads((report.parent / cell / "result.json").read_text())
    patch = result["model"]["config"]["seq_lens"][1]
    spec = parse_spec(result["encoding"])
    longest = max(len(spec.encode(picture_of(image))) for image in range(QUESTIONS // 10))
    sequencer = Sequencer(SequenceConfig.model_validate(result["sequence"]), patch, 1 << 20, longest)
    for index in (0, 4, 17):
        opened.page.goto(f"{opened.page.url.split('#')[0]}#cell={cell}&sample={index}")
        opened.until(
            f"document.querySelector('#sample .facts').textContent.includes('question {index} ') && "
            f"document.querySelector('#sample .bytes h4').textContent.includes('{cell}')"
        )
        answer = ANSWERS[index * 7 % len(ANSWERS)]
        sample = sequencer.sample(spec.encode(picture_of(index // 10)), question_text(index), answer)
        expected = np.concatenate((sample.prefix, sample.suffix)).tolist()
        items = opened.page.evaluate(
            "[...document.querySelectorAll('#sample .ids i')].map((mark) => ({...mark.dataset}))"
        )
        place = 0
        for item in items:
            if "leftOut" in item:
                place += int(item["leftOut"])
                continue
            times = int(item.get("times", 1))
            assert expected[place : place + times] == [int(item["id"])] * times
            place += times
        assert place == len(expected)


def test_every_block_of_the_page_opens_in_the_browser(opened: Opened, report: Path) -> None:
    _, index = unpacked(report.read_text(), "index-0")
    assert report_of(report.read_text())["sets"][0]["blocks"] == 1
    opened.page.goto(f"{opened.page.url.split('#')[0]}#sample={index['question_index'][-1]}")
    opened.until("document.getElementById('position').textContent === '130 of 130'")
    assert opened.question() == question_text(129)
