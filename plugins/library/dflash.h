/* The kernels as a plain C library: for tests through ctypes, and for anyone's C or C++.
 *
 * Each operation checks what it is given, and only then asks CUDA for anything; it launches on `stream` and returns
 * without waiting. It may be captured in a CUDA graph. Nothing exits and nothing is thrown: a status is returned, and
 * dflash_last_error() says what was wrong, where, what was expected and what came. */
#ifndef DFLASH_H_
#define DFLASH_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum DFlashStatus { DFLASH_OK = 0, DFLASH_INVALID_ARGUMENT = 1, DFLASH_LAUNCH_FAILED = 2 };
enum DFlashType { DFLASH_BFLOAT16 = 0, DFLASH_FLOAT32 = 1, DFLASH_INT32 = 2, DFLASH_INT64 = 3, DFLASH_FLOAT8_E4M3 = 4 };

/* Memory of the device, 16-byte aligned. Strides are in elements; every tensor here must be contiguous. */
typedef struct DFlashTensor {
  void* data;
  int32_t dtype; /* DFlashType */
  int32_t ndim;  /* 1 ... 4 */
  int64_t shape[4];
  int64_t stride[4];
} DFlashTensor;

/* The options of attention. */
typedef struct DFlashAttentionOptions {
  float scale;        /* multiplies query . key */
  int32_t window;     /* keys at this distance or further are not seen; 0: no window */
  int32_t causal;     /* drafts only: 1: a block row sees no later block row. Verification is always causal */
  int32_t ring;       /* 1: position p is in row p mod cache_len; needs a window, and room for it and the step's rows */
  int32_t processors; /* the work is divided for this many multiprocessors; 0: those of the current device */
  int32_t processor_shared_bytes; /* each with so much shared memory; 0: that of the current device's */
  float key_scale;   /* FP8 caches only: what a code of key_cache is worth; 0 where the caches are bfloat16 */
  float value_scale; /* likewise of value_cache */
} DFlashAttentionOptions;

/* How attention divides its work: see plugins/kernels/attention_params.h. */
typedef struct DFlashAttentionPlan {
  int32_t tile_rows, tile_warps, tile_keys;
  int32_t row_tiles, ctas, even_splits, split_limit, shared_bytes;
  int64_t workspace_bytes;
} DFlashAttentionPlan;

typedef struct DFlashAcceptPlan {
  int32_t chunks;
  int32_t reserved; /* 0 */
  int64_t workspace_bytes;
} DFlashAcceptPlan;

/* The options of a mixture of experts: see plugins/kernels/moe.cu. */
typedef struct DFlashMoeOptions {
  int32_t top_k;         /* experts of a token */
  int32_t normalize;     /* 1: softmax over the chosen experts' logits; 0: over all of them */
  int32_t interleaved;   /* 1: rows 2i and 2i+1 of gate_up are gate i and up i; 0: all gates, then ups */
  int32_t weight_format; /* 0: bfloat16, 1: MXFP4, 2: NVFP4, 3: FP8 */
  int32_t block_rows;    /* of FP8: 128, blocks of 128 x 128 share a scale, or 1, a row has one; of others 0 */
  float limit;           /* gate is cut above it, up beyond +-it; 0: neither */
  float alpha;           /* the gate's slope */
  float shift;           /* added to up */
} DFlashMoeOptions;

typedef struct DFlashMoePlan {
  int32_t tile_tokens, tile_row_warps, groups;
  int32_t gate_up_blocks, down_blocks, sum_blocks, shared_bytes;
  int32_t reserved; /* 0 */
  int64_t workspace_bytes;
} DFlashMoePlan;

/* The options of a gated delta rule: see plugins/kernels/gated_delta.cu. */
typedef struct DFlashGatedDeltaOptions {
  int32_t key_heads; /* divides the value heads, whose number is a_log's size */
} DFlashGatedDeltaOptions;

typedef struct DFlashBlockLinearPlan {
  int32_t tile_tokens, tile_row_warps, token_tiles, row_blocks;
} DFlashBlockLinearPlan;

typedef struct DFlashGatedDeltaPlan {
  int32_t row_limit, row_vectors, row_chunks, rule_blocks, shared_bytes;
  int32_t reserved; /* 0 */
  int64_t workspace_bytes;
} DFlashGatedDeltaPlan;

