"""A page on this machine to talk to a trained model: a picture, a question, bars over the answers, and the bytes.

What the page shows is HTML that is made here and needs nothing but the standard library; gradio, of the extra `demo`,
is imported where the page is built. Nothing of it leaves the machine: no share link, no statistics, no fonts from
elsewhere. Knows models only through `ask`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vqa_bench.ask import Answered, ReadPart, Size, ask
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import spread
from vqa_bench.data.shards import ImageRow, Shard, SplitReader
from vqa_bench.data.vocab import END_PART, PAD, START_IMAGE, START_TEXT
from vqa_bench.errors import UserError
from vqa_bench.models import VQAModel
from vqa_bench.scoring.evaluate import check_encoding

if TYPE_CHECKING:
    import gradio

PICTURES = 40  # of the test split, to pick from
ENLARGED = 320  # pixels that a picture is wide at least, so that one of 16×12 can be seen
BARS = 10  # answers with a bar of their own
WIDTH = 32  # ids a line
EDGE_LINES = 6  # of a long part, shown at its beginning and at its end
MARKS = {PAD: "··", START_TEXT: "T>", START_IMAGE: "I>", END_PART: "<<"}
MISSING = "expected gradio for the demo, got no such package; install it with pip install 'vqa-bench[demo]'"

STYLE = """<style>
.vqa { color: #1a1a1a; background: #fff; padding: 12px 14px; font: 14px/1.45 system-ui, sans-serif; }
.vqa h4 { margin: 14px 0 4px; font-size: 13px; color: #1a1a1a; }
.vqa p { margin: 4px 0; color: #444; }
.vqa .row { display: grid; grid-template-columns: 6.5em 1fr 4.5em; gap: 8px; align-items: center; margin: 3px 0; }
.vqa .row b { font-weight: 600; color: #1a1a1a; overflow-wrap: anywhere; }
.vqa .bar { background: #eef1f5; height: 16px; } .vqa .bar i { display: block; height: 16px; background: #0b5fa5; }
.vqa .right b { color: #0a6b2d; } .vqa .right .bar i { background: #0a8f3c; }
.vqa .number { text-align: right; font-variant-numeric: tabular-nums; color: #1a1a1a; }
.vqa pre { margin: 0; padding: 6px 8px; overflow-x: auto; color: #1a1a1a; font: 12px/1.5 ui-monospace, monospace; }
.vqa .question { background: #dff1f7; } .vqa .image { background: #e3f3e1; } .vqa .answer { background: #f9e2f3; }
.vqa .mark { color: #8a5a00; font-weight: 700; } .vqa .pad, .vqa .offset { color: #6b7580; }
.vqa .fault { color: #a11212; font-weight: 600; }
</style>"""


@dataclass(frozen=True)
class Pictures:
    """Pictures that the model never trained on, with their questions. kind: the split's encoding, as its text."""

    split: SplitReader
    encoding: str

    @classmethod
    def of(cls, shard: Shard, model: VQAModel, split: str) -> Pictures:
        """Those of a shard's split; UserError where there is none, or the model reads another encoding."""
        check_encoding(model, shard)
        return cls(shard.split(split), shard.manifest.spec)

    @property
    def rows(self) -> list[int]:
        """Some of the pictures that are asked about, spread evenly over the split."""
        asked = np.unique(self.split.image_of_question)
        return [int(row) for row in asked[spread(len(asked), PICTURES)]]

    def encoded(self, row: int) -> ImageRow:
        """A picture as the shard has it: what was written down, not what encoding it again would give."""
        names = [name for name in ImageRow._fields if name != "bytes"]
        facts = self.split.images.select(names).slice(row, 1).to_pylist()[0]
        return ImageRow(**facts, bytes=self.split.image_bytes(row).tobytes())

    def picture(self, row: int) -> Image.Image:
        """A picture to look at, decoded from its bytes; small ones enlarged, pixel by pixel."""
        picture = parse_spec(self.encoding).decode(self.encoded(row).bytes)
        factor = -(-ENLARGED // picture.width)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)

    def questions(self, row: int) -> dict[str, tuple[str, str]]:
        """The questions about a picture: their right answer and their type."""
        rows = self.split.questions_of_image[row].tolist()
        return {self.split.question[r]: (self.split.answer[r], self.split.question_type[r]) for r in rows}


@dataclass(frozen=True)
class Desk:
    """Where questions come in and HTML goes out. trained_on: the size of the pictures that the model knows."""

    model: VQAModel
    pictures: Pictures | None = None
    trained_on: Size | None = None

    def answer(self, picture: Image.Image | None, row: int | None, question: str) -> tuple[str, str]:
        """The bars and the bytes, each as HTML, for an uploaded picture or one of a row of the split.

        What a user did wrong is said in place of the bars.
        """
        right, kind = self._known(row, question)
        try:
            if row is not None and self.pictures is not None:
                answered = ask(self.model, self.pictures.encoded(row), question, question_type=kind)
            elif picture is not None:
                answered = ask(self.model, picture, question, trained_on=self.trained_on)
            else:
                raise UserError("expected a picture, got none; upload one or pick one")
        except UserError as error:
            return _box(f'<p class="fault">{escape(str(error))}</p>'), ""
        return bars_html(answered, right=right), bytes_html(answered.parts)

    def _known(self, row: int | None, question: str) -> tuple[str | None, str | None]:
        """The right answer and the type of a question that the data set has."""
        if row is None or self.pictures is None:
            return None, None
        return self.pictures.questions(row).get(question, (None, None))


def bars_html(answered: Answered, *, right: str | None = None) -> str:
    """The likeliest answers as bars, what remains as a line, and what else the model says; all text escaped.

    right: the right answer, which gets a colour and a mark.
    """
    shown, rest = answered.ranked[:BARS], answered.ranked[BARS:]
    lines = [_bar(name, share, is_right=name == right) for name, share in shown]
    if rest:
        lines.append(f"<p>{len(rest)} other answers: {100 * sum(share for _, share in rest):.1f} %</p>")
    if right is not None and right not in dict(shown):
        lines.append(f"<p>The right answer is <b>{escape(right)}</b>.</p>")
    if answered.mass is not None:
        written = "nothing that ends" if answered.free is None else f"“{escape(answered.free)}”"
        lines.append(f"<p>Unbound, the model writes {written}.</p>")
        lines.append(f"<p>It gives all {len(answered.names)} answers together {100 * answered.mass:.2f} %.</p>")
    lines += [f"<p>{escape(note)}</p>" for note in answered.notes]
    return _box("".join(lines))


def _bar(name: str, share: float, *, is_right: bool) -> str:
    label = f"{escape(name)}{' ✓' if is_right else ''}"
    return (
        f'<div class="row{" right" if is_right else ""}"><b>{label}</b><span class="bar">'
        f'<i style="width:{100 * share:.2f}%"></i></span><span class="number">{100 * share:.1f} %</span></div>'
    )


def bytes_html(parts: Sequence[ReadPart]) -> str:
    """The sequence part by part: letters of texts, hexadecimal bytes of images; the middle of long parts left out."""
    if not parts:
        return _box("<p>This model reads no bytes: it is given words and pixels.</p>")
    sections, offset = [], 0
    for part, ids in parts:
        lines = "".join(_lines(ids, offset, letters=part != "image"))
        sections.append(f'<h4>{part}: {len(ids):,} ids</h4><pre class="{part}">{lines}</pre>')
        offset += len(ids)
    legend = "T&gt; I&gt; begin a text or an image, &lt;&lt; ends a part, ·· is padding"
    return _box("".join(sections) + f"<p>{legend}. The answer is the likeliest one.</p>")


def _lines(ids: np.ndarray, offset: int, *, letters: bool) -> Iterator[str]:
    begins = range(0, len(ids), WIDTH)
    for line, begin in enumerate(begins):
        if len(begins) > 2 * EDGE_LINES + 1 and EDGE_LINES <= line < len(begins) - EDGE_LINES:
            if line == EDGE_LINES:
                left_out = (len(begins) - 2 * EDGE_LINES) * WIDTH
                yield f'<span class="offset">     … {left_out:,} ids …</span>\n'
            continue
        cells = " ".join(_cell(int(id_), letters=letters) for id_ in ids[begin : begin + WIDTH])
        yield f'<span class="offset">{offset + begin:>8}</span>  {cells}\n'


def _cell(id_: int, *, letters: bool) -> str:
    """Two characters an id."""
    if id_ == PAD:
        return f'<span class="pad">{MARKS[PAD]}</span>'
    if id_ in MARKS:
        return f'<span class="mark">{escape(MARKS[id_])}</span>'
    return escape(chr(id_)) + " " if letters and 32 <= id_ < 127 else f"{id_:02x}"


def _box(content: str) -> str:
    return f'{STYLE}<div class="vqa">{content}</div>'


# -- the page -------------------------------------------------------------------------------------------------------


def import_gradio() -> Any:
    """The package, told to send no statistics; UserError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while it is imported
    try:
        import gradio
    except ImportError as error:
        raise UserError(MISSING) from error
    return gradio


def build(desk: Desk, *, title: str) -> gradio.Blocks:
    """The page, not yet served; its function `ask` takes a picture, a row of the split or none, and a question."""
    gr = import_gradio()
    pictures = desk.pictures
    rows = [] if pictures is None else pictures.rows
    if pictures is not None and rows:
        pictures.questions(rows[0])  # what the first look at questions takes is not waited for in the browser
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {escape(title)}")
        chosen = gr.State(None)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(label="Picture", type="pil", format="png", sources=["upload"], height=300)
                of_picture = gr.Dropdown([], label="Questions of this picture", visible=bool(rows), interactive=True)
                question = gr.Textbox(label="Question", max_lines=3, max_length=2000)
                button = gr.Button("Ask", variant="primary")
            with gr.Column():
                bars = gr.HTML(label="Answers")
        if pictures is not None:
            gallery = gr.Gallery(
                [pictures.picture(row) for row in rows],
                label="Pictures of the test split",
                columns=8,
                height=260,
                allow_preview=False,
                object_fit="contain",
                format="png",
            )
            picking = _picking(gr, pictures, rows)
            gallery.select(picking, None, [chosen, picture, of_picture, question], api_name=False)
        read = gr.HTML(label="What the model read")
        of_picture.input(lambda text: text, of_picture, question, api_name=False)
        picture.upload(lambda: (None, gr.Dropdown([], value=None)), None, [chosen, of_picture], api_name=False)
        picture.clear(lambda: (None, gr.Dropdown([], value=None)), None, [chosen, of_picture], api_name=False)
        for event, name in ((button.click, "ask"), (question.submit, False)):
            event(desk.answer, [picture, chosen, question], [bars, read], api_name=name)
    return page


def _picking(gr: Any, pictures: Pictures, rows: Sequence[int]) -> Any:
    """What happens when a picture of the gallery is picked."""

    def pick(event: gr.SelectData) -> tuple[int, Image.Image, Any, str]:
        row = rows[event.index]
        asked = list(pictures.questions(row))
        return row, pictures.picture(row), gr.Dropdown(asked, value=asked[0]), asked[0]

    # gradio looks at the annotation to know that it is to hand over the event; a name is not enough for it.
    pick.__annotations__["event"] = gr.SelectData
    return pick


def launch(page: gradio.Blocks, *, port: int | None, wait: bool = True) -> str:
    """Serve the page on this machine alone; returns its address. wait: until it is interrupted."""
    gr = import_gradio()
    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # the default would be fetched
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            ssr_mode=False,
            theme=gr.themes.Base(font=font, font_mono=mono),
        )
    except OSError as error:
        raise UserError(f"expected a free port for the demo, got: {error}; choose another --port") from error
    print(address, flush=True)
    if wait:
        page.block_thread()
    return str(address)
