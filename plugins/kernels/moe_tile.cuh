// Some rows of one expert's weights times all of its tokens: gate and up with the activation, or down.
#pragma once

#include "moe_route.cuh"

namespace dflash {

// A CTA of eight warps. A warp takes 16 rows of the weights (eight gates and their ups, or 16 rows of down) as the
// products' first operand, straight from memory into registers, and every kSplits-th chunk of their columns; tokens are
// the second operand, and go through shared memory. A thread reads 16 bytes of each of two rows at a time: elements of
// a row need not be multiplied in their order, only in the order that the tokens have too.
//
// A slab is what the CTA multiplies between two barriers: kSteps chunks for each warp. While one is multiplied, the
// next slab's weights are on their way into registers, its tokens into the other stage of shared memory.
template <int kFormat, int kTokens, bool kIsDown>
struct ExpertTile {
  using Block = MoeBlock<kFormat>;
  static constexpr int kRowWarps = moe_tile(kTokens).row_warps;
  static constexpr int kSplits = kMoeThreads / kWarp / kRowWarps;  // warps that divide the columns
  static constexpr int kColumns = kTokens / 8;                     // fragments of tokens
  static constexpr int kPieces = Block::kPieces;
  static constexpr int kSteps = 2;
  static constexpr int kSlab = kSteps * kSplits;             // chunks; one is four vectors of each row
  static constexpr int kSlabEights = kSlab * 4 * kPieces;    // of a token
  static constexpr int kStage = kSlabEights / 4 * kColumns;  // fragments: 32 times 16 bytes
  static_assert(moe_tile(kTokens).tokens == kTokens && kRowWarps * kSplits * kWarp == kMoeThreads, "whole warps");
  static_assert(kMoeThreads % kSlabEights == 0, "a thread copies the same of each of its tokens");
  static_assert(2 * kStage * kWarp * 16 == moe_shared_bytes(kFormat), "two stages");
  static_assert((kSplits - 1) * kRowWarps * kColumns * 4 * kWarp * 4 <= moe_shared_bytes(kFormat), "sums fit");

  struct Weights {
    Block blocks[kSteps][2];  // of rows g and g+8
  };
  struct Group {
    int expert, begin, end;
  };

  const MoeParams& p;
  const Group group;
  uint4* const tokens_smem;
  const int lane, row_warp, split;
  const int columns;       // of the weights
  const int first_row;     // of this warp: of the inner size, or of down
  const int halves;        // how many of rows g and g+8 there are: 8 divides their number, so none has a part
  const int first_vector;  // of a row, for this lane
  const int eight;         // of a slab of a token: what this thread copies of each of its tokens
  const unsigned char* weights_gmem;  // row g at the lane's first vector
  const unsigned char* scales_gmem;

  __device__ ExpertTile(const MoeParams& params, unsigned char* smem)
      : p(params),
        group(find_group(params)),
        tokens_smem(reinterpret_cast<uint4*>(smem)),
        lane(threadIdx.x % kWarp),
        row_warp(threadIdx.x / kWarp % kRowWarps),
        split(threadIdx.x / kWarp / kRowWarps),
        columns(kIsDown ? params.inner_size : params.hidden),
        first_row((blockIdx.x * kRowWarps + row_warp) * (kIsDown ? 16 : 8)),
        halves(count_halves((kIsDown ? params.hidden : params.inner_size) - first_row)),
        first_vector(split * 4 + lane % 4),
        eight(threadIdx.x % kSlabEights) {
    const index_t row = index_t(group.expert) * rows_of_expert() + row_of(0);
    const index_t from = row * (columns / (8 * kPieces)) + first_vector;
    weights_gmem = static_cast<const unsigned char*>(kIsDown ? p.down : p.gate_up) + from * 16;
    const void* scales = kIsDown ? p.down_scale : p.gate_up_scale;
    scales_gmem = static_cast<const unsigned char*>(scales) + from * Block::kScaleBytes;
  }

  static __device__ Group find_group(const MoeParams& p) {
    const int4 found = reinterpret_cast<const int4*>(p.groups)[blockIdx.y];
    return {found.x, found.y, found.z};
  }

