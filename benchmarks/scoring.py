"""Answering a test set: an image is read once for all of its questions, and a question once for all of its answers.

`python -m benchmarks.scoring`. The test split of configs/mini.yaml with the image first, answered by its byte model on
pixels: untrained unless `--run` names one, which changes no time. Against it the same model on the same questions, each
with a prefill of its own: one after another, and in batches, where small matrices no longer cost more than they should.
Answers must be the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.common import (
    RECORDED,
    ROOT,
    Row,
    Samples,
    alternate,
    machine_provenance,
    markdown,
    record,
    say,
    speedup,
)

if TYPE_CHECKING:
    from vqa_bench.data.loading import Group
    from vqa_bench.data.shards import Shard, SplitReader
    from vqa_bench.models import ByteModel
    from vqa_bench.scoring.predictions import Prediction

MODULE = "benchmarks.scoring"
CELL = "mblm-pixels"
SPLIT = "test"
FASTER = 3.0
TOLERANCE = 1e-3  # of log-probabilities, in nats: sums of up to nine float32 softmaxes, in other batches


class Answered(NamedTuple):
    """One turn."""

    seconds: float
    predictions: list[Prediction]


def make_shard(data: Path) -> Shard:
    """The pictures of configs/mini.yaml in the cell's encoding, made if they are not there yet."""
    from vqa_bench.cli.sources import warehouse
    from vqa_bench.config import load_matrix

    matrix = load_matrix(ROOT / "configs" / "mini.yaml")
    return warehouse(data, workers=2).shard(matrix.data, str(matrix.cell(CELL).encoding))


def load(run: Path | None, shard: Shard) -> ByteModel:
    """The model of a run, or the cell's as it is before training."""
    from vqa_bench.config import load_matrix
    from vqa_bench.models import ByteModel
    from vqa_bench.runs import load_model
    from vqa_bench.scoring.evaluate import check_encoding
    from vqa_bench.train.cell import new_model

    cell = load_matrix(ROOT / "configs" / "mini.yaml").cell(CELL)
    model = new_model(cell, shard) if run is None else load_model(run)
    if not isinstance(model, ByteModel) or not model.sequencer.shares_prefix:
        raise SystemExit(f"error: expected a byte model with the image first in {run}, got another; name one of these")
    check_encoding(model, shard)
    return model.eval()


def measure(options: argparse.Namespace, shard: Shard) -> list[Row]:
    """Images shared or not, then answers."""
    import torch

    from vqa_bench.data.loading import evaluation_groups

    torch.set_num_threads(options.threads)
    model, split = load(options.run, shard), shard.split(SPLIT)
    groups = evaluation_groups(split)[: options.images]
    return [*image_rows(model, split, groups, options), answer_row(model, split, groups, options)]


