// The parameters of the DFlashGatedDelta kernels, and how their work is divided. Plain C++, read by kernels, launchers
// and tests.
#pragma once

namespace dflash {

// A slot's rows are its open ones, which are the positions state_len … past_len-1 (drafts accepted in the step before,
// and not in the state yet), then the step's S from past_len on. Row r is position state_len + r.
struct GatedDeltaParams {
  const void* qkv;          // [B, S, C] bfloat16, C = 2·Hk·Dk + Hv·Dv: q, k, v by head, before the convolution
  const void* gates;        // [B, S, 2·Hv] bfloat16: b, then a
  const void* conv_weight;  // [C, 1, Kc] bfloat16, the oldest row's first
  const float* a_log;       // [Hv]
  const float* dt_bias;     // [Hv]
  void* window;             // [B, 1, R, C+2·Hv] bfloat16: qkv and gates from position state_len-(Kc-1) on; in place
  float* state;             // [B, Hv, Dk, Dv]: after state_len positions; in place
  const int* past_len;      // [B]
  const int* state_len;     // [B], 0: the state counts as 0
  const int* num_known;     // [B]: rows of the step that are certain
  void* out;                // [B, S, Hv, Dv] bfloat16
  float* q_rows;            // [B, Hk, L, Dk]: normed and scaled, by row; workspace, like all that follow
  float* k_rows;            // [B, Hk, L, Dk]: normed
  float* v_rows;            // [B, Hv, L, Dv]
  float* gate_rows;         // [B, Hv, L, 2]: the decay, then beta
  int batch;
  int rows;         // S
  int window_rows;  // R = Kc-1 + the most open rows
  int row_limit;    // L: R-(Kc-1) + S, up to a multiple of kRuleRows
  int key_heads;    // Hk
  int value_heads;  // Hv, a multiple of Hk
};

constexpr int kDeltaHeadDim = 128;  // Dk and Dv
constexpr int kDeltaConvKernel = 4;
constexpr int kDeltaHistory = 3;  // rows before a row that its convolution sees: Kc-1
constexpr int kDeltaRowThreads = 256;
constexpr int kDeltaRuleThreads = 128;
constexpr int kDeltaChunkRows = 32;  // of the step, for a CTA of the rows' kernel; the first takes the open rows too
constexpr int kRuleColumns = 32;     // of a value head, for a CTA of the rule's kernel
constexpr int kRuleRows = 8;         // rows in one of its two stages of shared memory
constexpr int kDeltaMaxSharedBytes = 48 * 1024;  // what every GPU gives without being asked

struct GatedDeltaPlan {
  int row_limit;
  int row_vectors;   // CTAs of the rows' kernel along the columns: one a head of q, k and v, and one for the gates
  int row_chunks;    // and along the rows
  int rule_blocks;   // CTAs of a value head
  int shared_bytes;  // of the rows' kernel: the raw rows of a chunk, and the window's
  long long q_rows, k_rows, v_rows, gate_rows;  // where in the workspace each part begins
  long long workspace_bytes;
};

// Depends on shapes only, never on lengths: the same launches serve every step of a CUDA graph.
inline GatedDeltaPlan gated_delta_plan(int batch, int rows, int window_rows, int key_heads, int value_heads) {
  GatedDeltaPlan plan{};
  const int all_rows = window_rows - kDeltaHistory + rows;
  plan.row_limit = (all_rows + kRuleRows - 1) / kRuleRows * kRuleRows;
  plan.row_vectors = 2 * key_heads + value_heads + 1;
  plan.row_chunks = (rows + kDeltaChunkRows - 1) / kDeltaChunkRows;
  plan.rule_blocks = kDeltaHeadDim / kRuleColumns;
  const int columns = kDeltaHeadDim > 2 * value_heads ? kDeltaHeadDim : 2 * value_heads;
  plan.shared_bytes = (window_rows + kDeltaChunkRows) * columns * 2;
  const long long key_bytes = 4LL * batch * key_heads * plan.row_limit * kDeltaHeadDim;
  const long long value_bytes = 4LL * batch * value_heads * plan.row_limit * kDeltaHeadDim;
  plan.k_rows = key_bytes;
  plan.v_rows = plan.k_rows + key_bytes;
  plan.gate_rows = plan.v_rows + value_bytes;
  plan.workspace_bytes = plan.gate_rows + 8LL * batch * value_heads * plan.row_limit;
  return plan;
}

}  // namespace dflash
