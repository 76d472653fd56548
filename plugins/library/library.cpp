// The launchers: check, plan, launch. Plain C++ over either CUDA or the emulator (launch.h). DFlashMoE's is in moe.cpp,
// DFlashGatedDelta's in gated_delta.cpp, DFlashSelect's in select.cpp, DFlashArgmax's in argmax.cpp, DFlashLookup's in
// lookup.cpp, DFlashAdjust's in adjust.cpp.

#include "dflash.h"

#include <cfloat>

#include "accept_params.h"
#include "attention_params.h"
#include "guard.h"
#include "launch.h"

// The kernels' names; nvcc gives each one a host function of that name, which stands for it in a launch.
// clang-format off
#define DFLASH_ATTENTION_KERNELS(KERNEL)                           \
  KERNEL(64, 16) KERNEL(64, 32) KERNEL(64, 64) KERNEL(64, 96) KERNEL(64, 128) \
  KERNEL(96, 16) KERNEL(96, 32) KERNEL(96, 64) KERNEL(96, 128)     \
  KERNEL(128, 16) KERNEL(128, 32) KERNEL(128, 64) KERNEL(128, 128) \
  KERNEL(256, 32) KERNEL(256, 64)
// clang-format on
#define DFLASH_MERGE_KERNELS(KERNEL) KERNEL(64) KERNEL(96) KERNEL(128) KERNEL(256)

extern "C" {
#define DECLARE(HEAD_DIM, ROWS)                                         \
  void dflash_attention_d##HEAD_DIM##_r##ROWS(dflash::AttentionParams); \
  void dflash_attention_d##HEAD_DIM##_r##ROWS##_fp8(dflash::AttentionParams);
DFLASH_ATTENTION_KERNELS(DECLARE)
#undef DECLARE
#define DECLARE(HEAD_DIM)                                           \
  void dflash_attention_merge_d##HEAD_DIM(dflash::AttentionParams); \
  void dflash_attention_merge_d##HEAD_DIM##_fp8(dflash::AttentionParams);
DFLASH_MERGE_KERNELS(DECLARE)
#undef DECLARE
void dflash_accept_scan(dflash::AcceptParams);
void dflash_accept_choose(dflash::AcceptParams);
void dflash_accept_finish(dflash::AcceptParams);
}

