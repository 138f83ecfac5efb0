// What the CUDA library was compiled for. Plain C++: included by the kernel file and by the torch binding.
#pragma once

namespace ssmvdm::cuda {

// Version of the CUDA runtime linked in, as 1000 * major + 10 * minor.
int toolkit_version();

// Runs a one-thread kernel on the current device and stores the architecture (capability times 100) whose code the
// driver chose. Returns null, or the CUDA runtime's sentence on what failed.
const char* running_architecture(int* architecture);

}  // namespace ssmvdm::cuda
