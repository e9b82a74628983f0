"""What a data set is like, as values: how many objects and where, the camera, the picture's size, the mix of questions.

Nothing here computes. The numbers of `clevr` and of `cogent-a` and `-b` are those of the release; those of the others
are ours: `mini` is made so that colour, size, material and shape survive at 16x12 pixels (there a small network reads
about 98, 99, 96 and 82 % of them).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from data_scripts.errors import DataError
from data_scripts.synth.camera import Point
from data_scripts.synth.families import FAMILIES
from data_scripts.synth.programs import ATTRIBUTES


@dataclass(frozen=True)
class Preset:
    """The settings of one generated data set. World units are those of the release: a large object is 1.4 wide.

    Defaults are the release's: camera, lens, distances and sizes as measured on it.
    """

    name: str
    width: int
    height: int
    supersampling: int  # samples a pixel along each axis
    objects: tuple[int, int]  # fewest and most objects a scene
    images: Mapping[str, int]  # pictures a split
    weights: Mapping[int, float]  # family index -> how often, relative to the others
    plain: bool = False  # short sentences, few patterns, families in order; else as the public generator does
    answer_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # type -> answer -> how often
    questions_per_image: int = 10
    palettes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # shape -> its colors; else any
    redraw_number: bool = False  # draw the number of objects anew with every scene that hides one
    max_attributes: int = 4  # most attributes one noun phrase may name
    max_question_bytes: int | None = None  # longer texts are drawn anew
    min_visible_pixels: float = 200  # of every object, else the scene is drawn anew
    min_visible_share: float = 0.0  # of the object's outline in the picture, that others may not hide
    camera: Point = (7.4811, -6.5076, 5.3437)
    camera_jitter: float = 0.5  # per coordinate, uniform
    light_jitter: float = 1.0
    shadows: int = 3  # how many of the lamps cast shadows, the brightest first
    exposure: float = 1.0  # brightness of the picture
    rounded: bool = False  # whether cubes and cylinders have round edges
    studio: str = "plain"  # what lamps and materials are like, out of `shading.STUDIOS`
    aim: float = 0.0  # height above the origin that the camera looks at
    focal: float = 525 / 480  # focal length in picture widths
    half_extent: float = 3.0  # objects' x and y lie in [-half_extent, half_extent]
    min_distance: float = 0.25  # between the outlines of two objects
    margin: float = 0.4  # least separation along left/right and along front/behind
    sizes: Mapping[str, float] = field(default_factory=lambda: {"small": 0.35, "large": 0.7})

    def __post_init__(self) -> None:
        """Raise DataError for settings that no data set can have."""
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise DataError(f"expected objects as (fewest, most) with at least one, got {self.objects}")
        for shape, colors in self.palettes.items():
            if shape not in ATTRIBUTES["shape"] or not colors or not set(colors) <= set(ATTRIBUTES["color"]):
                raise DataError(f"expected palettes of shapes and their colors, got {shape!r}: {colors}")
        unknown = sorted(set(self.weights) - set(range(len(FAMILIES))))
        if unknown:
            raise DataError(f"expected weights for families 0..{len(FAMILIES) - 1}, got one for {unknown[0]}")


_EVERY_FAMILY = dict.fromkeys(range(len(FAMILIES)), 1.0)

# As often as among the first 2,000 validation questions of the release (small 103 of 164, no 68 of 95 and 62 of 93);
# for the other types these are even to within two standard errors.
_ANSWER_WEIGHTS = {"query_size": {"small": 1.7}, "equal_size": {"no": 2.5}, "equal_color": {"no": 2.0}}

# About a fifth for each group of question types, mostly short questions.
_SHORT_FAMILIES = {
    **dict.fromkeys((0, 1, 2), 4.0),
    **dict.fromkeys((9, 10, 11, 12), 4.0),
    **dict.fromkeys((36, 37, 38, 39), 1.0),
    **dict.fromkeys((40, 41, 42, 43), 1.0),
    72: 2.0,
    73: 2.0,
    **dict.fromkeys((74, 75, 76, 77), 0.5),
    84: 14.0,
    85: 14.0,
    **dict.fromkeys((86, 87, 88, 89), 7.5),
}

_MINI = Preset(
    name="mini",
    width=32,
    height=24,
    supersampling=2,
    objects=(2, 4),
    images={"train": 20_000, "val": 400},
    weights=_SHORT_FAMILIES,
    plain=True,
    redraw_number=True,
    max_attributes=1,
    max_question_bytes=46,
    min_visible_pixels=9,
    min_visible_share=0.6,
    camera_jitter=0.0,
    light_jitter=0.0,
    shadows=1,
    exposure=1.5,
    camera=(6.7903, -5.9067, 6.9),
    aim=0.5,
    focal=2.3 * 525 / 480,
    half_extent=1.3,
)

_CLEVR = Preset(
    name="clevr",
    width=480,
    height=320,
    supersampling=3,
    objects=(3, 10),
    images={"train": 70_000, "val": 15_000},
    weights=_EVERY_FAMILY,
    answer_weights=_ANSWER_WEIGHTS,
    rounded=True,
    studio="release",
)

# The same scenes and questions for small models: the middle of the release's picture (the 410x256 pixels around what
# the byte-level paper crops, 384x256) at 6.4 of its pixels for one. 64x40, not the paper's 62x41, so that tiles of 4x4
# come out even. Drawn as a picture of `clevr` scaled down by Lanczos would look, to 0.8 of 255 in the mean.
_SCALE = 6.4
_CLEVR_64 = replace(
    _CLEVR,
    name="clevr-64",
    width=64,
    height=40,
    images={"train": 20_000, "val": 1_000},
    min_visible_pixels=_CLEVR.min_visible_pixels / _SCALE**2,
    focal=_CLEVR.focal * _CLEVR.width / (_SCALE * 64),
)

# The conditions A and B of CoGenT swap the colors of cubes and cylinders; spheres have any (read in
# facebookresearch/clevr-dataset-gen).
_SOME, _OTHERS = ("gray", "blue", "brown", "yellow"), ("red", "green", "purple", "cyan")
_COGENT_A = replace(_CLEVR, name="cogent-a", palettes={"cube": _SOME, "cylinder": _OTHERS})
_COGENT_B = replace(
    _CLEVR, name="cogent-b", palettes={"cube": _OTHERS, "cylinder": _SOME}, images={"val": _CLEVR.images["val"]}
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _MINI,
        replace(_MINI, name="tiny", images={"train": 40, "val": 20}),
        Preset(
            name="small",
            width=96,
            height=64,
            supersampling=3,
            objects=(3, 6),
            images={"train": 5_000, "val": 500},
            weights=_EVERY_FAMILY,
            answer_weights=_ANSWER_WEIGHTS,
            min_visible_pixels=12,
            focal=1.4 * 525 / 480,
            half_extent=2.2,
        ),
        _CLEVR,
        _CLEVR_64,
        _COGENT_A,
        _COGENT_B,
    )
}


def find_preset(preset: str | Preset) -> Preset:
    """The preset itself, or the one of that name; raises DataError for an unknown name."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise DataError(f"expected a preset out of {', '.join(PRESETS)}, got {preset!r}")
    return PRESETS[preset]