/* The options of a candidate selector: see plugins/kernels/select.cu. */
typedef struct DFlashSelectOptions {
  int32_t top_k; /* candidates of a row */
} DFlashSelectOptions;

typedef struct DFlashSelectPlan {
  int32_t chunks, chunk_elements, shared_bytes;
  int32_t reserved; /* 0 */
  int64_t workspace_bytes;
} DFlashSelectPlan;

typedef struct DFlashArgmaxPlan {
  int32_t chunks;
  int32_t reserved; /* 0 */
  int64_t workspace_bytes;
} DFlashArgmaxPlan;

typedef struct DFlashAdjustPlan {
  int32_t chunks;
  int32_t reserved; /* 0 */
  int64_t workspace_bytes;
} DFlashAdjustPlan;

/* Write k and v [B, T, Hkv, D] into the caches [B, Hkv, cache_len, D] at positions [B, T] (int64, consecutive), then
 * causal attention of q [B, T, Hq, D] over the keys up to each row's position, into out [B, T, Hq, D]. sinks [Hq], or
 * null: a logit for each head in the softmax denominator only. Floats are bfloat16. D is 64, 96, 128 or 256.
 *
 * The caches may be FP8 (E4M3): they hold codes of k / key_scale and v / value_scale, to the nearest, saturated at 448.
 * Attention takes the codes' values for the step's own keys and values too. */
int dflash_verify_attention(const DFlashTensor* q, const DFlashTensor* k, const DFlashTensor* v,
                            const DFlashTensor* key_cache, const DFlashTensor* value_cache,
                            const DFlashTensor* positions, const DFlashTensor* sinks, const DFlashTensor* out,
                            const DFlashAttentionOptions* options, void* workspace, int64_t workspace_bytes,
                            void* stream);

/* The same for a drafter's layer: k, v [B, C+T, Hkv, D] and positions [B, C+T] are C context rows, of which those
 * before the block's first position hold, and the T block rows. All T rows of q see the kept context and, unless
 * causal, the whole block. The caches are bfloat16. */
int dflash_draft_attention(const DFlashTensor* q, const DFlashTensor* k, const DFlashTensor* v,
                           const DFlashTensor* key_cache, const DFlashTensor* value_cache,
                           const DFlashTensor* positions, const DFlashTensor* sinks, const DFlashTensor* out,
                           const DFlashAttentionOptions* options, void* workspace, int64_t workspace_bytes,
                           void* stream);

/* Choose a token for each row of logits [B, R, V] float32 and accept the drafts of input_ids [B, S] int64 that equal
 * the choices: see plugins/kernels/accept_params.h for every tensor. */
int dflash_accept(const DFlashTensor* logits, const DFlashTensor* input_ids, const DFlashTensor* num_known,
                  const DFlashTensor* past_len, const DFlashTensor* temperature, const DFlashTensor* top_p,
                  const DFlashTensor* top_k, const DFlashTensor* min_p, const DFlashTensor* noise_key,
                  const DFlashTensor* adjusted, const DFlashTensor* adjusts, const DFlashTensor* new_ids,
                  const DFlashTensor* num_new, const DFlashTensor* next_len, const DFlashTensor* bonus, void* workspace,
                  int64_t workspace_bytes, void* stream);

/* Write the step's tokens input_ids [B, S] int64 from past_len on into history [B, 1, H, 1] float32, token ids by
 * position, and the logits of slots that ask for penalties, biases, bad words or a mask into adjusted [B, R, V]
 * float32: see plugins/kernels/adjust_params.h for every tensor. Slots that ask for nothing leave adjusted as it is. */
int dflash_adjust(const DFlashTensor* logits, const DFlashTensor* history, const DFlashTensor* input_ids,
                  const DFlashTensor* num_known, const DFlashTensor* past_len, const DFlashTensor* adjusts,
                  const DFlashTensor* prompt_len, const DFlashTensor* repetition_penalty,
                  const DFlashTensor* frequency_penalty, const DFlashTensor* presence_penalty,
                  const DFlashTensor* bias_ids, const DFlashTensor* bias_values, const DFlashTensor* bad_words,
                  const DFlashTensor* token_mask, const DFlashTensor* adjusted, void* workspace,
                  int64_t workspace_bytes, void* stream);

