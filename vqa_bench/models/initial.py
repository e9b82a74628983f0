"""Weights to begin from: a finished run, a checkpoint folder or a `.pth` of the reference into a cell's byte model.

Nothing is swapped silently: shapes are compared field by field, and what still has to change on the way (a grown
vocabulary, a longer first stage) is a note, which goes into the result. Knows no training and no run folder but for the
two files of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mblm import MBLM
from mblm.checkpoint import from_pretrained, load_reference
from mblm.weights import filled, grow_vocabulary
from vqa_bench.config import CellConfig, MBLMConfig, parse
from vqa_bench.data.manifest import file_info
from vqa_bench.data.vocab import PAD, VOCAB_SIZE
from vqa_bench.errors import UserError
from vqa_bench.models.byte_model import ByteModel
from vqa_bench.models.hierarchy import hierarchy_config
from vqa_bench.models.shape import as_config, check_shape

WEIGHTS, CONFIG = "model.safetensors", "config.json"
REFERENCE = (".pth", ".pt")
PREFIX = "mblm."  # of the byte model's parameters in the weights of a run
POSITIONS = "pos_embs.0.weight"  # the first stage's table, where it has one
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Initial:
    """Weights as they were taken: SHA-256 of their file, and everything that was changed on the way, in words."""

    sha256: str
    notes: list[str]


@dataclass(frozen=True)
class _Source:
    """Where weights lie. config: its file; content: what is in it, for a folder."""

    kind: Literal["run", "folder", "reference"]
    weights: Path
    config: Path
    content: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_initial(model: ByteModel, source: Path, reference_config: Path | None = None) -> Initial:
    """Put the weights of `source` into a cell's fresh model, which must have their shape (see `read_initial`).

    The first stage may be shorter or longer: of a table of positions the first rows are taken, and what it lacks stays
    as in the fresh model. What is new is a function of the cell's seed; the random state is left as it was.
    Raises UserError with every difference of the shapes, and as `read_initial` does.
    """
    assert isinstance(model.cell.model, MBLMConfig), "a byte model's cell has a byte model's configuration"
    found = _find(source, reference_config)
    weights = _read(found)
    check_shape(model.cell.model, as_config(weights.config), source=str(source))
    grown = _grown(weights, found, seed=model.cell.seed)
    notes = [*found.notes, *_differences(model, weights)]
    state = grown.to(model.mblm.to_logits.weight.dtype).state_dict()
    if POSITIONS in state:
        fresh = model.mblm.state_dict()[POSITIONS]
        state[POSITIONS] = torch.cat((state[POSITIONS][: len(fresh)].to(fresh), fresh[len(state[POSITIONS]) :]))
    model.mblm.load_state_dict(state)
    return Initial(file_info(found.weights).sha256, notes)


def read_initial(source: Path, reference_config: Path | None = None) -> MBLM:
    """The byte model of a run, a checkpoint folder (a pretraining run is one) or a reference `.pth`, with our ids.

    reference_config: what a `.pth` was trained with, a YAML or JSON file; by default the file beside it that has its
    name, else `config.yaml`. New rows of the vocabulary are as in a new model with seed 0; the random state is left as
    it was. Raises UserError where there are no such weights, where they are damaged or do not fit their configuration,
    and where their ids cannot become ours.
    """
    found = _find(source, reference_config)
    return _grown(_read(found), found, seed=0)


def model_config_of(source: Path, reference_config: Path | None = None) -> MBLMConfig:
    """The shape of the weights of `source` as a model's configuration; reads them, and raises as `read_initial`."""
    return as_config(read_initial(source, reference_config).config)


def check_initial(model: MBLMConfig, source: Path, reference_config: Path | None = None) -> None:
    """UserError for whatever would keep `load_initial` from giving a cell's model the weights of `source`."""
    check_shape(model, model_config_of(source, reference_config), source=str(source))


def files_of(source: Path, reference_config: Path | None = None) -> list[Path]:
    """The files that weights and their configuration are read from; UserError where there are none."""
    found = _find(source, reference_config)
    return [found.weights, found.config]


