// The rows of DFlashGatedDelta: convolution, norms and gates of a slot's rows, and the window moved on.
#pragma once

#include "device.cuh"
#include "gated_delta_params.h"

namespace dflash {

constexpr int kHeadWords = kDeltaHeadDim / 2;  // of two bfloat16

// A slot's rows by number: its open ones, then the step's. Lengths that cannot be are cut to some that can.
struct SlotRows {
  int begin;  // the position of row 0
  int open;
  int count;   // open + S
  int commit;  // rows that are certain: behind them the state is stored

  __device__ SlotRows(const GatedDeltaParams& p, int slot) {
    const int past = max(p.past_len[slot], 0);
    open = min(max(past - max(p.state_len[slot], 0), 0), p.window_rows - kDeltaHistory);
    begin = past - open;
    count = open + p.rows;
    commit = open + min(max(p.num_known[slot], 0), p.rows);
  }
};

// Some neighbouring columns of a slot's raw rows, in words of two bfloat16.
struct RawRows {
  const unsigned* step_gmem;
  unsigned* window_gmem;
  int step_stride, window_stride;
  int words;

  // Row r >= -kDeltaHistory: the open ones and those before them are in the window, the step's in its input. Null
  // before position 0, where there is nothing.
  __device__ __forceinline__ const unsigned* row(const SlotRows& slot, int r) const {
    if (r >= slot.open) return step_gmem + index_t(r - slot.open) * step_stride;
    return slot.begin + r < 0 ? nullptr : window_gmem + index_t(r + kDeltaHistory) * window_stride;
  }
};

// The columns of CTA x: a head of q, k or v, or behind them all gates.
__device__ __forceinline__ RawRows raw_rows(const GatedDeltaParams& p, int vector, int slot) {
  const int heads = 2 * p.key_heads + p.value_heads;
  const int channel_words = heads * kDeltaHeadDim / 2;
  RawRows raw;
  raw.window_stride = channel_words + p.value_heads;
  raw.window_gmem =
      static_cast<unsigned*>(p.window) + index_t(slot) * p.window_rows * raw.window_stride + vector * kHeadWords;
  if (vector < heads) {
    raw.words = kHeadWords;
    raw.step_stride = channel_words;
    raw.step_gmem = static_cast<const unsigned*>(p.qkv) + index_t(slot) * p.rows * channel_words + vector * raw.words;
  } else {
    raw.words = raw.step_stride = p.value_heads;
    raw.step_gmem = static_cast<const unsigned*>(p.gates) + index_t(slot) * p.rows * raw.words;
  }
  return raw;
}

__device__ __forceinline__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Four numbers of each of kDeltaConvKernel rows times their weights, the oldest row first, then x · sigmoid(x).
struct Convolution {
  float weight[4][kDeltaConvKernel];

  __device__ Convolution(const GatedDeltaParams& p, int channel) {
    const uint2* from = static_cast<const uint2*>(p.conv_weight) + channel;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 four = from[i];
      weight[i][0] = low_half(four.x), weight[i][1] = high_half(four.x);
      weight[i][2] = low_half(four.y), weight[i][3] = high_half(four.y);
    }
  }

  // `words_smem`: this thread's four channels in the oldest of the rows, which are `stride` words apart.
  __device__ __forceinline__ float4 apply(const unsigned* words_smem, int stride) const {
    float y[4] = {};
#pragma unroll
    for (int o = 0; o < kDeltaConvKernel; ++o) {
      const uint2 four = *reinterpret_cast<const uint2*>(words_smem + o * stride);
      y[0] = fmaf(low_half(four.x), weight[0][o], y[0]);
      y[1] = fmaf(high_half(four.x), weight[1][o], y[1]);
      y[2] = fmaf(low_half(four.y), weight[2][o], y[2]);
      y[3] = fmaf(high_half(four.y), weight[3][o], y[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = __fdividef(y[i], 1.f + __expf(-y[i]));
    return {y[0], y[1], y[2], y[3]};
  }
};

// Rows first … end-1 of one head into the workspace: a row for each warp, four channels for each lane. q and k are
// divided by their norm, q by the square root of Dk too. `raw_smem` begins kDeltaHistory rows before `first`.
__device__ inline void write_head(const GatedDeltaParams& p, int vector, int slot, int first, int end,
                                  const unsigned* raw_smem) {
  constexpr float kEpsilon = 1e-6f, kQueryScale = 0.08838834764831845f;  // 128^-0.5
  static_assert(kDeltaHeadDim == 4 * kWarp, "four channels a lane; and the scale of q is written out");
  const int lane = threadIdx.x % kWarp;
  const bool is_key = vector < 2 * p.key_heads;
  const bool is_query = vector < p.key_heads;
  const int head = is_query ? vector : is_key ? vector - p.key_heads : vector - 2 * p.key_heads;
  float* part = is_query ? p.q_rows : is_key ? p.k_rows : p.v_rows;
  const int heads = is_key ? p.key_heads : p.value_heads;
  float4* to_gmem = reinterpret_cast<float4*>(part) + (index_t(slot) * heads + head) * p.row_limit * kWarp + lane;
  const Convolution convolution(p, vector * kDeltaHeadDim + 4 * lane);
  for (int row = first + static_cast<int>(threadIdx.x) / kWarp; row < end; row += kDeltaRowThreads / kWarp) {
    float4 x = convolution.apply(raw_smem + (row - first) * kHeadWords + 2 * lane, kHeadWords);
    if (is_key) {
      const float squares = fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, x.x * x.x)));
      const float scale = (is_query ? kQueryScale : 1.f) / sqrtf(lanes_sum(squares) + kEpsilon);
      x.x *= scale, x.y *= scale, x.z *= scale, x.w *= scale;
    }
    to_gmem[index_t(row) * kWarp] = x;
  }
}

