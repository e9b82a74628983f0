"""Answers to damaged pictures: what a model is shown, that every number follows from the answers, and the seed."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vqa_bench.cells import BYTE_MODEL, PIXELS, make_cell, make_model, make_shard
from tests.vqa_bench.experiments import CNN
from vqa_bench.data.answers import Answers
from vqa_bench.data.damage import Damage, damages_of, keep_first, without_header
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.data.vocab import ANSWERS
from vqa_bench.errors import UserError
from vqa_bench.models import ByteModel, VQAModel
from vqa_bench.scoring import damage as scoring_damage
from vqa_bench.scoring.answering import answer
from vqa_bench.scoring.batches import BatchSize
from vqa_bench.scoring.damage import DAMAGE, DAMAGED_ANSWERS, DamagedSplit, Eyes, measure
from vqa_bench.scoring.statistics import accuracy_interval

PNG = "png:6x4,level=0"
SMALL = {"seq_lens": [80, 12]}


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("png"), spec=PNG, train=6)


def byte_model(shard: Shard, **cell: Any) -> ByteModel:
    model = make_model(make_cell(BYTE_MODEL | SMALL, encoding=shard.manifest.spec, **cell), shard)
    assert isinstance(model, ByteModel)
    return model


def few(names: dict[str, int], spec: Any) -> list[Damage]:
    """The last levels of some damages only, so many of each: the worst."""
    return [
        damage for name, count in names.items() for damage in [d for d in damages_of(spec) if d.name == name][-count:]
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"bits flipped": 2, "end cut off": 1, "header removed": 1, "low bits dropped": 1}
    monkeypatch.setattr(scoring_damage, "damages_of", partial(few, names))


def level(result: dict[str, Any], name: str, place: int) -> dict[str, Any]:
    found: dict[str, Any] = [entry for entry in result["levels"] if entry["damage"] == name][place]
    return found


@pytest.mark.usefixtures("quick")
def test_every_number_follows_from_the_answers(pixels: Shard, tmp_path: Path) -> None:
    model, split = byte_model(pixels), pixels.split("test")
    reports: list[str] = []
    result = measure(model, split, tmp_path, images=4, report=lambda done, total, note="": reports.append(note))
    assert json.loads((tmp_path / DAMAGE).read_text()) == result
    assert (result["images"], result["questions"], result["seed"], result["note"]) == (4, 20, 0, None)
    assert reports[0] == "undamaged, undamaged"
    assert "bits flipped, 1 bit in 10" in reports

    lines = [json.loads(line) for line in (tmp_path / DAMAGED_ANSWERS).read_text().splitlines()]
    rows = [list(split.question_index).index(index) for index in lines[0]["questions"]]
    assert len(rows) == 20
    images = split.image_of_question[rows]
    assert sorted(set(images.tolist())) == [0, 2, 3, 5]
    for line, entry in zip(lines[1:], result["levels"], strict=True):
        assert (line["damage"], line["level"]) == (entry["damage"], entry["level"])
        correct = [ANSWERS[given] == split.answer[row] for given, row in zip(line["predictions"], rows, strict=True)]
        interval = accuracy_interval(correct, images)
        assert (entry["n"], entry["correct"]) == (20, sum(correct))
        assert (entry["accuracy"], entry["low"], entry["high"]) == (interval.estimate, interval.low, interval.high)
    assert [(entry["damage"], entry["level"]) for entry in result["levels"]] == [
        *(("bits flipped", 0.0), ("bits flipped", 1e-2), ("bits flipped", 1e-1)),
        *(("end cut off", 0.0), ("end cut off", 1.0)),
        *(("low bits dropped", 0.0), ("low bits dropped", 7.0)),
    ]

    undamaged = answer(model, split, evaluation_groups(split))
    expected = [ANSWERS.index(p.prediction) for p in undamaged if p.question_index in lines[0]["questions"]]
    for line in lines[1:]:
        if line["level"] == 0:
            assert line["predictions"] == expected
    for name, place, refused in (("bits flipped", 0, 0), ("bits flipped", 2, 0), ("end cut off", 1, 1)):
        assert level(result, name, place)["undecodable"] == refused
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.usefixtures("quick")
def test_answers_to_undamaged_pictures_are_not_given_again(pixels: Shard, tmp_path: Path) -> None:
    """In other batches one that is hardly ahead might not be the same."""
    model, split = byte_model(pixels), pixels.split("test")
    known = [p.model_copy(update={"prediction": "purple"}) for p in answer(model, split, evaluation_groups(split))]
    result = measure(model, split, tmp_path, images=4, undamaged=known)
    lines = [json.loads(line) for line in (tmp_path / DAMAGED_ANSWERS).read_text().splitlines()]
    assert result["questions"] == len(lines[0]["questions"]) == 20
    for line in lines[1:]:
        assert (line["predictions"] == [ANSWERS.index("purple")] * 20) == (line["level"] == 0)


@pytest.mark.usefixtures("quick")
def test_the_seed_alone_decides(pixels: Shard, tmp_path: Path) -> None:
    """Not how many images are answered at a time."""
    split = pixels.split("test")
    by_seed = {seed: [_shown(pixels, seed).image_bytes(row).tobytes() for row in range(6)] for seed in (0, 1)}
    assert by_seed[0] == [_shown(pixels, 0).image_bytes(row).tobytes() for row in range(6)]
    for ours, others in zip(*by_seed.values(), strict=True):
        assert ours != others
    model = byte_model(pixels)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = measure(model, split, tmp_path / "one", images=100, seed=3)
    assert one["images"] == 6
    two = measure(model, split, tmp_path / "two", images=100, seed=3, size=BatchSize.of(1))
    assert one == two
    assert (tmp_path / "one" / DAMAGED_ANSWERS).read_bytes() == (tmp_path / "two" / DAMAGED_ANSWERS).read_bytes()


def _shown(shard: Shard, seed: int) -> DamagedSplit:
    damage = next(d for d in damages_of(parse_spec(shard.manifest.spec)) if d.level == 1e-1)
    return DamagedSplit(shard.split("test"), damage, Eyes.of(byte_model(shard)), seed)


@pytest.mark.usefixtures("quick")
def test_a_png_without_its_header_is_for_no_decoder(png: Shard, tmp_path: Path) -> None:
    result = measure(byte_model(png), png.split("test"), tmp_path, images=2)
    assert [level(result, "header removed", place)["undecodable"] for place in (0, 1)] == [0.0, 1.0]
    assert level(result, "bits flipped", 2)["undecodable"] == 1.0
    assert all(entry["cut"] == 0 for entry in result["levels"])


@pytest.mark.parametrize("layout", ["iqa", "qia"])
def test_a_byte_model_reads_the_damaged_bytes(png: Shard, layout: str) -> None:
    """The shorter sequence is padded as that of any short image."""
    model, split = byte_model(png, sequence={"layout": layout}), png.split("test")
    for change in (
        partial(keep_first, percent=50),
        partial(keep_first, percent=0),
        partial(without_header, kind="png"),
    ):
        damage = Damage("test", 1.0, "test", lambda data, seed, change=change: change(data))  # type: ignore[misc]
        view = DamagedSplit(split, damage, Eyes.of(model), 0)
        batch = model.collate(view, evaluation_groups(view)[:2])
        for image in range(2):
            data = change(split.image_bytes(image).tobytes())
            rows = [row for row, of in enumerate(split.image_of_question) if of == image]
            for place, row in enumerate(rows):
                sample = model.sequencer.sample(data, split.question[row], split.answer[row])
                assert batch.prefix[image].tolist() == sample.prefix.tolist()
                assert batch.suffixes[image, place].tolist()[: len(sample.suffix)] == sample.suffix.tolist()


def test_what_is_longer_than_the_room_is_cut_and_counted(
    pixels: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six images: the damage makes those with an odd first byte longer."""
    longer = Damage("longer", 1.0, "twice as long", lambda data, seed: data * (1 + data[0] % 2))
    monkeypatch.setattr(scoring_damage, "damages_of", lambda spec: [longer])
    model, split = byte_model(pixels), pixels.split("test")
    odd = [row for row in range(6) if split.image_bytes(row)[0] % 2]
    assert 0 < len(odd) < 6
    result = measure(model, split, tmp_path, images=6)
    cut, whole = level(result, "longer", 1), level(result, "longer", 0)
    assert (cut["cut"], cut["undecodable"]) == (len(odd) / 6, len(odd) / 6)
    assert whole["cut"] == 0
    assert cut["correct"] == whole["correct"], "the beginning is all that there was before"


