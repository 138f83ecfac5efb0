// The race checker. Kernels are compiled with -fsanitize=thread, so every access to memory calls a function of that
// sanitizer's run time; here are these functions, with CUDA's order of accesses in the place of the CPU's:
//
//   * a barrier orders the warps that meet at it, __syncwarp over a whole warp orders its lanes;
//   * shuffles and votes order nothing, and nothing orders two blocks of one launch;
//   * launches follow one another.
//
// Two accesses to the same byte, one of them a write, that are neither ordered nor both atomic are a race, in whatever
// order the emulator happened to run them. So is a read of shared memory that no thread of the block wrote.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include <cuda_runtime.h>

#include "emulator_observer.h"

extern uint3 blockIdx;

namespace ssmvdm::emulator {
namespace {

constexpr int kMaxWarps = 32;

// When a warp did something, as others see it: everything up to `clock` of a warp that has been met is ordered.
struct Stamp {
  uint32_t block = 0;  // serial number of the block, over all launches; 0: never
  uint32_t clock = 0;
  int16_t thread = 0;
  bool is_atomic = false;
  const void* code = nullptr;
};

// Reads of one byte since its last write: the latest by each warp, if more than one thread has read it.
struct Readers {
  Stamp of_warp[kMaxWarps];
  bool by_several_lanes[kMaxWarps];
};

struct Cell {
  Stamp write, read;
  std::unique_ptr<Readers> readers;
  bool was_read_by_earlier_block = false;  // of the launch that `read` belongs to
};

class RaceChecker final : public Observer {
 public:
  void launch_begins(const Range& stacks, const Range& static_shared) override {
    stacks_ = stacks, static_shared_ = static_shared;
    first_block_ = block_ + 1;
    reported_.clear();
    problems_.clear();
  }
  std::string launch_ends() override { return problems_; }
  void block_begins(const Range& dynamic_shared, int) override {
    ++block_;
    dynamic_shared_ = dynamic_shared;
    for (int w = 0; w < kMaxWarps; ++w) clock_[w] = 1;
    std::memset(seen_, 0, sizeof seen_);
  }
  void switches_to(int thread) override { thread_ = thread; }
  void warps_meet(uint32_t warps) override {
    uint32_t all[kMaxWarps] = {};
    for (int w = 0; w < kMaxWarps; ++w)
      if (warps >> w & 1)
        for (int other = 0; other < kMaxWarps; ++other) all[other] = std::max(all[other], seen_[w][other]);
    for (int w = 0; w < kMaxWarps; ++w)
      if (warps >> w & 1) all[w] = clock_[w]++;
    for (int w = 0; w < kMaxWarps; ++w)
      if (warps >> w & 1) std::copy(all, all + kMaxWarps, seen_[w]);
  }
  void atomic_access(uintptr_t address, std::size_t bytes, const void* code) override {
    access(address, bytes, true, true, code);
  }

  void access(uintptr_t address, std::size_t bytes, bool is_write, bool is_atomic, const void* code) {
    if (thread_ < 0 || stacks_.contains(address) || is_builtin(address)) return;
    const bool is_shared = dynamic_shared_.contains(address) || static_shared_.contains(address);
    const Stamp now{block_, clock_[thread_ / 32], int16_t(thread_), is_atomic, code};
    for (uintptr_t byte = address; byte < address + bytes; ++byte) {
      Cell& cell = cell_of(byte);
      if (is_write)
        check_write(cell, now, byte, is_shared);
      else
        check_read(cell, now, byte, is_shared);
    }
  }

 private:
  static bool is_builtin(uintptr_t address);

  Cell& cell_of(uintptr_t byte) {
    if (byte / kPage != last_page_) {
      auto& page = pages_[byte / kPage];
      if (!page) page.reset(new Cell[kPage]);
      last_page_ = byte / kPage, last_cells_ = page.get();
    }
    return last_cells_[byte % kPage];
  }

  bool is_ordered(const Stamp& before, bool by_several_lanes = false) const {
    if (before.thread == thread_ && !by_several_lanes) return true;
    return before.clock <= seen_[thread_ / 32][before.thread / 32];
  }
  bool is_of_this_launch(const Stamp& s) const { return s.block >= first_block_; }

  void check_read(Cell& cell, const Stamp& now, uintptr_t byte, bool is_shared) {
    if (cell.write.block == block_) {
      if (!is_ordered(cell.write)) report("read and write", byte, is_shared, now, cell.write);
    } else if (is_shared) {
      report("read of what no thread of the block wrote", byte, is_shared, now, now);
    } else if (is_of_this_launch(cell.write)) {
      report("read of what another block wrote", byte, is_shared, now, cell.write);
    }
    remember_read(cell, now);
  }

  void remember_read(Cell& cell, const Stamp& now) {
    if (cell.read.block != block_) {
      cell.was_read_by_earlier_block = is_of_this_launch(cell.read);
      cell.readers.reset();
    } else if (cell.read.thread != thread_ || cell.readers) {
      if (!cell.readers) {
        cell.readers = std::make_unique<Readers>();
        cell.readers->of_warp[cell.read.thread / 32] = cell.read;
      }
      Stamp& latest = cell.readers->of_warp[thread_ / 32];
      bool& by_several = cell.readers->by_several_lanes[thread_ / 32];
      by_several = latest.block == block_ && latest.clock == now.clock && (by_several || latest.thread != thread_);
      latest = now;
    }
    cell.read = now;
  }

