// Some rows of a weight times some tokens, by one CTA: what experts (moe_tile.cuh) and linears (block_linear.cu) share.
#pragma once

#include "moe_weights.cuh"

namespace dflash {

constexpr int kTileThreads = kMoeThreads;

// The two rows of a weight that a lane takes, g and g+8 of its warp's sixteen. A row that there is not is another one
// of the weight: what comes of it is not written.
struct LaneRows {
  const unsigned char* codes[2];
  const unsigned char* scales[2];  // of FP8 that of the row's first block
  int scale_step;                  // FP8: from a block's scale to the next in its row; 0: a row has one scale
  int columns;                     // of the weight
  int halves;                      // how many of the two rows there are
};

// A CTA of eight warps. A warp takes 16 rows of the weights as the products' first operand, straight from memory into
// registers, and every kSplits-th chunk of their columns; tokens are the second operand, and go through shared memory.
// A thread reads 16 bytes of each of two rows at a time: elements of a row need not be multiplied in their order, only
// in the order that the tokens have too.
//
// A slab is what the CTA multiplies between two barriers: kSteps chunks for each warp. As soon as a chunk's weights are
// multiplied, those of the next slab's are asked for, into the same registers; so all but one chunk are on their way.
// The next slab's tokens are on their way into the other stage of shared memory.
//
// `Own` is the tile that is made of this one. It says where tokens are (tokens, row_of_token; kRowsArePlaces: at their
// places) and takes the sums (write).
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
  static constexpr int kPass = kTileThreads / kSlabEights;  // tokens that all threads copy at once
  static constexpr int kCopies = kTokens / kPass;
  static constexpr bool kKeepsOffsets = kTokens < 64;  // the largest tile has no registers for them
  static_assert(kRowWarps * kSplits * kWarp == kTileThreads, "whole warps");
  static_assert(kPass * kSlabEights == kTileThreads && kCopies * kPass == kTokens, "a thread copies the same of each");
  static_assert((kSplits - 1) * kRowWarps * kColumns * 4 * kWarp * 4 <= kSharedBytes, "sums fit");

  using Weights = Block[kSteps][2];  // of rows g and g+8

  // The rows of the tokens that this thread copies: -1 where there is none; of rows that are places, behind the end.
  struct TokenRows {
    int rows[kCopies];
    int end;
    __device__ __forceinline__ bool has(int i) const { return Own::kRowsArePlaces ? rows[i] < end : rows[i] >= 0; }
  };

  uint4* const tokens_smem;
  const int lane, row_warp, split;
  const int first_vector;  // of a row, for this lane
  const int eight;         // of a slab of a token: what this thread copies of each of its tokens
  LaneRows rows;
  int copied_to;  // bytes from tokens_smem to where this thread copies its first token
  // Bytes from tokens_smem to what this lane reads of a chunk: of each piece, or of chunks of even and odd number.
  int fragments[kPieces == 1 ? 2 : kPieces];

  __device__ explicit ProductTile(unsigned char* smem)
      : tokens_smem(reinterpret_cast<uint4*>(smem)),
        lane(threadIdx.x % kWarp),
        row_warp(threadIdx.x / kWarp % kRowWarps),
        split(threadIdx.x / kWarp / kRowWarps),
        first_vector(split * 4 + lane % 4),
        eight(threadIdx.x % kSlabEights),
        rows{} {
    const int piece = eight % kPieces, thread = eight / kPieces % 4, chunk = eight / kPieces / 4;
    const int token = threadIdx.x / kSlabEights;
    const int slot = (token % 8 * 4 + thread) ^ swizzle(chunk, piece);
    copied_to = (fragment(chunk, piece, token / 8) * kWarp + slot) * 16;
    if (kKeepsOffsets) copied_to = kept(copied_to);
#pragma unroll
    for (int i = 0; i < (kPieces == 1 ? 2 : kPieces); ++i) {
      const int own_slot = lane ^ (kPieces == 1 ? swizzle(split + i, 0) : swizzle(0, i));
      fragments[i] = (fragment(split, kPieces == 1 ? 0 : i, 0) * kWarp + own_slot) * 16;
      if (kKeepsOffsets) fragments[i] = kept(fragments[i]);
    }
  }

  __device__ __forceinline__ const Own& own() const { return *static_cast<const Own*>(this); }

  __device__ __forceinline__ bool is_present(int half) const { return half < rows.halves; }

