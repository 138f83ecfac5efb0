// The scheduler of the emulator: threads as fibers, barriers, warp operations, blocks. Compiled without the checkers
// that the kernels are compiled with, other than AddressSanitizer, which has to follow the switches between stacks.
#include "cuda_emulator.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "emulator_observer.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#error "switch_stack() below is written for x86-64"
#endif

#define SSMVDM_BUILTIN __attribute__((section("ssmvdm_builtins")))  // where the race checker knows them
SSMVDM_BUILTIN uint3 threadIdx, blockIdx;
SSMVDM_BUILTIN dim3 blockDim, gridDim;

namespace ssmvdm::emulator {

Observer* observer = nullptr;

namespace {

// Saves the registers that a call preserves on the present stack, whose pointer goes to *save, and continues on `load`.
extern "C" void ssmvdm_switch_stack(void** save, void* load);
asm(R"(
.text
.globl ssmvdm_switch_stack
.hidden ssmvdm_switch_stack
.type ssmvdm_switch_stack,@function
ssmvdm_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ssmvdm_switch_stack,.-ssmvdm_switch_stack
)");
constexpr int kSavedRegisters = 6;

constexpr int kMaxThreads = 1024, kMaxWarps = kMaxThreads / 32, kBarriers = 16;
constexpr std::size_t kStackBytes = 256 << 10, kGuardBytes = 4096;
constexpr int kScheduler = -1;

enum class State : uint8_t { kReady, kAtBarrier, kAtWarpOperation, kExited };

struct Site {
  const char* file;
  int line;
  bool operator==(const Site& other) const { return line == other.line && !std::strcmp(file, other.file); }
};

struct Thread {
  void* stack_pointer;
  void* fake_stack;  // AddressSanitizer's
  uint3 index;
  State state;
  Site site;
  int source;
  uint64_t given, received;
};

struct Barrier {
  int threads, arrived;
  uint32_t warps;  // that have arrived, at least in part
  Site site;
};

// Lanes of one warp that wait for one another.
struct Meeting {
  Site site;
  uint32_t mask, arrived;
  WarpOperation operation;
  int barrier;
};

Thread threads[kMaxThreads];
Barrier barriers[kBarriers];
uint32_t ready[kMaxWarps];  // lanes that can run
Meeting warp_at_barrier[kMaxWarps];
std::vector<Meeting> warp_meetings[kMaxWarps];
int thread_count, warp_count, exited;
int running = kScheduler;
void* scheduler_stack;
[[maybe_unused]] void* scheduler_fake_stack;
[[maybe_unused]] const void* scheduler_bottom;
[[maybe_unused]] std::size_t scheduler_bytes;
char* stacks;

void (*kernel_body)(const void*);
const void* kernel_context;
void* dynamic_shared;
// Written, it makes the loader allocate this thread's static shared memory.
[[maybe_unused]] thread_local volatile char static_shared_anchor;

bool has_failed;
std::mutex device;
uint64_t random_state;

uint32_t random_below(uint32_t bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return uint32_t((random_state >> 32) * bound >> 32);
}

// -- switching --------------------------------------------------------------------------------------------------------

char* stack_of(int thread) { return stacks + std::size_t(thread) * kStackBytes; }

void switch_to(int next, [[maybe_unused]] bool is_last_time = false) {
  const int previous = running;
  running = next;
  if (next != kScheduler) threadIdx = threads[next].index;
  if (observer) observer->switches_to(next);
  void** const save = previous == kScheduler ? &scheduler_stack : &threads[previous].stack_pointer;
  void* const load = next == kScheduler ? scheduler_stack : threads[next].stack_pointer;
#if defined(__SANITIZE_ADDRESS__)
  void** const fake = previous == kScheduler ? &scheduler_fake_stack : &threads[previous].fake_stack;
  const bool to_thread = next != kScheduler;
  __sanitizer_start_switch_fiber(is_last_time ? nullptr : fake, to_thread ? stack_of(next) : scheduler_bottom,
                                 to_thread ? kStackBytes : scheduler_bytes);
#endif
  ssmvdm_switch_stack(save, load);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(previous == kScheduler ? scheduler_fake_stack : threads[previous].fake_stack, nullptr,
                                  nullptr);
#endif
}

// The next thread in the order of the settings: of the same warp while one can run. -1: nobody can.
int next_ready() {
  const Order order = settings().order;
  const int lane = running < 0 ? 0 : running & 31, warp = running < 0 ? 0 : running >> 5;
  if (order == Order::kForward) {
    const uint32_t later = lane == 31 ? 0 : ready[warp] & (~0u << (lane + 1));
    if (later) return warp * 32 + __builtin_ctz(later);
    for (int i = 0, w = warp; i < warp_count; ++i, w = w + 1 < warp_count ? w + 1 : 0)
      if (ready[w]) return w * 32 + __builtin_ctz(ready[w]);
  } else if (order == Order::kReverse) {
    const uint32_t earlier = ready[warp] & ((1u << lane) - 1);
    if (earlier) return warp * 32 + 31 - __builtin_clz(earlier);
    for (int i = 0, w = warp; i < warp_count; ++i, w = w ? w - 1 : warp_count - 1)
      if (ready[w]) return w * 32 + 31 - __builtin_clz(ready[w]);
  } else {
    const int first = int(random_below(uint32_t(warp_count)));
    for (int i = 0; i < warp_count; ++i) {
      const int w = (first + i) % warp_count;
      if (!ready[w]) continue;
      uint32_t lanes = ready[w];
      for (uint32_t skip = random_below(uint32_t(__builtin_popcount(lanes))); skip; --skip) lanes &= lanes - 1;
      return w * 32 + __builtin_ctz(lanes);
    }
  }
  return -1;
}

std::string description(int thread) {
  static constexpr const char* kStates[] = {"running", "at a barrier", "at a warp operation", "has exited"};
  const Thread& t = threads[thread];
  std::string text = "thread " + std::to_string(thread) + " " + kStates[int(t.state)];
  if (t.state != State::kAtBarrier && t.state != State::kAtWarpOperation) return text;
  return text + " at " + t.site.file + ":" + std::to_string(t.site.line);
}

// Nobody can run, but not all have exited: one example of each way to wait, with the number of threads that do.
[[noreturn]] void report_deadlock() {
  std::string text;
  for (int i = 0, kinds = 0; i < thread_count && kinds < 4; ++i) {
    const auto waits_alike = [&](int j) {
      const bool is_waiting = threads[i].state != State::kExited;
      return threads[j].state == threads[i].state && (!is_waiting || threads[j].site == threads[i].site);
    };
    int alike = 0;
    bool is_first = true;
    for (int j = 0; j < thread_count; ++j) {
      if (!waits_alike(j)) continue;
      is_first &= j >= i;
      ++alike;
    }
    if (!is_first) continue;
    text += (kinds++ ? "; " : "") + description(i) + " (" + std::to_string(alike) + " of " +
            std::to_string(thread_count) + ")";
  }
  fail("threads wait for one another for ever: %s", text.c_str());
}

// Called by a thread that cannot go on, or not yet.
void run_others() {
  const int next = next_ready();
  const bool is_last_time = threads[running].state == State::kExited;
  if (next < 0 && exited < thread_count) report_deadlock();
  if (next != running) switch_to(next < 0 ? kScheduler : next, is_last_time);
}

void wait(State state) {
  threads[running].state = state;
  ready[running >> 5] &= ~(1u << (running & 31));
}
void release(int thread) {
  threads[thread].state = State::kReady;
  ready[thread >> 5] |= 1u << (thread & 31);
}

uint32_t lanes_of(int warp) {
  const int left = thread_count - warp * 32;
  return left >= 32 ? ~0u : (1u << left) - 1;
}

// Hands out results once all lanes of the mask have arrived. Only the barrier orders memory accesses: a shuffle or a
// vote does not.
void finish_warp_operation(WarpOperation operation, int warp, uint32_t mask, const char* file, int line) {
  Thread* const lanes = threads + warp * 32;
  uint64_t ballot = 0;
  if (operation == WarpOperation::kVote)
    for (int i = 0; i < 32; ++i) ballot |= uint64_t(mask >> i & 1 && lanes[i].given) << i;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    Thread& lane = lanes[i];
    if (operation == WarpOperation::kShuffle && !(mask >> lane.source & 1))
      fail("%s:%d: lane %d reads from lane %d, which the mask %08x does not name", file, line, i, lane.source, mask);
    lane.received = operation == WarpOperation::kShuffle ? lanes[lane.source].given : ballot;
    release(warp * 32 + i);
  }
  ++counters().warp_operations;
  if (observer && operation == WarpOperation::kBarrier && mask == lanes_of(warp)) observer->warps_meet(1u << warp);
}

// -- blocks -----------------------------------------------------------------------------------------------------------

void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  std::size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!scheduler_bottom) scheduler_bottom = bottom, scheduler_bytes = bytes;
#endif
  kernel_body(kernel_context);
  wait(State::kExited);
  ++exited;
  run_others();
  std::abort();  // nobody returns to a thread that has exited
}

