"""A page of as many predictions as CLEVR's validation set has: it keeps its size, its writer its memory."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vqa_bench.report.page_runs import BRANCHES, CHAIN, report_of
from tests.vqa_bench.report.run_folder import answers_of, byte_facts, summary_of
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.manifest import ByteLengths, SourceInfo, SplitInfo, write_manifest
from vqa_bench.data.shards import IMAGE_SCHEMA, QUESTION_SCHEMA, ImageRow, QuestionRow, write_rows
from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE, QUESTION_TYPES

pytestmark = pytest.mark.slow
IMAGES, PER_IMAGE, CELLS = 15_000, 10, 4
WORDS = "is the a are there big small red green cube sphere metal thing left of behind that same size".split()  # noqa: SIM905
PEAK_MEGABYTES = 1024


def picture_of(image: int) -> Image.Image:
    """Something smooth, as rendered scenes are."""
    pixels = np.random.default_rng(image).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(pixels).resize((62, 41), Image.Resampling.BICUBIC)


def make_shard(path: Path, spec: str) -> dict[str, str]:
    generator = np.random.default_rng(0)
    encoding = parse_spec(spec)
    images = (ImageRow(f"CLEVR_val_{i:06d}.png", i, encoding.encode(picture_of(i)), 480, 320) for i in range(IMAGES))
    write_rows(path / "test" / "images.arrow", IMAGE_SCHEMA, images)
    words = np.array(WORDS)[generator.integers(0, len(WORDS), (IMAGES * PER_IMAGE, 18))]
    programs = [json.dumps((CHAIN * 3 + BRANCHES)[: 4 + n]) for n in range(12)]
    rows = (
        QuestionRow(
            i,
            i // PER_IMAGE,
            " ".join(words[i]) + "?",
            ANSWERS[i % 28],
            QUESTION_TYPES[i % 13],
            None,
            programs[i % 12],
            5,
        )
        for i in range(IMAGES * PER_IMAGE)
    )
    write_rows(path / "test" / "questions.arrow", QUESTION_SCHEMA, rows)
    lengths = ByteLengths(min=1, median=1, p95=1, max=10_000)
    counts = dict.fromkeys(("missing_images", "missing_questions", "unasked_images"), 0)
    sizes = {"images": IMAGES, "questions": IMAGES * PER_IMAGE, "image_bytes": lengths, "question_bytes": lengths}
    info = SplitInfo(source_split="val", **sizes, **counts)  # type: ignore[arg-type]
    source = SourceInfo(name="mini", fingerprint="0" * 64, json_files={})
    write_manifest(path, spec=spec, source=source, dev=None, codecs={}, splits={"test": info})
    return {
        "path": f"../{path.name}",
        "split": "test",
        "spec": spec,
        "manifest": sha256((path / "manifest.json").read_bytes()).hexdigest(),
    }


def make_run(folder: Path, shard: dict[str, str], seed: int) -> None:
    """A run whose predictions are written as text: making a record of each would take minutes."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    correct = 0
    with (folder / "predictions.jsonl").open("w") as file:
        for i in range(IMAGES * PER_IMAGE):
            if i % 10_000 == 0:
                logits = generator.normal(-8, 2, (10_000, 28)).round(6)
                logits[np.arange(10_000), generator.integers(0, 28, 10_000)] = -0.3
                hits = generator.random(10_000) < 0.6
                logits[hits, (i + np.arange(10_000))[hits] % 28] = -0.1
            scores = logits[i % 10_000]
            given = ANSWERS[int(scores.argmax())]
            correct += given == ANSWERS[i % 28]
            kind = QUESTION_TYPES[i % 13]
            record: dict[str, Any] = {
                "question_index": i,
                "image": f"CLEVR_val_{i // PER_IMAGE:06d}.png",
                "question_type": kind,
            }
            record |= {"group": GROUP_OF_TYPE[kind], "program_length": 8, "num_objects": 5, "answer": ANSWERS[i % 28]}
            record |= {
                "prediction": given,
                "log_probs": scores.tolist(),
                "constrained_greedy": given,
                "free_greedy": given,
            }
            file.write(json.dumps(record | {"trie_mass": 0.99}) + "\n")
    metrics = summary_of(answers_of(260, accuracy=0.6, seed=0))
    metrics["overall"] |= {"n": IMAGES * PER_IMAGE, "correct": correct}
    result = byte_facts() | {
        "format": 2,
        "cell": folder.name,
        "title": folder.name,
        "shard": shard,
        "answers": list(ANSWERS),
    }
    result |= {"dataset": {"name": "mini", "missing_images": 0}, "metrics": metrics, "shuffled": None}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "DONE").touch()


WRITE = """
import resource, sys, time
from pathlib import Path
from tests.vqa_bench.report.page_runs import make_page
began = time.perf_counter()
make_page(Path(sys.argv[1]), Path(sys.argv[2]))
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("spec", ["pixels:16x12,order=block4x2", "pixels:62x41,order=planar"])
def test_a_page_of_150_000_predictions_a_run(tmp_path: Path, spec: str) -> None:
    shard = make_shard(tmp_path / "shard", spec)
    for cell in range(CELLS):
        make_run(tmp_path / f"cell{cell}", shard, cell)
    path = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path), str(path)], capture_output=True, text=True, check=True
    )
    seconds, peak = map(float, done.stdout.split())
    described = report_of(path.read_text())["sets"][0]
    size = path.stat().st_size
    print(f"\n{spec}: {seconds:.0f} s, {peak / 1024:.0f} MiB, {size / 1e6:.1f} MB, {described['browsable']:,} images")
    assert size <= 30e6
    assert peak / 1024 <= PEAK_MEGABYTES
    assert described["images"] == IMAGES
    assert described["browsable"] >= 2_000
