// Makes the library of a build for the kernels hub importable by Python. The operators are registered where they are
// bound: csrc/ops.cpp and csrc/cuda/binding.cpp.
#include "registration.h"  // kernel-builder's

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
