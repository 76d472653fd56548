// How a test sets up the stand-in driver and looks at it, and how programs find the driver's functions.
#include <dlfcn.h>

#include <cstdio>

#include "entry.h"

using namespace stand_in;

// Made from cuda.h: the symbol behind each function's name, and the names of errors.
extern const std::map<std::string, std::string> stand_in_symbols;
extern const std::map<int, std::string> stand_in_errors;

namespace stand_in {
void inspect_freed();
}

extern "C" {

// Forgets everything; a number of GPUs, sm120 and alike, is there from now on. No object of before may be used.
void stand_in_reset(int devices) {
  for (CUstream stream : state.streams) delete stream;
  for (CUevent event : state.events) delete event;
  for (CUmodule module : state.modules) delete module;
  for (CUgraph graph : state.graphs) delete graph;
  for (CUgraphExec executable : state.executables) delete executable;
  // Contexts stay, so that no later one has the address of an earlier one.
  static std::vector<std::unique_ptr<CUctx_st>> old;
  for (auto& context : state.primaries) {
    context->lost = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    old.push_back(std::move(context));
  }
  const auto kernels = state.kernels;
  const auto start = state.start;
  state = State();
  state.kernels = kernels;
  state.start = start;
  state.devices.resize(devices);
}

// Takes the kernels of a library made from tests/plugins/emulated_launch.cpp; 0: done.
int stand_in_load(const char* path) {
  state.kernels = dlopen(path, RTLD_NOW);
  if (state.kernels) state.start = reinterpret_cast<decltype(state.start)>(dlsym(state.kernels, "start_kernel"));
  return state.start == nullptr;
}

void stand_in_device(int device, int arch, int processors) { state.devices[device] = {arch, processors}; }
void stand_in_memory(size_t bytes) { state.memory_limit = bytes; }
void stand_in_version(int version) { state.version = version; }
void stand_in_late(int late) { state.late = late; }
void stand_in_skip(const char* kernel) { state.skipped = kernel; }

// The calls of a function after `calls` more of them answer with `status`, or only the first of those.
void stand_in_fail(const char* function, int calls, int status, int once) {
  state.failures[function] = {calls, static_cast<CUresult>(status), once != 0};
}

int stand_in_calls(const char* function) {
  const auto found = state.calls.find(function);
  return found == state.calls.end() ? 0 : found->second;
}

// The functions that were called, each with a space behind it.
const char* stand_in_called() {
  static std::string names;
  names.clear();
  for (const auto& [name, _] : state.calls) names += name + " ";
  return names.c_str();
}

int stand_in_launches(const char* kernel) {
  int count = 0;
  for (const auto& [name, launches] : state.launched) count += name.find(kernel) != std::string::npos ? launches : 0;
  return count;
}

// Allocations, streams, events and graphs that nobody has freed.
int stand_in_live() {
  return static_cast<int>(state.blocks.size() + state.streams.size() + state.events.size() + state.graphs.size() +
                          state.executables.size());
}

// Allocations that were written beside their bounds, or after they were freed.
int stand_in_damaged() {
  for (const auto& [_, block] : state.blocks) inspect(block);
  inspect_freed();
  return state.damaged;
}

int stand_in_unsupported(const char* function) {
  const std::lock_guard<std::recursive_mutex> held(lock);
  if (state.unimplemented.insert(function).second) fprintf(stderr, "stand-in driver: %s is not there\n", function);
  return CUDA_ERROR_NOT_SUPPORTED;
}

const char* stand_in_unimplemented() {
  static std::string names;
  names.clear();
  for (const std::string& name : state.unimplemented) names += name + " ";
  return names.c_str();
}
}

CUresult cuGetErrorName(CUresult status, const char** name) {
  const auto found = stand_in_errors.find(status);
  *name = found == stand_in_errors.end() ? nullptr : found->second.c_str();
  return *name == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult status, const char** text) { return cuGetErrorName(status, text); }

CUresult cuGetProcAddress(const char* name, void** address, int, cuuint64_t, CUdriverProcAddressQueryResult* result) {
  static void* const self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  const auto renamed = stand_in_symbols.find(name);
  *address = dlsym(self, renamed == stand_in_symbols.end() ? name : renamed->second.c_str());
  if (result != nullptr) *result = *address ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *address ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

// There are no private tables.
CUresult cuGetExportTable(const void** table, const CUuuid*) {
  *table = nullptr;
  return CUDA_ERROR_NOT_FOUND;
}
