"""The command `features`: what a frozen network makes of a shard's pictures, once, to disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from vqa_bench.cli.arguments import add_plugins, positive


def add_features(parser: argparse.ArgumentParser) -> None:
    """`features SHARD --out DIR`."""
    parser.add_argument("shard", type=Path, help="made by `serialize`; the pictures are taken as its encoding has them")
    parser.add_argument("--out", type=Path, required=True, help="what a model's `features.folder` names; may hold more")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="of train, dev, test, … (default: all there are)")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="ResNet-101's, .pth or .safetensors (default: torchvision's)"
    )
    parser.add_argument("--batch", type=positive, default=32, help="pictures at a time (default 32)")
    add_plugins(parser)
    parser.set_defaults(run=_features)


def _features(options: argparse.Namespace) -> int:
    import torch

    from vqa_bench.data.shards import open_shard
    from vqa_bench.models.extract import Extractor, extract, load_weights
    from vqa_bench.progress import progress

    shard = open_shard(options.shard)
    for split in options.splits or ():
        shard.split(split)  # before anything is downloaded
    gpu = torch.cuda.is_available()
    with progress(f"features of {shard.path.name}", "pictures") as report:
        made = extract(
            shard,
            options.out,
            Extractor(load_weights(options.weights)),
            splits=options.splits,
            images_per_batch=options.batch,
            workers=4 if gpu else 0,  # on a CPU decoding is nothing beside the network
            device=torch.device("cuda" if gpu else "cpu"),
            progress=report,
        )
    print("\n".join(map(str, made)) if made else f"all there: {options.out}")
    return 0