def test_a_split_that_is_copied_would_be_undamaged(pixels: Shard) -> None:
    with pytest.raises(TypeError, match="stay in its process"):
        pickle.dumps(_shown(pixels, 0))


@pytest.mark.usefixtures("quick")
def test_other_candidates(pixels: Shard, tmp_path: Path) -> None:
    model = byte_model(pixels, sequence={"answer": "text"})
    answers = Answers(("größer", *ANSWERS[::-1]))
    measure(model, pixels.split("test"), tmp_path, images=2, answers=answers)
    lines = [json.loads(line) for line in (tmp_path / DAMAGED_ANSWERS).read_text().splitlines()]
    expected = answer(model, pixels.split("test"), evaluation_groups(pixels.split("test")), answers=answers)
    chosen = [answers.index[p.prediction] for p in expected if p.question_index in lines[0]["questions"]]
    assert lines[1]["predictions"] == chosen


# -- models that see decoded pictures ---------------------------------------------------------------------------------


def small_cnn(shard: Shard) -> VQAModel:
    return make_model(make_cell(CNN, encoding=shard.manifest.spec), shard)


def shown_pictures(model: VQAModel, split: DamagedSplit) -> torch.Tensor:
    """(images, 3, H, W), 0 to 255."""
    batch: Any = model.collate(split, evaluation_groups(split))
    pictures: torch.Tensor = (batch.images * 255).round()
    return pictures