/* out [N, H] is the weighted sum of each token's top_k experts by router_logits [N, E] float32; other floats are
 * bfloat16. x [N, H], gate_up [E, 2I, H], gate_up_bias [E, 2I], down [E, H, I], down_bias [E, H]. H and I are multiples
 * of 8; E is at most 1024, top_k at most 32. Only the weights of experts that some token has chosen are read.
 *
 * MXFP4 and NVFP4 weights are int32 [E, 2I, H/8] and [E, H, I/8], each eight E2M1 codes, the first in the lowest bits,
 * and H and I multiples of 32. Their block scales are int32 too, four in each, row after row: of MXFP4 E8M0, one for 32
 * elements, of NVFP4 E4M3, one for 16, and an expert's are multiplied by scale_2 [E] float32. Null where a format has
 * none.
 *
 * FP8 weights are int32 [E, 2I, H/4] and [E, H, I/4], each four E4M3 codes, and H and I multiples of 16. Their scales
 * are the bits of a float32, one for each block, row after row: [E, 2 ceil(I/128) ceil(H/128)] and [E, ceil(H/128)
 * ceil(I/128)], or [E, 2I] and [E, H]. Rows are not interleaved. */
int dflash_moe(const DFlashTensor* x, const DFlashTensor* router_logits, const DFlashTensor* gate_up,
               const DFlashTensor* gate_up_bias, const DFlashTensor* down, const DFlashTensor* down_bias,
               const DFlashTensor* gate_up_scale, const DFlashTensor* down_scale, const DFlashTensor* gate_up_scale_2,
               const DFlashTensor* down_scale_2, const DFlashTensor* out, const DFlashMoeOptions* options,
               void* workspace, int64_t workspace_bytes, void* stream);

/* out [N, O] is x [N, I] times the transpose of a weight, plus bias [O] or null; floats are bfloat16. weight is int32
 * [O, I/4], each four E4M3 codes, the first in the lowest bits, and I a multiple of 16. A code counts scales
 * [ceil(O/128), ceil(I/128)] float32, by its block of 128 x 128. No workspace. */
int dflash_block_linear(const DFlashTensor* x, const DFlashTensor* weight, const DFlashTensor* scales,
                        const DFlashTensor* bias, const DFlashTensor* out, void* workspace, int64_t workspace_bytes,
                        void* stream);

/* out [B, S, Hv, 128] is the gated delta rule over the rows of qkv [B, S, C] and gates [B, S, 2 Hv] (b, then a) behind
 * a convolution over four rows, conv_weight [C, 1, 4]; a_log and dt_bias [Hv] are float32, other floats bfloat16. C is
 * (2 key_heads + Hv) 128. state [B, Hv, 128, 128] float32 holds state_len [B] positions, and window [B, 1, R, C+2 Hv]
 * the rows of qkv and gates from position state_len-3 on. Both are brought to position past_len+num_known in place; the
 * lengths are int32. At most R-3 rows lie between state_len and past_len. */
int dflash_gated_delta(const DFlashTensor* qkv, const DFlashTensor* gates, const DFlashTensor* conv_weight,
                       const DFlashTensor* a_log, const DFlashTensor* dt_bias, const DFlashTensor* window,
                       const DFlashTensor* state, const DFlashTensor* past_len, const DFlashTensor* state_len,
                       const DFlashTensor* num_known, const DFlashTensor* out, const DFlashGatedDeltaOptions* options,
                       void* workspace, int64_t workspace_bytes, void* stream);

/* places [B, N] int64: of each row of logits [B, N, V] float32 one of the top_k largest, from the first row on. It is
 * the one whose logit + sum of before * hidden [B, N, R] * successor [V, R] is the largest, where before is the row of
 * predecessor [V, R] at the choice before, and anchor_row [B, R] in row 0. The first of equals wins; NaN counts as
 * -infinity. Floats but the logits are bfloat16. top_k is at most 64, and at most V. */
int dflash_select(const DFlashTensor* logits, const DFlashTensor* hidden, const DFlashTensor* anchor_row,
                  const DFlashTensor* predecessor, const DFlashTensor* successor, const DFlashTensor* places,
                  const DFlashSelectOptions* options, void* workspace, int64_t workspace_bytes, void* stream);

