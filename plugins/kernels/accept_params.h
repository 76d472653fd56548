// The parameters of the accept kernels, and how their work is divided. Plain C++, read by kernels, launchers and tests.
#pragma once

namespace dflash {

struct AcceptParams {
  const float* logits;         // [B, R, V]: row r decides the token behind position num_known-1+r
  const long long* input_ids;  // [B, S]: decided tokens, then drafts
  const int* num_known;        // [B]
  const int* past_len;         // [B]
  const float* temperature;    // [B], 0: argmax
  const float* top_p;          // [B], 1: off
  const int* top_k;            // [B], 0: off
  const float* min_p;          // [B], 0: off
  const long long* noise_key;  // [B, 4], numbers below 2^31
  const float* adjusted;       // [B, R, V]: instead of logits, in slots that ask; others' is not read
  const int* adjusts;          // [B], 0: the slot asks for nothing
  long long* new_ids;          // [B, R]: the choices 0 … accepted, then -1
  int* num_new;                // [B]: accepted + 1
  int* next_len;               // [B]: past_len + num_known + accepted
  long long* bonus;            // [B, 1]: the last of the new tokens
  float* chunk_found;          // [B·R, chunks, 2]: the largest logit; where the slot filters, the mass; workspace
  int* chunk_choice;           // [B·R, chunks]: where the largest stands, or the best by noise; workspace
  int* choice;                 // [B·R]: workspace
  int batch;
  int rows;    // R
  int width;   // S
  int vocab;   // V
  int chunks;  // CTAs that share the scan of a row
};

constexpr int kScanThreads = 256;
constexpr int kChooseThreads = 1024;
constexpr int kFinishThreads = 32;
constexpr int kScanElements = 8188;  // logits of a chunk: 8 loads of 16 bytes for each thread, but for one

struct AcceptPlan {
  int chunks;
  long long workspace_bytes;  // chunk_found, chunk_choice, choice
};

inline AcceptPlan accept_plan(int batch, int rows, int vocab) {
  AcceptPlan plan{};
  plan.chunks = (vocab + kScanElements - 1) / kScanElements;
  plan.workspace_bytes = 4LL * batch * rows * (3LL * plan.chunks + 1);
  return plan;
}

}  // namespace dflash
