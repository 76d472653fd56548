// What every launcher does around its own work: errors become a status and words, a workspace is checked.
#pragma once

#include <cstdint>
#include <string>

#include "check.h"
#include "dflash.h"

namespace dflash {

inline thread_local std::string last_error;

// Run `body`; what it throws becomes a status and last_error.
template <typename Body>
int guarded(const char* function, Body body) {
  int status = DFLASH_LAUNCH_FAILED;
  try {
    body();
    return DFLASH_OK;
  } catch (const Invalid& error) {
    status = DFLASH_INVALID_ARGUMENT;
    last_error = std::string(function) + ": " + error.what();
  } catch (const std::exception& error) {
    last_error = std::string(function) + ": " + error.what();
  }
  return status;
}

inline void expect_workspace(const void* workspace, int64_t given, int64_t needed, Line line = this_line()) {
  require({given >= needed, line}, "workspace: got ", given, " bytes, expected at least ", needed);
  require({needed == 0 || (workspace && reinterpret_cast<uintptr_t>(workspace) % 16 == 0), line},
          "workspace: expected a 16-byte aligned address");
}

template <typename T>
T* data(const DFlashTensor* tensor) {
  return static_cast<T*>(tensor->data);
}

}  // namespace dflash
