// The parameters of the DFlashAdjust kernels, and how their work is divided. Plain C++, read by kernels, launchers and
// tests.
#pragma once

namespace dflash {

struct AdjustParams {
  const float* logits;              // [B, R, V]: row r decides the token behind position num_known-1+r
  float* history;                   // [B, H]: token ids by position, updated in place
  const long long* input_ids;       // [B, S]: decided tokens, then drafts
  const int* num_known;             // [B]
  const int* past_len;              // [B]: past_len + S <= H
  const int* adjusts;               // [B]: bits; 0: nothing is read or written but the history
  const int* prompt_len;            // [B]
  const float* repetition_penalty;  // [B]
  const float* frequency_penalty;   // [B]
  const float* presence_penalty;    // [B]
  const int* bias_ids;              // [B, K]: unused entries repeat one
  const float* bias_values;         // [B, K]
  const int* bad_words;             // [B, W, N]: each ends at N, before it stands -1
  const int* token_mask;            // [B, R, mask_words]
  float* adjusted;                  // [B, R, V], of slots that ask
  int* counts;                      // [B, V]: how often a token stands in the answer, and kInPrompt; workspace
  int rows;                         // R
  int width;                        // S
  int vocab;                        // V
  int length;                       // H
  int biases;                       // K
  int words;                        // W
  int word_tokens;                  // N
  int mask_words;
};

constexpr int kCountThreads = 1024;
constexpr int kRowThreads = 256;
constexpr int kFewThreads = 256;
constexpr int kRowElements = 8192;  // logits of a chunk
constexpr int kPenalties = 1;       // bits of adjusts
constexpr int kBiases = 2;
constexpr int kBadWords = 4;
constexpr int kMask = 8;
constexpr int kInPrompt = 1 << 30;  // of a count: the token stands in the prompt

struct AdjustPlan {
  int chunks;                 // CTAs that share a row
  long long workspace_bytes;  // counts
};

inline AdjustPlan adjust_plan(int batch, int vocab) {
  AdjustPlan plan{};
  plan.chunks = (vocab + kRowElements - 1) / kRowElements;
  plan.workspace_bytes = 4LL * batch * vocab;
  return plan;
}

}  // namespace dflash
