"""A second CNN+LSTM, written by itself, on the same samples: is ours as good as such a network is, or weak by a bug?

`python -m benchmarks.second_cnn_lstm FOLDER --ours RUN/result.json`. It reads the data set's own JSON and PNG files,
cuts questions into words and trains on single questions, each with its picture. Nothing of the harness or of the
baselines reads, trains or scores here; only the table is written with the benchmarks' own helpers.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.common import RECORDED, Row, Samples, amount, machine_provenance, markdown, record, say

MODULE = "benchmarks.second_cnn_lstm"
WITHIN = 3.0  # points
WORD_WIDTH, LSTM_WIDTH, HIDDEN = 64, 128, 256
BETAS, WARMUP, CLIP = (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Part:
    """One split: pictures (n, 3, H, W) uint8; of each question its picture's row, its words and its right answer."""

    pictures: Tensor
    picture_of: Tensor
    words: list[list[str]]
    answers: list[str]


def read(folder: Path, split: str, size: tuple[int, int], left_out: frozenset[str] = frozenset()) -> Part:
    """A split of a folder in the release's layout; `size` is (width, height) in pixels, `left_out` names pictures."""
    content = json.loads((folder / "questions" / f"CLEVR_{split}_questions.json").read_text(encoding="utf-8"))
    questions = [entry for entry in content["questions"] if entry["image_filename"] not in left_out]
    names = sorted({entry["image_filename"] for entry in questions})
    pictures = np.empty((len(names), 3, size[1], size[0]), np.uint8)
    for row, name in enumerate(names):
        with Image.open(folder / "images" / split / name) as image:
            resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        pictures[row] = np.asarray(resized).transpose(2, 0, 1)
    row_of = {name: row for row, name in enumerate(names)}
    return Part(
        pictures=torch.from_numpy(pictures),
        picture_of=torch.tensor([row_of[entry["image_filename"]] for entry in questions]),
        words=[re.sub(r"([;,])", r" \1 ", entry["question"].replace("?", " ")).split() for entry in questions],
        answers=[entry["answer"] for entry in questions],
    )


