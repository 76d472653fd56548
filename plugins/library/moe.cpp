// The launcher of DFlashMoE: check, plan, launch (library.cpp has those of attention and acceptance).

#include "dflash.h"
#include "guard.h"
#include "launch.h"
#include "moe_params.h"

// clang-format off
#define DFLASH_MOE_KERNELS(KERNEL)                            \
  KERNEL(route) KERNEL(list) KERNEL(sum)                      \
  KERNEL(gate_up_t8) KERNEL(gate_up_t16) KERNEL(gate_up_t32)  \
  KERNEL(down_t8) KERNEL(down_t16) KERNEL(down_t32)
// clang-format on

extern "C" {
#define DECLARE(PART)                                \
  void dflash_moe_##PART(dflash::MoeParams);         \
  void dflash_moe_##PART##_mxfp4(dflash::MoeParams); \
  void dflash_moe_##PART##_nvfp4(dflash::MoeParams); \
  void dflash_moe_##PART##_fp8(dflash::MoeParams);
DFLASH_MOE_KERNELS(DECLARE)
#undef DECLARE
}

namespace dflash {
namespace {

struct MoeTensors {
  const DFlashTensor *x, *router_logits, *gate_up, *gate_up_bias, *down, *down_bias;
  const DFlashTensor *gate_up_scale, *down_scale, *gate_up_scale_2, *down_scale_2, *out;
};

int64_t blocks_of(int64_t size) { return (size + kFp8Block - 1) / kFp8Block; }

// Scales are there where the format has them; they hold as many blocks as the weights, which are `matrices` below each
// other, of rows x columns.
void expect_scales(const DFlashTensor* scale, const DFlashTensor* scale_2, const std::string& name,
                   const DFlashMoeOptions& options, Symbol& experts, int matrices, int64_t rows, int64_t columns) {
  const int format = options.weight_format;
  require(format != kMoeBfloat16 || !scale, name, "_scale: got a tensor, expected null: weight_format is 0");
  require(format == kMoeNvfp4 || !scale_2, name, "_scale_2: got a tensor, expected null: weight_format is not 2");
  if (format == kMoeBfloat16) return;
  Symbol words("words");
  expect(scale, name + "_scale", DFLASH_INT32, {experts, words});
  int64_t expected = matrices * rows * columns / (format == kMoeMxfp4 ? 32 : 16) / 4;
  if (format == kMoeFp8) expected = matrices * (options.block_rows == 1 ? rows : blocks_of(rows) * blocks_of(columns));
  require(words.value() == expected, name, "_scale.shape[1]: got ", words.value(), ", expected ", expected, ", ",
          format == kMoeFp8 ? "a scale" : "four block scales", " in each");
  if (format == kMoeNvfp4) expect(scale_2, name + "_scale_2", DFLASH_FLOAT32, {experts});
}

// The params of a launch but for its workspace.
MoeParams checked(const MoeTensors& t, const DFlashMoeOptions& options) {
  const int format = options.weight_format;
  require(format >= kMoeBfloat16 && format <= kMoeFp8, "weight_format: got ", format, ", expected 0 to 3");
  const bool fits =
      format == kMoeFp8 ? options.block_rows == 1 || options.block_rows == kFp8Block : !options.block_rows;
  require(fits, "block_rows: got ", options.block_rows, ", expected ", format == kMoeFp8 ? "1 or 128" : "0");
  require(format != kMoeFp8 || !options.interleaved, "interleaved: got 1, expected 0: weight_format is 3");
  const int packed = format == kMoeBfloat16 ? 1 : 4 * codes_of_byte(format), unit = moe_unit(format);
  const DFlashType weights = format == kMoeBfloat16 ? DFLASH_BFLOAT16 : DFLASH_INT32;
  Symbol N("N"), H("H"), E("E"), J("J"), columns("H packed"), inner("I packed");
  expect(t.x, "x", DFLASH_BFLOAT16, {N, H});
  expect(t.router_logits, "router_logits", DFLASH_FLOAT32, {N, E});
  expect(t.gate_up, "gate_up", weights, {E, J, columns});
  expect(t.gate_up_bias, "gate_up_bias", DFLASH_BFLOAT16, {E, J});
  expect(t.down, "down", weights, {E, H, inner});
  expect(t.down_bias, "down_bias", DFLASH_BFLOAT16, {E, H});
  expect(t.out, "out", DFLASH_BFLOAT16, {N, H});
  const int64_t inner_size = int64_t{inner.value()} * packed;
  require(int64_t{columns.value()} * packed == H.value(), "gate_up.shape[2]: got ", columns.value(), " of ", packed,
          " elements, expected H, ", H.value());
  require(J.value() == 2 * inner_size, "gate_up.shape[1] (J): got ", J.value(), ", expected 2I, ", 2 * inner_size);
  require(H.value() % unit == 0 && inner_size % unit == 0, "H and I: got ", H.value(), " and ", inner_size,
          ", expected multiples of ", unit);
  require(E.value() <= kMaxExperts, "E: got ", E.value(), ", expected at most ", kMaxExperts);
  const int most = E.value() < kMaxTopKExperts ? E.value() : kMaxTopKExperts;
  require(options.top_k >= 1 && options.top_k <= most, "top_k: got ", options.top_k, ", expected 1 to ", most);
  require(int64_t{N.value()} * options.top_k <= INT32_MAX / 64, "N x top_k: got too many");
  expect_scales(t.gate_up_scale, t.gate_up_scale_2, "gate_up", options, E, 2, inner_size, H.value());
  expect_scales(t.down_scale, t.down_scale_2, "down", options, E, 1, H.value(), inner_size);

  MoeParams p{};
  p.x = t.x->data;
  p.router_logits = data<const float>(t.router_logits);
  p.gate_up = t.gate_up->data;
  p.gate_up_bias = t.gate_up_bias->data;
  p.down = t.down->data;
  p.down_bias = t.down_bias->data;
  p.gate_up_scale = t.gate_up_scale ? t.gate_up_scale->data : nullptr;
  p.down_scale = t.down_scale ? t.down_scale->data : nullptr;
  p.gate_up_scale_2 = t.gate_up_scale_2 ? data<const float>(t.gate_up_scale_2) : nullptr;
  p.down_scale_2 = t.down_scale_2 ? data<const float>(t.down_scale_2) : nullptr;
  p.out = t.out->data;
  p.tokens = N.value();
  p.hidden = H.value();
  p.inner_size = static_cast<int>(inner_size);
  p.experts = E.value();
  p.top_k = options.top_k;
  p.normalize = options.normalize;
  p.interleaved = options.interleaved;
  p.block_rows = options.block_rows;
  p.limit = options.limit;
  p.alpha = options.alpha;
  p.shift = options.shift;
  return p;
}

void place_workspace(MoeParams& p, const MoeWorkspace& w, void* workspace, int format) {
  auto* const begin = static_cast<unsigned char*>(workspace);
  p.shares = reinterpret_cast<float*>(begin + w.shares);
  p.chosen = reinterpret_cast<int*>(begin + w.chosen);
  p.order = reinterpret_cast<int*>(begin + w.order);
  p.rows = reinterpret_cast<int*>(begin + w.rows);
  p.groups = reinterpret_cast<int*>(begin + w.groups);
  p.ordered_x = has_products_order(format) ? begin + w.ordered_x : const_cast<void*>(p.x);
  p.inner = begin + w.inner;
  p.partial = reinterpret_cast<float*>(begin + w.partial);
}

struct NamedKernel {
  const char* name;
  Kernel<MoeParams> kernel;
};

#define NAMED(KERNEL) \
  NamedKernel { #KERNEL, KERNEL }

NamedKernel kernel_of(const std::string& part, int format) {
#define CHOOSE(PART)                                                  \
  if (part == #PART) {                                                \
    if (format == kMoeMxfp4) return NAMED(dflash_moe_##PART##_mxfp4); \
    if (format == kMoeNvfp4) return NAMED(dflash_moe_##PART##_nvfp4); \
    if (format == kMoeFp8) return NAMED(dflash_moe_##PART##_fp8);     \
    return NAMED(dflash_moe_##PART);                                  \
  }
  DFLASH_MOE_KERNELS(CHOOSE)
#undef CHOOSE
  throw Invalid("no kernel of experts is called " + part);
}

void moe(const MoeTensors& tensors, const DFlashMoeOptions* options, void* workspace, int64_t workspace_bytes,
         void* stream) {
  require(options != nullptr, "options: got null");
  MoeParams p = checked(tensors, *options);
  const int format = options->weight_format;
  const MoePlan plan = moe_plan(p.tokens, p.hidden, p.inner_size, p.experts, p.top_k, format);
  expect_workspace(workspace, workspace_bytes, plan.workspace.bytes);
  place_workspace(p, plan.workspace, workspace, format);
  const auto start = [&](const std::string& part, dim3 grid, int threads, int shared_bytes) {
    const NamedKernel named = kernel_of(part, format);
    launch(named.name, named.kernel, grid, threads, shared_bytes, p, stream);
  };
  const std::string tile = "_t" + std::to_string(plan.tile.tokens);
  start("route", dim3(p.tokens), kRouteThreads, 0);
  start("list", dim3(1), kListThreads, 0);
  start("gate_up" + tile, dim3(plan.gate_up_blocks, plan.groups), kMoeThreads, plan.shared_bytes);
  start("down" + tile, dim3(plan.down_blocks, plan.groups), kMoeThreads, plan.shared_bytes);
  start("sum", dim3(p.tokens, plan.sum_blocks), kSumThreads, 0);
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_moe(const DFlashTensor* x, const DFlashTensor* router_logits, const DFlashTensor* gate_up,
               const DFlashTensor* gate_up_bias, const DFlashTensor* down, const DFlashTensor* down_bias,
               const DFlashTensor* gate_up_scale, const DFlashTensor* down_scale, const DFlashTensor* gate_up_scale_2,
               const DFlashTensor* down_scale_2, const DFlashTensor* out, const DFlashMoeOptions* options,
               void* workspace, int64_t workspace_bytes, void* stream) {
  return guarded("dflash_moe", [&] {
    moe({x, router_logits, gate_up, gate_up_bias, down, down_bias, gate_up_scale, down_scale, gate_up_scale_2,
         down_scale_2, out},
        options, workspace, workspace_bytes, stream);
  });
}

int dflash_moe_plan(int32_t tokens, int32_t hidden, int32_t inner_size, int32_t experts, int32_t top_k,
                    int32_t weight_format, DFlashMoePlan* plan) {
  return guarded("dflash_moe_plan", [&] {
    require(tokens > 0 && hidden > 0 && inner_size > 0 && experts > 0 && top_k > 0 && plan,
            "every number must be at least 1, and the plan not null");
    const MoePlan made = moe_plan(tokens, hidden, inner_size, experts, top_k, weight_format);
    *plan = {made.tile.tokens, made.tile.row_warps, made.groups, made.gate_up_blocks, made.down_blocks,
             made.sum_blocks,  made.shared_bytes,   0,           made.workspace.bytes};
  });
}

int64_t dflash_moe_params_bytes(void) { return sizeof(MoeParams); }
}
