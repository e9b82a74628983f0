"""Imported once by the server that starts commands for tests: everything slow to import that commands need."""

import importlib

import torch

for name in (
    "accelerate",
    "datasets",
    "torch._dynamo",  # what the first optimiser imports
    "torch.distributed.fsdp",
    "vqa_bench.matrix.fill",
    "vqa_bench.scoring.evaluate",
    "vqa_bench.train",
):
    importlib.import_module(name)

# Nothing here may start threads or open a device: processes are forked from this state.
torch.set_num_threads(1)