def test_a_picture_that_does_not_decode_is_shown_as_gray(png: Shard) -> None:
    model, split = small_cnn(png), png.split("test")
    eyes = Eyes.of(model)
    spec = parse_spec(png.manifest.spec)

    def odd(data: bytes, seed: Any) -> bytes:
        return without_header(data, kind="png") if seed[1] % 2 else data

    pictures = shown_pictures(model, DamagedSplit(split, Damage("odd", 1.0, "odd", odd), eyes, 0))
    for row, picture in enumerate(pictures):
        if row % 2:
            assert picture.unique().tolist() == [128.0]
        else:
            expected = np.asarray(spec.decode(split.image_bytes(row).tobytes()))
            assert picture.permute(1, 2, 0).tolist() == expected.tolist()


def test_a_picture_of_another_size_is_shown_as_gray_too(tmp_path: Path) -> None:
    """The bytes of another picture, well-formed; the encoding alone does not say a size."""
    shard = make_shard(tmp_path, spec="bmp:native", train=4, val=2)
    model = small_cnn(shard)
    other = parse_spec("bmp:16x12").encode(
        parse_spec("bmp:native").decode(shard.split("test").image_bytes(0).tobytes())
    )
    eyes = Eyes.of(model)
    assert eyes.size == (32, 24)
    assert not eyes.can_decode(other)
    pictures = shown_pictures(
        model, DamagedSplit(shard.split("test"), Damage("other", 1.0, "other", lambda data, seed: other), eyes, 0)
    )
    assert pictures.unique().tolist() == [128.0]
    assert Eyes.of(make_model(make_cell(encoding="bmp:native", model=_roomy()), shard)).can_decode(other)


def _roomy() -> dict[str, Any]:
    return BYTE_MODEL | {"seq_lens": [300, 12]}


@pytest.mark.usefixtures("quick")
def test_a_model_that_sees_pictures_is_measured_with_a_note(png: Shard, tmp_path: Path) -> None:
    result = measure(small_cnn(png), png.split("test"), tmp_path, images=3)
    assert "mid-gray" in result["note"]
    assert level(result, "header removed", 1)["undecodable"] == 1.0
    assert all(entry["cut"] == 0 for entry in result["levels"])


def test_features_of_undamaged_pictures_are_no_damage(pixels: Shard) -> None:
    model = small_cnn(pixels)
    del model.built["image_size"]
    with pytest.raises(UserError, match=r"features of them that were extracted before; leave evaluate\.damage"):
        Eyes.of(model)


def test_the_room_of_a_byte_model(pixels: Shard) -> None:
    assert Eyes.of(byte_model(pixels)).room == 6 * 4 * 3
    assert Eyes.of(byte_model(pixels, sequence={"image_bytes": 100})).room == 100
    assert pixels.manifest.spec == PIXELS
