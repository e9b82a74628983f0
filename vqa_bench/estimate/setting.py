"""Where and how a run trains: its loop, the processes and their device; what a batch's work comes to there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vqa_bench import launch
from vqa_bench.config import HierarchyConfig, LoopConfig
from vqa_bench.estimate.load import Load, Rules
from vqa_bench.estimate.memory import Memory, step_memory
from vqa_bench.estimate.speed import measured_rates
from vqa_bench.estimate.work import Work, hierarchy_work


@dataclass(frozen=True)
class Setting:
    """Where and how a run trains: its loop, the processes and their device."""

    loop: LoopConfig
    processes: int
    device: torch.device

    @classmethod
    def of(cls, loop: LoopConfig, device: torch.device | None) -> Setting:
        """What is asked for, else what was launched; a GPU where there is one."""
        found = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        return cls(loop, launch.world() if loop.processes is None else loop.processes, found)

    @property
    def half(self) -> bool:
        """Whether matrix products are in a 16-bit type."""
        return self.loop.precision != "no"

    @property
    def rules(self) -> Rules:
        """How the model is run here."""
        return Rules(cpu=self.device.type == "cpu", same_calls=self.loop.parallel == "fsdp")

    def memory(self, parameters: int, trainable: int, work: Work) -> Memory:
        """Of one process."""
        return step_memory(
            parameters,
            trainable,
            self.loop,
            self.processes,
            activations=work.activations,
            workspace=work.workspace,
        )

    def hierarchy_work(self, config: HierarchyConfig, load: Load, stage_parameters: Sequence[int]) -> Work:
        """One process's share of a batch."""
        return hierarchy_work(config, load.scaled(1 / self.processes), stage_parameters, self.rules, half=self.half)

    def seconds(self, work: Work, trainable: int) -> float:
        """Of an optimiser step: its batches one after another, then the update."""
        rates = measured_rates(
            self.device,
            tuple(sorted(work.flops)),
            threads=self.loop.threads,
            half=self.half,
            matmul_precision=self.loop.matmul_precision,
        )
        batch = rates.step_seconds(work.flops, traffic=work.traffic, weights=0.0)
        return self.loop.accumulate * batch + rates.step_seconds({}, traffic=0.0, weights=4.0 * trainable)