namespace dflash {
namespace {

constexpr int kGridLimit = 65535;      // of CUDA, in y and z
constexpr int kMaxKeyHeads = 65535;    // the kernels count all slots' items in int
constexpr int kMaxHeadRows = 1 << 24;  // of a slot: the kernels count its packed rows and CTAs in int

struct AttentionTensors {
  const DFlashTensor *q, *k, *v, *key_cache, *value_cache, *positions, *sinks, *out;
};

bool has_fp8_caches(const AttentionTensors& t) { return t.key_cache && t.key_cache->dtype == DFLASH_FLOAT8_E4M3; }

void expect_scale(const char* name, float scale, bool fp8, Line line = this_line()) {
  require({fp8 || scale == 0.f, line}, name, ": got ", scale, ", expected 0: the caches are bfloat16");
  require({!fp8 || (scale > 0.f && scale <= FLT_MAX), line}, name, ": got ", scale,
          ", expected a finite number above 0: the caches are float8_e4m3");
}

// What a step of so many rows writes must not take the place of what its first row sees.
void expect_ring(const DFlashAttentionOptions& options, int cache_len, int rows, Line line = this_line()) {
  require({options.ring == 0 || options.ring == 1, line}, "ring: got ", options.ring, ", expected 0 or 1");
  require({!options.ring || options.window > 0, line}, "ring: got 1 and no window, expected one that the ring holds");
  const int64_t needed = int64_t{options.window} - 1 + rows;
  require({!options.ring || cache_len >= needed, line}, "key_cache.shape[2] (cache_len): got a ring of ", cache_len,
          " rows, expected at least ", needed, ": window - 1, and the ", rows, " rows of the step");
}

// The params of a launch but for its plan and workspace, from tensors that hold together. `head_dim` is set.
AttentionParams checked(const AttentionTensors& t, const DFlashAttentionOptions& options, bool draft, int& head_dim) {
  const bool fp8 = !draft && has_fp8_caches(t);
  const DFlashType cache = fp8 ? DFLASH_FLOAT8_E4M3 : DFLASH_BFLOAT16;
  Symbol B("B"), T("T"), N("C+T"), Hq("Hq"), Hkv("Hkv"), L("cache_len"), D("head_dim", {64, 96, 128, 256});
  expect(t.q, "q", DFLASH_BFLOAT16, {B, T, Hq, D});
  Symbol& rows = draft ? N : T;  // context and block, or the block alone
  expect(t.k, "k", DFLASH_BFLOAT16, {B, rows, Hkv, D});
  expect(t.v, "v", DFLASH_BFLOAT16, {B, rows, Hkv, D});
  expect(t.key_cache, "key_cache", cache, {B, Hkv, L, D});
  expect(t.value_cache, "value_cache", cache, {B, Hkv, L, D});
  expect(t.positions, "positions", DFLASH_INT64, {B, rows});
  if (t.sinks) expect(t.sinks, "sinks", DFLASH_BFLOAT16, {Hq});
  expect(t.out, "out", DFLASH_BFLOAT16, {B, T, Hq, D});
  require(Hq.value() % Hkv.value() == 0, "q.shape[2] (Hq): got ", Hq.value(), ", expected a multiple of Hkv, ",
          Hkv.value());
  require(!draft || rows.value() > T.value(), "k.shape[1] (C+T): got ", rows.value(),
          " rows, expected some of context before the ", T.value(), " of the block");
  require(B.value() <= kMaxSlots, "B: got ", B.value(), ", expected at most ", kMaxSlots);
  require(Hkv.value() <= kMaxKeyHeads, "Hkv: got ", Hkv.value(), ", expected at most ", kMaxKeyHeads);
  const int64_t head_rows = int64_t{rows.value()} * Hq.value();
  require(head_rows <= kMaxHeadRows, "rows x Hq: got ", head_rows, ", expected at most ", kMaxHeadRows);
  require(options.window >= 0, "window: got ", options.window, ", expected 0 (none) or more");
  require(options.causal == 0 || options.causal == 1, "causal: got ", options.causal, ", expected 0 or 1");
  expect_ring(options, L.value(), rows.value());
  expect_scale("key_scale", options.key_scale, fp8);
  expect_scale("value_scale", options.value_scale, fp8);

  AttentionParams p{};
  p.q = t.q->data;
  p.k = t.k->data;
  p.v = t.v->data;
  p.key_cache = t.key_cache->data;
  p.value_cache = t.value_cache->data;
  p.positions = static_cast<const long long*>(t.positions->data);
  p.sinks = t.sinks ? t.sinks->data : nullptr;
  p.out = t.out->data;
  p.batch = B.value();
  p.rows = T.value();
  p.context_rows = rows.value() - T.value();
  p.q_heads = Hq.value();
  p.kv_heads = Hkv.value();
  p.cache_len = L.value();
  p.window = options.window;
  p.causal = draft ? options.causal : 1;
  p.ring = options.ring;
  p.scale = options.scale;
  p.key_scale = fp8 ? options.key_scale : 1.f;
  p.value_scale = fp8 ? options.value_scale : 1.f;
  head_dim = D.value();
  return p;
}

struct NamedKernel {
  const char* name;
  Kernel<AttentionParams> kernel;
};

#define NAMED(KERNEL) \
  NamedKernel { #KERNEL, KERNEL }

NamedKernel attention_kernel(int head_dim, int tile_rows, bool fp8) {
#define CHOOSE(HEAD_DIM, ROWS)                                                                                        \
  if (head_dim == HEAD_DIM && tile_rows == ROWS) {                                                                    \
    return fp8 ? NAMED(dflash_attention_d##HEAD_DIM##_r##ROWS##_fp8) : NAMED(dflash_attention_d##HEAD_DIM##_r##ROWS); \
  }
  DFLASH_ATTENTION_KERNELS(CHOOSE)
#undef CHOOSE
  throw Invalid("no attention kernel for head_dim " + std::to_string(head_dim) + " and tiles of " +
                std::to_string(tile_rows) + " rows");
}

NamedKernel merge_kernel(int head_dim, bool fp8) {
#define CHOOSE(HEAD_DIM)                                                                                      \
  if (head_dim == HEAD_DIM) {                                                                                 \
    return fp8 ? NAMED(dflash_attention_merge_d##HEAD_DIM##_fp8) : NAMED(dflash_attention_merge_d##HEAD_DIM); \
  }
  DFLASH_MERGE_KERNELS(CHOOSE)
#undef CHOOSE
  throw Invalid("no merge kernel for head_dim " + std::to_string(head_dim));
}

void attention(const AttentionTensors& tensors, const DFlashAttentionOptions* options, bool draft, void* workspace,
               int64_t workspace_bytes, void* stream) {
  require(options != nullptr, "options: got null");
  int head_dim = 0;
  AttentionParams p = checked(tensors, *options, draft, head_dim);
  Processors processors = {options->processors, options->processor_shared_bytes};
  if (processors.count == 0 || processors.shared_bytes == 0) {
    const Processors device = device_processors();
    if (processors.count == 0) processors.count = device.count;
    if (processors.shared_bytes == 0) processors.shared_bytes = device.shared_bytes;
  }
  const AttentionPlan plan = attention_plan({p.batch, p.rows, p.q_heads, p.kv_heads, head_dim, p.cache_len, p.window,
                                             processors.count, processors.shared_bytes});
  expect_workspace(workspace, workspace_bytes, plan.workspace_bytes);
  const long long head_rows = 1LL * p.batch * p.rows * p.q_heads;
  p.tile_rows = plan.tile.rows;
  p.tile_keys = plan.tile.keys;
  p.row_tiles = plan.row_tiles;
  p.group = p.q_heads / p.kv_heads;
  p.packed_rows = p.rows * p.group;
  p.even_splits = plan.even_splits;
  p.split_limit = plan.split_limit;
  p.partial_out = static_cast<float*>(workspace);
  p.partial_stats = p.partial_out + (plan.split_limit > 1 ? plan.split_limit * head_rows * head_dim : 0);

  const bool fp8 = has_fp8_caches(tensors);
  const NamedKernel main = attention_kernel(head_dim, plan.tile.rows, fp8);
  launch(main.name, main.kernel, dim3(plan.ctas), kAttentionThreads, plan.shared_bytes, p, stream);
  if (plan.split_limit == 1) return;
  const NamedKernel merge = merge_kernel(head_dim, fp8);
  constexpr int kRowsPerBlock = kMergeThreads / 32;
  const auto blocks = static_cast<unsigned>((head_rows + kRowsPerBlock - 1) / kRowsPerBlock);
  launch(merge.name, merge.kernel, dim3(blocks), kMergeThreads, 0, p, stream);
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_verify_attention(const DFlashTensor* q, const DFlashTensor* k, const DFlashTensor* v,
                            const DFlashTensor* key_cache, const DFlashTensor* value_cache,
                            const DFlashTensor* positions, const DFlashTensor* sinks, const DFlashTensor* out,
                            const DFlashAttentionOptions* options, void* workspace, int64_t workspace_bytes,
                            void* stream) {
  return guarded("dflash_verify_attention", [&] {
    attention({q, k, v, key_cache, value_cache, positions, sinks, out}, options, false, workspace, workspace_bytes,
              stream);
  });
}

int dflash_draft_attention(const DFlashTensor* q, const DFlashTensor* k, const DFlashTensor* v,
                           const DFlashTensor* key_cache, const DFlashTensor* value_cache,
                           const DFlashTensor* positions, const DFlashTensor* sinks, const DFlashTensor* out,
                           const DFlashAttentionOptions* options, void* workspace, int64_t workspace_bytes,
                           void* stream) {
  return guarded("dflash_draft_attention", [&] {
    attention({q, k, v, key_cache, value_cache, positions, sinks, out}, options, true, workspace, workspace_bytes,
              stream);
  });
}

int dflash_accept(const DFlashTensor* logits, const DFlashTensor* input_ids, const DFlashTensor* num_known,
                  const DFlashTensor* past_len, const DFlashTensor* temperature, const DFlashTensor* top_p,
                  const DFlashTensor* top_k, const DFlashTensor* min_p, const DFlashTensor* noise_key,
                  const DFlashTensor* adjusted, const DFlashTensor* adjusts, const DFlashTensor* new_ids,
                  const DFlashTensor* num_new, const DFlashTensor* next_len, const DFlashTensor* bonus, void* workspace,
                  int64_t workspace_bytes, void* stream) {
  return guarded("dflash_accept", [&] {
    Symbol B("B"), R("R"), S("S"), V("V"), one("1", {1}), four("4", {4});
    expect(logits, "logits", DFLASH_FLOAT32, {B, R, V});
    expect(input_ids, "input_ids", DFLASH_INT64, {B, S});
    expect(num_known, "num_known", DFLASH_INT32, {B});
    expect(past_len, "past_len", DFLASH_INT32, {B});
    expect(temperature, "temperature", DFLASH_FLOAT32, {B});
    expect(top_p, "top_p", DFLASH_FLOAT32, {B});
    expect(top_k, "top_k", DFLASH_INT32, {B});
    expect(min_p, "min_p", DFLASH_FLOAT32, {B});
    expect(noise_key, "noise_key", DFLASH_INT64, {B, four});
    expect(adjusted, "adjusted", DFLASH_FLOAT32, {B, R, V});
    expect(adjusts, "adjusts", DFLASH_INT32, {B});
    expect(new_ids, "new_ids", DFLASH_INT64, {B, R});
    expect(num_new, "num_new", DFLASH_INT32, {B});
    expect(next_len, "next_len", DFLASH_INT32, {B});
    expect(bonus, "bonus", DFLASH_INT64, {B, one});
    const int64_t rows = int64_t(B.value()) * R.value();
    require(rows <= kGridLimit, "B x R: got ", rows, ", expected at most ", kGridLimit);
    const AcceptPlan plan = accept_plan(B.value(), R.value(), V.value());
    expect_workspace(workspace, workspace_bytes, plan.workspace_bytes);

    AcceptParams p{};
    p.logits = data<const float>(logits);
    p.input_ids = data<const long long>(input_ids);
    p.num_known = data<const int>(num_known);
    p.past_len = data<const int>(past_len);
    p.temperature = data<const float>(temperature);
    p.top_p = data<const float>(top_p);
    p.top_k = data<const int>(top_k);
    p.min_p = data<const float>(min_p);
    p.noise_key = data<const long long>(noise_key);
    p.adjusted = data<const float>(adjusted);
    p.adjusts = data<const int>(adjusts);
    p.new_ids = data<long long>(new_ids);
    p.num_new = data<int>(num_new);
    p.next_len = data<int>(next_len);
    p.bonus = data<long long>(bonus);
    p.chunk_found = static_cast<float*>(workspace);
    p.chunk_choice = reinterpret_cast<int*>(p.chunk_found + 2 * rows * plan.chunks);
    p.choice = p.chunk_choice + rows * plan.chunks;
    p.batch = B.value();
    p.rows = R.value();
    p.width = S.value();
    p.vocab = V.value();
    p.chunks = plan.chunks;
    const auto all = static_cast<unsigned>(rows);
    launch("dflash_accept_scan", dflash_accept_scan, dim3(plan.chunks, all), kScanThreads, 0, p, stream);
    launch("dflash_accept_choose", dflash_accept_choose, dim3(all), kChooseThreads, 0, p, stream);
    launch("dflash_accept_finish", dflash_accept_finish, dim3(B.value()), kFinishThreads, 0, p, stream);
  });
}

int dflash_attention_plan(int32_t batch, int32_t rows, int32_t q_heads, int32_t kv_heads, int32_t head_dim,
                          int32_t cache_len, int32_t window, int32_t processors, int32_t processor_shared_bytes,
                          DFlashAttentionPlan* plan) {
  return guarded("dflash_attention_plan", [&] {
    require(batch > 0 && rows > 0 && kv_heads > 0 && q_heads > 0 && cache_len > 0 && processors > 0 && plan,
            "every number must be at least 1, and the plan not null");
    require(window >= 0 && processor_shared_bytes > 0, "window must be at least 0, shared memory at least 1");
    require(q_heads % kv_heads == 0, "q_heads must be a multiple of kv_heads");
    Symbol D("head_dim", {64, 96, 128, 256});
    D.match("head_dim", head_dim, this_line());
    const AttentionPlan made = attention_plan(
        {batch, rows, q_heads, kv_heads, head_dim, cache_len, window, processors, processor_shared_bytes});
    *plan = {made.tile.rows,   made.tile.warps,  made.tile.keys,    made.row_tiles,      made.ctas,
             made.even_splits, made.split_limit, made.shared_bytes, made.workspace_bytes};
  });
}

int dflash_accept_plan(int32_t batch, int32_t rows, int32_t vocab, DFlashAcceptPlan* plan) {
  return guarded("dflash_accept_plan", [&] {
    require(batch > 0 && rows > 0 && vocab > 0 && plan, "every number must be at least 1, and the plan not null");
    const AcceptPlan made = accept_plan(batch, rows, vocab);
    *plan = {made.chunks, 0, made.workspace_bytes};
  });
}

int dflash_processors(int32_t* processors, int32_t* processor_shared_bytes) {
  return guarded("dflash_processors", [&] {
    require(processors != nullptr && processor_shared_bytes != nullptr, "processors or their shared memory: got null");
    const Processors found = device_processors();
    *processors = found.count;
    *processor_shared_bytes = found.shared_bytes;
  });
}

int64_t dflash_attention_params_bytes(void) { return sizeof(AttentionParams); }
int64_t dflash_accept_params_bytes(void) { return sizeof(AcceptParams); }
const char* dflash_last_error(void) { return last_error.c_str(); }

int dflash_emulator_order(int32_t order, int64_t seed) {
  return guarded("dflash_emulator_order", [&] {
#ifdef DFLASH_EMULATOR
    require(order >= 0 && order <= 2, "order: got ", order, ", expected 0, 1 or 2");
    emulator::set_order(static_cast<emulator::Order>(order), static_cast<uint64_t>(seed));
#else
    (void)order, (void)seed;
    require(false, "this library launches on a GPU");
#endif
  });
}
}
