#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The bounds of the kernels' __shared__ variables, as the linker names them; both null when there are none.
extern unsigned char __start_dflash_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_dflash_shared[] __attribute__((weak, visibility("hidden")));

namespace emulator {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxSharedBytes = 256 << 10;
constexpr int kGuardBytes = 4096;        // behind the dynamic shared memory: looked at when the CTA ends
constexpr unsigned char kPoison = 0xff;  // NaN as bfloat16 and as float, -1 as an integer

enum class State { kReady, kWaiting, kReturned };

struct Copy {
  void* to;
  const void* from;  // null: zeros
  int group;
  bool taken;  // `data` holds the source as it was when the copy began
  unsigned char data[16];
};

struct Thread {
  Stack stack;
  State state;
  uint3 index;
  const char* what;  // it waits at
  Place place;
  std::vector<Copy> copies;
  int group;  // of copies, the open one
};

// Lanes of a warp that have come to an operation.
struct Meeting {
  void* brought[kLanes];
  unsigned mask, arrived;
  const char* what;
  Place place;
};

// The one CTA that is running.
struct Cta {
  std::vector<Thread> threads;
  std::vector<Meeting> meetings;  // one for each warp
  Stack scheduler;
  int current;
  int at_barrier;
  int shared_bytes;
  std::string failure;
  const std::function<void()>* thread;
};

Cta cta;
Order order = Order::kForward;
uint64_t random_state = 1;

unsigned char* map_memory(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw Failure("no memory for the emulator");
  return static_cast<unsigned char*>(memory);
}

unsigned random_below(unsigned bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<unsigned>((random_state >> 32) % bound);
}

// The numbers below n in the selected order.
std::vector<int> ordered(int n) {
  std::vector<int> numbers(n);
  std::iota(numbers.begin(), numbers.end(), 0);
  if (order == Order::kReverse) std::reverse(numbers.begin(), numbers.end());
  if (order == Order::kRandom) {
    for (int i = n - 1; i > 0; --i) std::swap(numbers[i], numbers[random_below(i + 1)]);
  }
  return numbers;
}

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string text(const char* what, Place place) {
  const std::string file = place.file;
  return std::string(what) + " (" + file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line) + ")";
}

Thread& current() { return cta.threads[cta.current]; }

void give_way() { switch_stack(&current().stack, &cta.scheduler); }

void wait_at(const char* what, Place place) {
  current().what = what;
  current().place = place;
  current().state = State::kWaiting;
  give_way();
}

void fiber() {
  (*cta.thread)();
  current().state = State::kReturned;
  give_way();
}

std::string who_waits_where() {
  std::map<std::string, std::vector<int>> groups;
  for (int i = 0; i < static_cast<int>(cta.threads.size()); ++i) {
    const Thread& thread = cta.threads[i];
    const bool returned = thread.state == State::kReturned;
    groups[returned ? "have returned" : "wait at " + text(thread.what, thread.place)].push_back(i);
  }
  std::string found;
  for (const auto& [where, threads] : groups) {
    found += (found.empty() ? " " : ", ") + std::to_string(threads.size()) + " threads " + where + " (the first is " +
             std::to_string(threads[0]) + ")";
  }
  return found;
}

bool can_go_on(int warp) {
  const auto first = cta.threads.begin() + warp * kLanes;
  return std::any_of(first, first + kLanes, [](const Thread& thread) { return thread.state == State::kReady; });
}

// Let each lane of a warp go on to its next warp-wide operation or barrier.
void advance(int warp) {
  for (int lane : ordered(kLanes)) {
    cta.current = warp * kLanes + lane;
    if (current().state != State::kReady) continue;
    threadIdx = current().index;
    switch_stack(&cta.scheduler, &current().stack);
    if (!cta.failure.empty()) throw Failure(cta.failure);
  }
}

void prepare(dim3 block, int shared_bytes) {
  static unsigned char* const stacks = map_memory(kStackBytes * kMaxThreads);
  const unsigned count = block.x * block.y * block.z;
  cta.threads.resize(count);
  cta.meetings.assign(count / kLanes, Meeting{});
  cta.at_barrier = 0;
  cta.failure.clear();
  cta.shared_bytes = shared_bytes;
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = cta.threads[i];
    thread.state = State::kReady;
    thread.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    thread.copies.clear();
    thread.group = 0;
    prepare_stack(&thread.stack, stacks + i * kStackBytes, fiber);
  }
  memset(shared_memory(), kPoison, shared_bytes + kGuardBytes);
  memset(__start_dflash_shared, kPoison, __stop_dflash_shared - __start_dflash_shared);
}