/* places [N] int64: where the largest of each row of logits [N, V] bfloat16 stands, the first of equals; of a slot
 * whose temperature is above 0, what DFlashAccept would sample at position next_len + 1 + the row in its slot. A slot
 * has N/B rows, and settings as in dflash_accept, [B] each. tokens [V] int64 are those that the logits are of, or null:
 * 0, 1, 2, ... A row with a NaN gets any place of 0 ... V-1. */
int dflash_argmax(const DFlashTensor* logits, const DFlashTensor* temperature, const DFlashTensor* top_p,
                  const DFlashTensor* top_k, const DFlashTensor* min_p, const DFlashTensor* noise_key,
                  const DFlashTensor* next_len, const DFlashTensor* tokens, const DFlashTensor* places, void* workspace,
                  int64_t workspace_bytes, void* stream);

/* Fill next_drafts [B, D]. They are drafts [B, D], or what followed the latest of the longest matches of the last
 * tokens in the history [B, 1, H, 1] float32: token ids by position, behind which bonus [B, 1] follows at next_len. See
 * plugins/kernels/lookup_params.h. input_ids [B, S] are the step's tokens, of which only the number counts.
 * draft_sources [B] is 1 for the first, 2 for the second, 3 for what has got more accepted by tally [B, 6], which
 * next_tally continues. Tokens are int64, all else int32. There is no workspace: it may be null. */
int dflash_lookup(const DFlashTensor* history, const DFlashTensor* input_ids, const DFlashTensor* num_known,
                  const DFlashTensor* past_len, const DFlashTensor* next_len, const DFlashTensor* bonus,
                  const DFlashTensor* drafts, const DFlashTensor* tally, const DFlashTensor* draft_sources,
                  const DFlashTensor* next_drafts, const DFlashTensor* next_tally, void* workspace,
                  int64_t workspace_bytes, void* stream);

/* The plan of a launch on a GPU of `processors` multiprocessors, each with `processor_shared_bytes` of shared memory;
 * its workspace_bytes are what the operation needs. `window` is that of the options. */
int dflash_attention_plan(int32_t batch, int32_t rows, int32_t q_heads, int32_t kv_heads, int32_t head_dim,
                          int32_t cache_len, int32_t window, int32_t processors, int32_t processor_shared_bytes,
                          DFlashAttentionPlan* plan);
int dflash_accept_plan(int32_t batch, int32_t rows, int32_t vocab, DFlashAcceptPlan* plan);
int dflash_moe_plan(int32_t tokens, int32_t hidden, int32_t inner_size, int32_t experts, int32_t top_k,
                    int32_t weight_format, DFlashMoePlan* plan);
int dflash_block_linear_plan(int32_t tokens, int32_t out_size, DFlashBlockLinearPlan* plan);
int dflash_gated_delta_plan(int32_t batch, int32_t rows, int32_t window_rows, int32_t key_heads, int32_t value_heads,
                            DFlashGatedDeltaPlan* plan);
int dflash_select_plan(int32_t batch, int32_t rows, int32_t vocab, int32_t top_k, DFlashSelectPlan* plan);
int dflash_argmax_plan(int32_t rows, int32_t vocab, DFlashArgmaxPlan* plan);
int dflash_adjust_plan(int32_t batch, int32_t vocab, DFlashAdjustPlan* plan);

/* Multiprocessors of the current device, and the shared memory of each. The emulated library has an H200's: 132, and
 * 228 KiB. */
int dflash_processors(int32_t* processors, int32_t* processor_shared_bytes);

/* sizeof(AttentionParams) and of the others, for those who fill them themselves. */
int64_t dflash_attention_params_bytes(void);
int64_t dflash_accept_params_bytes(void);
int64_t dflash_moe_params_bytes(void);
int64_t dflash_block_linear_params_bytes(void);
int64_t dflash_gated_delta_params_bytes(void);
int64_t dflash_select_params_bytes(void);
int64_t dflash_argmax_params_bytes(void);
int64_t dflash_lookup_params_bytes(void);
int64_t dflash_adjust_params_bytes(void);

/* What the latest call on this thread that did not return DFLASH_OK has to say. Valid until the next call. */
const char* dflash_last_error(void);

/* The emulated library only. order: 0 forward, 1 reverse, 2 random by seed: see plugins/emulator/emulator.h. */
int dflash_emulator_order(int32_t order, int64_t seed);

#ifdef __cplusplus
}
#endif

#endif /* DFLASH_H_ */
