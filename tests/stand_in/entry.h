// What every function of the stand-in driver does first, and what they share.
#pragma once

#include "state.h"

namespace stand_in {

enum Needs {
  kNothing = 0,
  kContext = 1,   // one that is current in the calling thread, and not lost
  kNoCapture = 2  // a capture of this thread forbids the call, and does not survive it
};

// Returns the error that the call answers with, CUDA_SUCCESS where it may go on.
CUresult enter(const char* function, int needs);

CUcontext current();

// An error of work in the stream; after some of them the context is lost.
CUresult fail(CUcontext context, CUresult status);

// The allocation that holds these bytes and may be used in the current context; null if there is none.
Block* holding(uintptr_t address, size_t bytes);

// Checks an allocation's guards.
void inspect(const Block& block);

// Puts work into a stream or into the graph that it captures.
CUresult put(CUstream stream, Work work);

CUresult run_until(CUstream stream, uint64_t position);

// The captures that the calling thread has begun.
extern thread_local std::set<CUstream> captures;

}  // namespace stand_in

#define ENTER(needs)                                                \
  const std::lock_guard<std::recursive_mutex> held(stand_in::lock); \
  if (const CUresult refused = stand_in::enter(__func__, needs); refused != CUDA_SUCCESS) return refused
