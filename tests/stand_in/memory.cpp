// Devices, contexts and memory of the stand-in driver.
#include <algorithm>

#include "entry.h"

using namespace stand_in;

namespace stand_in {

State state;
std::recursive_mutex lock;
thread_local std::set<CUstream> captures;
static thread_local std::vector<CUcontext> contexts{nullptr};

CUcontext current() { return contexts.back(); }

static std::string base_name(const char* function) {
  std::string name = function;
  const size_t suffix = name.rfind("_v");
  return suffix == std::string::npos ? name : name.substr(0, suffix);
}

CUresult enter(const char* function, int needs) {
  const std::string name = base_name(function);
  ++state.calls[name];
  const auto failure = state.failures.find(name);
  if (failure != state.failures.end() && failure->second.fails()) {
    return current() ? fail(current(), failure->second.status) : failure->second.status;
  }
  if (!(needs & kContext)) return CUDA_SUCCESS;
  if (current() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (current()->lost != CUDA_SUCCESS) return current()->lost;
  if (needs & kNoCapture && !captures.empty()) {
    for (CUstream stream : captures) stream->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  }
  return CUDA_SUCCESS;
}

CUresult fail(CUcontext context, CUresult status) {
  const bool sticky = status == CUDA_ERROR_ILLEGAL_ADDRESS || status == CUDA_ERROR_LAUNCH_FAILED;
  if (sticky) context->lost = status;
  return status;
}

Block* holding(uintptr_t address, size_t bytes) {
  auto found = state.blocks.upper_bound(address);
  if (found == state.blocks.begin()) return nullptr;
  --found;
  Block& block = found->second;
  const bool inside = address + bytes <= found->first + block.bytes;
  return inside && (!block.on_device || block.context == current()) ? &block : nullptr;
}

static unsigned char* start_of(const Block& block) {
  const auto address = reinterpret_cast<uintptr_t>(block.memory.get()) + kGuard;
  return reinterpret_cast<unsigned char*>((address + 2 * kAlignment - 1) / (2 * kAlignment) * (2 * kAlignment) +
                                          kAlignment);
}

void inspect(const Block& block) {
  const unsigned char* start = start_of(block);
  const auto changed = [](unsigned char byte) { return byte != kGuarded; };
  if (std::any_of(start - kGuard, start, changed) ||
      std::any_of(start + block.bytes, start + block.bytes + kGuard, changed))
    ++state.damaged;
}

static CUresult allocate(size_t bytes, bool on_device, uintptr_t* address) {
  size_t used = 0;
  for (const auto& [_, block] : state.blocks) used += block.on_device ? block.bytes : 0;
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (on_device && used + bytes > state.memory_limit) return CUDA_ERROR_OUT_OF_MEMORY;
  Block block{std::make_unique<unsigned char[]>(bytes + 2 * kGuard + 3 * kAlignment), bytes, current(), on_device};
  unsigned char* start = start_of(block);
  memset(start - kGuard, kGuarded, bytes + 2 * kGuard);
  memset(start, kGarbage, bytes);
  *address = reinterpret_cast<uintptr_t>(start);
  state.blocks.emplace(*address, std::move(block));
  return CUDA_SUCCESS;
}

static CUresult release(uintptr_t address, bool on_device) {
  const auto found = state.blocks.find(address);
  if (found == state.blocks.end() || found->second.on_device != on_device) return CUDA_ERROR_INVALID_VALUE;
  if (on_device && found->second.context != current()) return CUDA_ERROR_INVALID_VALUE;
  inspect(found->second);
  memset(start_of(found->second), kGuarded, found->second.bytes);  // so that a late write is seen
  state.freed.push_back(std::move(found->second));
  state.blocks.erase(found);
  return CUDA_SUCCESS;
}

// Counts what was written after it was freed.
void inspect_freed() {
  for (const Block& block : state.freed) {
    const unsigned char* start = start_of(block);
    if (std::any_of(start, start + block.bytes, [](unsigned char byte) { return byte != kGuarded; })) ++state.damaged;
  }
}

static int max_shared(int arch) {
  if (arch == 80) return 163 << 10;
  return arch == 90 || arch == 100 || arch == 103 ? 227 << 10 : 99 << 10;
}

static bool known(CUdevice device) { return device >= 0 && device < static_cast<int>(state.devices.size()); }

static CUcontext primary(CUdevice device) {
  for (const auto& context : state.primaries) {
    if (context->device == device) return context.get();
  }
  state.primaries.push_back(std::make_unique<CUctx_st>(CUctx_st{device}));
  return state.primaries.back().get();
}

}  // namespace stand_in

CUresult cuInit(unsigned) {
  ENTER(kNothing);
  return state.devices.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
  ENTER(kNothing);
  *version = state.version;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  ENTER(kNothing);
  *count = static_cast<int>(state.devices.size());
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER(kNothing);
  *device = ordinal;
  return known(ordinal) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  ENTER(kNothing);
  if (!known(device)) return CUDA_ERROR_INVALID_DEVICE;
  strncpy(name, ("Stand-in " + std::to_string(device)).c_str(), length);
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  ENTER(kNothing);
  *bytes = state.memory_limit;
  return known(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  ENTER(kNothing);
  if (!known(device)) return CUDA_ERROR_INVALID_DEVICE;
  const Device& found = state.devices[device];
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = found.arch / 10;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = found.arch % 10;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = found.processors;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = max_shared(found.arch);
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = max_shared(found.arch) + 1024;  // what CUDA keeps of each CTA
      break;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  ENTER(kNothing);
  if (!known(device)) return CUDA_ERROR_INVALID_DEVICE;
  *context = primary(device);
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  ENTER(kNothing);
  contexts.back() = context;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  ENTER(kNothing);
  *context = current();
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  ENTER(kNothing);
  contexts.push_back(context);
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  ENTER(kNothing);
  if (contexts.size() < 2) return CUDA_ERROR_INVALID_CONTEXT;
  *context = current();
  contexts.pop_back();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  ENTER(kContext);
  *device = current()->device;
  return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t* free, size_t* total) {
  ENTER(kContext);
  *free = *total = state.memory_limit;
  for (const auto& [_, block] : state.blocks) *free -= block.on_device ? block.bytes : 0;
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  ENTER(kContext | kNoCapture);
  uintptr_t made = 0;
  const CUresult status = allocate(bytes, true, &made);
  *address = made;
  return status;
}

CUresult cuMemAllocHost(void** address, size_t bytes) {
  ENTER(kContext | kNoCapture);
  uintptr_t made = 0;
  const CUresult status = allocate(bytes, false, &made);
  *address = reinterpret_cast<void*>(made);
  return status;
}

CUresult cuMemFree(CUdeviceptr address) {
  ENTER(kContext | kNoCapture);
  return release(address, true);
}

CUresult cuMemFreeHost(void* address) {
  ENTER(kContext | kNoCapture);
  return release(reinterpret_cast<uintptr_t>(address), false);
}

CUresult cuMemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  ENTER(kContext);
  auto found = state.blocks.upper_bound(address);
  if (found == state.blocks.begin() || holding(address, 1) == nullptr) return CUDA_ERROR_NOT_FOUND;
  --found;
  *base = found->first;
  *bytes = found->second.bytes;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  ENTER(kContext);
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_NOT_SUPPORTED;
  const int limit = max_shared(state.devices[current()->device].arch);
  if (value < 0 || value + function->facts->static_shared > limit) return CUDA_ERROR_INVALID_VALUE;
  function->dynamic_shared = value + function->facts->static_shared;
  return CUDA_SUCCESS;
}