def freeze(model: ByteModel, patterns: Sequence[str]) -> list[str]:
    """Stop training the byte model's parameters that a pattern (as file names have them) fits; returns their names.

    Raises UserError for a pattern that fits none, and where nothing would be left to train.
    """
    parameters = dict(model.mblm.named_parameters())
    idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in parameters)]
    if idle:
        shown = ", ".join(list(parameters)[:: max(1, len(parameters) // NAMES_SHOWN)])
        raise UserError(
            f"freeze: expected patterns that fit parameters of the model, such as {shown}, got {', '.join(idle)}; "
            "write stage_models.0.* for the first stage"
        )
    frozen = [name for name in parameters if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if len(frozen) == len(parameters):
        raise UserError(
            f"freeze: expected some of the model's {len(parameters)} parameters to be left to train, got patterns that "
            f"fit all of them ({', '.join(patterns)}); freeze fewer"
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


# -- finding ------------------------------------------------------------------------------------------------------


def _weights_of(source: Path) -> Path:
    """The file with the weights."""
    wanted = "expected a finished run, a folder with model.safetensors and config.json, or a .pth of the reference"
    if not source.exists():
        raise UserError(f"{wanted}, got {source}: no such file or folder; name another")
    if source.is_dir():
        for name in (CONFIG, WEIGHTS):
            if not (source / name).is_file():
                raise UserError(
                    f"{wanted}, got {source} without {name}; name the folder of one run, trained to its end"
                )
        return source / WEIGHTS
    if source.suffix not in REFERENCE:
        raise UserError(f"{wanted}, got the file {source}; name one of these, or the folder it lies in")
    return source


def _find(source: Path, reference_config: Path | None) -> _Source:
    weights = _weights_of(source)
    if source.is_dir():
        if reference_config is not None:
            raise UserError(
                f"expected a configuration beside a .pth only, got {reference_config} for {source}, which has its own; "
                "leave it out"
            )
        content = _content(source / CONFIG)
        kind: Literal["run", "folder"] = "run" if "cell" in content else "folder"
        return _Source(kind, weights, source / CONFIG, content)
    if reference_config is not None:
        return _Source("reference", weights, reference_config)
    config = _beside(source)
    return _Source("reference", weights, config, notes=[f"read with the configuration beside them, {config.name}"])


def _content(path: Path) -> dict[str, Any]:
    """The configuration of a folder, of a kind that weights can be taken from."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"expected JSON in {path}, got: {error}; name another folder") from error
    if isinstance(content, dict) and content.get("architecture") == "MBLMEncoder":
        raise UserError(
            f"expected the weights of a model that predicts the next byte (MBLM), got those of a masked one "
            f"(MBLMEncoder) in {path.parent}; begin from a model of kind mblm"
        )
    if not isinstance(content, dict) or not {"cell", "architecture"} & set(content):
        raise UserError(
            f"expected `cell` (of a run) or `architecture` (of a checkpoint) in {path}, got neither; name another"
        )
    return content


def _beside(source: Path) -> Path:
    """The configuration of a `.pth`: the file of its name, else `config.yaml`, never one of several."""
    named = [source.with_suffix(suffix) for suffix in (".yaml", ".yml", ".json")]
    there = [path for path in named if path.is_file()]
    if not there and (shared := source.with_name("config.yaml")).is_file():
        there = [shared]
    if len(there) != 1:
        got = " and ".join(path.name for path in there) or "none"
        raise UserError(
            f"expected what {source} was trained with beside it, one of {', '.join(path.name for path in named)}, or "
            f"config.yaml, got {got}; name the file (--reference-config, or `config` beside `path`)"
        )
    return there[0]


# -- reading ------------------------------------------------------------------------------------------------------


def _read(found: _Source) -> MBLM:
    """The model as it is stored, whatever its ids; the random state is left as it was."""
    try:
        with torch.random.fork_rng(devices=[]):
            if found.kind == "run":
                return _read_run(found)
            if found.kind == "folder":
                return from_pretrained(found.weights.parent)
            return load_reference(found.weights, found.config)
    except (ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _read_run(found: _Source) -> MBLM:
    cell = parse(CellConfig, found.content["cell"], str(found.config))
    if not isinstance(cell.model, MBLMConfig):
        raise UserError(f"expected the run of a byte model, got {found.config.parent} of kind {cell.model.kind}")
    try:
        stored = load_file(found.weights)
    except SafetensorError as error:
        raise UserError(f"expected weights in {found.weights}, got: {error}; train the cell again") from error
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    return filled(MBLM, hierarchy_config(cell.model), weights, source=str(found.weights)).eval()


def _grown(weights: MBLM, found: _Source, *, seed: int) -> MBLM:
    """The same with our ids."""
    had, pad = weights.config.num_tokens, weights.config.pad_token_id
    if (had, pad) == (VOCAB_SIZE, PAD):
        return weights
    if had > VOCAB_SIZE or (pad != PAD and had > PAD):
        raise UserError(
            f"{found.weights}: expected ids that can grow to {VOCAB_SIZE} with {PAD} as the pad, got {had} with pad "
            f"{pad}; begin from weights of the {PAD} bytes alone"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: a GPU's state is nobody's to change here
        return grow_vocabulary(weights, VOCAB_SIZE, PAD)


def _differences(model: ByteModel, weights: MBLM) -> list[str]:
    """What becomes of weights whose shape fits, in words."""
    assert isinstance(model.cell.model, MBLMConfig)
    notes = []
    had, pad = weights.config.num_tokens, weights.config.pad_token_id
    if (had, pad) != (VOCAB_SIZE, PAD):
        moved = "" if pad == PAD else f"; the pad moved from id {pad} to {PAD}"
        notes.append(f"vocabulary of {had} ids grown to {VOCAB_SIZE}, the new ones as in a new model{moved}")
    stored, ours = weights.to_logits.weight.dtype, model.mblm.to_logits.weight.dtype
    if stored != ours:
        notes.append(f"weights stored as {_name(stored)} are trained as {_name(ours)}")
    notes += _length_note(model.mblm, weights)
    if model.cell.model.byte_init != "normal":
        notes.append(
            f"byte_init: {model.cell.model.byte_init} had no effect: the vectors of bytes come with the weights"
        )
    return notes


def _length_note(model: MBLM, weights: MBLM) -> list[str]:
    length, stored = model.seq_lens[0], weights.seq_lens[0]
    if length == stored:
        return []
    change = f"first stage of {length} positions from one of {stored}"
    if POSITIONS not in model.state_dict():
        return [f"{change}, which has no table of positions: nothing had to change"]
    if length < stored:
        return [f"{change}: the first {length} rows of its table of positions were taken"]
    return [f"{change}: the other {length - stored} rows of its table of positions are as in a new model"]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
