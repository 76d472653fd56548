// Some rows of a weight times some tokens, by one CTA: what experts (moe_tile.cuh) and linears (block_linear.cu) share.
#pragma once

#include "moe_weights.cuh"

namespace dflash {

constexpr int kTileThreads = kMoeThreads;

// Where the rows of a weight are that a lane takes, g and g+8 of its warp's sixteen.
struct LaneRows {
  const unsigned char* codes;   // row g, at the lane's first vector
  const unsigned char* scales;  // likewise; of FP8 the scale of row g's first block
  int next_row;                 // from row g to row g+8
  int next_scales;              // FP8: from the scales of row g to those of row g+8
  int scale_step;               // FP8: from a block's scale to the next in its row; 0: a row has one scale
  int columns;                  // of the weight
  int halves;                   // how many of the two rows there are
};

// A CTA of eight warps. A warp takes 16 rows of the weights as the products' first operand, straight from memory into
// registers, and every kSplits-th chunk of their columns; tokens are the second operand, and go through shared memory.
// A thread reads 16 bytes of each of two rows at a time: elements of a row need not be multiplied in their order, only
// in the order that the tokens have too.
//
// A slab is what the CTA multiplies between two barriers: kSteps chunks for each warp. While one is multiplied, the
// next slab's weights are on their way into registers, its tokens into the other stage of shared memory.
//
// `Own` is the tile that is made of this one. It says where a token is (token_row) and takes the sums (write).
template <class Own, int kFormat, int kTokens, int kRowWarpsOfTile>
struct ProductTile {
  using Block = MoeBlock<kFormat>;
  static constexpr int kRowWarps = kRowWarpsOfTile;
  static constexpr int kSplits = kTileThreads / kWarp / kRowWarps;  // warps that divide the columns
  static constexpr int kColumns = kTokens / 8;                      // fragments of tokens
  static constexpr int kPieces = Block::kPieces;
  static constexpr int kSteps = 2;
  static constexpr int kSlab = kSteps * kSplits;             // chunks; one is four vectors of each row
  static constexpr int kSlabEights = kSlab * 4 * kPieces;    // of a token
  static constexpr int kStage = kSlabEights / 4 * kColumns;  // fragments: 32 times 16 bytes
  static constexpr int kSharedBytes = 2 * kStage * kWarp * 16;
  static_assert(kRowWarps * kSplits * kWarp == kTileThreads, "whole warps");
  static_assert(kTileThreads % kSlabEights == 0, "a thread copies the same of each of its tokens");
  static_assert((kSplits - 1) * kRowWarps * kColumns * 4 * kWarp * 4 <= kSharedBytes, "sums fit");

  struct Weights {
    Block blocks[kSteps][2];  // of rows g and g+8
  };

  uint4* const tokens_smem;
  const int lane, row_warp, split;
  const int first_vector;  // of a row, for this lane
  const int eight;         // of a slab of a token: what this thread copies of each of its tokens
  LaneRows rows;

  __device__ explicit ProductTile(unsigned char* smem)
      : tokens_smem(reinterpret_cast<uint4*>(smem)),
        lane(threadIdx.x % kWarp),
        row_warp(threadIdx.x / kWarp % kRowWarps),
        split(threadIdx.x / kWarp / kRowWarps),
        first_vector(split * 4 + lane % 4),
        eight(threadIdx.x % kSlabEights),
        rows{} {}

  __device__ __forceinline__ const Own& own() const { return *static_cast<const Own*>(this); }

  __device__ __forceinline__ bool is_present(int half) const { return half < rows.halves; }

