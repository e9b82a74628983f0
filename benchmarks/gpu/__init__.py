"""What a GPU makes of the suite, in one command: `make gpu`, or `python -m benchmarks.gpu`.

__main__.py   the command line; runs each part in a process of its own
wheels.py     packages that a machine without network is given as files
run.py        one part in this process: its table and its file
parts.py      the parts, how they share the time, what a part reports
bench.py      what a part is given: sizes, a budget of time, results that are kept
device.py     the machine: facts, times, memory, and the rates that everything is held against
kernels.py    our PyTorch code against fused kernels, on the GPU against float64
speed.py      training and scoring: bytes a second, share of the matrix rate, memory
length.py     contexts of millions of bytes in one step
peer.py       the reference implementation, same shapes, same process order
accuracy.py   cells that are trained for equal times
counts.py     FLOPs, bytes and memory of a step, counted without running it
predict.py    what those counts say of a GPU that is not at hand
"""
