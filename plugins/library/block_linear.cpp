// The launcher of DFlashBlockLinear: check, plan, launch (library.cpp has those of attention and acceptance).

#include "block_linear_params.h"

#include "dflash.h"
#include "guard.h"
#include "launch.h"

extern "C" {
void dflash_block_linear_t8(dflash::BlockLinearParams);
void dflash_block_linear_t16(dflash::BlockLinearParams);
void dflash_block_linear_t32(dflash::BlockLinearParams);
void dflash_block_linear_t64(dflash::BlockLinearParams);
}

namespace dflash {
namespace {

constexpr int kGridLimit = 65535;  // of CUDA, in y and z

struct BlockLinearTensors {
  const DFlashTensor *x, *weight, *scales, *bias, *out;
};

BlockLinearParams checked(const BlockLinearTensors& t) {
  Symbol N("N"), I("I"), W("W"), O("O"), down("ceil(O/128)"), across("ceil(I/128)");
  expect(t.x, "x", DFLASH_BFLOAT16, {N, I});
  expect(t.weight, "weight", DFLASH_INT32, {O, W});
  expect(t.scales, "scales", DFLASH_FLOAT32, {down, across});
  if (t.bias) expect(t.bias, "bias", DFLASH_BFLOAT16, {O});
  expect(t.out, "out", DFLASH_BFLOAT16, {N, O});
  require(I.value() % moe_unit(kMoeFp8) == 0, "x.shape[1] (I): got ", I.value(), ", expected a multiple of ",
          moe_unit(kMoeFp8));
  require(4LL * W.value() == I.value(), "weight.shape[1] (W): got ", W.value(), " of 4 codes, expected I, ", I.value());
  const auto expect_blocks = [](const char* name, const Symbol& blocks, int size) {
    const int expected = (size + kFp8Block - 1) / kFp8Block;
    require(blocks.value() == expected, name, ": got ", blocks.value(), ", expected ", expected);
  };
  expect_blocks("scales.shape[0] (ceil(O/128))", down, O.value());
  expect_blocks("scales.shape[1] (ceil(I/128))", across, I.value());

  BlockLinearParams p{};
  p.x = t.x->data;
  p.weight = t.weight->data;
  p.scales = data<const float>(t.scales);
  p.bias = t.bias ? t.bias->data : nullptr;
  p.out = t.out->data;
  p.tokens = N.value();
  p.in_size = I.value();
  p.out_size = O.value();
  return p;
}

void block_linear(const BlockLinearTensors& tensors, void* stream) {
  const BlockLinearParams p = checked(tensors);
  const BlockLinearPlan plan = block_linear_plan(p.tokens, p.out_size);
  require(plan.row_blocks <= kGridLimit, "O: got ", p.out_size, ", which are ", plan.row_blocks,
          " blocks of rows, expected at most ", kGridLimit);
  const dim3 grid(plan.token_tiles, plan.row_blocks);
  const auto start = [&](const char* name, Kernel<BlockLinearParams> kernel) {
    launch(name, kernel, grid, kMoeThreads, kLinearSharedBytes, p, stream);
  };
  switch (plan.tile.tokens) {
    case 8:
      return start("dflash_block_linear_t8", dflash_block_linear_t8);
    case 16:
      return start("dflash_block_linear_t16", dflash_block_linear_t16);
    case 32:
      return start("dflash_block_linear_t32", dflash_block_linear_t32);
    default:
      return start("dflash_block_linear_t64", dflash_block_linear_t64);
  }
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_block_linear(const DFlashTensor* x, const DFlashTensor* weight, const DFlashTensor* scales,
                        const DFlashTensor* bias, const DFlashTensor* out, void*, int64_t, void* stream) {
  return guarded("dflash_block_linear", [&] { block_linear({x, weight, scales, bias, out}, stream); });
}

int dflash_block_linear_plan(int32_t tokens, int32_t out_size, DFlashBlockLinearPlan* plan) {
  return guarded("dflash_block_linear_plan", [&] {
    require(tokens > 0 && out_size > 0 && plan, "every number must be at least 1, and the plan not null");
    const BlockLinearPlan made = block_linear_plan(tokens, out_size);
    *plan = {made.tile.tokens, made.tile.row_warps, made.token_tiles, made.row_blocks};
  });
}

int64_t dflash_block_linear_params_bytes(void) { return sizeof(BlockLinearParams); }
}
