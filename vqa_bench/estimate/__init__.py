"""What a cell or a pretraining run will cost, before it trains: parameters, bytes, FLOPs, memory and time.

samples.py  lengths of pictures and questions, from the shard or from a guess that says so
load.py     which stage reads how many sequences of how many positions
flops.py    of those
memory.py   of a training step
speed.py    how fast this machine is
work.py     one batch of any model
cost.py     the estimates themselves, and whether one fits the device
table.py    a plan of several to be read

Nothing here needs data, trains or writes. Numbers that rest on a guess are named in `Estimate.guesses`.
"""

from vqa_bench.estimate.cost import Estimate, check_memory, estimate, estimate_pretraining
from vqa_bench.estimate.memory import Memory
from vqa_bench.estimate.table import plan_text

__all__ = ["Estimate", "Memory", "check_memory", "estimate", "estimate_pretraining", "plan_text"]
