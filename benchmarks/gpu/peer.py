"""The reference implementation on the same GPU in the same run: training, memory and generation, the sides in turn.

Both have the same shapes, batch and precision, and the same weights where the reference has the same stages; then their
numbers must agree. Where there is no reference, ours is measured alone, and again beside it once there is one. Knows
what is asked and in which order, neither how workers are reached nor what rows come of their answers.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.common import say
from benchmarks.gpu import wheels
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts import Report
from benchmarks.gpu.peer_rows import Findings, agreement, generation, training
from benchmarks.gpu.shapes import LONG_ST, LONG_TT, TWO_ST, TWO_TT, PaperShape
from benchmarks.peer.client import Side
from benchmarks.peer.match import Question, random_ids
from benchmarks.peer.pair import OURS, REFERENCE, Pair, ReferenceFailedError
from benchmarks.peer.reference import HOW_TO, Reference, find_reference, start_ours
from benchmarks.peer.sizes import WEIGHTED

THREADS = 1  # of the host: on a GPU it only launches kernels
IN_ITS_ROLE = "ours in its role"


@dataclass(frozen=True, kw_only=True)
class PeerSizes:
    """What is measured, in this order: `pairs` of a shape to train and one to generate with.

    batch: sequences of a training step. few_patches, many_patches: of the first stage, that ours generates; a byte's
    time is the difference's, in which reading the prompt and capturing graphs are not. reference_bytes: that the
    reference generates, a whole forward each. *_seconds: about how long an item takes, without compiling kernels.
    """

    pairs: tuple[tuple[PaperShape, PaperShape], ...] = ((TWO_ST, LONG_ST), (TWO_TT, LONG_TT))
    batch: int = 8
    repeats: int = 4
    few_patches: int = 16
    many_patches: int = 64
    reference_bytes: int = 1
    generation_repeats: int = 2
    training_seconds: float = 20.0
    agreement_seconds: float = 10.0
    generation_seconds: float = 25.0

    def tiny(self) -> PeerSizes:
        """For a dry run; so many patches that what a byte takes is more than the clock's noise."""
        pairs = tuple((trained.tiny(), generating.tiny()) for trained, generating in self.pairs)
        return replace(self, pairs=pairs, batch=2, repeats=1, few_patches=1, many_patches=5, generation_repeats=1)


FULL = PeerSizes()
TINY = FULL.tiny()


def run(bench: Bench) -> Report:
    """Measure everything there is time for, ours and the reference in turn."""
    findings = Findings(judged=not bench.tiny)
    reference = _look_for_reference(findings)
    comparison = Comparison(bench, TINY if bench.tiny else FULL, reference, findings)
    try:
        comparison.run()
    finally:
        comparison.close()
    if bench.device.is_cuda and reference is not None:
        findings.remarks.append(
            "On GPUs other than an A100 the reference's attention may use PyTorch's plain and memory-efficient kernels "
            "only (MEGABYTE-pytorch 0.3.6); ours is left to PyTorch's choice."
        )
    return Report("Ours against the reference", "reference", findings.rows, findings.remarks, findings.failures)


def _look_for_reference(findings: Findings) -> Reference | None:
    """The reference, if it is to be had; if it was named but is not there, that is a failure, and ours runs alone."""
    try:
        reference = find_reference(os.environ)
    except (FileNotFoundError, wheels.WheelError) as error:
        findings.failures.append(str(error))
        return None
    if reference is None:
        findings.remarks.append(f"No reference implementation here: ours was measured without it. {HOW_TO}.")
    else:
        findings.remarks.append(f"The reference comes from {reference.origin}.")
    return reference


