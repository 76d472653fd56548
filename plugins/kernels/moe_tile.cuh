// Some rows of one expert's weights times all of its tokens: gate and up with the activation, or down.
#pragma once

#include "moe_route.cuh"
#include "product_tile.cuh"

namespace dflash {

// ProductTile's sixteen rows of a warp are eight gates and their ups, or 16 rows of down.
template <int kFormat, int kTokens, bool kIsDown>
struct ExpertTile : ProductTile<ExpertTile<kFormat, kTokens, kIsDown>, kFormat, kTokens, moe_tile(kTokens).row_warps> {
  using Product = ProductTile<ExpertTile, kFormat, kTokens, moe_tile(kTokens).row_warps>;
  using Block = typename Product::Block;
  using Product::kColumns, Product::kRowWarps, Product::lane, Product::rows, Product::is_present;
  static_assert(moe_tile(kTokens).tokens == kTokens, "a tile of the plan");
  static_assert(Product::kSharedBytes == moe_shared_bytes(kFormat), "two stages");

  struct Group {
    int expert, begin, end;
  };

  const MoeParams& p;
  const Group group;
  const int first_row;  // of this warp: of the inner size, or of down

  __device__ ExpertTile(const MoeParams& params, unsigned char* smem)
      : Product(smem),
        p(params),
        group(find_group(params)),
        first_row((blockIdx.x * kRowWarps + this->row_warp) * (kIsDown ? 16 : 8)) {
    rows.columns = kIsDown ? p.inner_size : p.hidden;
    rows.halves = count_halves((kIsDown ? p.hidden : p.inner_size) - first_row);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const index_t row = index_t(group.expert) * rows_of_expert() + row_of(half < rows.halves ? half : 0);
      const index_t from = row * (rows.columns / (8 * Block::kPieces));
      rows.codes[half] = static_cast<const unsigned char*>(kIsDown ? p.down : p.gate_up) + from * 16;
      rows.scales[half] = static_cast<const unsigned char*>(kIsDown ? p.down_scale : p.gate_up_scale);
      if constexpr (!Block::kIsScaledLater) rows.scales[half] += from * Block::kScaleBytes;
    }
    if constexpr (Block::kIsScaledLater) find_block_scales();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows.codes[half] = kept(rows.codes[half]), rows.scales[half] = kept(rows.scales[half]);
    }
  }

  // Blocks of gate end where gate does: up begins with blocks of its own.
  __device__ __forceinline__ void find_block_scales() {
    const bool has_rows = p.block_rows == 1;
    const auto blocks_of = [=](int size) { return has_rows ? size : (size + kFp8Block - 1) / kFp8Block; };
    const int across = has_rows ? 1 : blocks_of(rows.columns);
    const int down = kIsDown ? blocks_of(p.hidden) : 2 * blocks_of(p.inner_size);
    const index_t first = index_t(group.expert) * down;
    const auto block_of = [=](int row) { return has_rows ? row : row / kFp8Block; };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int existing = half < rows.halves ? half : 0;
      const int block =
          kIsDown ? block_of(lane_row() + 8 * existing) : block_of(lane_row()) + existing * blocks_of(p.inner_size);
      rows.scales[half] += 4 * (first + block) * across;
    }
    rows.scale_step = has_rows ? 0 : 4;
  }

  static __device__ Group find_group(const MoeParams& p) {
    const int4 found = reinterpret_cast<const int4*>(p.groups)[blockIdx.y];
    return {found.x, found.y, found.z};
  }

  // Of a warp in front of `rows` rows of down, or of the inner size: rows g+8 of gate and up are there if g are.
  static __device__ __forceinline__ int count_halves(int rows) { return rows <= 0 ? 0 : kIsDown && rows <= 8 ? 1 : 2; }

  // Row g of this lane, of the inner size or of down; where there is none, the last one.
  __device__ __forceinline__ int lane_row() const {
    return min(first_row + lane / 4, (kIsDown ? p.hidden : p.inner_size) - 1);
  }

  // Row of the weights that this lane has as row g (or g+8) of its warp's.
  __device__ __forceinline__ int row_of(int half) const {
    if (kIsDown) return lane_row() + 8 * half;
    return p.interleaved ? 2 * lane_row() + half : lane_row() + half * p.inner_size;
  }

  __device__ __forceinline__ int rows_of_expert() const { return kIsDown ? p.hidden : 2 * p.inner_size; }

  __device__ void run() const {
    for (int first = group.begin; first < group.end; first += kTokens) {
      if (first > group.begin) __syncthreads();  // everyone is done with the tokens, or sums, before
      this->multiply(first, group.end);
    }
  }

  // What is multiplied: tokens, or by place what gate and up made of them.
  __device__ __forceinline__ const unsigned char* tokens() const {
    return static_cast<const unsigned char*>(kIsDown ? p.inner : p.ordered_x);
  }
  static constexpr bool kRowsArePlaces = kIsDown;
  __device__ __forceinline__ int row_of_token(int place) const { return kIsDown ? place : p.rows[place]; }

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