void run_cta(dim3 block, int shared_bytes) {
  prepare(block, shared_bytes);
  const auto unfinished = [](const Thread& thread) { return thread.state != State::kReturned; };
  while (std::any_of(cta.threads.begin(), cta.threads.end(), unfinished)) {
    const std::vector<int> warps = ordered(static_cast<int>(cta.meetings.size()));
    const auto next = std::find_if(warps.begin(), warps.end(), can_go_on);
    if (next == warps.end()) throw Failure("block " + text(blockIdx) + " cannot go on:" + who_waits_where());
    advance(*next);
  }
  const unsigned char* guard = shared_memory() + shared_bytes;
  if (std::any_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte != kPoison; })) {
    throw Failure("block " + text(blockIdx) + " wrote behind its " + std::to_string(shared_bytes) +
                  " bytes of dynamic shared memory");
  }
}

}  // namespace

void set_order(Order selected, uint64_t seed) {
  order = selected;
  random_state = seed * 2654435769u + 88172645463325252u;  // any number but 0
}

void run(dim3 grid, dim3 block, int shared_bytes, const std::function<void()>& thread) {
  const unsigned count = block.x * block.y * block.z;
  if (count % kLanes != 0 || count == 0 || count > kMaxThreads || shared_bytes > kMaxSharedBytes) {
    throw Failure("a block of " + std::to_string(count) + " threads with " + std::to_string(shared_bytes) +
                  " bytes of shared memory; emulated are whole warps, 32 to 1024 threads, up to 256 KiB");
  }
  gridDim = grid;
  blockDim = block;
  cta.thread = &thread;
  for (int i : ordered(static_cast<int>(grid.x * grid.y * grid.z))) {
    blockIdx = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
    run_cta(block, shared_bytes);
  }
}

unsigned char* shared_memory() {
  static unsigned char* const memory = map_memory(kMaxSharedBytes + kGuardBytes);
  return memory;
}

void fail(const char* what, const std::string& why, Place place) {
  cta.failure = text(what, place) + ", block " + text(blockIdx) + ", thread " + text(threadIdx) + ": " + why;
  give_way();  // for good: run() throws
  abort();
}

void check_shared(const void* at, const char* what, Place place) {
  const auto inside = [at](const unsigned char* start, const unsigned char* stop) {
    const auto address = reinterpret_cast<uintptr_t>(at);
    return address >= reinterpret_cast<uintptr_t>(start) && address + 16 <= reinterpret_cast<uintptr_t>(stop);
  };
  const bool found = inside(shared_memory(), shared_memory() + cta.shared_bytes) ||
                     inside(__start_dflash_shared, __stop_dflash_shared);
  if (!found) fail(what, "the address is outside the shared memory", place);
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) fail(what, "the shared address is not 16-byte aligned", place);
}

void** arrive(const char* what, Place place, unsigned mask, void* brought) {
  Meeting& meeting = cta.meetings[cta.current / kLanes];
  const int lane = cta.current % kLanes;
  if (!(mask >> lane & 1)) fail(what, "the lane is not in its own mask", place);
  if (meeting.arrived == 0) {
    meeting = {{}, mask, 0, what, place};
  } else if (meeting.mask != mask || meeting.what != what || meeting.place.line != place.line) {
    fail(what, "other lanes of the warp are at " + text(meeting.what, meeting.place), place);
  }
  meeting.brought[lane] = brought;
  meeting.arrived |= 1u << lane;
  if (meeting.arrived == mask) return meeting.brought;
  wait_at(what, place);
  return nullptr;
}

void leave() {
  const int warp = cta.current / kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (cta.meetings[warp].arrived >> lane & 1) cta.threads[warp * kLanes + lane].state = State::kReady;
  }
  cta.meetings[warp].arrived = 0;
  give_way();  // it takes its turn like the others
}

void barrier(Place place) {
  if (++cta.at_barrier < static_cast<int>(cta.threads.size())) return wait_at("__syncthreads", place);
  cta.at_barrier = 0;
  for (Thread& thread : cta.threads) thread.state = State::kReady;
  give_way();
}

void copy_wait(int pending) {
  std::vector<Copy>& copies = current().copies;
  const int open = current().group - pending;  // the first group that may still be under way
  const auto rest = std::find_if(copies.begin(), copies.end(), [=](const Copy& copy) { return copy.group >= open; });
  for (auto copy = copies.begin(); copy != rest; ++copy) {
    if (copy->from == nullptr)
      memset(copy->to, 0, 16);
    else
      memcpy(copy->to, copy->taken ? copy->data : copy->from, 16);
  }
  copies.erase(copies.begin(), rest);
}

}  // namespace emulator

namespace dflash {

using namespace emulator;

void copy_async_16(void* to_smem, const void* from_gmem, bool present, Place place) {
  check_shared(to_smem, "copy_async_16", place);
  if (present && reinterpret_cast<uintptr_t>(from_gmem) % 16 != 0) {
    fail("copy_async_16", "the global address is not 16-byte aligned", place);
  }
  Copy copy{to_smem, present ? from_gmem : nullptr, current().group, false, {}};
  if (present && order == Order::kRandom && random_below(2)) {
    copy.taken = true;
    memcpy(copy.data, from_gmem, 16);
  }
  memset(to_smem, kPoison, 16);
  current().copies.push_back(copy);
}

void copy_async_commit() { ++current().group; }

}  // namespace dflash
