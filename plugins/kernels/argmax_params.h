// The parameters of the DFlashArgmax kernels, and how their work is divided. Plain C++, read by kernels, launchers and
// tests.
#pragma once

namespace dflash {

struct ArgmaxParams {
  const void* logits;  // [N, V] bfloat16
  long long* places;   // [N]: of each row's largest logit, the first of equals
  float* chunk_max;    // [N, chunks]: workspace
  int* chunk_argmax;   // [N, chunks]: workspace
  int rows;            // N
  int vocab;           // V
  int chunks;          // CTAs that share a row
};

constexpr int kArgmaxThreads = 256;
constexpr int kArgmaxElements = 16384;  // logits of a chunk: 8 loads of 16 bytes for each thread
constexpr int kArgmaxMergeThreads = 128;

struct ArgmaxPlan {
  int chunks;
  int merge_blocks;
  long long workspace_bytes;  // chunk_max, chunk_argmax
};

inline ArgmaxPlan argmax_plan(int rows, int vocab) {
  ArgmaxPlan plan{};
  // Chunks are counted from the last multiple of 16 bytes at or before a row, where 8 does not divide V.
  const int slots = vocab % 8 ? vocab + 7 : vocab;
  const int merged_rows = kArgmaxMergeThreads / 32;
  plan.chunks = (slots + kArgmaxElements - 1) / kArgmaxElements;
  plan.merge_blocks = (rows + merged_rows - 1) / merged_rows;
  plan.workspace_bytes = 8LL * rows * plan.chunks;
  return plan;
}

}  // namespace dflash
