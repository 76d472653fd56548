// The gated delta rule over a slot's rows in order, with the state in registers.
#pragma once

#include "gated_delta_rows.cuh"

namespace dflash {

// kRuleRows rows as the rule wants them, for one value head and kRuleColumns of its columns.
struct RuleStage {
  float4 k[kRuleRows][kDeltaHeadDim / 4];
  float4 q[kRuleRows][kDeltaHeadDim / 4];
  float v[kRuleRows][kRuleColumns];
  float2 gates[kRuleRows];
};

// The rule of one CTA. A warp has eight columns; a thread has a quarter of one, in groups of four rows of the state:
// group 4j + quarter for j = 0 … 7, so that the four quarters read neighbouring k and q.
class DeltaRule {
 public:
  static constexpr int kGroups = kDeltaHeadDim / 16;

  __device__ DeltaRule(const GatedDeltaParams& p, RuleStage* stages_smem)
      : p_(p), stages_(stages_smem), slot_(p, blockIdx.z) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    quarter_ = lane / 8;
    column_ = warp * 8 + lane % 8;
    slot_index_ = blockIdx.z;
    head_ = blockIdx.y;
    key_head_ = head_ / (p.value_heads / p.key_heads);
    first_column_ = blockIdx.x * kRuleColumns;
    const index_t state = (index_t(slot_index_) * p.value_heads + head_) * kDeltaHeadDim * kDeltaHeadDim;
    state_gmem_ = p.state + state + quarter_ * 4 * kDeltaHeadDim + first_column_ + column_;
  }

  __device__ void run() {
    fetch(0);
    load_state();
    for (int first = 0; first < slot_.count; first += kRuleRows) {
      fetch(first + kRuleRows);
      copy_async_wait<1>();
      __syncthreads();  // all threads' copies of this stage have landed
      const RuleStage& stage = stages_[first / kRuleRows % 2];
      const int count = min(kRuleRows, slot_.count - first);
      for (int i = 0; i < count; ++i) apply(stage, i, first + i);
      __syncthreads();  // before the next turn fetches into this stage
    }
  }

 private:
  // Begin the copies of the stage whose first row this is. A group of copies is closed even where there is none.
  __device__ void fetch(int first) {
    if (first < slot_.count) {
      RuleStage& stage = stages_[first / kRuleRows % 2];
      const index_t key_row = (index_t(slot_index_) * p_.key_heads + key_head_) * p_.row_limit + first;
      const index_t row = (index_t(slot_index_) * p_.value_heads + head_) * p_.row_limit + first;
      copy<kRuleRows, kDeltaHeadDim>(stage.k, p_.k_rows + key_row * kDeltaHeadDim);
      copy<kRuleRows, kDeltaHeadDim>(stage.q, p_.q_rows + key_row * kDeltaHeadDim);
      copy<kRuleRows, kRuleColumns>(stage.v, p_.v_rows + row * kDeltaHeadDim + first_column_);
      copy<1, 2 * kRuleRows>(stage.gates, p_.gate_rows + row * 2);
    }
    copy_async_commit();
  }

  // kRows rows of kWidth floats out of a part of the workspace. It has kRuleRows rows even where a slot has fewer left.
  template <int kRows, int kWidth>
  __device__ __forceinline__ static void copy(void* to_smem, const float* from_gmem) {
    constexpr int kChunks = kWidth / 4;
#pragma unroll
    for (int begin = 0; begin < kRows * kChunks; begin += kDeltaRuleThreads) {
      const int i = begin + static_cast<int>(threadIdx.x);
      if (kRows * kChunks - begin < kDeltaRuleThreads && i >= kRows * kChunks) break;
      copy_async_16(static_cast<float4*>(to_smem) + i, from_gmem + i / kChunks * kDeltaHeadDim + i % kChunks * 4, true);
    }
  }

  __device__ void load_state() {
    const bool zero = p_.state_len[slot_index_] <= 0;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s_[j][i] = zero ? 0.f : state_gmem_[(16 * j + i) * kDeltaHeadDim];
    }
  }

  __device__ void store_state() const {
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state_gmem_[(16 * j + i) * kDeltaHeadDim] = s_[j][i];
    }
  }

  // A column's sum over its quarters, in each of them.
  __device__ __forceinline__ static float over_quarters(const float (&sum)[4]) {
    float x = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    x += __shfl_xor_sync(kAllLanes, x, 8);
    return x + __shfl_xor_sync(kAllLanes, x, 16);
  }

  // s <- decay · s; s <- s + k (beta (v - k·s)); out = q·s. Always in this order, whatever the rows around it.
  __device__ __forceinline__ void apply(const RuleStage& stage, int i, int row) {
    const float2 gates = stage.gates[i];
    float k[kGroups][4];
    float found[4] = {};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const float4 four = stage.k[i][4 * j + quarter_];
      k[j][0] = four.x, k[j][1] = four.y, k[j][2] = four.z, k[j][3] = four.w;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        s_[j][n] *= gates.x;
        found[n] = fmaf(s_[j][n], k[j][n], found[n]);
      }
    }
    const float change = (stage.v[i][column_] - over_quarters(found)) * gates.y;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int n = 0; n < 4; ++n) s_[j][n] = fmaf(k[j][n], change, s_[j][n]);
    }
    if (row >= slot_.open) write_out(stage, i, row - slot_.open);
    if (row + 1 == slot_.commit) store_state();
  }

  __device__ __forceinline__ void write_out(const RuleStage& stage, int i, int step_row) const {
    float sum[4] = {};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const float4 q = stage.q[i][4 * j + quarter_];
      sum[0] = fmaf(s_[j][0], q.x, sum[0]);
      sum[1] = fmaf(s_[j][1], q.y, sum[1]);
      sum[2] = fmaf(s_[j][2], q.z, sum[2]);
      sum[3] = fmaf(s_[j][3], q.w, sum[3]);
    }
    const float x = over_quarters(sum);
    if (quarter_ > 0) return;
    const index_t head_row = (index_t(slot_index_) * p_.rows + step_row) * p_.value_heads + head_;
    static_cast<bf16*>(p_.out)[head_row * kDeltaHeadDim + first_column_ + column_] = __float2bfloat16(x);
  }

  const GatedDeltaParams& p_;
  RuleStage* stages_;
  SlotRows slot_;
  float* state_gmem_;
  float s_[kGroups][4];
  int slot_index_, head_, key_head_, first_column_, column_, quarter_;
};

}  // namespace dflash
