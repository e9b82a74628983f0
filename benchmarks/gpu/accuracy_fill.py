"""Fills the accuracy part's cells one after another, the most important first, as long as there is time.

Knows what a cell's result is only good for (settings, pictures, seconds), and how a family's learning rate is chosen.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.gpu import pictures
from benchmarks.gpu.accuracy_cells import (
    DRY,
    FULL,
    TINY,
    Entry,
    Sizes,
    cell_of,
    data_of,
    entries,
    plan_for,
    run_name,
)
from benchmarks.gpu.accuracy_report import Findings, Found
from benchmarks.gpu.accuracy_train import FAULT, Place, harness_on, loader_processes, measure
from benchmarks.gpu.bench import OUT_OF_MEMORY, Bench
from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.data.manifest import file_info

OVERHEAD = 20.0
"""Seconds that a cell takes beside its training: a step timed, dev, the test with right and with exchanged pictures."""
DATA_SHARE, PICTURES_A_SECOND = 0.2, 35
"""How much of the part's time may go into drawing, and how many pictures a core draws at least."""


def fill_all(bench: Bench) -> tuple[Findings, Path]:
    """Train and test what there is time for: what was found, and the folder of the runs on all pictures.

    In a dry run a few cells are trained, and the configurations of all are checked.
    """
    sizes, plan = (TINY, DRY) if bench.tiny else (FULL, plan_for(bench.seconds))
    listed = entries(sizes)
    if bench.tiny:
        for entry in listed:
            cell_of(entry, sizes, rate=plan.rates[0], steps=1, precision="no", workers=0)
        listed = [entry for entry in listed if entry.dry]
    folder = find_pictures(bench, sizes)
    findings = Findings(listed, sizes, plan, folder.name)
    filler = _Filler(bench, findings, folder, fingerprint_of(folder), loader_processes(sizes.workers))
    with harness_on(bench.device):
        for rate in plan.rates:
            for entry in listed:
                if entry.family == entry.name:
                    filler.sweep(entry, rate)
        for entry in listed:
            if entry.family != entry.name:
                filler.take_best_rate(entry)
    return findings, filler.place(1.0).runs


@dataclass
class _Filler:
    """Fills cells into `findings`. loaders: processes that prepare batches."""

    bench: Bench
    findings: Findings
    folder: Path
    fingerprint: str
    loaders: int

    def sweep(self, entry: Entry, rate: float) -> None:
        """Try a learning rate of a family; the best by dev so far is its result."""
        found = self._fill(entry, rate)
        if found is not None:
            tried = self.findings.sweeps.setdefault(entry.name, {})
            tried[rate] = found
            self.findings.results[entry.name] = tried[self.findings.rate(entry.name)]

    def take_best_rate(self, entry: Entry) -> None:
        """An entry with the learning rate that was best for its family."""
        found = self._fill(entry, self.findings.rate(entry.family))
        if found is not None:
            self.findings.results[entry.name] = found

    def place(self, share: float) -> Place:
        """A folder for all trainings on a share of the pictures, by this code for so many seconds."""
        made_of = [self.fingerprint, dict(self.bench.about), self.findings.plan.seconds]
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        work = pictures.kept_folder(f"accuracy-{digest[:16]}") / f"share-{share:g}"
        return Place(data_of(self.folder, share), work, 1 if self.bench.tiny else pictures.cores())

    def _fill(self, entry: Entry, rate: float) -> Found | None:
        """The result at a learning rate; None where there is none, and why is in the findings or the bench."""
        sizes, seconds = self.findings.sizes, self.findings.plan.seconds
        precision = "bf16" if self.bench.device.is_cuda else "no"
        make = partial(cell_of, entry, sizes, rate=rate, precision=precision, workers=self.loaders)
        name = run_name(entry, rate)
        settings = {
            "cell": make(steps=sizes.probe).outcome(),
            "share": entry.share,
            "data": self.fingerprint,
            "seconds": seconds,
        }
        place = self.place(entry.share)
        work = partial(measure, make, place, seconds=seconds, probe=sizes.probe, most_steps=sizes.most_steps)
        result = self.bench.item(name, settings, work, needs=0.0 if self.bench.tiny else seconds + OVERHEAD)
        if result is None:
            return None
        if FAULT in result:
            self.findings.faults.append(f"{name}: {result[FAULT]}")
        elif OUT_OF_MEMORY in result:
            self.findings.out_of_memory.append(f"{name}: {result[OUT_OF_MEMORY]}")
        else:
            return result
        return None


def find_pictures(bench: Bench, sizes: Sizes) -> Path:
    """The folder of pictures that is given, or one that is drawn now, as large as there is time for."""
    given = os.environ.get(pictures.VARIABLE)
    if given and not bench.tiny:
        return pictures.find(given)
    workers, images = (1 if bench.tiny else pictures.cores()), dict(sizes.images)
    if bench.seconds is not None and not bench.tiny:
        most = int(DATA_SHARE * bench.seconds * PICTURES_A_SECOND * workers) - images["val"]
        # In whole thousands, so that a second start finds those of the first.
        images["train"] = min(images["train"], max(1000, most // 1000 * 1000))
    return pictures.draw(sizes.preset, images, workers=workers)


def fingerprint_of(folder: Path) -> str:
    """SHA-256 over the questions of a folder: what results are only good for."""
    clevr = ClevrFolder(folder)
    hashes = [file_info(clevr.questions_path(split)).sha256 for split in clevr.splits]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