// Stacks begin at different places of their pages: otherwise all frames compete for the same lines of the cache.
void prepare_thread(int i) {
  Thread& t = threads[i];
  t = Thread{};
  t.index = {unsigned(i) % blockDim.x, unsigned(i) / blockDim.x % blockDim.y, unsigned(i) / (blockDim.x * blockDim.y)};
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack_of(i) + kGuardBytes, kStackBytes - kGuardBytes);  // what an earlier thread left
#endif
  auto top = reinterpret_cast<void**>(stack_of(i) + kStackBytes - 64 - i % 61 * 192);
  *--top = nullptr;  // a return address would be here: the stack is aligned as at any function's entry
  *--top = reinterpret_cast<void*>(&run_thread);
  for (int k = 0; k < kSavedRegisters; ++k) *--top = nullptr;
  t.stack_pointer = top;
  release(i);
}

void run_block(std::size_t shared_bytes, const Range& static_shared) {
  dynamic_shared = shared_bytes ? std::malloc(shared_bytes) : nullptr;
  if (shared_bytes) std::memset(dynamic_shared, 0xff, shared_bytes);  // NaN in every type
  if (static_shared.begin)
    std::memset(reinterpret_cast<void*>(static_shared.begin), 0xff, static_shared.end - static_shared.begin);
  std::memset(barriers, 0, sizeof barriers);
  std::memset(ready, 0, sizeof ready);
  std::memset(warp_at_barrier, 0, sizeof warp_at_barrier);
  for (auto& meetings : warp_meetings) meetings.clear();
  exited = 0;
  const auto begin = reinterpret_cast<uintptr_t>(dynamic_shared);
  if (observer) observer->block_begins({begin, begin + shared_bytes}, thread_count);
  for (int i = 0; i < thread_count; ++i) prepare_thread(i);
  if (settings().order == Order::kReverse)
    switch_to(thread_count - 1);
  else
    switch_to(settings().order == Order::kRandom ? next_ready() : 0);
  std::free(dynamic_shared);
  dynamic_shared = nullptr;
  ++counters().blocks;
}