@dataclass
class Comparison:
    """The items of the part, on both sides or on ours alone; broken: families in which the reference failed."""

    bench: Bench
    sizes: PeerSizes
    reference: Reference | None
    findings: Findings
    broken: set[str] = field(default_factory=set)
    both: Pair = field(init=False)
    alone: Pair = field(init=False)

    def __post_init__(self) -> None:
        device = str(self.bench.device.torch_device)

        def ours() -> Side:
            return start_ours(THREADS, device, os.environ)

        start: dict[str, Callable[[], Side]] = {OURS: ours}
        self.alone = Pair(dict(start), trims=self.bench.device.is_cuda)
        self.origin: str | None = None
        if self.reference is not None:
            reference = self.reference
            self.origin = reference.origin
            start[REFERENCE] = lambda: reference.start(THREADS, device)
        elif self.bench.tiny:  # the scripts are to be seen working, wherever they are
            self.origin = IN_ITS_ROLE
            start[REFERENCE] = lambda: self.both.sides[OURS]
            self.findings.remarks.append("In this dry run our worker plays the reference too.")
        self.both = Pair(start, same_library=self.bench.tiny, trims=self.bench.device.is_cuda)

    def run(self) -> None:
        """All items, those that the targets are about first."""
        sizes = self.sizes
        for trained, generating in sizes.pairs:
            for full in (True, False):
                result = self._train(trained, full=full)
                training(self.findings, trained, sizes.batch, result, full=full)
            agreement(self.findings, trained, self._agree(trained))
            for precision in ("bfloat16", "float32"):
                result = self._generate(generating, precision)
                generation(self.findings, generating, self._counts(generating), result, precision)
            self.alone.close()  # the next family's workers need the memory

    def close(self) -> None:
        """End all workers."""
        self.both.close()
        self.alone.close()

    def _train(self, shape: PaperShape, *, full: bool) -> dict[str, Any] | None:
        """A training step under autocast; gradients, clipping and Adam as trainers have them."""
        sizes, length = self.sizes, shape.context
        ids = [list(random.Random(row).randbytes(length)) for row in range(sizes.batch)]
        mask = [[0.0] * (length - WEIGHTED) + [1.0] * WEIGHTED] * sizes.batch
        step: Question = (
            "train_step",
            {
                "ids": ids,
                "mask": None if full else mask,
                "precision": "bfloat16",
                # An optimiser imports PyTorch's compiler, seconds that a dry run does not have.
                "optimise": not self.bench.tiny,
                # The memory of a step is asked of the driver anew after each trim; no trainer waits for that.
                "warmup": 1,
            },
        )
        return self._item(
            f"{shape.name}, {'full loss' if full else 'answer only'}",
            shape,
            {OURS: [step], REFERENCE: [step]},
            repeats=sizes.repeats,
            settings={"batch": sizes.batch, "weighted": None if full else WEIGHTED},
            needs=sizes.training_seconds,
            trim=True,
        )

    def _agree(self, shape: PaperShape) -> dict[str, Any] | None:
        """One sequence in float32, as PyTorch computes it unasked: products of matrices without TF32."""
        ids = random_ids(shape.context)
        questions: list[Question] = [("train_step", {"ids": [ids], "mask": None}), ("forward", {"ids": ids})]
        if REFERENCE not in self.both.names or shape.family in self.broken:
            return None
        return self._item(
            f"{shape.name}, agreement",
            shape,
            {OURS: questions, REFERENCE: questions},
            repeats=1,
            warmup=0,
            needs=self.sizes.agreement_seconds,
            trim=True,
        )

    def _generate(self, shape: PaperShape, precision: str) -> dict[str, Any] | None:
        """Bytes behind a prompt that nearly fills the context; a prompt's next logits show that both read the same."""
        few, many = self._counts(shape)
        prompt = random_ids(shape.context - many)
        asked = {"ids": prompt, "precision": precision}
        ours: list[Question] = [("generate", {**asked, "count": count}) for count in (few, many)]
        reference: list[Question] = [("generate", {**asked, "count": self.sizes.reference_bytes})]
        return self._item(
            f"{shape.name}, generation, {precision}",
            shape,
            {OURS: [*ours, ("prefill", asked)], REFERENCE: [*reference, ("forward", asked)]},
            repeats=self.sizes.generation_repeats,
            settings={"bytes": [few, many, self.sizes.reference_bytes]},
            needs=self.sizes.generation_seconds,
            trim=False,  # the first of two times that are subtracted would have asked the driver for its memory
        )

    def _counts(self, shape: PaperShape) -> tuple[int, int]:
        """Bytes that ours generates, few and many: whole patches of the first stage."""
        patch = shape.context // shape.seq_lens[0]
        return self.sizes.few_patches * patch, self.sizes.many_patches * patch

    def _item(
        self,
        name: str,
        shape: PaperShape,
        questions: Mapping[str, Sequence[Question]],
        *,
        repeats: int,
        warmup: int = 1,
        settings: Mapping[str, Any] | None = None,
        needs: float,
        trim: bool,
    ) -> dict[str, Any] | None:
        """One item of the part, on both sides; from where the reference fails in a family on, ours alone.

        What was measured without the reference does not count once there is one: sides are compared in turn.
        """
        specification = shape.specification()

        def measure(pair: Pair) -> dict[str, Any]:
            built = pair.build(specification)
            return {"built": built, "answers": pair.turns(questions, repeats, warmup=warmup, trim=trim)}

        asked = {**(settings or {}), "specification": specification, "repeats": repeats}
        if shape.family not in self.broken:
            try:
                return self.bench.item(
                    name,
                    {**asked, "reference": self.origin},
                    lambda: measure(self.both),
                    needs=needs,
                    passed_on=(ReferenceFailedError,),
                )
            except ReferenceFailedError as error:
                say(f"peer: {name}: {error}")
                self.findings.failures.append(f"{name}: {error}; {shape.family} is measured without it from here on")
                self.broken.add(shape.family)
                self.both.close()
        return self.bench.item(name, {**asked, "reference": None}, lambda: measure(self.alone), needs=needs)
