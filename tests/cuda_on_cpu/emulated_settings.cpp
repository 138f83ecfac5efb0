// How the emulated operators run, for a program that has only a handle of their library.
#include "emulator_control.h"

using namespace ssmvdm::emulator;

extern "C" {

__attribute__((visibility("default"))) void ssmvdm_configure(int multiprocessors, int shared_bytes, int order,
                                                             unsigned seed, bool exact_functions) {
  settings() = {multiprocessors, shared_bytes, Order(order), seed, exact_functions};
}

__attribute__((visibility("default"))) int ssmvdm_launches() { return int(counters().launches); }

}
