// Which candidate of a row is the best behind each candidate of the row before.
#pragma once

#include "select_top.cuh"

namespace dflash {

constexpr int kPairWidth = 16;  // threads along a row's candidates; the others stand along those before
constexpr int kPairDepth = kSelectThreads / kPairWidth;
constexpr int kVectorColumns = 8;  // bfloat16 numbers of 16 bytes

static_assert(kSelectColumns / kVectorColumns * kPairWidth == kSelectThreads,
              "a load of all threads is a tile's columns of 16 rows");
static_assert(kSelectPitch > kSelectColumns && kSelectPitch % 2 == 1, "16 rows of a column are in different banks");

struct PairRows {
  const bf16* before_gmem;   // of the predecessors' codebook, or the anchor's row
  const int* before_smem;    // rows in it, one a candidate before; null: all are the anchor's
  const bf16* behind_gmem;   // the successors' codebook
  const int* behind_smem;    // rows in it, one a candidate
  const bf16* hidden_gmem;   // [R]
  const float* logits_smem;  // of the candidates
  int count;                 // candidates of each row
  int rank;
};

// Eight numbers of a codebook's row, from `column` on; zeros behind its end.
__device__ __forceinline__ uint4 load_columns(const bf16* row_gmem, int column, int rank) {
  if (rank % kVectorColumns == 0) {
    return column < rank ? *reinterpret_cast<const uint4*>(row_gmem + column) : make_uint4(0, 0, 0, 0);
  }
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = column + 2 * i;
    const float low = at < rank ? __bfloat162float(row_gmem[at]) : 0.f;
    const float high = at + 1 < rank ? __bfloat162float(row_gmem[at + 1]) : 0.f;
    words[i] = pack(low, high);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// kTiles: of 16 candidates. A thread adds up the scores of 2·kTiles candidates before with kTiles behind.
template <int kTiles>
class PairScores {
 public:
  __device__ PairScores(const PairRows& rows, float* tiles_smem)
      : rows_(rows),
        before_smem_(tiles_smem),
        behind_smem_(tiles_smem + kTiles * kPairWidth * kSelectPitch),
        thread_(static_cast<int>(threadIdx.x)) {}

  // Write the best candidate behind each of rows.count candidates before.
  __device__ void run(int* next_gmem) {
    fetch(0);
    for (int column = 0; column < rows_.rank; column += kSelectColumns) {
      __syncthreads();  // the tiles of the round before have been read
      store();
      __syncthreads();  // those of this round are there
      if (column + kSelectColumns < rows_.rank) fetch(column + kSelectColumns);
      add_up();
    }
    choose(next_gmem);
  }

 private:
  // The loads of a tile's columns: row 16 i + thread / 8, and the hidden row's same columns.
  __device__ void fetch(int first) {
    const int column = first + thread_ % (kSelectColumns / kVectorColumns) * kVectorColumns;
    hidden_ = load_columns(rows_.hidden_gmem, column, rows_.rank);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int row = i * kPairWidth + thread_ / (kSelectColumns / kVectorColumns);
      const bool present = row < rows_.count;
      const int before = present && rows_.before_smem ? rows_.before_smem[row] : 0;
      const int behind = present ? rows_.behind_smem[row] : 0;
      before_[i] = load_columns(rows_.before_gmem + 1LL * before * rows_.rank, column, rows_.rank);
      behind_[i] = load_columns(rows_.behind_gmem + 1LL * behind * rows_.rank, column, rows_.rank);
    }
  }

  __device__ void store() {
    const int column = thread_ % (kSelectColumns / kVectorColumns) * kVectorColumns;
    float hidden[kVectorColumns], numbers[kVectorColumns];
    unpack(hidden_, hidden);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int row = i * kPairWidth + thread_ / (kSelectColumns / kVectorColumns);
      float* const to_smem = before_smem_ + row * kSelectPitch + column;
      unpack(before_[i], numbers);
#pragma unroll
      for (int c = 0; c < kVectorColumns; ++c) to_smem[c] = numbers[c] * hidden[c];
      unpack(behind_[i], numbers);
      float* const behind_smem = behind_smem_ + row * kSelectPitch + column;
#pragma unroll
      for (int c = 0; c < kVectorColumns; ++c) behind_smem[c] = numbers[c];
    }
  }

  __device__ void add_up() {
    const float* before_smem = before_smem_ + thread_ / kPairWidth * kSelectPitch;
    const float* behind_smem = behind_smem_ + thread_ % kPairWidth * kSelectPitch;
#pragma unroll 4
    for (int column = 0; column < kSelectColumns; ++column) {
      float behind[kTiles];
#pragma unroll
      for (int b = 0; b < kTiles; ++b) behind[b] = behind_smem[b * kPairWidth * kSelectPitch + column];
#pragma unroll
      for (int a = 0; a < 2 * kTiles; ++a) {
        const float before = before_smem[a * kPairDepth * kSelectPitch + column];
#pragma unroll
        for (int b = 0; b < kTiles; ++b) sums_[a][b] += before * behind[b];
      }
    }
  }

  // The best of each candidate before among all behind: a thread's own first, then those of the 16 lanes beside it.
  __device__ void choose(int* next_gmem) const {
#pragma unroll
    for (int a = 0; a < 2 * kTiles; ++a) {
      Element best = {-kInfinity, kNoPlace};
#pragma unroll
      for (int b = 0; b < kTiles; ++b) {
        const int candidate = thread_ % kPairWidth + b * kPairWidth;
        if (candidate >= rows_.count) continue;
        const Element scored = {fmaxf(sums_[a][b] + rows_.logits_smem[candidate], -kInfinity), candidate};
        if (is_before(scored, best)) best = scored;
      }
#pragma unroll
      for (int step = kPairWidth / 2; step > 0; step /= 2) {
        const Element other = {__shfl_xor_sync(kAllLanes, best.value, step),
                               __shfl_xor_sync(kAllLanes, best.place, step)};
        if (is_before(other, best)) best = other;
      }
      const int before = thread_ / kPairWidth + a * kPairDepth;
      if (thread_ % kPairWidth == 0 && before < rows_.count) next_gmem[before] = best.place;
    }
  }

  __device__ static void unpack(const uint4& vector, float (&numbers)[kVectorColumns]) {
    const unsigned words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      numbers[2 * i] = __uint_as_float(words[i] << 16);
      numbers[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }

  PairRows rows_;
  float* before_smem_;  // [16·kTiles, kSelectPitch], times the hidden row
  float* behind_smem_;  // [16·kTiles, kSelectPitch]
  int thread_;
  uint4 hidden_, before_[kTiles], behind_[kTiles];
  float sums_[2 * kTiles][kTiles] = {};
};

}  // namespace dflash
