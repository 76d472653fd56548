// The parameters of the DFlashSelect kernels, and how their work is divided. Plain C++, read by kernels, launchers and
// tests.
#pragma once

namespace dflash {

struct SelectParams {
  const float* logits;      // [B, N, V]: of the rows behind the anchor
  const void* hidden;       // [B, N, R] bfloat16: the rows, projected to the codebooks' rank
  const void* anchor_row;   // [B, R] bfloat16: what stands before row 0
  const void* predecessor;  // [V, R] bfloat16: of each place, for the row behind
  const void* successor;    // [V, R] bfloat16: of each place, for the row before
  long long* places;        // [B, N]: the choices, 0 … V-1
  float* chunk_values;      // [B·N, chunks, top_k]: the largest logits of a chunk, in order; workspace, as what follows
  int* chunk_places;        // [B·N, chunks, top_k]: and where they stand
  int* candidates;          // [B·N, top_k]: the places of the row's largest logits, in order
  int* next;                // [B·N, top_k]: the best candidate behind each one of the row before
  int batch;
  int rows;            // N
  int vocab;           // V
  int rank;            // R
  int top_k;           // candidates of a row, at most V
  int chunks;          // CTAs that share a row's logits
  int chunk_elements;  // of a chunk, counted from the last multiple of 16 bytes at or before the row
};

constexpr int kSelectThreads = 128;
constexpr int kSelectLoads = 16;               // of 16 bytes, for each thread at once
constexpr int kSelectElements = 4 * 128 * 16;  // floats that a CTA holds in registers
constexpr int kSelectMaxTopK = 64;
constexpr int kSelectMaxChunks = 128;  // so that a CTA holds all their results
constexpr int kSelectColumns = 64;     // of codebook rows in shared memory at once
constexpr int kSelectPitch = 65;       // and the distance of two rows there
constexpr int kWalkThreads = 32;

struct SelectPlan {
  int chunks;
  int chunk_elements;
  int shared_bytes;                          // of a CTA of the first two launches
  long long chunk_places, candidates, next;  // where in the workspace each part begins, behind chunk_values
  long long workspace_bytes;
};

inline SelectPlan select_plan(int batch, int rows, int vocab, int top_k) {
  SelectPlan plan{};
  const int slots = vocab % 4 ? vocab + 3 : vocab;  // rows that begin behind a multiple of 16 bytes
  const int limit = kSelectElements * kSelectMaxChunks;
  plan.chunk_elements = kSelectElements * ((slots + limit - 1) / limit);
  plan.chunks = (slots + plan.chunk_elements - 1) / plan.chunk_elements;
  // A found element has a value and a place: those of top_k threads and as many from before; then two tiles of rows.
  const int found = 8 * top_k * (4 * kSelectLoads + 1);
  const int tiles = 2 * 4 * kSelectPitch * ((top_k + 15) / 16 * 16);
  plan.shared_bytes = found > tiles ? found : tiles;
  const long long chunk_bytes = 4LL * batch * rows * plan.chunks * top_k;
  const long long row_bytes = 4LL * batch * rows * top_k;
  plan.chunk_places = chunk_bytes;
  plan.candidates = 2 * chunk_bytes;
  plan.next = plan.candidates + row_bytes;
  plan.workspace_bytes = plan.next + row_bytes;
  return plan;
}

}  // namespace dflash
