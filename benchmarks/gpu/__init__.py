"""What a GPU makes of the suite, in one command: `make gpu`, or `python -m benchmarks.gpu`.

The frame
    __main__.py          the command line; runs the parts, on a GPU each in a process of its own
    wheels.py            packages that a machine without network is given as files
    run.py               one part in this process: its table and its file
    parts.py             the parts, how they share the time, what a part reports
    bench.py             what a part is given: sizes, a budget of time, results that are kept
    device.py            the machine: facts, times, memory, and the rates that everything is held against
    shapes.py            the paper's models, and contexts of millions of bytes
    training.py          one optimiser step, as training takes it

kernels.py               part: our PyTorch code against fused kernels, on the GPU against float64
    parity.py            how far apart two ways to compute the same are
    attention.py         which of PyTorch's attention kernels run, and how long each takes

speed.py                 part: training, scoring and generation: bytes a second, share of the matrix rate, memory
    speed_cases.py       what a step is timed on, and its counted FLOPs
    speed_step.py        a case's step, as it is or compiled
    speed_profile.py     where its time goes
    speed_scoring.py     answering questions
    speed_rows.py        results become rows and remarks
    generation.py        bytes written

length.py                part: contexts of millions of bytes in one step

peer.py                  part: the reference implementation, same shapes, same run
    peer_rows.py         results become rows, and whether both compute the same

accuracy.py              part: cells that are trained for equal times
    accuracy_cells.py    which cells, and how the time is shared
    accuracy_train.py    one cell, trained and tested
    accuracy_fill.py     as many steps as the time holds
    accuracy_report.py   results become rows, with intervals
    pictures.py          a command: scenes and questions, drawn ahead

predict.py               a command: what counts say of a GPU that is not at hand
    predict_steps.py     of which steps
    predict_rows.py      rows, what limits each, what to try next
    counts.py            FLOPs, bytes and memory of a step, counted while it runs
    imagined.py          a GPU without memory that the same code runs on
    imagined_scan.py     mamba-ssm's scan on it
    roofline.py          counted work under a machine's ceilings
"""
