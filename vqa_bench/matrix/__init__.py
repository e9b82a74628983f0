"""A whole experiment: make or find the data, check everything, train and answer each cell, skip what is finished.

The only place that knows in which order things happen. Data sets come from outside (`Warehouse`), so that nothing here
need know how they are made.

cells.py    what there is to train, and the keys it is recognised by
sources.py  data sets, shards and books, each made once
prepare.py  everything that can be wrong before the first run trains
folder.py   a run folder begun, taken up again, or refused
fill.py     one run from its beginning to its end
work.py     one run after another, beside other processes
workers.py  several workers: processes, jobs
locks.py    locks that end with their process
run.py      all of it
"""

from vqa_bench.matrix.cells import Cell, Pretraining
from vqa_bench.matrix.folder import Invocation
from vqa_bench.matrix.run import How, plan, run_matrix
from vqa_bench.matrix.sources import FindSource, Source, Warehouse
from vqa_bench.matrix.workers import Cluster

__all__ = [
    "Cell",
    "Cluster",
    "FindSource",
    "How",
    "Invocation",
    "Pretraining",
    "Source",
    "Warehouse",
    "plan",
    "run_matrix",
]
