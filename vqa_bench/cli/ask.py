"""The commands that talk to a trained model: ask, demo."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_bench.cli.arguments import add_plugins, positive

if TYPE_CHECKING:
    from vqa_bench.ask import Answered
    from vqa_bench.models import VQAModel

BAR = 40  # characters of a probability of 1
EIGHTHS = " ▏▎▍▌▋▊▉"


def add_ask(parser: argparse.ArgumentParser) -> None:
    """`ask RUN IMAGE QUESTION`."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("image", type=Path, help="an image file, of any size")
    parser.add_argument("question")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="other candidates, one a line")
    parser.add_argument("--type", metavar="TYPE", help="of the question, for a model that counts answers by type")
    parser.add_argument("--top", type=positive, default=10, metavar="K", help="answers to show (default 10)")
    parser.add_argument("--json", action="store_true", help="for machines; all answers")
    add_plugins(parser)
    parser.set_defaults(run=_ask)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """`demo RUN`."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--shard", type=Path, help="pictures to pick from (default: the run's own, where it is there)")
    parser.add_argument("--split", default="test", help="of the shard (default: test)")
    parser.add_argument("--port", type=positive, help="on this machine (default: the first free one from 7860)")
    add_plugins(parser)
    parser.set_defaults(run=_demo)


def _ask(options: argparse.Namespace) -> int:
    from vqa_bench.ask import ask, encode_file, pictures_of
    from vqa_bench.data.answers import read_answers

    model = _model(options.run_folder)
    answered = ask(
        model,
        encode_file(model, options.image),
        options.question,
        answers=None if options.answers is None else read_answers(options.answers),
        question_type=options.type,
        trained_on=pictures_of(options.run_folder),
    )
    if options.json:
        print(json.dumps(answered.to_dict(), indent=1, ensure_ascii=False))
    else:
        print(answer_text(answered, top=options.top))
        for note in answered.notes:
            print(f"note: {note}", file=sys.stderr)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from vqa_bench.ask import pictures_of, shard_of
    from vqa_bench.data.shards import open_shard
    from vqa_bench.demo import Desk, Pictures, build, import_gradio, launch

    import_gradio()  # first: loading a model takes longer than being told that it is missing
    model = _model(options.run_folder)
    path = shard_of(options.run_folder) if options.shard is None else options.shard
    if path is None:
        print("note: the run's shard is not at hand; name it with --shard to pick its pictures", file=sys.stderr)
    pictures = None if path is None else Pictures.of(open_shard(path), model, options.split)
    desk = Desk(model, pictures, pictures_of(options.run_folder))
    launch(build(desk, title=model.cell.title), port=options.port)
    return 0


def _model(run: Path) -> VQAModel:
    from vqa_bench import launch
    from vqa_bench.runs import load_model

    return load_model(run).to(launch.device())


def answer_text(answered: Answered, *, top: int) -> str:
    """The likeliest answers with bars, and what else the model says, in lines."""
    ranked = answered.ranked
    wide = max(len(name) for name, _ in ranked[:top])
    lines = [f"{name:<{wide}}  {100 * share:5.1f} %  {_bar(share)}".rstrip() for name, share in ranked[:top]]
    if ranked[top:]:
        lines.append(f"{len(ranked) - top} other answers: {100 * sum(share for _, share in ranked[top:]):.1f} %")
    if answered.mass is not None:
        written = "nothing that ends" if answered.free is None else repr(answered.free)
        together = f"all {len(ranked)} answers together have {100 * answered.mass:.2f} %"
        lines += ["", f"{together}; unbound, the model writes {written}"]
    return "\n".join(lines)


def _bar(share: float) -> str:
    whole, eighths = divmod(round(share * BAR * 8), 8)
    return "█" * whole + EIGHTHS[eighths].strip()