  // Of a warp in front of `rows` rows of down, or of the inner size: rows g+8 of gate and up are there if g are.
  static __device__ __forceinline__ int count_halves(int rows) { return rows <= 0 ? 0 : kIsDown && rows <= 8 ? 1 : 2; }

  // Row of the weights that this lane has as row g (or g+8) of its warp's.
  __device__ __forceinline__ int row_of(int half) const {
    const int row = first_row + lane / 4;
    return (!kIsDown && p.interleaved ? 2 * row : row) + half * half_rows();
  }

  __device__ __forceinline__ int rows_of_expert() const { return kIsDown ? p.hidden : 2 * p.inner_size; }

  // From row g to row g+8.
  __device__ __forceinline__ int half_rows() const { return kIsDown ? 8 : p.interleaved ? 1 : p.inner_size; }

  __device__ __forceinline__ bool is_present(int half) const { return half < halves; }

  __device__ void run() const {
    for (int first = group.begin; first < group.end; first += kTokens) {
      if (first > group.begin) __syncthreads();  // everyone is done with the tokens, or sums, before
      multiply(first, min(kTokens, group.end - first));
    }
  }

  // For `count` tokens from place `first` on.
  __device__ __forceinline__ void multiply(int first, int count) const {
    const int chunks = (columns + 32 * kPieces - 1) / (32 * kPieces);
    FragmentC sums[kColumns] = {};
    Weights weights, next;
    load_weights(next, 0);
    copy_tokens(0, 0, first, count);
    copy_async_commit();
    int stage = 0;
    for (int slab = 0; slab < chunks; slab += kSlab, stage ^= 1) {
      weights = next;
      if (slab + kSlab < chunks) {
        load_weights(next, slab + kSlab);
        copy_tokens(stage ^ 1, slab + kSlab, first, count);
      }
      copy_async_commit();
      copy_async_wait<1>();
      __syncthreads();  // what the other threads copied is there as well
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int chunk = step * kSplits + split;
        if (slab + chunk >= chunks) continue;
        const Block(&blocks)[2] = weights.blocks[step];
        if (__any_sync(kAllLanes, blocks[0].is_large() || blocks[1].is_large())) {
          multiply_chunk<true>(sums, blocks, stage, chunk);
        } else {
          multiply_chunk<false>(sums, blocks, stage, chunk);
        }
      }
      __syncthreads();  // no thread reads this stage any more: the next turn copies into it
    }
    copy_async_wait<0>();
    if (kSplits > 1) merge_splits(sums);
    if (split == 0) write(sums, first, count);
  }

