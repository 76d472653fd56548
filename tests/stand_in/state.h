// What the stand-in driver remembers: devices, contexts, memory, streams, and the faults that a test has asked for.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cubin.h"

using Work = std::function<void()>;

struct CUctx_st {
  int device;
  CUresult lost = CUDA_SUCCESS;  // an error after which the context can do nothing
};

struct CUgraph_st {
  std::vector<Work> nodes;
};

struct CUgraphExec_st {
  CUcontext context;
  std::vector<Work> nodes;
};

struct CUstream_st {
  CUcontext context;
  std::deque<Work> pending{};
  uint64_t put = 0, done = 0;
  std::unique_ptr<CUgraph_st> captured{};  // while a capture is under way
  bool invalidated = false;
};

struct CUevent_st {
  CUcontext context;
  CUstream stream = nullptr;
  uint64_t position = 0;
};

struct CUmod_st;

struct CUfunc_st {
  CUmod_st* module;
  std::string name;
  const stand_in::KernelFacts* facts;
  int dynamic_shared = 48 << 10;  // bytes that a launch may ask for, with the static ones
};

struct CUmod_st {
  CUcontext context;
  std::map<std::string, stand_in::KernelFacts> kernels;
  std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

namespace stand_in {

constexpr int kGuard = 64 << 10;                           // bytes on both sides of an allocation
constexpr int kAlignment = 256;                            // of every allocation, and none is aligned better
constexpr unsigned char kGuarded = 0xa5, kGarbage = 0xff;  // garbage: NaN as a float, -1 as an integer

struct Device {
  int arch = 120;  // 10 * major + minor
  int processors = 5;
};

struct Block {
  std::unique_ptr<unsigned char[]> memory;
  size_t bytes;
  CUcontext context;
  bool on_device;
};

struct Failure {
  int calls;  // before the first that fails
  CUresult status;
  bool once;  // calls behind it do not fail

  // Whether the next call fails.
  bool fails() {
    const int before = calls--;
    return once ? before == 0 : before <= 0;
  }
};

struct State {
  std::vector<Device> devices{1};
  std::vector<std::unique_ptr<CUctx_st>> primaries;
  size_t memory_limit = size_t{1} << 32;
  int version = CUDA_VERSION;
  bool late = false;        // work is done when a call waits for it, and not when it is put into a stream
  void* kernels = nullptr;  // the library of emulated kernels, and what starts one of them
  int (*start)(void* kernel, const unsigned* grid, int threads, int shared_bytes, const void* params,
               int params_bytes) = nullptr;
  std::map<uintptr_t, Block> blocks;
  std::vector<Block> freed;
  std::map<std::string, int> calls;  // by function
  std::map<std::string, Failure> failures;
  std::string skipped;  // kernels whose names have this in them do nothing
  std::set<std::string> unimplemented;
  std::map<std::string, int> launched;  // by kernel
  std::set<CUstream> streams;
  std::set<CUevent> events;
  std::set<CUmodule> modules;
  std::set<CUgraph> graphs;
  std::set<CUgraphExec> executables;
  int damaged = 0;  // allocations whose guards were written, or that were written when freed
};

extern State state;
extern std::recursive_mutex lock;

}  // namespace stand_in