void allocate_stacks() {
  void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  stacks = static_cast<char*>(memory);
  for (int i = 0; i < kMaxThreads; ++i) mprotect(stack_of(i), kGuardBytes, PROT_NONE);
}

// Static shared memory is what this library has of thread-local memory.
Range find_static_shared() {
#if defined(__SANITIZE_ADDRESS__)
  return {};
#else
  static_shared_anchor = 0;
  Range found;
  dl_iterate_phdr(
      [](dl_phdr_info* object, std::size_t, void* result) {
        const auto own = reinterpret_cast<uintptr_t>(&run_block);
        bool is_own = false;
        std::size_t bytes = 0;
        for (int i = 0; i < object->dlpi_phnum; ++i) {
          const auto& part = object->dlpi_phdr[i];
          if (part.p_type == PT_TLS) bytes = part.p_memsz;
          const Range code{object->dlpi_addr + part.p_vaddr, object->dlpi_addr + part.p_vaddr + part.p_memsz};
          is_own |= part.p_type == PT_LOAD && code.contains(own);
        }
        const auto begin = reinterpret_cast<uintptr_t>(object->dlpi_tls_data);
        if (is_own && begin) *static_cast<Range*>(result) = {begin, begin + bytes};
        return int(is_own);
      },
      &found);
  return found;
#endif
}

}  // namespace

// -- what kernels call ------------------------------------------------------------------------------------------------

void* shared_memory() { return dynamic_shared; }

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  char place[96];
  std::snprintf(place, sizeof place, " [block (%u, %u, %u), thread %d]", blockIdx.x, blockIdx.y, blockIdx.z, running);
  last_outcome().words = std::string(text) + place;
  has_failed = true;
  if (running != kScheduler) switch_to(kScheduler, true);
  std::abort();
}

