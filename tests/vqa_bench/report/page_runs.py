"""Runs with a shard of their own to make a page of, and the page's data as a reader of it unpacks them."""

import base64
import gzip
import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.vqa_bench.report.run_folder import BYTE_MODEL, byte_facts, make_run
from vqa_bench.config import overlay
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.manifest import ByteLengths, SourceInfo, SplitInfo, write_manifest
from vqa_bench.data.shards import IMAGE_SCHEMA, QUESTION_SCHEMA, ImageRow, QuestionRow, write_rows
from vqa_bench.data.vocab import ANSWERS, QUESTION_TYPES
from vqa_bench.report.collect import Collection, collect
from vqa_bench.report.frame import build_frame
from vqa_bench.report.page import write_page

QUESTIONS = 130
SCRIPT = "<script>alert(1)</script>"
HOSTILE = '</script><img src=x onerror="alert(1)"> é & "quotes"?'
CHAIN = [
    {"function": "scene", "inputs": [], "value_inputs": []},
    {"function": "filter_color", "inputs": [0], "value_inputs": ["red"]},
    {"function": "count", "inputs": [1], "value_inputs": []},
]
BRANCHES = [*CHAIN, *CHAIN[:1], {"function": "count", "inputs": [3]}, {"function": "equal_integer", "inputs": [2, 4]}]
ARRAYS = {"Uint8Array": "u1", "Uint16Array": "<u2", "Uint32Array": "<u4", "Float64Array": "<f8"}


def question_text(index: int) -> str:
    return {3: SCRIPT, 4: HOSTILE}.get(index, f"Is thing number {index} here?")


def program_of(index: int) -> list[dict[str, Any]]:
    return ([], CHAIN, BRANCHES)[index % 3]


def picture_of(image: int) -> Image.Image:
    pixels = np.random.default_rng(image).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((16, 12), Image.Resampling.NEAREST)


def make_shard(path: Path, spec: str, *, questions: int = QUESTIONS) -> dict[str, str]:
    """A shard with the questions that `answers_of` answers; returns what a result.json says of it."""
    images = [
        ImageRow(f"CLEVR_val_{i:06d}.png", i, parse_spec(spec).encode(picture_of(i)), 16, 12)
        for i in range(-(-questions // 10))
    ]
    rows = [
        QuestionRow(
            question_index=index,
            image=index // 10,
            question=question_text(index),
            answer=ANSWERS[index * 7 % len(ANSWERS)],
            question_type=QUESTION_TYPES[index % len(QUESTION_TYPES)],
            family_index=None,
            program=json.dumps(program_of(index)),
            num_objects=3,
        )
        for index in range(questions)
    ]
    rows.reverse()  # a shard's order is its own
    write_rows(path / "test" / "images.arrow", IMAGE_SCHEMA, images)
    write_rows(path / "test" / "questions.arrow", QUESTION_SCHEMA, rows)
    lengths = [
        ByteLengths.of(np.array([len(row) for row in column]))
        for column in ([i.bytes for i in images], [r.question.encode() for r in rows])
    ]
    info = SplitInfo(
        source_split="val",
        images=len(images),
        questions=questions,
        image_bytes=lengths[0],
        question_bytes=lengths[1],
        missing_images=0,
        missing_questions=0,
        unasked_images=0,
    )
    source = SourceInfo(name="mini", fingerprint="0" * 64, json_files={})
    write_manifest(path, spec=spec, source=source, dev=None, codecs={}, splits={"test": info})
    manifest = sha256((path / "manifest.json").read_bytes()).hexdigest()
    return {"path": f"../{path.name}", "split": "test", "spec": spec, "manifest": manifest}


def make_cell(
    folder: Path, shard: dict[str, str], *, accuracy: float, draw: int, questions: int = QUESTIONS, **sequence: Any
) -> Path:
    """A byte model's run on a shard; `sequence` is laid over how it reads questions."""
    facts = byte_facts(sequence=sequence, encoding=shard["spec"], shard=shard)
    return make_run(folder, accuracy=accuracy, seed=draw, questions=questions, facts=facts)  # nothing shuffled: quicker


def make_results(folder: Path) -> Path:
    """Runs of two byte models on two shards, and of a blind one."""
    pixels = make_shard(folder / "shard-pixels", "pixels:16x12,order=block4")
    jpeg = make_shard(folder / "shard-jpeg", "jpeg:8x6,q=30,tables=drop")
    patches = {"model": {"config": overlay(BYTE_MODEL, {"seq_lens": [60, 8]})}}
    make_cell(folder / "pixels", pixels, accuracy=0.8, draw=3)
    make_cell(folder / "jpeg", jpeg, accuracy=0.6, draw=4, layout="qiqa", answer="text", align=False)
    result = json.loads((folder / "jpeg" / "result.json").read_text())
    (folder / "jpeg" / "result.json").write_text(json.dumps(overlay(result, patches)))
    make_run(folder / "blind", accuracy=0.5, seed=5, title=f"Blind {SCRIPT}", questions=QUESTIONS, shard=pixels)
    return folder


def make_page(results: Path, path: Path, **options: Any) -> Collection:
    collection = collect(results)
    figure = f'<svg xmlns="http://www.w3.org/2000/svg"><text>{SCRIPT}</text></svg>'
    write_page(path, collection, build_frame(collection.runs), {f"Accuracy {SCRIPT}": figure}, **options)
    return collection


def report_of(text: str) -> dict[str, Any]:
    """What the page's scripts know of the sets."""
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', text)
    assert found is not None
    return json.loads(found[1])


def unpacked(text: str, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The head and arrays of a pack in the page."""
    found = re.search(rf'<script type="text/plain" id="{name}">([^<]*)</script>', text)
    assert found is not None
    raw = gzip.decompress(base64.b64decode(found[1]))
    end = 4 + int.from_bytes(raw[:4], "little")
    head = json.loads(raw[4:end])
    places = head.pop("arrays")
    return head, {
        key: np.frombuffer(raw[end + start : end + start + size], ARRAYS[kind])
        for key, (kind, start, size) in places.items()
    }