  // For the kTokens tokens from place `first` on, or those before `end`.
  __device__ __forceinline__ void multiply(int first, int end) const {
    const int slabs = (rows.columns + kSlabEights * 8 - 1) / (kSlabEights * 8);
    TokenRows tokens;
    tokens.end = end;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int place = first + threadIdx.x / kSlabEights + i * kPass;
      tokens.rows[i] = Own::kRowsArePlaces ? place : place < end ? own().row_of_token(place) : -1;
    }
    FragmentC sums[kColumns] = {};
    Weights weights;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) load_step(weights[step], 0, step);
    copy_tokens(0, 0, tokens);
    for (int slab = 0; slab < slabs; slab += 2) {
      multiply_slab<0>(sums, weights, slab, slabs, tokens);
      if (slab + 1 < slabs) multiply_slab<1>(sums, weights, slab + 1, slabs, tokens);
    }
    if (kSplits > 1) merge_splits(sums);
    if (split == 0) own().write(sums, first, min(kTokens, end - first));
  }

  template <int kStageNumber>
  __device__ __forceinline__ void multiply_slab(FragmentC (&sums)[kColumns], Weights& weights, int slab, int slabs,
                                                const TokenRows& tokens) const {
    copy_async_wait<0>();
    __syncthreads();  // what the others copied is there as well, and nobody reads the other stage any more
    if (slab + 1 < slabs) copy_tokens(kStageNumber ^ 1, slab + 1, tokens);
    bool is_rare = false;
#pragma unroll
    for (int i = 0; i < kSteps * 2; ++i) is_rare |= weights[i / 2][i % 2].is_rare();
    if (Block::kMayBeRare && __any_sync(kAllLanes, is_rare)) {
      multiply_steps<kStageNumber, true>(sums, weights, slab, slabs);
    } else {
      multiply_steps<kStageNumber, false>(sums, weights, slab, slabs);
    }
  }

  template <int kStageNumber, bool kRare>
  __device__ __forceinline__ void multiply_steps(FragmentC (&sums)[kColumns], Weights& weights, int slab,
                                                 int slabs) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Block(&blocks)[2] = weights[step];
      if ((slab * kSlab + step * kSplits) * 32 * kPieces < rows.columns - split * 32 * kPieces) {
        if constexpr (Block::kIsScaledLater) {
          multiply_scaled<kStageNumber>(sums, blocks, step);
        } else {
          multiply_chunk<kStageNumber, kRare>(sums, blocks, step);
        }
      }
      if (slab + 1 < slabs) load_step(blocks, slab + 1, step);
    }
  }

  // Behind the end of a row is its last vector once more, and meets zeros: the sums stay as they are, unless the vector
  // has an infinite weight.
  __device__ __forceinline__ void load_step(Block (&blocks)[2], int slab, int step) const {
    const int vectors = rows.columns / (8 * kPieces);
    const int found = min(first_vector + (slab * kSlab + step * kSplits) * 4, vectors - 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned char* codes = rows.codes[half] + index_t(found) * 16;
      if constexpr (Block::kIsScaledLater) {
        // A chunk lies in one block, and the last vector in the chunk of those behind it.
        blocks[half].load(codes, rows.scales[half] + found / kBlockVectors * rows.scale_step);
      } else {
        blocks[half].load(codes, rows.scales[half] + found * Block::kScaleBytes);
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
  __device__ __forceinline__ void copy_tokens(int stage, int slab, const TokenRows& tokens) const {
    const int column = slab * kSlabEights + eight, bytes = rows.columns * 2;
    const bool is_there = column * 16 < bytes;
    const unsigned char* from = kept(own().tokens() + (is_there ? column * 16 : 0));
    unsigned char* to = reinterpret_cast<unsigned char*>(tokens_smem) + copied_to + stage * kStage * kWarp * 16;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int skipped = (i * kPass / 8 * kWarp + i * kPass % 8 * 4) * 16;  // kPass divides 8, or 8 divides it
      const unsigned char* own_from = from + index_t(tokens.rows[i]) * bytes;
      if (tokens.has(i)) copy_async_16(to + skipped, own_from, is_there);
    }
    copy_async_commit();
  }

  template <int kStageNumber, bool kRare>
  __device__ __forceinline__ void multiply_chunk(FragmentC (&sums)[kColumns], const Block (&blocks)[2],
                                                 int step) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      unsigned low[4], high[4];
      blocks[0].template piece<kRare>(low, piece);
      blocks[1].template piece<kRare>(high, piece);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        multiply_piece<kStageNumber>(sums[column], low, high, step, piece, column);
      }
    }
  }

  // A chunk lies within one block of columns: its products are summed, and the sum is scaled, in float32.
  template <int kStageNumber>
  __device__ __forceinline__ void multiply_scaled(FragmentC (&sums)[kColumns], const Block (&blocks)[2],
                                                  int step) const {
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
        multiply_piece<kStageNumber>(part, low[piece], high[piece], step, piece, column);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[column][i] += blocks[i / 2].scale * part[i];
    }
  }

  template <int kStageNumber>
  __device__ __forceinline__ void multiply_piece(FragmentC& sums, const unsigned (&low)[4], const unsigned (&high)[4],
                                                 int step, int piece, int column) const {
    const int skipped = (kStageNumber * kStage + fragment(step * kSplits, 0, column)) * kWarp * 16;
    const int at = fragments[kPieces == 1 ? step * kSplits % 2 : piece] + skipped;
    const uint4 t = *reinterpret_cast<const uint4*>(reinterpret_cast<const unsigned char*>(tokens_smem) + at);
    multiply_add(sums, {low[0], high[0], low[1], high[1]}, {t.x, t.y});
    multiply_add(sums, {low[2], high[2], low[3], high[3]}, {t.z, t.w});
  }

  // The sums of the warps that have the same rows, always in the same order, in those of split 0.
  __device__ __forceinline__ void merge_splits(FragmentC (&sums)[kColumns]) const {
    float4* sums_smem = reinterpret_cast<float4*>(tokens_smem);
    __syncthreads();  // nobody needs the tokens any more
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
