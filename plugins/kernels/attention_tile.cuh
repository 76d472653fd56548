// Attention of tiles of packed rows over splits of their keys, by a CTA of four warps.
#pragma once

#include "attention_deal.cuh"
#include "attention_operands.cuh"

namespace dflash {

// The kernel for one head_dim, one tile of rows and one type of cache. Shared memory: q, then keys and values
// (KeyTiles); at the end the float32 result and each warp's statistics.
template <int kHeadDim, int kRows, typename Cache>
struct Attention {
  static constexpr AttentionTile kTile = attention_tile(kHeadDim, kRows);
  static constexpr int kKeys = kTile.keys;
  static constexpr int kRowWarps = kTile.warps;
  static constexpr int kKeyWarps = kAttentionThreads / kWarp / kRowWarps;
  static constexpr int kRowSteps = kRows / (16 * kRowWarps);  // 16-row fragments of a warp
  static constexpr int kKeySteps = kKeys / (16 * kKeyWarps);  // 16-key fragments of a warp
  using Operand = Operands<kHeadDim, Cache>;
  static constexpr int kQueryStride = Operand::kQueryStride;
  static constexpr int kStride = Operand::kStride;
  static constexpr int kResultStride = kHeadDim + 4;
  static constexpr int kChunks = kHeadDim / kChunk;
  static_assert(kTile.rows == kRows && kRowSteps * 16 * kRowWarps == kRows, "the warps must divide the rows");
  static_assert(kKeySteps > 0 && kKeySteps * 16 * kKeyWarps == kKeys, "the warps must divide the keys");

  // One warp's rows: sums of weighted values, and for rows g and g+8 of each fragment the largest score and the sum.
  struct State {
    FragmentC out[kRowSteps][kHeadDim / 8];
    float largest[kRowSteps][2];
    float sum[kRowSteps][2];
  };

  const AttentionParams& p;
  const Work w;
  bf16* const q_smem;  // [kRows, kQueryStride], of two bytes each
  const KeyTiles<kHeadDim, kKeys, Cache> tiles;
  float* const result_smem;   // [kRows, kResultStride]
  float* const largest_smem;  // [kKeyWarps, kRows]
  float* const sum_smem;      // [kKeyWarps, kRows]
  const int lane, row_warp, key_warp;

  __device__ Attention(const AttentionParams& params, const Item& item, unsigned char* smem)
      : p(params),
        w(find_work(params, item, kRows, kKeys)),
        q_smem(reinterpret_cast<bf16*>(smem)),
        tiles{reinterpret_cast<Cache*>(q_smem + kRows * kQueryStride)},
        result_smem(reinterpret_cast<float*>(smem)),
        largest_smem(result_smem + kRows * kResultStride),
        sum_smem(largest_smem + kKeyWarps * kRows),
        lane(threadIdx.x % kWarp),
        row_warp(threadIdx.x / kWarp % kRowWarps),
        key_warp(threadIdx.x / kWarp / kRowWarps) {}

  // All items of this CTA.
  static __device__ void run_all(const AttentionParams& p, unsigned char* smem) {
    static_assert(kDealBytes <= attention_shared_bytes(kHeadDim, kTile), "all slots must fit");
    for (int round = 0;; ++round) {
      const Item item = find_item(p, smem, round);
      if (item.slot < 0) return;
      Attention(p, item, smem).run();
      __syncthreads();  // no thread reads the result any more
    }
  }

  __device__ void run() const {
    const bool idle = w.first_key >= w.end_key;
    if (!idle) {
      copy_queries();
      tiles.begin(p, w, w.first_key, 0);
      copy_async_commit();
    }
    write_caches<kHeadDim, Cache>(p, w);  // while the first keys are on their way
    if (idle) return write_empty_statistics();
    State state = {};
    for (auto& row : state.largest) row[0] = row[1] = -kInfinity;
    int stage = 0;
    for (int key = w.first_key; key < w.end_key; key += kKeys, stage ^= 1) {
      if (key + kKeys < w.end_key) tiles.begin(p, w, key + kKeys, stage ^ 1);
      copy_async_commit();
      copy_async_wait<1>();
      __syncthreads();  // what the other threads copied is there as well
      use_keys(state, key, tiles.tile(stage));
      __syncthreads();  // no thread reads this stage any more: the next turn copies into it
    }
    copy_async_wait<0>();
    merge_warps(state);
    write_result();
  }

  __device__ void copy_queries() const {
    for (int i = threadIdx.x; i < kRows * kChunks; i += kAttentionThreads) {
      const int row = i / kChunks, column = i % kChunks * kChunk, packed = w.first_row + row;
      const bool present = packed < w.end_row;
      const index_t from = present ? head_row(packed) * kHeadDim + column : 0;
      Operand::copy_query(q_smem + row * kQueryStride, column, static_cast<const bf16*>(p.q) + from, present);
    }
  }

