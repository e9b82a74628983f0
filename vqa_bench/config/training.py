"""The optimisation as plain values: what every training has, and how a batch is counted for questions and for text."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vqa_bench.config.base import Duration, Strict

Beta = Annotated[float, Field(ge=0, lt=1)]
"""How much of a moment AdamW keeps."""


class DevConfig(Strict):
    """Evaluation while training, on data that is not trained on.

    every: optimiser steps between two. samples: how many images (for questions) or windows (for text), from the start
    of the split; None takes all. metric: what the best is chosen by; `accuracy` exists for questions only. keep: how
    many of the best stay on disk. patience: so many evaluations without a better one end the training. use: the
    weights that are kept in the end and answer the test set.
    """

    every: int = Field(ge=1)
    samples: int | None = Field(default=None, ge=1)
    metric: Literal["accuracy", "loss"] = "loss"
    keep: int = Field(default=1, ge=1)
    patience: int | None = Field(default=None, ge=1)
    use: Literal["best", "last"] = "best"


class CheckpointConfig(Strict):
    """When the whole state is written, from which the same command goes on: after so much time, or so many steps."""

    time: Duration | None = Field(default=300.0, gt=0)
    steps: int | None = Field(default=None, ge=1)


class LoopConfig(Strict):
    """The optimisation: AdamW, linear warm-up over a share of the steps, then a cosine to zero.

    accumulate: batches that one optimiser step adds up. precision: autocast. matmul_precision: PyTorch's
    `set_float32_matmul_precision` while training (`medium`: float32 matrices are multiplied in bfloat16 where the
    processor has it); scoring is always in full precision. ema: decay of the moving average of the weights, which is
    then what is evaluated and saved. compile: layers are compiled. parallel: `fsdp` shares weights, gradients and
    optimiser out over the processes, `ddp` copies them; with one process `ddp` means nothing. processes: how many
    there must be; None takes what was launched. threads: of PyTorch on the CPU, None for its default; fixed, so that
    sums are taken in the same order whatever else runs. workers: processes that prepare batches; None is 0 on a CPU
    and 4 on a GPU. max_time: training ends after so much time, all starts counted, and says so.
    """

    # What changes neither weights nor answers but by rounding (and where several processes draw dropout): left out
    # where a run is recognised by its configuration.
    NO_MATTER: ClassVar[frozenset[str]] = frozenset(
        {"workers", "checkpoint", "trackers", "log_every", "processes", "parallel"}
    )

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    warmup: float = Field(default=0.1, ge=0, le=1)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip: float | None = Field(default=1.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["no", "bf16", "fp16"] = "no"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    ema: float | None = Field(default=None, gt=0, lt=1)
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    processes: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1, le=1024)
    workers: int | None = Field(default=None, ge=0)
    max_time: Duration | None = Field(default=None, gt=0, allow_inf_nan=False)
    dev: DevConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: int = Field(default=20, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def outcome(self) -> dict[str, Any]:
        """The settings that the trained weights depend on, JSON-able."""
        return self.model_dump(mode="json", exclude=set(self.NO_MATTER))


class TrainConfig(LoopConfig):
    """Training on questions. Batches are built by image, over all processes together.

    questions_per_image: how many questions an image has in a batch, drawn anew each epoch; None takes all.
    """

    images_per_batch: int = Field(ge=1)
    questions_per_image: int | None = Field(default=None, ge=1)


class TextTrainConfig(LoopConfig):
    """Training on windows of text. windows_per_batch: over all processes together."""

    windows_per_batch: int = Field(ge=1)

    @model_validator(mode="after")
    def _no_answers(self) -> TextTrainConfig:
        if self.dev is not None and self.dev.metric != "loss":
            raise ValueError(f"dev.metric: expected loss, as text has no answers, got {self.dev.metric}")
        return self