void block_barrier(int id, int count, const char* file, int line) {
  const int warp = running >> 5;
  const uint32_t lane = 1u << (running & 31);
  Thread& me = threads[running];
  Barrier& barrier = barriers[id];
  Meeting& own = warp_at_barrier[warp];
  me.site = {file, line};
  if (id == 0) count = thread_count;
  if (id != 0 && count % 32 != 0) fail("%s:%d: barrier %d is for %d threads: no whole warps", file, line, id, count);
  if (barrier.arrived && barrier.threads != count)
    fail("%s:%d: barrier %d is for %d threads, but others wait there for %d", file, line, id, count, barrier.threads);
  if (own.arrived && (own.barrier != id || !(own.site == me.site)))
    fail("%s:%d: threads of a warp are at different barriers, others at %s:%d", file, line, own.site.file,
         own.site.line);
  if (id == 0 && barrier.arrived && !(barrier.site == me.site))
    fail("%s:%d: threads of a block are at different barriers, others at %s:%d", file, line, barrier.site.file,
         barrier.site.line);
  barrier.threads = count;
  barrier.site = me.site;
  barrier.arrived += 1;
  barrier.warps |= 1u << warp;
  own.site = me.site;
  own.barrier = id;
  own.arrived |= lane;
  wait(State::kAtBarrier);
  if (barrier.arrived == count) {
    const uint32_t warps = barrier.warps;
    barrier = Barrier{};
    for (int w = 0; w < warp_count; ++w) {
      if (!(warps >> w & 1)) continue;
      if (warp_at_barrier[w].arrived != lanes_of(w))
        fail("%s:%d: barrier %d was reached by a part of warp %d only", file, line, id, w);
      warp_at_barrier[w] = Meeting{};
      for (int i = 0; lanes_of(w) >> i & 1 && i < 32; ++i) release(w * 32 + i);
    }
    ++counters().barriers;
    if (observer) observer->warps_meet(warps);
  }
  run_others();
}

uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t value, int source, const char* file,
                        int line) {
  const int warp = running >> 5;
  const uint32_t lane = 1u << (running & 31);
  Thread& me = threads[running];
  me.site = {file, line};
  me.given = value;
  me.source = source;
  if (!(mask & lane)) fail("%s:%d: the mask %08x does not name the lane that executes it", file, line, mask);
  if (mask & ~lanes_of(warp)) fail("%s:%d: the mask %08x names lanes that the block does not have", file, line, mask);
  auto& meetings = warp_meetings[warp];
  auto meeting = meetings.begin();
  while (meeting != meetings.end() && !(meeting->mask & mask)) ++meeting;
  if (meeting == meetings.end()) meeting = meetings.insert(meeting, Meeting{me.site, mask, 0, operation, 0});
  if (meeting->mask != mask || meeting->operation != operation || !(meeting->site == me.site))
    fail("%s:%d: warp operations do not match: mask %08x; others of the warp are at %s:%d, mask %08x", file, line, mask,
         meeting->site.file, meeting->site.line, meeting->mask);
  meeting->arrived |= lane;
  wait(State::kAtWarpOperation);
  if (meeting->arrived == mask) {
    meetings.erase(meeting);
    finish_warp_operation(operation, warp, mask, file, line);
  }
  run_others();
  return me.received;
}

void note_atomic(const void* address, std::size_t bytes, const void* code) {
  ++counters().atomics;
  if (observer) observer->atomic_access(reinterpret_cast<uintptr_t>(address), bytes, code);
}

cudaError_t run(dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(const void*), const void* context) {
  const std::lock_guard<std::mutex> lock(device);
  Outcome& outcome = last_outcome();
  outcome = {cudaSuccess, problem_of(grid, block, shared_bytes)};
  if (!outcome.words.empty()) return outcome.error = cudaErrorInvalidConfiguration;
  if (!stacks) allocate_stacks();
  gridDim = grid, blockDim = block;
  thread_count = int(block.x * block.y * block.z), warp_count = (thread_count + 31) / 32;
  kernel_body = body, kernel_context = context;
  has_failed = false;
  random_state = settings().seed * 0x9e3779b97f4a7c15u + 1;
  const Range static_shared = find_static_shared();
  const auto stack_begin = reinterpret_cast<uintptr_t>(stacks);
  if (observer) observer->launch_begins({stack_begin, stack_begin + kMaxThreads * kStackBytes}, static_shared);
  const uint64_t count = uint64_t(grid.x) * grid.y * grid.z;
  uint64_t step = settings().order == Order::kForward ? 1 : count - 1, index = step == 1 ? 0 : count - 1;
  if (settings().order == Order::kRandom) {  // a step without a common divisor reaches every block once
    do step = 1 + random_below(uint32_t(std::min<uint64_t>(count, 1u << 31)));
    while (std::gcd(step, count) != 1);
    index = random_below(uint32_t(std::min<uint64_t>(count, 1u << 31)));
  }
  for (uint64_t i = 0; i < count && !has_failed; ++i, index = (index + step) % count) {
    blockIdx = {unsigned(index % grid.x), unsigned(index / grid.x % grid.y), unsigned(index / grid.x / grid.y)};
    run_block(shared_bytes, static_shared);
  }
  const std::string found = observer ? observer->launch_ends() : "";
  if (!found.empty()) outcome.words += (has_failed ? "; " : "") + found, has_failed = true;
  ++counters().launches;
  return outcome.error = has_failed ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace ssmvdm::emulator
