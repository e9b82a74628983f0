"""What an experiment is, as typed values: unknown keys are errors, and every error names its place in the file.

A file describes one matrix: its data, a `base` that all cells share, and the cells. This file computes nothing and
imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.sequences import SequenceConfig
from vqa_bench.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SynthConfig(_Strict):
    """Data that the built-in generator makes. images: images a split, where not the preset's own."""

    preset: str
    seed: int = 0
    images: dict[str, int] | None = None


class DataConfig(_Strict):
    """Where the questions and pictures come from: the generator (`synth`) or a CLEVR `folder`, one of the two."""

    synth: SynthConfig | None = None
    folder: Path | None = None
    dev_fraction: float = Field(default=0.05, ge=0, lt=1)
    dev_seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.synth is None) == (self.folder is None):
            raise ValueError("expected either `synth` or `folder`")
        return self


class TransformerStageConfig(_Strict):
    """A transformer stage: `heads` of `head_dim` channels; positions `fixed`, `rope` or none."""

    kind: Literal["transformer"] = "transformer"
    heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    rotary: bool = True
    positions: Literal["fixed", "rope"] | None = "fixed"
    ff_multiplier: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class MBLMConfig(_Strict):
    """The byte model: a list entry a stage, from the most global to the local one.

    byte_init: how the vectors of the 256 bytes begin. `normal` is PyTorch's, each for itself; with `smooth`, half of
    the channels are slow waves over the byte's value, so that pixels of nearly the same brightness begin alike.
    """

    kind: Literal["mblm"] = "mblm"
    hidden_dims: list[int]
    seq_lens: list[int]
    num_layers: list[int]
    stages: list[TransformerStageConfig]
    byte_init: Literal["normal", "smooth"] = "normal"


class _QuestionReaderConfig(_Strict):
    """An LSTM over words and an MLP: what the trained baselines have in common."""

    embedding: int = 64
    hidden: int = 128
    layers: int = 1
    mlp_hidden: int = 256
    dropout: float = Field(default=0.0, ge=0, lt=1)


class CNNLSTMConfig(_QuestionReaderConfig):
    """The sighted baseline: a small CNN over the decoded picture, an LSTM over words, an MLP over both."""

    kind: Literal["cnn_lstm"] = "cnn_lstm"
    channels: list[int] = [32, 64, 64]
    strides: list[int] = [1, 2, 2]


class LSTMConfig(_QuestionReaderConfig):
    """The question-only baseline: an LSTM over words and an MLP."""

    kind: Literal["lstm"] = "lstm"


class MajorityConfig(_Strict):
    """The commonest training answer, per question type or over all questions."""

    kind: Literal["majority"] = "majority"
    per_type: bool = True


ModelConfig = Annotated[MBLMConfig | CNNLSTMConfig | LSTMConfig | MajorityConfig, Field(discriminator="kind")]


class TrainConfig(_Strict):
    """The optimisation: AdamW, linear warm-up over a share of the steps, then a cosine to zero.

    questions_per_image: how many questions an image has in a batch, drawn anew each epoch; None takes all.
    accumulate: batches that one optimiser step adds up. precision: autocast through accelerate. matmul_precision:
    PyTorch's `set_float32_matmul_precision` while training (`medium`: float32 matrices are multiplied in bfloat16 where
    the processor has it); scoring is always in full precision. threads: of PyTorch on the CPU, None for its default;
    fixed, so that sums are taken in the same order whatever else runs.
    """

    steps: int = Field(ge=1)
    images_per_batch: int = Field(ge=1)
    questions_per_image: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["no", "bf16", "fp16"] = "no"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    threads: int | None = Field(default=None, ge=1)


class EvaluateConfig(_Strict):
    """How the test set is scored: images in a batch (their questions come along), and whether also shuffled."""

    images_per_batch: int = Field(default=50, ge=1)
    shuffled: bool = True


class CellConfig(_Strict):
    """One row of the matrix. encoding: how images become bytes; None for models that never see one."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    encoding: str | None = None
    sequence: SequenceConfig = SequenceConfig()
    model: ModelConfig
    train: TrainConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = Field(default=0, ge=0)

    @field_validator("encoding")
    @classmethod
    def _canonical(cls, encoding: str | None) -> str | None:
        return None if encoding is None else str(parse_spec(encoding))

    @model_validator(mode="after")
    def _check(self) -> CellConfig:
        sighted = self.model.kind in ("mblm", "cnn_lstm")
        if sighted and self.encoding is None:
            raise ValueError(f"a model of kind {self.model.kind} sees images: expected an `encoding`")
        if (self.train is None) != (self.model.kind == "majority"):
            raise ValueError(
                "expected no `train` for a majority model, and one for every other"
                if self.train is not None
                else f"expected `train` for a model of kind {self.model.kind}"
            )
        return self


class MatrixConfig(_Strict):
    """A named experiment: data, and the cells to fill."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    data: DataConfig
    cells: list[CellConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_names(self) -> MatrixConfig:
        names = [cell.name for cell in self.cells]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"expected every cell to have its own name, got {', '.join(repeated)} more than once")
        return self

    def cell(self, name: str) -> CellConfig:
        """The cell of that name; UserError with the names there are otherwise."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise UserError(f"expected one of the cells {', '.join(cell.name for cell in self.cells)}, got {name!r}")


def load_matrix(path: Path) -> MatrixConfig:
    """Read a matrix from YAML. Each cell is `base` (or the entry of `bases` it names) with its own keys laid over it.

    Raises UserError for a file that is missing, not YAML, or has unknown or wrong keys, all of them at once.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"expected a configuration file, got {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"expected YAML, got {path}: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list):
        raise UserError(f"expected a mapping with a list of `cells`, got {path} without one")
    bases = raw.pop("bases", None) or {}
    if not isinstance(bases, dict):
        raise UserError(f"{path}: expected `bases` to be a mapping of names to cells, got {bases!r}")
    raw["cells"] = [_with_base(cell, bases, path) for cell in raw["cells"]]
    return parse(MatrixConfig, raw, str(path))


def _with_base(cell: Any, bases: dict[str, Any], path: Path) -> Any:
    if not isinstance(cell, dict) or "base" not in cell:
        return cell
    cell = dict(cell)
    base = cell.pop("base")
    if not isinstance(base, str) or base not in bases:
        raise UserError(f"{path}: expected a base among {', '.join(sorted(bases)) or '(none)'}, got {base!r}")
    return overlay(bases[base], cell)


def overlay(below: Any, above: Any) -> Any:
    """Mappings are merged key by key, everything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: overlay(below[key], value) if key in below else value for key, value in above.items()}
    return above


def parse(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a typed config; UserError naming every fault and its place."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'top level'}: {_fault(fault)}" for fault in error.errors()]
        raise UserError(f"{where}: {'; '.join(faults)}") from error


def _fault(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown key"
    return str(fault["msg"]).removeprefix("Value error, ") + (
        f", got {fault['input']!r}" if fault["type"] != "value_error" and fault["type"] != "missing" else ""
    )
