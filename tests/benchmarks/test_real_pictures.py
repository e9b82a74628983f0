"""The comparison with real pictures, on a small "real" set that the generator itself makes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import real_pictures, silhouettes
from data_scripts.synth.generate import generate
from data_scripts.synth.presets import PRESETS

PRESET = replace(
    PRESETS["clevr"],
    name="toy",
    width=240,
    height=160,
    supersampling=2,
    objects=(3, 4),
    min_visible_pixels=50,
    questions_per_image=1,
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "toy"
    generate(PRESET, folder, images={"train": 10, "val": 4})
    return folder


@pytest.fixture(scope="module")
def examples(real: Path) -> list[real_pictures.Example]:
    return real_pictures.read_examples(real, PRESET, most=300)


def test_cameras_are_found(examples: list[real_pictures.Example]) -> None:
    misses = [miss for example in examples for miss in example.misses]
    assert len(examples) == 14
    assert len(misses) >= 14
    assert np.median(misses) < 0.8  # pixels are rounded


def test_silhouettes_are_found(examples: list[real_pictures.Example]) -> None:
    overlaps = real_pictures.compare_silhouettes(examples, rounded=True)
    assert [len(values) for values in overlaps.halves.values()] == [7, 7]
    for values in overlaps.halves.values():
        assert np.mean(values) > 0.75
    assert sum(len(values) for values in overlaps.recalls.values()) == sum(len(e.scene["objects"]) for e in examples)
    assert np.mean([np.mean(values) for values in overlaps.recalls.values()]) > 0.95


def test_silhouettes_of_the_wrong_scene_do_not_fit(examples: list[real_pictures.Example]) -> None:
    shifted = [replace(e, picture=other.picture) for e, other in zip(examples, examples[2:], strict=False)]
    overlaps = real_pictures.compare_silhouettes(shifted, rounded=True)
    assert max(np.mean(values) for values in overlaps.halves.values()) < 0.5


def test_colors_are_nearer_in_the_studio_that_made_the_pictures(examples: list[real_pictures.Example]) -> None:
    few = examples[:4]
    ours = real_pictures.means(real_pictures.compare_colors(few, PRESET))
    plain = real_pictures.means(real_pictures.compare_colors(few, real_pictures.simpler(PRESET)))
    assert ours["ground"] < plain["ground"]
    assert ours["rubber"] < plain["rubber"]
    assert ours["metal"] < plain["metal"]


def test_the_table_the_pairs_and_the_record(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, out = tmp_path / "pairs.png", tmp_path / "record"
    arguments = ["--real", str(real), "--most", "8", "--pairs", str(pairs)]
    real_pictures.main([*arguments, "--record", "--out", str(out)], preset=PRESET)
    printed = capsys.readouterr().out
    assert printed.count("| silhouettes, mean IoU") == 2
    assert printed.count("(n ") >= 8
    saved: dict[str, Any] = json.loads((out / "real-pictures.json").read_text(encoding="utf-8"))
    assert saved["misses"]["n"] > 8
    assert set(saved["color_differences"]["after"]) == {"ground", "rubber", "metal"}
    assert {path.name for path in out.iterdir()} == {"real-pictures.json", "real-pictures.md", "provenance.json"}
    with Image.open(pairs) as image:
        assert image.size == (4 * 240, 4 * 160)


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        real_pictures.main(["--real", str(tmp_path / "nothing")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "images/<split>" in error
    assert "got 0: give the folder of the release" in error
    assert error.count("\n") == 1


def test_pictures_of_another_size_are_refused(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        real_pictures.main(["--real", str(real)])
    assert stopped.value.code == 2
    assert "to be 480x320, got 240x160" in capsys.readouterr().err


def test_shadows_are_no_objects_and_objects_are() -> None:
    """Drawn by hand: a soft gray shadow, a gray square, a coloured square on a tilted gray ground."""
    y, x = np.mgrid[0:80, 0:120]
    ground = np.repeat((120 + 0.2 * x + 0.1 * y)[..., None], 3, axis=2)
    typical = silhouettes.typical_background(np.array([ground, ground * 1.02, ground * 0.98]))
    picture = ground * (1 - 0.2 * np.exp(-((x - 90) ** 2 + (y - 60) ** 2) / 200))[..., None]
    objects = np.zeros((80, 120), dtype=bool)
    picture[10:30, 10:30], objects[10:30, 10:30] = 70, True
    picture[40:60, 20:40], objects[40:60, 20:40] = (150, 110, 90), True
    found = silhouettes.silhouette(1.05 * picture, typical)
    assert silhouettes.intersection_over_union(found, objects) > 0.85
    assert not found[:, 60:].any()


def test_intersection_over_union() -> None:
    a = np.array([True, True, False, False])
    assert silhouettes.intersection_over_union(a, np.array([True, False, True, False])) == pytest.approx(1 / 3)
    assert silhouettes.intersection_over_union(a & False, a & False) == 1
