// Streams, events, copies, graphs and kernels of the stand-in driver.
#include <dlfcn.h>

#include "entry.h"

using namespace stand_in;

namespace stand_in {

CUresult run_until(CUstream stream, uint64_t position) {
  while (stream->done < position && stream->context->lost == CUDA_SUCCESS) {
    const Work work = std::move(stream->pending.front());
    stream->pending.pop_front();
    ++stream->done;
    work();
  }
  return stream->context->lost;
}

CUresult put(CUstream stream, Work work) {
  if (stream->captured) {
    if (stream->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    stream->captured->nodes.push_back(std::move(work));
    return CUDA_SUCCESS;
  }
  stream->pending.push_back(std::move(work));
  ++stream->put;
  return state.late ? CUDA_SUCCESS : run_until(stream, stream->put);
}

static bool usable(CUstream stream) { return state.streams.count(stream) && stream->context == current(); }

}  // namespace stand_in

CUresult cuStreamCreate(CUstream* stream, unsigned) {
  ENTER(kContext);
  *stream = new CUstream_st{current()};
  state.streams.insert(*stream);
  return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
  ENTER(kContext);
  if (!usable(stream)) return CUDA_ERROR_INVALID_HANDLE;
  run_until(stream, stream->put);
  state.streams.erase(stream);
  delete stream;
  return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
  ENTER(kContext | kNoCapture);
  return usable(stream) ? run_until(stream, stream->put) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventCreate(CUevent* event, unsigned) {
  ENTER(kContext);
  *event = new CUevent_st{current()};
  state.events.insert(*event);
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
  ENTER(kContext);
  if (!state.events.erase(event)) return CUDA_ERROR_INVALID_HANDLE;
  delete event;
  return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  ENTER(kContext);
  if (!usable(stream) || !state.events.count(event) || event->context != current()) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->captured) return CUDA_ERROR_NOT_SUPPORTED;  // our code has no events in graphs
  event->stream = stream;
  event->position = stream->put;
  return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event) {
  ENTER(kContext | kNoCapture);
  if (!state.events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
  return event->stream && usable(event->stream) ? run_until(event->stream, event->position) : CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, CUstream stream) {
  ENTER(kContext);
  const Block* block = holding(address, bytes);
  if (!usable(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (block == nullptr || !block->on_device) return CUDA_ERROR_INVALID_VALUE;
  return put(stream, [=] { memset(reinterpret_cast<void*>(address), value, bytes); });
}

// Host memory must be pinned: other memory would be copied before the call returns.
CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER(kContext);
  if (!usable(stream)) return CUDA_ERROR_INVALID_HANDLE;
  const bool overlap = to < from + bytes && from < to + bytes;
  if (!holding(to, bytes) || !holding(from, bytes) || (overlap && bytes)) return CUDA_ERROR_INVALID_VALUE;
  return put(stream, [=] { memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}

CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D* area, CUstream stream) {
  ENTER(kContext);
  if (!usable(stream)) return CUDA_ERROR_INVALID_HANDLE;
  const CUDA_MEMCPY2D copy = *area;
  if (copy.srcMemoryType != CU_MEMORYTYPE_DEVICE || copy.dstMemoryType != CU_MEMORYTYPE_DEVICE || copy.srcXInBytes ||
      copy.srcY || copy.dstXInBytes || copy.dstY)
    return CUDA_ERROR_NOT_SUPPORTED;
  if (copy.Height == 0 || copy.WidthInBytes == 0) return CUDA_SUCCESS;
  const size_t rest = copy.Height - 1;
  if (copy.WidthInBytes > copy.srcPitch || copy.WidthInBytes > copy.dstPitch ||
      !holding(copy.srcDevice, rest * copy.srcPitch + copy.WidthInBytes) ||
      !holding(copy.dstDevice, rest * copy.dstPitch + copy.WidthInBytes))
    return CUDA_ERROR_INVALID_VALUE;
  return put(stream, [=] {
    for (size_t row = 0; row < copy.Height; ++row) {
      memcpy(reinterpret_cast<void*>(copy.dstDevice + row * copy.dstPitch),
             reinterpret_cast<void*>(copy.srcDevice + row * copy.srcPitch), copy.WidthInBytes);
    }
  });
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  ENTER(kContext);
  return usable(stream) ? put(stream, [=] { function(data); }) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  ENTER(kContext);
  if (!usable(stream)) return CUDA_ERROR_INVALID_HANDLE;
  if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) return CUDA_ERROR_NOT_SUPPORTED;
  if (stream->captured) return CUDA_ERROR_ILLEGAL_STATE;
  stream->captured = std::make_unique<CUgraph_st>();
  stream->invalidated = false;
  captures.insert(stream);
  return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  const std::lock_guard<std::recursive_mutex> whole(lock);
  *graph = nullptr;
  const bool begun = captures.erase(stream) > 0;
  const std::unique_ptr<CUgraph_st> captured = begun ? std::move(stream->captured) : nullptr;
  ENTER(kNothing);  // a capture is over, whatever the call answers
  if (!begun) return CUDA_ERROR_ILLEGAL_STATE;
  if (stream->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *graph = new CUgraph_st{std::move(captured->nodes)};
  state.graphs.insert(*graph);
  return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  ENTER(kContext);
  if (!usable(stream)) return CUDA_ERROR_INVALID_HANDLE;
  *status = stream->captured ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiate(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  ENTER(kContext | kNoCapture);
  if (!state.graphs.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
  *executable = new CUgraphExec_st{current(), graph->nodes};
  state.executables.insert(*executable);
  return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
  ENTER(kContext);
  if (!state.graphs.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
  delete graph;
  return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
  ENTER(kContext);
  if (!state.executables.erase(executable)) return CUDA_ERROR_INVALID_HANDLE;
  delete executable;
  return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  ENTER(kContext);
  if (!usable(stream) || !state.executables.count(executable)) return CUDA_ERROR_INVALID_HANDLE;
  if (executable->context != current()) return CUDA_ERROR_INVALID_HANDLE;
  for (const Work& node : executable->nodes) {
    const CUresult status = put(stream, node);
    if (status != CUDA_SUCCESS) return status;
  }
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  ENTER(kContext | kNoCapture);
  Cubin cubin = read_cubin(image);
  if (cubin.arch == 0) return CUDA_ERROR_INVALID_IMAGE;
  const int arch = state.devices[current()->device].arch;
  if (cubin.arch / 10 != arch / 10 || cubin.arch > arch) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  *module = new CUmod_st{current(), std::move(cubin.kernels), {}};
  state.modules.insert(*module);
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  ENTER(kContext);
  if (!state.modules.count(module) || module->context != current()) return CUDA_ERROR_INVALID_HANDLE;
  const auto found = module->kernels.find(name);
  if (found == module->kernels.end()) return CUDA_ERROR_NOT_FOUND;
  auto& made = module->functions[name];
  if (!made) made = std::make_unique<CUfunc_st>(CUfunc_st{module, name, &found->second});
  *function = made.get();
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned threads,
                        unsigned threads_y, unsigned threads_z, unsigned shared_bytes, CUstream stream, void** params,
                        void** extra) {
  ENTER(kContext);
  if (!usable(stream) || function->module->context != current()) return CUDA_ERROR_INVALID_HANDLE;
  const KernelFacts& facts = *function->facts;
  const bool fits = grid_x && grid_x <= 0x7fffffffu && grid_y && grid_y <= 0xffffu && grid_z && grid_z <= 0xffffu &&
                    threads && static_cast<int>(threads) <= facts.max_threads &&
                    static_cast<int>(shared_bytes) + facts.static_shared <= function->dynamic_shared;
  if (!fits || extra != nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (threads_y != 1 || threads_z != 1) return CUDA_ERROR_NOT_SUPPORTED;
  void* const kernel = state.kernels ? dlsym(state.kernels, function->name.c_str()) : nullptr;
  if (kernel == nullptr) return CUDA_ERROR_NOT_FOUND;
  ++state.launched[function->name];
  if (!state.skipped.empty() && function->name.find(state.skipped) != std::string::npos) return CUDA_SUCCESS;
  const auto* first = static_cast<const unsigned char*>(params[0]);
  const std::vector<unsigned char> copied(first, first + facts.param_bytes);
  const CUcontext context = current();
  return put(stream, [=] {
    const unsigned grid[3] = {grid_x, grid_y, grid_z};
    const int bytes = static_cast<int>(copied.size());
    if (state.start(kernel, grid, static_cast<int>(threads), static_cast<int>(shared_bytes), copied.data(), bytes))
      fail(context, CUDA_ERROR_LAUNCH_FAILED);
  });
}