  // For `count` tokens from place `first` on.
  __device__ __forceinline__ void multiply(int first, int count) const {
    const int chunks = (rows.columns + 32 * kPieces - 1) / (32 * kPieces);
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
        if constexpr (Block::kIsScaledLater) {
          multiply_scaled(sums, blocks, stage, chunk);
        } else if (__any_sync(kAllLanes, blocks[0].is_large() || blocks[1].is_large())) {
          multiply_chunk<true>(sums, blocks, stage, chunk);
        } else {
          multiply_chunk<false>(sums, blocks, stage, chunk);
        }
      }
      __syncthreads();  // no thread reads this stage any more: the next turn copies into it
    }
    copy_async_wait<0>();
    if (kSplits > 1) merge_splits(sums);
    if (split == 0) own().write(sums, first, count);
  }

  __device__ __forceinline__ void load_weights(Weights& weights, int slab) const {
    const int vectors = rows.columns / (8 * kPieces);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const index_t from = index_t(half * rows.next_row) * vectors + slab * 4;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int skipped = step * kSplits * 4;  // vectors
        const int vector = first_vector + slab * 4 + skipped;
        const bool is_there = is_present(half) && vector < vectors;
        const unsigned char* codes = rows.codes + (from + skipped) * 16;
        Block& block = weights.blocks[step][half];
        if constexpr (Block::kIsScaledLater) {
          // The sums of the chunk are this lane's, even if its last vectors are not there.
          const bool has_scale = is_present(half) && vector - lane % 4 < vectors;
          const int scale = half * rows.next_scales + vector / kBlockVectors * rows.scale_step;
          block.load(codes, is_there, rows.scales + 4 * scale, has_scale);
        } else {
          block.load(codes, rows.scales + (from + skipped) * Block::kScaleBytes, is_there);
        }
      }
    }
  }

  // Fragment `piece` of a chunk, for one fragment of tokens: lane l of a warp reads slot l ^ swizzle, so that threads
  // which copy neighbours do not meet in one bank either.
  static __device__ __forceinline__ int swizzle(int chunk, int piece) {
    return kPieces == 1 ? chunk % 2 * 4 : piece * (8 / kPieces);
  }
  static __device__ __forceinline__ int fragment(int chunk, int piece, int column) {
    return (chunk * kPieces + piece) * kColumns + column;
  }

  // The slab's columns of the tokens; zeros behind the last column. Where there is no token nothing is copied: what
  // stands there is multiplied and not written.
  __device__ __forceinline__ void copy_tokens(int stage, int slab, int first, int count) const {
    const int piece = eight % kPieces, thread = eight / kPieces % 4, chunk = eight / kPieces / 4;
    const int column = slab * 4 * kPieces + eight;
    const bool is_there = column < rows.columns / 8;
#pragma unroll 1
    for (int token = threadIdx.x / kSlabEights; token < count; token += kTileThreads / kSlabEights) {
      const int slot = (token % 8 * 4 + thread) ^ swizzle(chunk, piece);
      uint4* to = tokens_smem + (stage * kStage + fragment(chunk, piece, token / 8)) * kWarp + slot;
      copy_async_16(to, own().token_row(first + token) + (is_there ? column : 0), is_there);
    }
  }

  template <bool kLarge>
  __device__ __forceinline__ void multiply_chunk(FragmentC (&sums)[kColumns], const Block (&blocks)[2], int stage,
                                                 int chunk) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      unsigned low[4], high[4];
      blocks[0].template piece<kLarge>(low, piece);
      blocks[1].template piece<kLarge>(high, piece);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        multiply_piece(sums[column], low, high, stage, chunk, piece, column);
      }
    }
  }

  // A chunk lies within one block of columns: its products are summed, and the sum is scaled, in float32.
  __device__ __forceinline__ void multiply_scaled(FragmentC (&sums)[kColumns], const Block (&blocks)[2], int stage,
                                                  int chunk) const {
    unsigned low[kPieces][4], high[kPieces][4];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      blocks[0].piece(low[piece], piece);
      blocks[1].piece(high[piece], piece);
    }
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      FragmentC part = {};
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        multiply_piece(part, low[piece], high[piece], stage, chunk, piece, column);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[column][i] += blocks[i / 2].scale * part[i];
    }
  }

  __device__ __forceinline__ void multiply_piece(FragmentC& sums, const unsigned (&low)[4], const unsigned (&high)[4],
                                                 int stage, int chunk, int piece, int column) const {
    const int slot = lane ^ swizzle(chunk, piece);
    const uint4 t = tokens_smem[(stage * kStage + fragment(chunk, piece, column)) * kWarp + slot];
    multiply_add(sums, {low[0], high[0], low[1], high[1]}, {t.x, t.y});
    multiply_add(sums, {low[2], high[2], low[3], high[3]}, {t.z, t.w});
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
};

}  // namespace dflash