__device__ __forceinline__ float bf16_at(const unsigned* words_smem, int column) {
  const unsigned pair = words_smem[column / 2];
  return column % 2 ? high_half(pair) : low_half(pair);
}

// decay = e^(-e^a_log · softplus(a + dt_bias)) and beta = sigmoid(b) of rows first … end-1 into the workspace.
__device__ inline void write_gates(const GatedDeltaParams& p, int slot, int first, int end, const unsigned* raw_smem) {
  constexpr float kLinear = 20.f;  // from here on softplus(x) is x in float32
  for (int i = threadIdx.x; i < (end - first) * p.value_heads; i += kDeltaRowThreads) {
    const int row = i / p.value_heads, head = i % p.value_heads;
    const unsigned* words_smem = raw_smem + (row + kDeltaHistory) * p.value_heads;
    const float b = bf16_at(words_smem, head);
    const float x = bf16_at(words_smem, p.value_heads + head) + p.dt_bias[head];
    const float softplus = x > kLinear ? x : log1pf(expf(x));
    float2* to_gmem = reinterpret_cast<float2*>(p.gate_rows) + (index_t(slot) * p.value_heads + head) * p.row_limit;
    to_gmem[first + row] = make_float2(expf(-expf(p.a_log[head]) * softplus), 1.f / (1.f + expf(-b)));
  }
}

// Rows first-kDeltaHistory … end-1 into shared memory, a row for each warp; 0 before position 0.
template <bool kIsHead>
__device__ __forceinline__ void stage_rows(const RawRows& raw, const SlotRows& slot, int first, int end,
                                           unsigned* raw_smem) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int begin = first - kDeltaHistory;
#pragma unroll(kIsHead ? 4 : 1)
  for (int row = begin + warp; row < end; row += kDeltaRowThreads / kWarp) {
    const unsigned* from = raw.row(slot, row);
    if (kIsHead) {
      unsigned* to_smem = raw_smem + (row - begin) * kHeadWords + lane;
      const unsigned low = from ? from[lane] : 0, high = from ? from[lane + kWarp] : 0;
      to_smem[0] = low, to_smem[kWarp] = high;
    } else {
#pragma unroll 1
      for (int word = lane; word < raw.words; word += kWarp) {
        raw_smem[(row - begin) * raw.words + word] = from ? from[word] : 0;
      }
    }
  }
}

// The window moves on to kDeltaHistory rows before the certain ones' end. What lies behind the step's last row stays.
// Rows from `staged_end` on are none of the window's.
__device__ inline void move_window(const GatedDeltaParams& p, const SlotRows& slot, const RawRows& raw, int staged_end,
                                   const unsigned* raw_smem) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int begin = slot.commit - kDeltaHistory;  // the row that becomes the window's first
  const int moved = min(p.window_rows, slot.count - begin);
  for (int i = warp; i < moved; i += kDeltaRowThreads / kWarp) {
    const int row = begin + i;
    unsigned* to_gmem = raw.window_gmem + index_t(i) * raw.window_stride;
    const unsigned* from = row < staged_end ? raw_smem + (row + kDeltaHistory) * raw.words : raw.row(slot, row);
#pragma unroll 2
    for (int word = lane; word < raw.words; word += kWarp) to_gmem[word] = from[word];
  }
}

// CTA (x, y, z) takes the columns x and the chunk y of the rows of slot z. It keeps the raw rows in shared memory. The
// first chunk has all rows that come from the window, so it alone reads those columns of the window. Behind its barrier
// it may write them.
template <bool kIsHead>
__device__ void write_rows(const GatedDeltaParams& p, unsigned* raw_smem) {
  static_assert(kDeltaChunkRows >= kDeltaHistory, "no other chunk reads the window");
  const int vector = blockIdx.x, chunk = blockIdx.y, slot_index = blockIdx.z;
  const SlotRows slot(p, slot_index);
  const int first = chunk == 0 ? 0 : slot.open + chunk * kDeltaChunkRows;
  const int end = min(slot.open + (chunk + 1) * kDeltaChunkRows, slot.count);
  const RawRows raw = raw_rows(p, vector, slot_index);
  stage_rows<kIsHead>(raw, slot, first, end, raw_smem);
  __syncthreads();
  if (kIsHead) {
    write_head(p, vector, slot_index, first, end, raw_smem);
  } else {
    write_gates(p, slot_index, first, end, raw_smem);
  }
  if (chunk == 0) move_window(p, slot, raw, end, raw_smem);
}

}  // namespace dflash
