"""The operators in Triton, for NVIDIA and AMD GPUs, and for CPU tensors where Triton's interpreter is switched on.

A program walks the recurrence in order for a tile of channels x lanes, with up to 16 states of each element in
registers; more states take one launch per 16. Both directions of the forward pass run in one program, one after the
other: the first leaves its part of y in memory, the second adds, gates and stores. Everything is float32 from the load
to the store, every sum has a fixed order, and nothing is atomic.

States are an axis of the tensors and not a tuple of tensors: a kernel compiles in seconds, and in the backward scan a
thread can have four states of four channels, so that it loads four numbers of B for 16 products, and not 16.

Where lanes are contiguous in memory the tile lies along lanes and each of them reads its own B and C; otherwise it
lies along channels, which share them. A tensor whose lanes have no common stride is copied.

    layout.py          how kernels see tensors, tiles, the division of work
    arithmetic.py      functions of the kernels
    scan_walk.py       the recurrence, as forward and backward run it
    scan_forward.py    scan_backward.py    s4d.py    conv.py    kernels and launches
"""