  __device__ __forceinline__ void load_weights(Weights& weights, int slab) const {
    const int vectors = columns / (8 * kPieces);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const index_t from = index_t(half * half_rows()) * vectors + slab * 4;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int skipped = step * kSplits * 4;  // vectors
        const bool is_there = is_present(half) && first_vector + slab * 4 + skipped < vectors;
        weights.blocks[step][half].load(weights_gmem + (from + skipped) * 16,
                                        scales_gmem + (from + skipped) * Block::kScaleBytes, is_there);
      }
    }
  }

  // Fragment `piece` of a chunk, for one fragment of tokens: lane l of a warp reads slot l ^ swizzle, so that threads
  // which copy neighbours do not meet in one bank either.
  static __device__ __forceinline__ int swizzle(int chunk, int piece) {
    return kPieces == 1 ? chunk % 2 * 4 : piece * 2;
  }
  static __device__ __forceinline__ int fragment(int chunk, int piece, int column) {
    return (chunk * kPieces + piece) * kColumns + column;
  }

  // The slab's columns of the tokens; zeros behind the last column. Where there is no token nothing is copied: what
  // stands there is multiplied and not written.
  __device__ __forceinline__ void copy_tokens(int stage, int slab, int first, int count) const {
    const int piece = eight % kPieces, thread = eight / kPieces % 4, chunk = eight / kPieces / 4;
    const int column = slab * 4 * kPieces + eight;
    const bool is_there = column < columns / 8;
#pragma unroll 1
    for (int token = threadIdx.x / kSlabEights; token < count; token += kMoeThreads / kSlabEights) {
      const int slot = (token % 8 * 4 + thread) ^ swizzle(chunk, piece);
      uint4* to = tokens_smem + (stage * kStage + fragment(chunk, piece, token / 8)) * kWarp + slot;
      copy_async_16(to, token_row(first + token) + (is_there ? column : 0), is_there);
    }
  }

  // What is multiplied at a place: its token, or what gate and up made of it.
  __device__ __forceinline__ const uint4* token_row(int place) const {
    const index_t eights = columns / 8;
    if (kIsDown) return static_cast<const uint4*>(p.inner) + place * eights;
    return static_cast<const uint4*>(p.ordered_x) + p.rows[place] * eights;
  }

  template <bool kLarge>
  __device__ __forceinline__ void multiply_chunk(FragmentC (&sums)[kColumns], const Block (&blocks)[2], int stage,
                                                 int chunk) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      unsigned low[4], high[4];
      blocks[0].template piece<kLarge>(low, piece);
      blocks[1].template piece<kLarge>(high, piece);
      const int slot = lane ^ swizzle(chunk, piece);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const uint4 t = tokens_smem[(stage * kStage + fragment(chunk, piece, column)) * kWarp + slot];
        multiply_add(sums[column], {low[0], high[0], low[1], high[1]}, {t.x, t.y});
        multiply_add(sums[column], {low[2], high[2], low[3], high[3]}, {t.z, t.w});
      }
    }
  }

  // The sums of the warps that have the same rows, always in the same order, in those of split 0.
  __device__ __forceinline__ void merge_splits(FragmentC (&sums)[kColumns]) const {
    float4* sums_smem = reinterpret_cast<float4*>(tokens_smem);  // the tokens are not needed any more
    const auto place = [this](int from, int column) {
      return (((from - 1) * kRowWarps + row_warp) * kColumns + column) * kWarp + lane;
    };
    if (split > 0) {
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        sums_smem[place(split, i)] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
      }
    }
    __syncthreads();
    if (split > 0) return;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      for (int from = 1; from < kSplits; ++from) {
        const float4 other = sums_smem[place(from, i)];
        sums[i][0] += other.x, sums[i][1] += other.y, sums[i][2] += other.z, sums[i][3] += other.w;
      }
    }
  }

  __device__ __forceinline__ void write(const FragmentC (&sums)[kColumns], int first, int count) const {
    const float* scale_2 = kIsDown ? p.down_scale_2 : p.gate_up_scale_2;
    const bf16* biases = static_cast<const bf16*>(kIsDown ? p.down_bias : p.gate_up_bias);
    const float worth = Block::worth(scale_2, group.expert);
    float bias[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const index_t row = index_t(group.expert) * rows_of_expert() + row_of(half);
      bias[half] = is_present(half) ? __bfloat162float(biases[row]) : 0.f;
    }
#pragma unroll
    for (int i = 0; i < kColumns * 2; ++i) {
      const int token = i / 2 * 8 + lane % 4 * 2 + i % 2;
      if (token >= count) continue;
      const float low = sums[i / 2][i % 2] * worth + bias[0], high = sums[i / 2][i % 2 + 2] * worth + bias[1];
      if (kIsDown) {
        float* to = p.partial + index_t(p.order[first + token]) * p.hidden + first_row + lane / 4;
        if (is_present(0)) to[0] = low;
        if (is_present(1)) to[8] = high;
      } else if (is_present(0)) {
        bf16* to = static_cast<bf16*>(p.inner) + index_t(first + token) * p.inner_size;
        to[place_of<kFormat>(first_row + lane / 4)] = __float2bfloat16(activated(low, high));
      }
    }
  }

  // A NaN stays one.
  __device__ __forceinline__ float activated(float gate, float up) const {
    if (p.limit != 0.f) {
      gate = gate > p.limit ? p.limit : gate;
      up = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
    }
    return (up + p.shift) * gate / (1.f + expf(-p.alpha * gate));
  }
};

}  // namespace dflash
