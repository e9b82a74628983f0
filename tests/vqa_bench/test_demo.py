"""The demo: its HTML is complete and escaped; with gradio, the page answers, and on this machine alone."""

import math
import re
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.vqa_bench.cells import PIXELS, make_cell, make_model
from tests.vqa_bench.data.clevr_folder import QUESTIONS, make_clevr_folder, noise_image
from vqa_bench.ask import Answered, ReadPart, ask
from vqa_bench.cli import main
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.data.vocab import END_PART, PAD, START_IMAGE, START_TEXT
from vqa_bench.demo import BARS, Desk, Pictures, bars_html, bytes_html
from vqa_bench.errors import UserError
from vqa_bench.runs import save_model

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    folder = tmp_path_factory.mktemp("demo")
    clevr = make_clevr_folder(folder / "clevr", {"train": 8, "val": 5})
    serialize(clevr, parse_spec(PIXELS), folder / "shard", workers=1, dev_fraction=0)
    return open_shard(folder / "shard")


@pytest.fixture(scope="module")
def desk(shard: Shard) -> Desk:
    model = make_model(make_cell(), shard)
    return Desk(model, Pictures.of(shard, model, "test"))


class _Texts(HTMLParser):
    """The tags that are opened, and the text between them; CSS is left out."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def answered(names: tuple[str, ...], *shares: float, free: str | None = "no", notes: tuple[str, ...] = ()) -> Answered:
    return Answered(names, tuple(math.log(share) for share in shares), 0.5, free, (), notes)


def test_bars_are_as_long_as_probabilities_and_the_right_one_is_marked() -> None:
    html = bars_html(answered(("yes", "no", "3"), 0.2, 0.7, 0.1), right="yes")
    assert re.findall(r'width:([\d.]+)%"', html) == ["70.00", "20.00", "10.00"]
    read = _Texts(html)
    assert read.texts[:4] == ["no", "70.0 %", "yes ✓", "20.0 %"]
    assert 'class="row right"><b>yes ✓' in html
    assert "Unbound, the model writes “no”." in read.text
    assert "all 3 answers together 50.00 %" in read.text
    names = tuple(f"a{place}" for place in range(BARS + 4))
    many = bars_html(answered(names, *[0.25 / (BARS + 3)] * (BARS + 3), 0.75), right="a12")
    assert many.count('class="row') == BARS
    assert "4 other answers: 7.7 %" in _Texts(many).text
    assert "The right answer is a12." in _Texts(many).text


def test_all_text_is_escaped() -> None:
    html = bars_html(answered((SCRIPT, "no"), 0.6, 0.4, free=SCRIPT, notes=(SCRIPT,)), right=SCRIPT)
    parts = (ReadPart("question", np.array([START_TEXT, *b"<script>&", END_PART])),)
    for shown, times in ((html, 3), (bytes_html(parts), 0)):
        assert "<script" not in shown
        read = _Texts(shown)
        assert "script" not in read.tags
        assert read.text.count(SCRIPT) == times
    assert "T> < s c r i p t > &  <<" in re.sub(" +", " ", _Texts(bytes_html(parts)).text).replace("& <<", "&  <<")


def test_bytes_are_shown_part_by_part() -> None:
    image = np.array([START_IMAGE, PAD, *range(250), END_PART])
    parts = (ReadPart("image", image), ReadPart("question", np.array([START_TEXT, *"Wé?".encode(), END_PART, PAD])))
    read = _Texts(bytes_html(parts))
    assert "image: 253 ids" in read.text
    assert "question: 7 ids" in read.text
    assert "       0  I> ·· 00 01 02" in read.text
    assert "     253  T> W  c3 a9 ?  << ··" in read.text
    assert "f8 f9 <<" in read.text
    long = np.array([START_IMAGE, *[7] * 10_000, END_PART])
    shown = _Texts(bytes_html((ReadPart("image", long),))).text
    assert "… 9,632 ids …" in shown
    assert shown.count("07") + 9_632 == 10_000 + shown.count("      07")
    assert "reads no bytes" in bytes_html(())


def test_pictures_of_the_test_set(desk: Desk, shard: Shard) -> None:
    pictures = desk.pictures
    assert pictures is not None
    assert pictures.rows == [0, 1, 2, 3, 4]
    picture = pictures.picture(1)
    assert picture.width >= 320
    assert picture.width * 4 == picture.height * 6
    assert np.unique(np.asarray(picture).reshape(-1, 3), axis=0).shape[0] == 24
    questions = pictures.questions(2)
    assert list(questions) == [text for text, *_ in QUESTIONS]
    assert questions["How many things are there?"] == ("10", "count")
    assert pictures.encoded(3).bytes == shard.split("test").image_bytes(3).tobytes()
    assert pictures.encoded(3).image_filename == "CLEVR_val_000003.png"


def test_questions_are_answered_at_the_desk(desk: Desk) -> None:
    assert desk.pictures is not None
    question = QUESTIONS[0][0]
    bars, read = desk.answer(None, 1, question)
    expected = ask(desk.model, desk.pictures.encoded(1), question)
    assert bars == bars_html(expected, right="yes")
    assert read == bytes_html(expected.parts)
    picture = noise_image((32, 24), seed=5)
    bars, _ = desk.answer(picture, None, f"Is it {SCRIPT}?")
    assert bars == bars_html(ask(desk.model, picture, f"Is it {SCRIPT}?"))
    for arguments, fault in (
        ((None, None, question), "expected a picture, got none"),
        ((picture, None, " "), "expected a question, got"),
        ((picture, None, SCRIPT * 200), "expected a question of at most"),
    ):
        bars, read = desk.answer(*arguments)
        assert fault in _Texts(bars).text
        assert read == ""


def test_a_shard_of_another_encoding_is_refused(shard: Shard, tmp_path: Path) -> None:
    model = make_model(make_cell(encoding="png:6x4,level=6"), shard)
    with pytest.raises(UserError, match="expected a shard with the encoding of the run"):
        Pictures.of(shard, model, "test")


def test_without_gradio_it_says_what_to_install(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    save_model(tmp_path, desk.model)
    assert main(["demo", str(tmp_path)]) == 2
    assert "pip install 'vqa-bench[demo]'" in capsys.readouterr().err


@pytest.fixture
def served(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The page's address, and the hosts that were called beside this one."""
    pytest.importorskip(
        "gradio", reason="the extra `demo` is not installed: gradio wants an older Pillow than the tests are pinned to"
    )
    from vqa_bench.demo import build, launch

    called: list[str] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            called.append(str(address[0]))
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", watched)
    page = build(desk, title=f"A model {SCRIPT}")
    try:
        yield launch(page, port=None, wait=False), called
    finally:
        page.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of gradio and what it brings are not ours
def test_the_page_answers(served: tuple[str, list[str]], desk: Desk, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    address, called = served
    assert address.startswith("http://127.0.0.1:")
    client = Client(address, verbose=False)
    noise_image((32, 24), seed=5).save(tmp_path / "picture.png")
    bars, read = client.predict(handle_file(tmp_path / "picture.png"), "Is there a cube?", api_name="/ask")
    assert (bars, read) == desk.answer(noise_image((32, 24), seed=5), None, "Is there a cube?")
    bars, _ = client.predict(handle_file(tmp_path / "picture.png"), "", api_name="/ask")
    assert "expected a question" in bars
    assert called == []
