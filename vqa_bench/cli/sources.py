"""Which data set a configuration means, and how it is made: the generators of `data_scripts`, or what a user brings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqa_bench.config import CustomDataConfig, DataConfig, SynthConfig, SynthTextConfig, TextDataConfig
    from vqa_bench.matrix import Source, Warehouse


def warehouse(data: Path, workers: int) -> Warehouse:
    """The data sets of a folder; those that are generated are made by so many processes."""
    from vqa_bench.matrix import Warehouse

    return Warehouse(data, partial(find_source, data, workers), workers)


def find_source(data: Path, workers: int, config: DataConfig | TextDataConfig) -> Source:
    """The data set of a configuration; a generated one is named after its settings, in the folder `data`."""
    from vqa_bench.config import TextDataConfig
    from vqa_bench.matrix import Source

    if config.folder is not None:
        return Source(config.folder)
    if isinstance(config, TextDataConfig):
        if config.synth_text is not None:
            return _narrated(data, workers, config.synth_text)
        assert config.custom is not None, "the configuration has one of them"
        return _packed(data, workers, config.custom)
    if config.synth is not None:
        return _generated(data, workers, config.synth)
    assert config.custom is not None, "the configuration has one of them"
    return _plugins_own(data, workers, config.custom)


def _generated(data: Path, workers: int, synth: SynthConfig) -> Source:
    from data_scripts.synth.generate import VERSION
    from vqa_bench.matrix import Source

    counts = "" if synth.images is None else "-" + "-".join(f"{k}{v}" for k, v in sorted(synth.images.items()))
    out = data / f"synth-{synth.preset}-v{VERSION}-seed{synth.seed}{counts}"
    return Source(out, partial(_generate, synth, out, workers))


def _generate(synth: SynthConfig, out: Path, workers: int) -> None:
    from data_scripts.synth.generate import generate
    from vqa_bench.progress import progress

    with progress(f"generate {synth.preset}", "images") as report:
        generate(synth.preset, out, seed=synth.seed, workers=workers, images=synth.images, progress=report)


def _plugins_own(data: Path, workers: int, custom: CustomDataConfig) -> Source:
    from vqa_bench.data.custom import DATASETS, WHOLE
    from vqa_bench.matrix import Source

    make = partial(DATASETS.make, custom.name, custom.options, data, workers=workers)
    return Source(DATASETS.folder(custom.name, custom.options, data), make, WHOLE)


def _packed(data: Path, workers: int, custom: CustomDataConfig) -> Source:
    """A plugin's text: its files, and beside them the packed books that are made of them."""
    from vqa_bench.data.custom import TEXTS
    from vqa_bench.matrix import Source

    texts = TEXTS.folder(custom.name, custom.options, data)
    out = texts.with_name(f"{texts.name}-packed")
    return Source(out, partial(_pack, custom, data, out, workers), whole="manifest.json")


def _pack(custom: CustomDataConfig, data: Path, out: Path, workers: int) -> None:
    from data_scripts.pg19 import pack_pg19
    from vqa_bench.data.custom import TEXTS
    from vqa_bench.progress import progress

    folder = TEXTS.make(custom.name, custom.options, data, workers=workers)
    with progress(f"pack {folder.name}", "books") as report:
        pack_pg19(out, folder=folder, progress=report)


def _narrated(data: Path, workers: int, text: SynthTextConfig) -> Source:
    from data_scripts.synth.narrate import VERSION
    from vqa_bench.matrix import Source

    out = data / f"synth-text-{text.bytes}-v{VERSION}-seed{text.seed}"
    return Source(out, partial(_narrate, text, out, workers), whole="manifest.json")


def _narrate(text: SynthTextConfig, out: Path, workers: int) -> None:
    from data_scripts.synth.narrate import generate_text
    from vqa_bench.progress import progress

    with progress(f"narrate {text.bytes:,} bytes", "bytes") as report:
        generate_text(out, size=text.bytes, seed=text.seed, workers=workers, packed=True, progress=report)
