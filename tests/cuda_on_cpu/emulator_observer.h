// What the scheduler tells a checker about the run of a kernel. Only the build that checks races has one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace ssmvdm::emulator {

struct Range {
  uintptr_t begin = 0, end = 0;
  bool contains(uintptr_t address) const { return begin <= address && address < end; }
};

class Observer {
 public:
  virtual void launch_begins(const Range& stacks, const Range& static_shared) = 0;
  // Everything that was found, in words; empty: nothing.
  virtual std::string launch_ends() = 0;
  virtual void block_begins(const Range& dynamic_shared, int threads) = 0;
  // `thread` runs from now on; -1 is the scheduler.
  virtual void switches_to(int thread) = 0;
  // The warps of the set have met: what any of them did before is visible to all of them after.
  virtual void warps_meet(uint32_t warps) = 0;
  virtual void atomic_access(uintptr_t address, std::size_t bytes, const void* code) = 0;
};

extern Observer* observer;  // null: none

}  // namespace ssmvdm::emulator
