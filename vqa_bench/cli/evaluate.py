"""The command `evaluate`: finished runs answer a shard's questions, into folders of their own."""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vqa_bench.cli.arguments import add_plugins, positive
from vqa_bench.errors import UserError

if TYPE_CHECKING:
    from vqa_bench.config import EvaluateConfig
    from vqa_bench.data.answers import Answers
    from vqa_bench.data.shards import Shard
    from vqa_bench.models import VQAModel

DAMAGED_IMAGES = 500  # at most, where `--damage` says no number


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """`evaluate RUN … --shard DIR --out DIR`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--shard", type=Path, required=True, help="made by `serialize` with the runs' encoding")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True, help="results folder; each run gets a folder in it")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="other candidates than the shard's, one a line")
    settings = parser.add_argument_group("instead of what the runs' configurations say")
    settings.add_argument(
        "--check-invariance",
        type=positive,
        metavar="N",
        help="score N questions again in other batches; where they change, the exit code is 1",
    )
    settings.add_argument("--tolerance", type=_tolerance, metavar="NATS", help="by how much they may change")
    settings.add_argument(
        "--damage",
        type=positive,
        nargs="?",
        const=DAMAGED_IMAGES,
        metavar="N",
        help=f"show N images with damaged bytes too (default: all, at most {DAMAGED_IMAGES})",
    )
    add_plugins(parser)
    parser.set_defaults(run=_evaluate)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of nats above 0, got {text!r}")
    return value


class _Opened(NamedTuple):
    """What the command is about, found to be all right; `settings` of each model in its place."""

    shard: Shard
    answers: Answers | None
    models: list[VQAModel]
    settings: list[EvaluateConfig]


def _evaluate(options: argparse.Namespace) -> int:
    from vqa_bench import launch
    from vqa_bench.cli.report import print_report
    from vqa_bench.runs import is_done
    from vqa_bench.scoring.invariance import InvarianceError

    opened = _opened(options)
    failed = 0
    for run, model, settings in zip(options.runs, opened.models, opened.settings, strict=True):
        try:
            _evaluate_run(options, opened, run, model, settings)
        except InvarianceError as error:  # on all processes: they go on with the next run
            failed += 1
            if launch.is_main():
                print(f"error: {model.cell.name}: {error}", file=sys.stderr)
    if launch.is_main() and any(is_done(options.out / model.cell.name) for model in opened.models):
        print_report(options.out, None)
    return 1 if failed else 0


def _opened(options: argparse.Namespace) -> _Opened:
    """On every process; what is wrong is said by the main process alone."""
    from vqa_bench import launch

    opened = None
    if launch.is_main():
        with launch.alone():
            opened = _open(options)
    launch.barrier()
    return _open(options) if opened is None else opened


def _open(options: argparse.Namespace) -> _Opened:
    """Reads everything before anything is scored.

    Raises UserError where something is not a run or a shard, does not suit the other, or was evaluated before.
    """
    from vqa_bench.data.answers import read_answers
    from vqa_bench.data.shards import open_shard
    from vqa_bench.models import check_answers
    from vqa_bench.runs import is_done, load_model
    from vqa_bench.scoring.damage import Eyes
    from vqa_bench.scoring.evaluate import check_encoding

    shard = open_shard(options.shard)
    shard.split(options.split)
    answers = None if options.answers is None else read_answers(options.answers)
    models = [load_model(run) for run in options.runs]
    settings = [_settings(options, model.cell.evaluate) for model in models]
    for model, asked in zip(models, settings, strict=True):
        check_encoding(model, shard)
        check_answers(model, shard, answers)
        if asked.damage > 0 and not model.blind:
            Eyes.of(model)
    names = [model.cell.name for model in models]
    if len(set(names)) < len(names):
        raise UserError(
            f"expected runs of different cells, got {', '.join(names)}; evaluate them into different folders"
        )
    for name in names:
        if is_done(options.out / name):
            raise UserError(
                f"expected a new folder for the results, got {options.out / name}, which exists; choose another --out"
            )
    return _Opened(shard, answers, models, settings)


def _settings(options: argparse.Namespace, own: EvaluateConfig) -> EvaluateConfig:
    """A run's own, with what the command says laid over them; UserError for what would say nothing."""
    said: dict[str, Any] = {
        "check_invariance": options.check_invariance,
        "tolerance": options.tolerance,
        "damage": options.damage,
    }
    settings = own.model_copy(update={name: value for name, value in said.items() if value is not None})
    if options.tolerance is not None and settings.check_invariance == 0:
        raise UserError("expected --check-invariance N beside --tolerance, got none; say how many questions it is for")
    return settings


def _evaluate_run(
    options: argparse.Namespace, opened: _Opened, run: Path, model: VQAModel, settings: EvaluateConfig
) -> None:
    """Fill a run's folder. Raises InvarianceError, on every process of a launch."""
    from vqa_bench import launch
    from vqa_bench.progress import progress, silent
    from vqa_bench.runs import PROVENANCE, TRAINED, new_run, provenance, read_json, write_json, writing
    from vqa_bench.scoring.evaluate import evaluate

    out = options.out / model.cell.name
    if launch.is_main():
        with launch.alone():
            new_run(out)
            with writing(out / PROVENANCE):
                write_json(out / PROVENANCE, provenance() | {"run": run.name})
    launch.barrier()
    training = read_json(run / TRAINED) if (run / TRAINED).is_file() else {}  # runs of old have none
    label = f"{model.cell.name}: evaluate"
    with progress(label, "batches") if launch.is_main() else nullcontext(silent) as report:
        evaluate(
            model,
            opened.shard,
            out,
            split=options.split,
            training=training,
            report=report,
            run=run,
            answers=opened.answers,
            settings=settings,
        )