  // Row of out, q and the partial results seen as [B·T·Hq, D].
  __device__ index_t head_row(int packed) const {
    const index_t row = index_t(w.slot) * p.rows + packed / w.group;
    return row * p.q_heads + w.kv_head * w.group + packed % w.group;
  }

  __device__ __forceinline__ void use_keys(State& state, int first, const Cache* tile_smem) const {
    const Cache* keys_smem = tile_smem + key_warp * 16 * kKeySteps * kStride;
    const int first_of_warp = first + key_warp * 16 * kKeySteps;
    FragmentC scores[kRowSteps][kKeySteps * 2] = {};
    multiply_keys(scores, keys_smem);
    const bool hidden = p.window > 0 || first + kKeys > min(w.all_see_to, w.end_key);
#pragma unroll
    for (int i = 0; i < kRowSteps; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (hidden) hide(scores[i], i, half, first_of_warp);
        soften(state, scores[i], i, half);
      }
    }
    add_values(state, scores, keys_smem + kKeys * kStride);
  }

  // scores = q kᵀ of this warp's rows and keys.
  __device__ __forceinline__ void multiply_keys(FragmentC (&scores)[kRowSteps][kKeySteps * 2],
                                                const Cache* keys_smem) const {
    constexpr int kSteps = Operand::kKeyDims / 16;
    const bf16* rows_smem = q_smem + (row_warp * kRowSteps * 16 + lane % 16) * kQueryStride + lane / 16 * 8;
#pragma unroll
    for (int d = 0; d < kHeadDim; d += Operand::kKeyDims) {
      FragmentA q_rmem[kSteps][kRowSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int i = 0; i < kRowSteps; ++i) {
          load_matrix_x4(q_rmem[s][i], rows_smem + i * 16 * kQueryStride + d + s * 16);
        }
      }
#pragma unroll
      for (int j = 0; j < kKeySteps; ++j) {
        FragmentB k_rmem[kSteps][2];
        Operand::load_keys(k_rmem, keys_smem + j * 16 * kStride + d, lane);
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
          for (int i = 0; i < kRowSteps; ++i) {
            Operand::multiply(scores[i][2 * j], q_rmem[s][i], k_rmem[s][0]);
            Operand::multiply(scores[i][2 * j + 1], q_rmem[s][i], k_rmem[s][1]);
          }
        }
      }
    }
  }

  // -infinity where row g (+8 in the second half) of fragment i does not see the key.
  __device__ __forceinline__ void hide(FragmentC (&scores)[kKeySteps * 2], int i, int half, int first) const {
    const int packed = w.first_row + (row_warp * kRowSteps + i) * 16 + half * 8 + lane / 4;
    const int row = w.block_start + packed / w.group;
#pragma unroll
    for (int j = 0; j < kKeySteps * 2; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int distance = row - (first + j * 8 + lane % 4 * 2 + c);
        const bool near = p.window == 0 || (distance < p.window && -distance < p.window);
        const bool seen = row - distance < w.end_key && (!p.causal || distance >= 0) && near;
        if (!seen) scores[j][half * 2 + c] = -kInfinity;
      }
    }
  }

  // Scores become weights relative to the largest so far, in base 2; what is summed up already is brought down to it.
  __device__ __forceinline__ void soften(State& state, FragmentC (&scores)[kKeySteps * 2], int i, int half) const {
    const float scale = p.scale * p.key_scale * kLog2E;
    float largest = -kInfinity;
#pragma unroll
    for (int j = 0; j < kKeySteps * 2; ++j) {
      largest = fmaxf(largest, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
    }
    largest = fmaxf(state.largest[i][half], lanes_max<4>(largest) * scale);
    const float base = largest == -kInfinity ? 0.f : largest;  // a row that has seen no key yet: weights 0
    const float shrink = exp2_approx(state.largest[i][half] - base);
    float sum = state.sum[i][half] * shrink;
#pragma unroll
    for (int j = 0; j < kKeySteps * 2; ++j) {
#pragma unroll
      for (int c = half * 2; c < half * 2 + 2; ++c) {
        scores[j][c] = exp2_approx(scores[j][c] * scale - base);
        sum += scores[j][c];
      }
    }
    state.largest[i][half] = largest;
    state.sum[i][half] = sum;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      state.out[i][n][half * 2] *= shrink;
      state.out[i][n][half * 2 + 1] *= shrink;
    }
  }

  // out += weights v. The products' accumulators are laid out as the next products' operand: no exchange is needed.
  __device__ __forceinline__ void add_values(State& state, const FragmentC (&weights)[kRowSteps][kKeySteps * 2],
                                             const Cache* values_smem) const {
    constexpr int kFragments = Operand::kValueDims / 8;
#pragma unroll
    for (int j = 0; j < kKeySteps; ++j) {
      FragmentA w_rmem[kRowSteps];
#pragma unroll
      for (int i = 0; i < kRowSteps; ++i) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const FragmentC& from = weights[i][2 * j + r / 2];
          w_rmem[i][r] = Operand::pack_weights(from[r % 2 * 2], from[r % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; n += kFragments) {
        FragmentB v_rmem[kFragments];
        Operand::load_values(v_rmem, values_smem + j * 16 * kStride + n * 8, lane);
#pragma unroll
        for (int i = 0; i < kRowSteps; ++i) {
#pragma unroll
          for (int f = 0; f < kFragments; ++f) Operand::multiply(state.out[i][n + f], w_rmem[i], v_rmem[f]);
        }
      }
    }
  }

  // All warps' results of a row, relative to the row's largest score, summed up in result_smem; statistics beside it.
  __device__ __forceinline__ void merge_warps(State& state) const {
#pragma unroll
    for (int i = 0; i < kRowSteps * 2; ++i) {
      const float sum = lanes_sum<4>(state.sum[i / 2][i % 2]);
      if (lane % 4 == 0) {
        largest_smem[key_warp * kRows + own_row(i)] = state.largest[i / 2][i % 2];
        sum_smem[key_warp * kRows + own_row(i)] = sum;
      }
    }
    __syncthreads();  // every warp's largest scores are there
    for (int turn = 0; turn < kKeyWarps; ++turn) {
      if (key_warp == turn) add_to_result(state, turn == 0);
      __syncthreads();  // warps of the same rows add one after the other, always in the same order
    }
  }

  __device__ __forceinline__ void add_to_result(const State& state, bool first) const {
#pragma unroll
    for (int i = 0; i < kRowSteps * 2; ++i) {
      const float shrink = share_of(key_warp, own_row(i), row_largest(own_row(i)));
      float* row_smem = result_smem + own_row(i) * kResultStride;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float value = state.out[i / 2][n][i % 2 * 2 + c] * shrink;
          float& sum = row_smem[Operand::dimension(n, c, lane)];
          sum = first ? value : sum + value;
        }
      }
    }
  }

  // Row of the tile that this lane holds as number i of its rows.
  __device__ int own_row(int i) const { return (row_warp * kRowSteps + i / 2) * 16 + i % 2 * 8 + lane / 4; }

  __device__ float row_largest(int row) const {
    float largest = largest_smem[row];
    for (int warp = 1; warp < kKeyWarps; ++warp) largest = fmaxf(largest, largest_smem[warp * kRows + row]);
    return largest;
  }

  // What a warp's sums of a row must be multiplied with where the row's largest score is `largest`.
  __device__ float share_of(int warp, int row, float largest) const {
    return largest == -kInfinity ? 0.f : exp2_approx(largest_smem[warp * kRows + row] - largest);
  }

  // Finished rows, or this split's part of them. A warp takes a row at a time.
  __device__ void write_result() const {
    for (int row = threadIdx.x / kWarp; w.first_row + row < w.end_row; row += kAttentionThreads / kWarp) {
      float largest = row_largest(row), sum = 0.f, shrink = 1.f;
      for (int warp = 0; warp < kKeyWarps; ++warp) sum += sum_smem[warp * kRows + row] * share_of(warp, row, largest);
      const index_t head = head_row(w.first_row + row);
      const float* row_smem = result_smem + row * kResultStride;
      if (w.splits > 1) {
        const index_t place = w.split * (index_t(p.batch) * p.rows * p.q_heads) + head;
        for (int d = lane; d < kHeadDim; d += kWarp) p.partial_out[place * kHeadDim + d] = row_smem[d];
        if (lane == 0) write_statistics(place, largest, sum);
        continue;
      }
      add_sink(p, head, largest, sum, shrink);
      for (int d = lane; d < kHeadDim; d += kWarp) {
        static_cast<bf16*>(p.out)[head * kHeadDim + d] = __float2bfloat16(row_smem[d] * shrink / sum * p.value_scale);
      }
    }
  }

  __device__ void write_statistics(index_t place, float largest, float sum) const {
    p.partial_stats[place * 2] = largest;
    p.partial_stats[place * 2 + 1] = sum;
  }

  // The merge must not take what an earlier step left in the workspace.
  __device__ void write_empty_statistics() const {
    for (int row = threadIdx.x; w.first_row + row < w.end_row; row += kAttentionThreads) {
      const index_t head = head_row(w.first_row + row);
      write_statistics(w.split * (index_t(p.batch) * p.rows * p.q_heads) + head, -kInfinity, 0.f);
    }
  }
};

}  // namespace dflash
