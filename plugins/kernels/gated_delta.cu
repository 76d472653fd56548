// DFlashGatedDelta: a convolution over the step's rows, then the gated delta rule, with a state that takes in only rows
// that are certain.
//
//   m_t = silu(sum_o w[:, o] u_{t-3+o}),  u_t the raw row of position t, 0 before position 0;  q_t, k_t, v_t its parts
//   k_t <- k_t / |k_t|,  q_t <- q_t / |q_t| / sqrt(Dk);  key head h is that of value heads h·Hv/Hk …
//   s <- e^(-e^a_log softplus(a_t + dt_bias)) s;  s <- s + k_t (sigmoid(b_t) (v_t - k_tᵀ s))ᵀ;  out_t = q_tᵀ s
//
// (Yang, Kautz, Hatamizadeh, Gated Delta Networks, 2025.) A step brings S rows, of which num_known are certain and the
// rest drafts. The state stops behind the certain ones. The drafts' raw rows stay in the window, and those that were
// accepted, the open rows, are the next step's first: they go through the rule again, from the same raw rows, and so to
// the same bits. A step reads the state once and writes it once. Shapes, layouts and types stand in
// gated_delta_params.h. Two launches:
//   rows  grid (2·Hk + Hv + 1, row chunks, B), 256 threads: convolution and norms of a head, or the gates, in float32
//         into the workspace; the window moved on in place (gated_delta_rows.cuh)
//   rule  grid (Dv/32, Hv, B), 128 threads: 32 columns of the state of a value head, in registers, over all rows in
//         order (gated_delta_rule.cuh)
// A row goes through the same operations in the same order wherever it stands. So blocks of drafts, rows one by one and
// any cut of a prompt give the same state and the same outputs, bit for bit.
//
// Not handled: other types than bfloat16; Dk or Dv other than 128; a convolution over other than four rows. Lengths are
// read on the device: wrong ones give wrong results, but nothing outside the tensors is read or written.
#include "gated_delta_rule.cuh"

#ifndef DFLASH_KEY_DIM
#define DFLASH_KEY_DIM 128
#endif
#ifndef DFLASH_VALUE_DIM
#define DFLASH_VALUE_DIM 128
#endif
#ifndef DFLASH_CONV_KERNEL
#define DFLASH_CONV_KERNEL 4
#endif
static_assert(DFLASH_KEY_DIM == dflash::kDeltaHeadDim && DFLASH_VALUE_DIM == dflash::kDeltaHeadDim,
              "the kernels are written for heads of 128");
static_assert(DFLASH_CONV_KERNEL == dflash::kDeltaConvKernel && dflash::kDeltaHistory == dflash::kDeltaConvKernel - 1,
              "the kernels are written for a convolution over four rows");

extern "C" __global__ void __launch_bounds__(dflash::kDeltaRowThreads)
    dflash_gated_delta_rows(const __grid_constant__ dflash::GatedDeltaParams params) {
  DFLASH_SHARED_MEMORY(smem);
  unsigned* raw_smem = reinterpret_cast<unsigned*>(smem);
  if (static_cast<int>(blockIdx.x) < 2 * params.key_heads + params.value_heads) {
    dflash::write_rows<true>(params, raw_smem);
  } else {
    dflash::write_rows<false>(params, raw_smem);
  }
}

extern "C" __global__ void __launch_bounds__(dflash::kDeltaRuleThreads)
    dflash_gated_delta_rule(const __grid_constant__ dflash::GatedDeltaParams params) {
  __shared__ __align__(16) dflash::RuleStage stages_smem[2];
  dflash::DeltaRule(params, stages_smem).run();
}
