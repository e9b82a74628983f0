"""Training: one accelerate loop for everything that learns by steps, which goes on exactly where it was stopped.

task.py          what the loop trains
loop.py          the loop
keep.py          which weights are kept
optimisation.py  AdamW's groups, the learning rate, the moving average
state.py         checkpoints to go on from
log.py           what a run writes down while it trains
vqa.py           questions about images, as a task
text.py          text, as a task; pretraining
cell.py          a cell's training
"""

from vqa_bench.train.cell import train
from vqa_bench.train.keep import facts_of, is_trained
from vqa_bench.train.loop import optimise

__all__ = ["facts_of", "is_trained", "optimise", "train"]
