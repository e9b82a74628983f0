"""Our pictures of the release's scenes beside the release's own pictures.

`python -m benchmarks.real_pictures --real FOLDER`, a folder in the release's layout. Three questions: does a camera
fitted to half of a scene's objects see the other half where the scene says; do our objects cover the pixels that the
real ones cover; are our colours near the real ones. Pictures at even places in the list (by name) are those on which
the constants of `silhouettes.py` were chosen; pictures at odd places had no part in them. This file times nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import RECORDED, Row, Samples, Target, machine_provenance, markdown, record, say
from benchmarks.silhouettes import Array, intersection_over_union, silhouette, typical_background
from data_scripts.errors import DataError
from data_scripts.synth import shading
from data_scripts.synth.camera import Camera
from data_scripts.synth.camera_fit import FEWEST, fit_camera, recorded_places
from data_scripts.synth.png import encode_png
from data_scripts.synth.presets import PRESETS, Preset
from data_scripts.synth.render import shade
from data_scripts.synth.trace import GROUND, trace

MODULE = "benchmarks.real_pictures"
SPLITS = ("train", "val")
HALVES = ("chosen on", "held out")
SAMPLES = 2  # a pixel along each axis, where colours are compared
PAIRS = 8
MISS, OVERLAP = 1.0, 0.7  # pixels at most, and intersection over union at least
SMALLEST = 30  # pixels an object must show for its colour to be compared

Facts = dict[str, list[float]]


@dataclass(frozen=True)
class Example:
    """A scene of the release with its picture, uint8 RGB (H, W, 3), and the camera fitted to all of its objects."""

    scene: Mapping[str, Any]
    picture: Array
    camera: Camera
    misses: list[float]  # pixels, of the objects that a camera fitted to the others was not told of


def read_examples(real: Path, preset: Preset, most: int) -> list[Example]:
    """The scenes that have a picture, at most so many, by split and name; raises DataError for what is missing."""
    examples: list[Example] = []
    for split in SPLITS:
        file = real / "scenes" / f"CLEVR_{split}_scenes.json"
        if not file.is_file():
            continue
        for scene in json.loads(file.read_text(encoding="utf-8"))["scenes"]:
            picture = real / "images" / split / scene["image_filename"]
            if picture.is_file() and len(examples) < most:
                examples.append(read_example(scene, picture, preset))
    if len(examples) < 4:
        raise DataError(
            f"expected scenes/CLEVR_<split>_scenes.json and at least four of their images/<split>/*.png below {real}, "
            f"got {len(examples)}: give the folder of the release, or of a part of it, with --real"
        )
    return examples


def read_example(scene: Mapping[str, Any], path: Path, preset: Preset) -> Example:
    """One scene with its picture and cameras; raises DataError where they do not belong together."""
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGB"))
    if picture.shape != (preset.height, preset.width, 3):
        raise DataError(f"expected {path.name} to be {preset.width}x{preset.height}, got {image.width}x{image.height}")
    objects = random.Random(scene["image_filename"]).sample(scene["objects"], len(scene["objects"]))
    known = max(FEWEST, len(objects) // 2)
    size: dict[str, Any] = {"width": preset.width, "height": preset.height, "focal": preset.focal * preset.width}
    places, recorded = recorded_places(objects[known:])
    missed = fit_camera(objects[:known], **size).project(places) - recorded
    return Example(scene, picture, fit_camera(objects, **size), np.hypot(missed[0], missed[1]).tolist())


# -- silhouettes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlaps:
    """Intersections over union by half, and the share of each object that was found, by material and colour."""

    halves: dict[str, list[float]]
    recalls: dict[tuple[str, str], list[float]]


def compare_silhouettes(examples: Sequence[Example], *, rounded: bool) -> Overlaps:
    """Our objects' pixels against those that the pictures show; the typical background is the other half's."""
    typical = [typical_background(np.array([e.picture for e in examples[1 - half :: 2]])) for half in (0, 1)]
    result = Overlaps({half: [] for half in HALVES}, defaultdict(list))
    for number, example in enumerate(examples):
        ids = trace(example.scene, example.camera, 1, rounded=rounded).ids
        real = silhouette(example.picture, typical[number % 2])
        result.halves[HALVES[number % 2]].append(intersection_over_union(ids != GROUND, real))
        for i, thing in enumerate(example.scene["objects"]):
            if (ids == i).any():
                result.recalls[thing["material"], thing["color"]].append(float(real[ids == i].mean()))
    return result


# -- colours --------------------------------------------------------------------------------------------------------


def render(example: Example, preset: Preset, supersampling: int) -> tuple[Array, Array]:
    """Our picture of an example, uint8 (H, W, 3), under lamps that were not jittered, and the objects' ids (H, W)."""
    traced = trace(example.scene, example.camera, supersampling, rounded=preset.rounded)
    lamps = shading.Lamps(shading.LAMP_PLACES, shading.STUDIOS[preset.studio])
    picture = shade(example.scene, lamps, traced, shadows=preset.shadows, exposure=preset.exposure)
    return picture, traced.ids[supersampling // 2 :: supersampling, supersampling // 2 :: supersampling]


def compare_colors(examples: Sequence[Example], preset: Preset) -> Facts:
    """Mean absolute differences of 8-bit values: of each picture's ground, and of each object by its material."""
    facts: Facts = {"ground": [], "rubber": [], "metal": []}
    for example in examples:
        ours, ids = render(example, preset, SAMPLES)
        apart = np.abs(ours.astype(np.int16) - example.picture).mean(axis=2)
        facts["ground"].append(float(apart[ids == GROUND].mean()))
        for i, thing in enumerate(example.scene["objects"]):
            if np.count_nonzero(ids == i) >= SMALLEST:
                facts[thing["material"]].append(float(apart[ids == i].mean()))
    return facts


def simpler(preset: Preset) -> Preset:
    """What the look is compared with: the plainer one that the small presets have."""
    return replace(preset, studio="plain", rounded=False)


def draw_pairs(examples: Sequence[Example], preset: Preset, file: Path) -> None:
    """Write a PNG with PAIRS examples, evenly spread over the list: real pictures left, ours right."""
    chosen = [examples[i * len(examples) // PAIRS] for i in range(PAIRS)]
    pairs = [np.hstack((e.picture, render(e, preset, preset.supersampling)[0])) for e in chosen]
    rows = [np.hstack(pairs[i : i + 2]) for i in range(0, PAIRS, 2)]
    file.write_bytes(encode_png(np.vstack(rows)))


# -- the table ------------------------------------------------------------------------------------------------------


def measure(examples: Sequence[Example], preset: Preset) -> tuple[list[Row], dict[str, Any], str]:
    """All comparisons: the rows, the facts behind them, and the table of recalls."""
    overlaps = compare_silhouettes(examples, rounded=preset.rounded)
    say("silhouettes compared")
    before, after = (compare_colors(examples, look) for look in (simpler(preset), preset))
    misses = [miss for example in examples for miss in example.misses]
    rows = [row_of("centres of held-out objects, median miss", misses, Target("≤", MISS), unit=" px", of=np.median)]
    rows += [
        row_of(f"silhouettes, mean IoU, {half} half", values, Target("≥", OVERLAP))
        for half, values in overlaps.halves.items()
    ]
    rows += [compare_row(f"colour difference, {what}", after[what], before[what]) for what in after]
    facts = {
        "misses": {"n": len(misses), **spread(misses)},
        "overlaps": overlaps.halves,
        "mean_overlap": float(np.concatenate([*overlaps.halves.values()]).mean()),
        "recalls": {f"{material} {color}": float(np.mean(v)) for (material, color), v in overlaps.recalls.items()},
        "color_differences": {"before": means(before), "after": means(after)},
    }
    return rows, facts, recall_table(overlaps.recalls)


def row_of(what: str, values: Sequence[float], target: Target, unit: str = "", of: Any = np.mean) -> Row:
    """One number that stands for many values, held against a bound."""
    return Row(what, Samples(tuple(values), unit.strip()), None, float(of(values)), target, unit=unit)


def compare_row(what: str, ours: Sequence[float], before: Sequence[float]) -> Row:
    """Ours against the simpler look: the ratio of the means, which should have fallen."""
    ratio = float(np.mean(ours) / np.mean(before))
    return Row(what, Samples(tuple(ours), ""), Samples(tuple(before), ""), ratio, Target("≤", 1.0))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95 % and maximum."""
    median, most, highest = np.percentile(values, (50, 95, 100)).tolist()
    return {"median": median, "95 %": most, "max": highest}


def means(facts: Facts) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in facts.items()}


def recall_table(recalls: Mapping[tuple[str, str], Sequence[float]]) -> str:
    """The mean share of an object's pixels that the real picture's silhouette holds, by colour and material."""
    lines = ["| found of an object | rubber | metal |", "| --- | ---: | ---: |"]
    for color in shading.COLORS:
        cells = [recalls.get((material, color), []) for material in ("rubber", "metal")]
        lines.append(
            " | ".join((f"| {color}", *(f"{np.mean(c):.3f} (n {len(c)})" if c else "–" for c in cells))) + " |"
        )
    return "\n".join(lines)


def remarks_of(examples: Sequence[Example], facts: Mapping[str, Any]) -> list[str]:
    """What the rows leave out."""
    misses, change = facts["misses"], facts["color_differences"]
    overlaps = np.concatenate([*facts["overlaps"].values()])
    deciles = ", ".join(f"{value:.3f}" for value in np.percentile(overlaps, (0, 5, 25, 50, 75, 95, 100)))
    return [
        f"{len(examples)} scenes with a picture. The camera is fitted to half of a scene's objects, at least {FEWEST}; "
        f"the other {misses['n']} objects miss their recorded pixel, which is rounded, by a median of "
        f"{misses['median']:.2f}, 95 % {misses['95 %']:.2f}, at most {misses['max']:.2f} pixels.",
        f"Silhouettes: mean IoU of all {facts['mean_overlap']:.3f}; least, 5, 25, 50, 75, 95 %, most: {deciles}. The "
        "constants of the measure are the same for all pictures and were chosen on one half of them.",
        "Colour difference: mean absolute difference of 8-bit RGB values, by picture (ground) or object; on the right "
        "the plain studio with sharp edges. Means before and after: "
        + ", ".join(f"{what} {change['before'][what]:.1f} → {change['after'][what]:.1f}" for what in change["after"])
        + ". The real lamps are jittered and ours are not, which stays in the difference. Lamps and materials were "
        "fitted to pictures of both halves.",
        "Medians [least, most] of pictures or objects; the ratio column holds the mean or median that is named.",
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--real", type=Path, required=True, help="folder in the release's layout, or part of one")
    parser.add_argument(
        "--most", type=int, default=300, help="pictures to compare at most, the first by split and name"
    )
    parser.add_argument("--pairs", type=Path, help=f"write {PAIRS} pairs of pictures into this PNG")
    parser.add_argument("--record", action="store_true", help="write into results/recorded/real-pictures-cpu, or --out")
    parser.add_argument("--out", type=Path, default=RECORDED / "real-pictures-cpu", help="folder for --record")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, preset: Preset = PRESETS["clevr"]) -> None:
    """Compare, print the table, and with --record write real-pictures.json, real-pictures.md and provenance.json."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    try:
        examples = read_examples(options.real, preset, options.most)
    except DataError as error:
        say(f"error: {error}")
        raise SystemExit(2) from error
    say(f"{len(examples)} scenes with a picture")
    if options.pairs is not None:
        draw_pairs(examples, preset, options.pairs)
    rows, facts, recalls = measure(examples, preset)
    table = markdown("Real pictures", against="plain", rows=rows, remarks=remarks_of(examples, facts))
    table = f"{table}\n{recalls}\n"
    if not options.record:
        print(table)
        return
    about = machine_provenance(MODULE, given, threads=1)
    record(options.out, "real-pictures", table=table, rows=rows, facts=facts, about=about)


if __name__ == "__main__":
    main()