  void check_write(Cell& cell, const Stamp& now, uintptr_t byte, bool is_shared) {
    const auto excused = [&](const Stamp& other) { return now.is_atomic && other.is_atomic; };
    if (cell.write.block == block_) {
      if (!excused(cell.write) && !is_ordered(cell.write)) report("write and write", byte, is_shared, now, cell.write);
    } else if (!is_shared && is_of_this_launch(cell.write) && !excused(cell.write)) {
      report("write of what another block wrote", byte, is_shared, now, cell.write);
    }
    const bool was_read = cell.read.block == block_ ? cell.was_read_by_earlier_block : is_of_this_launch(cell.read);
    if (!is_shared && was_read) report("write of what another block read", byte, is_shared, now, cell.read);
    if (cell.read.block == block_) {
      if (!cell.readers) {
        if (!is_ordered(cell.read)) report("write and read", byte, is_shared, now, cell.read);
      } else {
        for (int w = 0; w < kMaxWarps; ++w) {
          const Stamp& read = cell.readers->of_warp[w];
          if (read.block == block_ && !is_ordered(read, cell.readers->by_several_lanes[w]))
            report("write and read", byte, is_shared, now, read);
        }
      }
      if (is_shared) cell.read = Stamp{};  // ordered before this write, or reported
    }
    cell.readers.reset();
    cell.write = now;
  }

  void report(const char* what, uintptr_t byte, bool is_shared, const Stamp& now, const Stamp& other) {
    if (reported_.size() >= kMaxReports || !reported_.insert({now.code, other.code}).second) return;
    char text[512];
    std::snprintf(
        text, sizeof text, "race in %s memory at %#lx: %s: thread %d at %s, thread %d at %s [block %u, %u, %u]",
        is_shared ? "shared" : "global", static_cast<unsigned long>(byte), what, now.thread, place_of(now.code).c_str(),
        other.thread, place_of(other.code).c_str(), blockIdx.x, blockIdx.y, blockIdx.z);
    if (!problems_.empty()) problems_ += "; ";
    problems_ += text;
  }

  // file:line of the innermost frame that belongs to a kernel.
  static std::string place_of(const void* code) {
    Dl_info object;
    if (!dladdr(code, &object)) return "?";
    char line[512];
    std::snprintf(line, sizeof line, "addr2line -i -e '%s' %#lx 2>/dev/null", object.dli_fname,
                  static_cast<unsigned long>(reinterpret_cast<uintptr_t>(code) - 1 -
                                             reinterpret_cast<uintptr_t>(object.dli_fbase)));
    std::string place = "?";
    if (FILE* const output = popen(line, "r")) {
      while (place == "?" && std::fgets(line, sizeof line, output)) {
        line[std::strcspn(line, "\n ")] = 0;
        const char* const name = std::strrchr(line, '/');
        if (!std::strstr(line, "cuda_emulator") && line[0] != '?') place = name ? name + 1 : line;
      }
      pclose(output);
    }
    return place;
  }

  static constexpr uintptr_t kPage = 4096;
  static constexpr std::size_t kMaxReports = 8;
  std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages_;
  uintptr_t last_page_ = ~uintptr_t(0);
  Cell* last_cells_ = nullptr;
  Range stacks_, static_shared_, dynamic_shared_;
  uint32_t block_ = 0, first_block_ = 1;
  int thread_ = -1;
  uint32_t clock_[kMaxWarps], seen_[kMaxWarps][kMaxWarps];
  std::set<std::pair<const void*, const void*>> reported_;
  std::string problems_;
};

extern "C" const char __start_ssmvdm_builtins[], __stop_ssmvdm_builtins[];
bool RaceChecker::is_builtin(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(__start_ssmvdm_builtins) <
         uintptr_t(__stop_ssmvdm_builtins - __start_ssmvdm_builtins);
}

RaceChecker checker;
[[maybe_unused]] const bool is_installed = (observer = &checker, true);

}  // namespace
}  // namespace ssmvdm::emulator

// -- the run time of -fsanitize=thread --------------------------------------------------------------------------------

namespace {

// Static variables of other files may be initialised before the checker is.
inline void check(void* address, std::size_t bytes, bool is_write, const void* code) {
  if (ssmvdm::emulator::observer)
    ssmvdm::emulator::checker.access(reinterpret_cast<uintptr_t>(address), bytes, is_write, false, code);
}

}  // namespace

#define SSMVDM_ACCESS(name, bytes, is_write) \
  void __tsan_##name(void* address) { check(address, bytes, is_write, __builtin_return_address(0)); }
#define SSMVDM_ACCESSES(bytes)                       \
  SSMVDM_ACCESS(read##bytes, bytes, false)           \
  SSMVDM_ACCESS(write##bytes, bytes, true)           \
  SSMVDM_ACCESS(unaligned_read##bytes, bytes, false) \
  SSMVDM_ACCESS(unaligned_write##bytes, bytes, true) \
  SSMVDM_ACCESS(volatile_read##bytes, bytes, false)  \
  SSMVDM_ACCESS(volatile_write##bytes, bytes, true)

extern "C" {

SSMVDM_ACCESSES(1)
SSMVDM_ACCESSES(2)
SSMVDM_ACCESSES(4)
SSMVDM_ACCESSES(8)
SSMVDM_ACCESSES(16)
void __tsan_read_range(void* address, unsigned long bytes) {
  check(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long bytes) {
  check(address, bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Of the guards of host code's static variables.
char __tsan_atomic8_load(const volatile char* address, int) { return __atomic_load_n(address, __ATOMIC_ACQUIRE); }

}  // extern "C"