def image_rows(model: ByteModel, split: SplitReader, groups: list[Group], options: argparse.Namespace) -> list[Row]:
    """An image's questions together, against every question with an image of its own."""
    from vqa_bench.data.loading import Group
    from vqa_bench.scoring.answering import answer

    alone = [Group(group.image, group.questions[at : at + 1]) for group in groups for at in range(len(group.questions))]
    per_image = -(-len(alone) // len(groups))

    def turn(asked: list[Group], at_once: int) -> Callable[[], Answered]:
        def run() -> Answered:
            began = perf_counter()
            predictions = answer(model, split, asked, images_per_batch=at_once)
            return Answered(perf_counter() - began, predictions)

        return run

    sizes = {
        "one at a time": 1,
        f"{options.images_per_batch} at once": options.images_per_batch,
        f"{options.images_per_batch * per_image} at once": options.images_per_batch * per_image,
    }
    turns = {"shared": turn(groups, options.images_per_batch)}
    turns |= {name: turn(alone, size) for name, size in sizes.items()}
    taken = alternate(turns, options.repeats)
    for name in sizes:
        check_same(taken["shared"][0].predictions, taken[name][0].predictions)
    times = {name: Samples(tuple(one.seconds for one in turns), "s") for name, turns in taken.items()}
    say(", ".join(f"{name} {samples}" for name, samples in times.items()))
    what = f"{len(alone):,} questions on {len(groups):,} images, a prefill each"
    # Held against the fastest: one at a time it is batching that is measured, not the sharing of images.
    fastest = min(sizes, key=lambda name: times[name].median)
    targets = dict.fromkeys(sizes) | {fastest: FASTER}
    return [speedup(f"{what}, {name}", times["shared"], times[name], at_least=targets[name]) for name in sizes]


def check_same(got: list[Prediction], expected: list[Prediction]) -> None:
    """SystemExit unless both have the same answers, and log-probabilities that differ by rounding only."""
    for ours, theirs in zip(got, expected, strict=True):
        far = max(abs(a - b) for a, b in zip(ours.log_probs, theirs.log_probs, strict=True))
        same = ("question_index", "prediction", "constrained_greedy", "free_greedy")
        differing = [name for name in same if getattr(ours, name) != getattr(theirs, name)]
        if differing or far > TOLERANCE:
            raise SystemExit(
                f"error: expected the same answers either way, got others for question_index {ours.question_index} "
                f"({', '.join(differing) or f'log-probabilities {far:g} apart'}); times of different work are not "
                "comparable"
            )


def answer_row(model: ByteModel, split: SplitReader, groups: list[Group], options: argparse.Namespace) -> Row:
    """All candidates behind one prefill, against a whole sequence for each, one question at a time."""
    import torch

    from vqa_bench.data.loading import Group
    from vqa_bench.scoring.answering import score_in_batches

    device = torch.device("cpu")
    sample = [Group(group.image, group.questions[:1]) for group in groups[: options.sample]]

    def by_trie() -> tuple[float, torch.Tensor]:
        began = perf_counter()
        scored = [
            scores.log_probs for _, scores in score_in_batches(model, split, [[g] for g in sample], device=device)
        ]
        return perf_counter() - began, torch.cat(scored)

    def by_forwards() -> tuple[float, torch.Tensor]:
        began = perf_counter()
        scored = [whole_sequences(model, split, group) for group in sample]
        return perf_counter() - began, torch.stack(scored)

    taken = alternate({"trie": by_trie, "forwards": by_forwards}, options.repeats)
    far = float((taken["trie"][0][1] - taken["forwards"][0][1]).abs().max())
    if far > TOLERANCE:
        raise SystemExit(f"error: expected the same log-probabilities either way, got some {far:g} apart; mend scoring")
    times = {name: Samples(tuple(seconds for seconds, _ in turns), "s") for name, turns in taken.items()}
    what = f"{len(sample):,} questions one at a time, {len(model.answers)} forwards (in one batch) each"
    return speedup(what, times["trie"], times["forwards"])


def whole_sequences(model: ByteModel, split: SplitReader, group: Group) -> Any:
    """(A,) log-probabilities of a question's candidates, each the sum over its ids in a sequence of its own."""
    import numpy as np
    import torch

    from mblm import MBLMReturnType
    from vqa_bench.data.vocab import PAD

    [row] = group.questions.tolist()
    image, text = split.image_bytes(group.image), split.question[row]
    samples = [model.sequencer.sample(image, text, answer) for answer in model.answers.names]
    sequences = [torch.from_numpy(np.concatenate((sample.prefix, sample.suffix))) for sample in samples]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=PAD)
    with torch.inference_mode():
        logits: Any = model.mblm(ids, MBLMReturnType.LOGITS)
        log_probs = logits[:, :-1].double().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    begins = [len(sample.prefix) + sample.answer_start for sample in samples]
    lengths = map(len, model.answers.ids(model.cell.sequence.answer))
    return torch.stack([log_probs[i, at : at + n].sum() for i, (at, n) in enumerate(zip(begins, lengths, strict=True))])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, help="a trained byte model; default: an untrained one of configs/mini.yaml")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where data sets and shards are kept")
    parser.add_argument("--images", type=int, help="so many of the test split; default: all")
    parser.add_argument("--images-per-batch", type=int, default=50)
    parser.add_argument("--sample", type=int, default=20, help="questions that are answered by whole sequences")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--record", action="store_true", help="write the results under results/recorded/scoring-cpu")
    parser.add_argument("--out", type=Path, help="write the results there")
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.record:
        parser.error("expected --out with --quick: toy numbers do not belong among the recorded ones")
    if parsed.quick:
        parsed.images, parsed.images_per_batch, parsed.sample, parsed.repeats = 4, 2, 2, 1
    return parsed


def main(arguments: Sequence[str] | None = None, shard: Shard | None = None) -> None:
    """Measure, print the table; with --record or --out also write scoring.json, scoring.md and provenance.json."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    rows = measure(options, make_shard(options.data) if shard is None else shard)
    model = "untrained" if options.run is None else f"of {options.run.name}"
    remarks = [
        f"Medians [least, most] of {options.repeats} turns in one process, the ways in turn, warm-up not counted; "
        f"threads: {options.threads}; the model is {model}. Shared: {options.images_per_batch} images a batch.",
        "All ways gave the same predictions, the same constrained and free greedy answers, and log-probabilities "
        f"within {TOLERANCE:g} nats.",
        "In batches the prefills differ by arithmetic alone, and much of the rest is what both do for the answers: "
        "behind each question the local stage reads all 28 letters.",
    ]
    table = markdown(
        "Answering questions that share images, and answers that share questions, on this CPU",
        against="separate",
        rows=rows,
        remarks=remarks,
    )
    out = options.out or (RECORDED / "scoring-cpu" if options.record else None)
    if out is None:
        print(table)
        return
    about = machine_provenance(MODULE, given, options.threads)
    record(out, "scoring", table=table, rows=rows, facts={"model": model}, about=about)


if __name__ == "__main__":
    main()
