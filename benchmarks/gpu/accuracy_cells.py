"""What the accuracy part trains: sizes as values, and each cell as the harness's configuration.

How the sizes of FULL were chosen. A picture of 7,680 bytes is 162 patches of 48 (a tile of 4x4 pixels), and its ten
questions add about 60: 220 positions of a first stage with 25 M weights, forward and backward at 6 FLOPs a weight and
position: 33 GFLOP a picture. A batch of 64 is 2 TFLOP (the harness counts 2.04), or 8 ms at a third of an H200's
matrix rate, about what Python needs to launch its kernels: with fewer pictures the GPU would wait for Python, with more
there would be fewer steps, which a model that has yet to find out that it can see needs most. The local stage is
narrow, as it runs over 48 bytes for every answer: more positions than the first stage has. All but
the count is reasoned, not measured.

CNN+LSTM has the widths of the CLEVR paper's (LSTM 2 x 512, MLP of 1,024) and a CNN of its own. Knows configurations;
trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqa_bench.config import CellConfig, DataConfig, overlay, parse

DEV_FRACTION = 0.05
"""Of the training pictures; the best of each training and of the learning rates are chosen on them."""
SHARES = (0.25, 0.5)
"""Of the training pictures, for the learning curve."""


@dataclass(frozen=True)
class Sizes:
    """Data, models and measurement. Every `*_images` counts pictures.

    preset, images: what is drawn where no data are given. side, tile: the encodings' picture and the tiles of one
    patch. mblm, mamba, recurrent: of the configuration's model. batch: pictures a step; unshared: a step where every
    question has its picture to itself, with about as many positions. probe: steps that time one, the first of `groups`
    groups left out. evaluations: of dev in a training, each of so many pictures. test_batch: pictures.
    """

    preset: str
    images: Mapping[str, int]
    side: str
    tile: str
    mblm: Mapping[str, Any]
    mamba: Mapping[str, Any]
    baseline: Mapping[str, Any]
    attention: Mapping[str, Any]
    question: Mapping[str, Any]
    batch: int
    unshared: int
    probe: int
    groups: int
    evaluations: int
    dev_images: int
    test_batch: int
    workers: int
    most_steps: int | None = None

    @property
    def patch(self) -> int:
        """Bytes."""
        return int(self.mblm["seq_lens"][-1])


_CNN = {"channels": [64, 128, 256, 256], "strides": [1, 2, 2, 2]}
_LSTM = {"embedding": 256, "hidden": 512, "layers": 2}
_LOCAL = {"heads": 2, "head_dim": 64}

FULL = Sizes(
    preset="clevr-64",
    images={"train": 20_000, "val": 1_000},
    side="64x40",
    tile="block4",
    mblm={
        "hidden_dims": [512, 128],
        "seq_lens": [176, 48],
        "num_layers": [8, 2],
        "stages": [{"heads": 8, "head_dim": 64, "ff_multiplier": 4}, _LOCAL],
    },
    mamba={
        "num_layers": [14, 2],  # 24 M weights in the first stage, as many as 8 layers of a transformer have
        "stages": [{"kind": "mamba", "d_state": 128, "head_dim": 64}, _LOCAL],
    },
    baseline={**_CNN, **_LSTM, "mlp_hidden": 1024},
    attention={**_CNN, **_LSTM, "strides": [1, 2, 2, 1], "attention_width": 512, "mlp_hidden": 1024},
    question={**_LSTM, "mlp_hidden": 1024},
    batch=64,
    unshared=8,
    probe=40,
    groups=4,
    evaluations=4,
    dev_images=400,
    test_batch=50,
    workers=4,
)

TINY = Sizes(
    preset="tiny",
    images={"train": 12, "val": 4},
    side="16x12",
    tile="block4",
    mblm={
        "hidden_dims": [16, 16],
        "seq_lens": [32, 48],
        "num_layers": [1, 1],
        "stages": [{"heads": 1, "head_dim": 16}, {"heads": 1, "head_dim": 16}],
    },
    mamba={
        "stages": [{"kind": "mamba", "d_state": 8, "head_dim": 16}, {"heads": 1, "head_dim": 16}],
    },
    baseline={"channels": [4, 4], "strides": [2, 2], "embedding": 8, "hidden": 8, "mlp_hidden": 16},
    attention={"channels": [4, 4], "strides": [2, 2], "embedding": 8, "hidden": 8, "attention_width": 8},
    question={"embedding": 8, "hidden": 8, "mlp_hidden": 16},
    batch=4,
    unshared=2,
    probe=2,
    groups=2,
    evaluations=1,
    dev_images=1,
    test_batch=4,
    workers=0,
    most_steps=2,
)


@dataclass(frozen=True)
class Plan:
    """How long each cell trains, and with which learning rates its family is swept: the same for all families."""

    seconds: float
    rates: tuple[float, ...]


RATES = (1e-3, 3e-4)
PLANS = ((50 * 60, Plan(120, RATES)), (20 * 60, Plan(50, RATES)), (0, Plan(30, RATES[:1])))
"""From so many seconds for the whole part on; the longest first. In the second all of the cells fit,
if each takes what `accuracy_fill.OVERHEAD` says beside its training."""
DRY = Plan(0.02, RATES[:1])


def plan_for(seconds: float | None) -> Plan:
    """The plan of a part with so much time, None for as much as it needs."""
    return next(plan for least, plan in PLANS if seconds is None or seconds >= least)


@dataclass(frozen=True)
class Entry:
    """A cell before it has a learning rate and steps.

    family: the entry whose learning rates are tried and whose best is this one's. partial: what is laid over the
    common configuration. versus: the entry that it is compared with. share: of the training pictures. dry: whether a
    dry run trains it; the others' configurations are checked there.
    """

    name: str
    title: str
    family: str
    versus: str | None
    partial: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    dry: bool = False


MBLM, CNN_LSTM = "mblm-block4", "cnn-lstm"


def entries(sizes: Sizes) -> list[Entry]:
    """All cells, the most important first."""
    side, patch = sizes.side, sizes.patch
    tiles: dict[str, Any] = {"encoding": f"pixels:{side},order={sizes.tile}"}
    mblm = tiles | {"model": {"kind": "mblm", "byte_init": "smooth", **sizes.mblm}, "train": {"weight_decay": 0.05}}
    cnn = tiles | {"model": {"kind": "cnn_lstm", **sizes.baseline}, "train": {"weight_decay": 0.01}}
    attention = tiles | {"model": {"kind": "cnn_lstm_sa", **sizes.attention}, "train": {"weight_decay": 0.01}}
    # It sees no picture; with an encoding it takes the shard that is there.
    question = tiles | {"model": {"kind": "lstm", **sizes.question}, "train": {"weight_decay": 0.01}}

    def variant(name: str, title: str, over: Mapping[str, Any], **more: Any) -> Entry:
        return Entry(f"mblm-{name}", f"MBLM, {title}", MBLM, MBLM, overlay(mblm, over), **more)

    listed = [
        Entry(MBLM, "MBLM, pixels in tiles of 4x4, picture first, 2D T/T", MBLM, CNN_LSTM, mblm, dry=True),
        Entry(CNN_LSTM, "CNN+LSTM", CNN_LSTM, None, cnn, dry=True),
        Entry("question-only", "question only (LSTM)", "question-only", CNN_LSTM, question),
        Entry("cnn-lstm-sa", "CNN+LSTM+SA", "cnn-lstm-sa", CNN_LSTM, attention),
        variant("raster", f"row by row ({patch // 3} pixels a patch)", {"encoding": f"pixels:{side},order=raster"}),
        variant("planar", "one channel after the other", {"encoding": f"pixels:{side},order=planar"}),
        variant("hilbert", "along a Hilbert curve", {"encoding": f"pixels:{side},order=hilbert"}),
        variant("st", "2D S/T", {"model": sizes.mamba}, dry=True),
        variant(
            "qiqa",
            "question first and last (qiqa), nothing shared",
            {"sequence": {"layout": "qiqa"}, "train": {"images_per_batch": sizes.unshared}},
        ),
        variant("3bit", "3 bits a channel", {"encoding": f"pixels:{side},bits=3,order={sizes.tile}"}),
        variant("jpeg", "JPEG bytes", {"encoding": f"jpeg:{side},q=95,tables=drop"}),
        variant("png", "PNG bytes", {"encoding": f"png:{side},level=6"}),
    ]
    for share in SHARES:
        percent = f"{share:.0%} of the pictures"
        listed.append(variant(f"{share:.0%}".replace("%", "pc"), percent, {}, share=share))
        name = f"cnn-lstm-{share:.0%}".replace("%", "pc")
        listed.append(Entry(name, f"CNN+LSTM, {percent}", CNN_LSTM, CNN_LSTM, cnn, share=share))
    return listed


def cell_of(
    entry: Entry, sizes: Sizes, *, rate: float, steps: int, precision: str, workers: int, judged: bool = True
) -> CellConfig:
    """The harness's cell. judged: whether dev is looked at and the best is kept."""
    dev = {"every": max(1, steps // sizes.evaluations), "samples": sizes.dev_images, "metric": "accuracy"}
    common = {
        "name": run_name(entry, rate),
        "title": entry.title,
        "train": {
            "steps": steps,
            "learning_rate": rate,
            "images_per_batch": sizes.batch,
            "precision": precision,
            "matmul_precision": "high",  # what autocast leaves in float32, such as our own scan, may use TF32
            "workers": workers,
            "log_every": max(1, sizes.probe // sizes.groups),
            "dev": dev if judged else None,
        },
        "evaluate": {"images_per_batch": sizes.test_batch, "bits": 0},
    }
    return parse(CellConfig, overlay(common, entry.partial), entry.name)


def run_name(entry: Entry, rate: float) -> str:
    """Of an entry with a learning rate: its run's and its item's."""
    return f"{entry.name}-{rate:g}"


def data_of(folder: Path, share: float) -> DataConfig:
    """A folder's data with so much of its training pictures to train on; the rest are in dev, of which few are used."""
    return parse(DataConfig, {"folder": folder, "dev_fraction": 1 - (1 - DEV_FRACTION) * share}, "data")
