"""What a stage of the hierarchy is: its configuration, its module protocol, and the registry YAML is parsed with.

Shapes: B batch, S positions of one stage (the start position included), D the stage's width, K branches of one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

PositionType = Literal["fixed", "rope"]


class StageBlock(BaseModel, ABC):
    """Configuration of one stage; subclass it to plug in any causal module.

    A subclass has a `block_type` and builds its module in `to_model`. Unknown keys are errors, so that a YAML block
    is only ever taken for the block it was written for.
    """

    model_config = ConfigDict(extra="forbid")

    # False for a bidirectional stage: only the masked model takes it, and gives its module the real positions beside x.
    causal: ClassVar[bool] = True

    block_type: str = Field(description="a name for the block")
    pos_emb_type: PositionType | None = Field(default=None, description="positions added to the stage's input")

    @abstractmethod
    def to_model(self, model_dim: int, num_layers: int) -> nn.Module:
        """Build the stage: a causal module that maps (B, S, model_dim) to (B, S, model_dim)."""


class StageState(Protocol):
    """What a stage remembers of the positions it has read, for a batch of rows."""

    def expand(self, branches: int) -> StageState:
        """Every row becomes `branches` neighbouring rows; what the branches have in common is not copied."""

    def select(self, width: int, parents: Tensor) -> StageState:
        """Rows are groups of `width`; in each group, new row i continues old row `parents[i]`."""


@runtime_checkable
class IncrementalStage(Protocol):
    """A stage that can continue where it stopped. All three are differentiable and equal `forward` on the whole."""

    def prefix(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, StageState]:
        """Read (B, S, D) from the beginning: outputs (B, S, D) and the state behind them.

        `lengths` (B,), at least 1: only so many positions of each row are real, and the state stands behind them;
        outputs past them are meaningless.
        """

    def branch(self, x: Tensor, state: StageState, lengths: Tensor | None = None) -> tuple[Tensor, StageState]:
        """Continue each of B rows with K suffixes: (B, K, S, D) → (B, K, S, D) and a state of B·K rows.

        `lengths` (B, K), at least 1: as for `prefix`, of each suffix.
        """

    def step(self, x: Tensor, state: StageState) -> tuple[Tensor, StageState]:
        """Continue every row by one position: (B, D) → (B, D)."""


class RecomputeState:
    """The inputs read so far, (B, S, D), with `lengths` (B,) real positions: the state of a stage without its own."""

    def __init__(self, inputs: Tensor, lengths: Tensor) -> None:
        self.inputs, self.lengths = inputs, lengths

    def expand(self, branches: int) -> RecomputeState:
        return RecomputeState(self.inputs.repeat_interleave(branches, 0), self.lengths.repeat_interleave(branches, 0))

    def select(self, width: int, parents: Tensor) -> RecomputeState:
        rows = group_rows(self.inputs.shape[0], width, parents)
        return RecomputeState(self.inputs[rows], self.lengths[rows])


class Recompute:
    """Gives any causal stage the incremental protocol by running its own sequence again from the start."""

    def __init__(self, stage: nn.Module) -> None:
        self.stage = stage

    def prefix(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, RecomputeState]:
        if lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[1], dtype=torch.long, device=x.device)
        return self.stage(x), RecomputeState(x, lengths)

    def branch(self, x: Tensor, state: RecomputeState, lengths: Tensor | None = None) -> tuple[Tensor, RecomputeState]:
        B, K, S, D = x.shape
        past = state.expand(K)
        rows = torch.arange(B * K, device=x.device)[:, None]
        columns = past.lengths[:, None] + torch.arange(S, device=x.device)  # (B·K, S): where the suffix goes
        whole = torch.cat((past.inputs, past.inputs.new_zeros(B * K, S, D)), dim=1)
        whole = whole.index_put((rows, columns), x.reshape(B * K, S, D))
        y = self.stage(whole)[rows, columns].view(B, K, S, D)
        added = torch.full_like(past.lengths, S) if lengths is None else lengths.reshape(B * K)
        return y, RecomputeState(whole, past.lengths + added)

    def step(self, x: Tensor, state: RecomputeState) -> tuple[Tensor, RecomputeState]:
        y, state = self.branch(x[:, None, None], state)
        return y[:, 0, 0], state


def incremental(stage: nn.Module) -> IncrementalStage:
    """The stage itself where it can continue, else a wrapper that recomputes its sequence."""
    return stage if isinstance(stage, IncrementalStage) else cast(IncrementalStage, Recompute(stage))


def group_rows(rows: int, width: int, parents: Tensor) -> Tensor:
    """Row indices for `StageState.select`: (rows / width · len(parents),)."""
    groups = torch.arange(rows // width, device=parents.device)
    return (groups[:, None] * width + parents).reshape(-1)


BlockType = TypeVar("BlockType", bound=type[StageBlock])


class StageBlockRegistry:
    """Stage blocks that a parsed YAML block may turn out to be, tried in the order of their registration."""

    def __init__(self) -> None:
        self._blocks: list[type[StageBlock]] = []

    def register(self, block: BlockType | None = None) -> Any:
        """Register a block class: as `@registry.register()`, or as `registry.register(Block)`."""

        def add(cls: BlockType) -> BlockType:
            name = (cls.__module__, cls.__qualname__)
            for at, known in enumerate(self._blocks):
                if (known.__module__, known.__qualname__) == name:  # defined again, as in a notebook
                    self._blocks[at] = cls
                    return cls
            self._blocks.append(cls)
            return cls

        decorator: Callable[[BlockType], BlockType] = add
        return decorator if block is None else add(block)

    def parse(self, data: Any) -> StageBlock:
        """The first registered block that accepts `data`; ValueError with every block's complaint otherwise.

        Data that names its `block_type` is only tried with the blocks of that type, where there are any.
        """
        complaints = []
        kind = data.get("block_type") if isinstance(data, Mapping) else None
        named = [block for block in self._blocks if block.model_fields["block_type"].default == kind]
        for block in named if kind is not None and named else self._blocks:
            try:
                return block.model_validate(data)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                complaints.append(f"{block.__name__}: {where}: {first['msg']}" if where else first["msg"])
        raise ValueError(f"the block {data!r} fits none of the registered blocks ({'; '.join(complaints)})")
