"""Planted bugs, one at a time, in the sources of the CPU, the CUDA and the Triton kernels: does the suite see them?

python -m tests.mutants [words]: the mutants whose names have all of the words. `table.md` has what came out.
"""
