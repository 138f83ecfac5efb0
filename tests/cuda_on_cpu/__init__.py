"""The CUDA kernels on the CPU: compiled as C++ and run by an emulator, under three kinds of checks."""