class Network(nn.Module):
    """Three convolutions, an LSTM, and two linear layers over both, side by side."""

    def __init__(self, words: int, answers: int, size: tuple[int, int], options: argparse.Namespace) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, height = size
        for before, after, stride in zip((3, *options.channels), options.channels, options.strides, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]
            width, height = math.ceil(width / stride), math.ceil(height / stride)
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.words = nn.Embedding(words, WORD_WIDTH, padding_idx=0)
        self.lstm = nn.LSTM(WORD_WIDTH, LSTM_WIDTH, batch_first=True)
        both = options.channels[-1] * width * height + LSTM_WIDTH
        self.head = nn.Sequential(nn.Linear(both, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, answers))

    def forward(self, pictures: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        """(n, 3, H, W) uint8, (n, T) and (n,) to (n, answers)."""
        seen = self.convolutions(pictures / 127.5 - 1)
        packed = nn.utils.rnn.pack_padded_sequence(self.words(words), lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.head(torch.cat([seen, last[-1]], dim=1))


@dataclass(frozen=True)
class Questions:
    """Of a split, as numbers: words (n, T) with 0 behind the last, how many (n,), right answers (n,), -1 if unknown."""

    part: Part
    words: Tensor
    lengths: Tensor
    answers: Tensor

    @classmethod
    def of(cls, part: Part, word_of: dict[str, int], answer_of: dict[str, int]) -> Questions:
        rows = [torch.tensor([word_of.get(word, 1) for word in words]) for words in part.words]
        answers = torch.tensor([answer_of.get(answer, -1) for answer in part.answers])
        lengths = torch.tensor([len(row) for row in rows])
        return cls(part, nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths, answers)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network takes."""
        lengths = self.lengths[rows]
        return self.part.pictures[self.part.picture_of[rows]], self.words[rows, : int(lengths.max())], lengths


def train(network: Network, questions: Questions, options: argparse.Namespace) -> None:
    """AdamW with a warm-up and a cosine, on questions drawn anew for every pass over them."""
    decays = [p for name, p in network.named_parameters() if p.ndim > 1 and not name.startswith("words")]
    others = [p for name, p in network.named_parameters() if p.ndim == 1 or name.startswith("words")]
    groups = [{"params": decays}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, options.learning_rate, BETAS, weight_decay=options.weight_decay)
    warm = max(1, round(WARMUP * options.steps))
    order = torch.empty(0, dtype=torch.long)
    network.train()
    for step in range(options.steps):
        if len(order) < options.batch:
            order = torch.randperm(len(questions.answers))
        rows, order = order[: options.batch], order[options.batch :]
        past = (step - warm) / max(1, options.steps - warm)
        rate = (step + 1) / warm if step < warm else (1 + math.cos(math.pi * past)) / 2
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * rate
        loss = nn.functional.cross_entropy(network(*questions.take(rows)), questions.answers[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        if (step + 1) % options.log_every == 0:
            say(f"step {step + 1} of {options.steps}: loss {loss.item():.3f}")


@torch.inference_mode()
def accuracy(network: Network, questions: Questions, batch: int, most: int | None = None) -> float:
    """Right answers among all questions, or the first so many of them, in per cent."""
    network.eval()
    parts = torch.arange(len(questions.answers))[:most].split(batch)
    right = [network(*questions.take(rows)).argmax(1) == questions.answers[rows] for rows in parts]
    return 100 * torch.cat(right).float().mean().item()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Read, train, answer the validation questions."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    left_out = images_of(options.leave_out) if options.leave_out is not None else frozenset()
    part = read(options.folder, "train", options.size, left_out)
    word_of = {word: 2 + place for place, word in enumerate(sorted({word for row in part.words for word in row}))}
    answer_of = {answer: place for place, answer in enumerate(sorted(set(part.answers)))}
    training = Questions.of(part, word_of, answer_of)
    test = Questions.of(read(options.folder, "val", options.size), word_of, answer_of)
    network = Network(2 + len(word_of), len(answer_of), options.size, options)
    train(network, training, options)
    return {
        "accuracy": accuracy(network, test, options.batch),
        "accuracy_train": accuracy(network, training, options.batch, most=len(test.answers)),
        "questions": {"train": len(training.answers), "val": len(test.answers)},
        "images": {"train": len(part.pictures), "val": len(test.part.pictures)},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def images_of(table: Path) -> frozenset[str]:
    """The names in an `images.arrow` of a shard: what ours keeps for its dev split is not trained on here either."""
    import pyarrow as pa

    with pa.memory_map(str(table)) as source:
        return frozenset(pa.ipc.open_stream(source).read_all().column("image_filename").to_pylist())


def row_of(found: dict[str, Any], ours: dict[str, Any]) -> Row:
    """How far ours and the second are apart, in points."""
    if ours["metrics"]["overall"]["n"] != found["questions"]["val"]:
        raise ValueError(
            f"expected a run that was asked the same {found['questions']['val']:,} questions, got one with "
            f"{ours['metrics']['overall']['n']:,}"
        )
    mine, second = 100 * ours["metrics"]["overall"]["accuracy"], found["accuracy"]
    apart = amount("CNN+LSTM: accuracy, apart", Samples((abs(mine - second),), "points"), at_most=WITHIN)
    return Row(apart.what, Samples((mine,), "%"), Samples((second,), "%"), apart.value, apart.target, unit=apart.unit)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a data set in the release's layout")
    parser.add_argument("--ours", type=Path, metavar="RESULT", help="result.json of our run on the same data")
    parser.add_argument("--leave-out", type=Path, metavar="ARROW", help="images.arrow of our shard's dev split")
    parser.add_argument("--size", type=_size, default=(16, 12), metavar="WxH", help="of the pictures (default 16x12)")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 64])
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 2, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=160, help="questions a step (default 160: 16 pictures with ten)")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--record", action="store_true", help="among the recorded results; needs --ours")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parsed = parser.parse_args(arguments)
    if parsed.record:
        if parsed.ours is None:
            parser.error("expected --ours with --record: by itself the number says nothing")
        parsed.out = parsed.out or RECORDED / "second-cnn-lstm-cpu"
    if len(parsed.channels) != len(parsed.strides):
        parser.error(f"expected a stride for each of {len(parsed.channels)} channels, got {len(parsed.strides)}")
    return parsed


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected width and height such as 16x12, got {text!r}")
    return int(found[1]), int(found[2])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the accuracy, compare it with ours, write the files where asked to."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    found = run(options)
    print(f"{found['accuracy']:.2f} % of {found['questions']['val']:,} questions right", end="")
    print(f" ({found['accuracy_train']:.2f} % of as many trained on)")
    if options.ours is None:
        return
    ours = json.loads(options.ours.read_text(encoding="utf-8"))
    try:
        rows = [row_of(found, ours)]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    low, high = (100 * ours["metrics"]["overall"][end] for end in ("low", "high"))
    remarks = [
        f"{found['questions']['train']:,} training questions about {found['images']['train']:,} pictures of "
        f"{options.size[0]}x{options.size[1]} pixels, {found['questions']['val']:,} asked; {found['parameters']:,} "
        f"parameters, {options.steps:,} steps of {options.batch} questions, threads: {options.threads}.",
        f"Ours is {options.ours.parent.name} with an interval of [{low:.1f}, {high:.1f}] %; the second reads JSON and "
        "PNG files itself and trains on single questions.",
    ]
    table = markdown("A second CNN+LSTM, written by itself", against="the second", rows=rows, remarks=remarks)
    if options.out is None:
        print(table)
        return
    about = machine_provenance(MODULE, given, options.threads)
    record(options.out, "second-cnn-lstm", table=table, rows=rows, facts={"second": found}, about=about)


if __name__ == "__main__":
    main()
