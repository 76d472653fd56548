// DFlashBlockLinear: a linear whose weight is E4M3 codes, with a float32 scale for each block of 128 x 128.
//
//   out[n, r] = sum_c x[n, c] code[r, c] scale[r/128, c/128] + bias[r]
//
// Shapes stand in block_linear_params.h. One launch, grid (token tiles, row blocks), 256 threads: a CTA multiplies the
// rows of its block with the tokens of its tile (product_tile.cuh), whose CTAs are neighbours, so that they find the
// weights in the second cache. Codes are multiplied exactly, and summed in float32 64 columns at a time; then the sum
// is scaled. Every sum has its order: the same inputs give the same bits, and a token's result does not depend on the
// tokens beside it, but for the tile that their number chooses.
//
// Not handled: other types; I that 16 does not divide.
#include "block_linear_params.h"
#include "product_tile.cuh"

namespace dflash {

template <int kTokens>
struct LinearTile : ProductTile<LinearTile<kTokens>, kMoeFp8, kTokens, linear_tile(kTokens).row_warps> {
  using Product = ProductTile<LinearTile, kMoeFp8, kTokens, linear_tile(kTokens).row_warps>;
  using Product::kColumns, Product::kRowWarps, Product::lane, Product::rows, Product::is_present;
  static_assert(linear_tile(kTokens).tokens == kTokens, "a tile of the plan");
  static_assert(Product::kSharedBytes == kLinearSharedBytes, "two stages");

  const BlockLinearParams& p;
  const int row;  // g of this lane

  __device__ LinearTile(const BlockLinearParams& params, unsigned char* smem)
      : Product(smem), p(params), row((blockIdx.y * kRowWarps + this->row_warp) * 16 + lane / 4) {
    const int blocks = (p.in_size + kFp8Block - 1) / kFp8Block;
    rows.columns = p.in_size;
    rows.scale_step = 4;
    rows.halves = row >= p.out_size ? 0 : row + 8 >= p.out_size ? 1 : 2;
    const index_t blocks_before = min(row, p.out_size - 1) / kFp8Block * blocks;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const index_t found = min(row + 8 * half, p.out_size - 1);
      rows.codes[half] = kept(static_cast<const unsigned char*>(p.weight) + found * p.in_size);
      rows.scales[half] = reinterpret_cast<const unsigned char*>(p.scales + blocks_before);  // 16 rows are in one block
    }
  }

  __device__ void run() const { this->multiply(blockIdx.x * kTokens, p.tokens); }

  __device__ __forceinline__ const unsigned char* tokens() const { return static_cast<const unsigned char*>(p.x); }
  static constexpr bool kRowsArePlaces = true;
  __device__ __forceinline__ int row_of_token(int token) const { return token; }

  __device__ __forceinline__ void write(const FragmentC (&sums)[kColumns], int first, int count) const {
    const bf16* biases = static_cast<const bf16*>(p.bias);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!is_present(half)) continue;
      const float bias = biases ? __bfloat162float(biases[row + 8 * half]) : 0.f;
#pragma unroll
      for (int i = 0; i < kColumns * 2; ++i) {
        const int token = i / 2 * 8 + lane % 4 * 2 + i % 2;
        if (token >= count) continue;
        bf16* to = static_cast<bf16*>(p.out) + index_t(first + token) * p.out_size + row + 8 * half;
        *to = __float2bfloat16(sums[i / 2][i % 2 + 2 * half] + bias);
      }
    }
  }
};

}  // namespace dflash

// CTAS: how many a multiprocessor is to hold at once, which limits their registers.
#define DFLASH_BLOCK_LINEAR(TOKENS, CTAS)                                                       \
  extern "C" __global__ void __launch_bounds__(dflash::kTileThreads, CTAS)                      \
      dflash_block_linear_t##TOKENS(const __grid_constant__ dflash::BlockLinearParams params) { \
    DFLASH_SHARED_MEMORY(smem);                                                                 \
    dflash::LinearTile<TOKENS>(params, smem).run();                                             \
  }

DFLASH_BLOCK_LINEAR(8, 3)
DFLASH_BLOCK_LINEAR(16, 2)
DFLASH_BLOCK_LINEAR(32, 2)
DFLASH_BLOCK_LINEAR(64, 2)
