// The launcher of DFlashLookup: check, launch (library.cpp has those of attention and acceptance).

#include "lookup_params.h"

#include "dflash.h"
#include "guard.h"
#include "launch.h"

extern "C" {
void dflash_lookup_choose(dflash::LookupParams);
}

namespace dflash {
namespace {

struct LookupTensors {
  const DFlashTensor *history, *input_ids, *num_known, *past_len, *next_len, *bonus, *drafts;
  const DFlashTensor *tally, *draft_sources, *next_drafts, *next_tally;
};

void lookup(const LookupTensors& t, void* stream) {
  Symbol B("B"), H("H"), S("S"), D("D"), one("1", {1}), C("classes", {kTallySize});
  expect(t.history, "history", DFLASH_FLOAT32, {B, one, H, one});
  expect(t.input_ids, "input_ids", DFLASH_INT64, {B, S});
  expect(t.num_known, "num_known", DFLASH_INT32, {B});
  expect(t.past_len, "past_len", DFLASH_INT32, {B});
  expect(t.next_len, "next_len", DFLASH_INT32, {B});
  expect(t.bonus, "bonus", DFLASH_INT64, {B, one});
  expect(t.drafts, "drafts", DFLASH_INT64, {B, D});
  expect(t.tally, "tally", DFLASH_INT32, {B, C});
  expect(t.draft_sources, "draft_sources", DFLASH_INT32, {B});
  expect(t.next_drafts, "next_drafts", DFLASH_INT64, {B, D});
  expect(t.next_tally, "next_tally", DFLASH_INT32, {B, C});
  require(S.value() < H.value(), "input_ids.shape[1] (S): got ", S.value(), ", expected less than H, ", H.value());

  LookupParams p{};
  p.history = data<const float>(t.history);
  p.input_ids = data<const long long>(t.input_ids);
  p.num_known = data<const int>(t.num_known);
  p.past_len = data<const int>(t.past_len);
  p.next_len = data<const int>(t.next_len);
  p.bonus = data<const long long>(t.bonus);
  p.drafts = data<const long long>(t.drafts);
  p.tally = data<const int>(t.tally);
  p.draft_sources = data<const int>(t.draft_sources);
  p.next_drafts = data<long long>(t.next_drafts);
  p.next_tally = data<int>(t.next_tally);
  p.batch = B.value();
  p.width = S.value();
  p.num_drafts = D.value();
  p.rows = H.value();
  launch("dflash_lookup_choose", dflash_lookup_choose, dim3(p.batch), kLookupThreads, 0, p, stream);
}

}  // namespace
}  // namespace dflash

using namespace dflash;

extern "C" {

int dflash_lookup(const DFlashTensor* history, const DFlashTensor* input_ids, const DFlashTensor* num_known,
                  const DFlashTensor* past_len, const DFlashTensor* next_len, const DFlashTensor* bonus,
                  const DFlashTensor* drafts, const DFlashTensor* tally, const DFlashTensor* draft_sources,
                  const DFlashTensor* next_drafts, const DFlashTensor* next_tally, void*, int64_t, void* stream) {
  return guarded("dflash_lookup", [&] {
    lookup({history, input_ids, num_known, past_len, next_len, bonus, drafts, tally, draft_sources, next_drafts,
            next_tally},
           stream);
  });
}

int64_t dflash_lookup_params_bytes(void) { return sizeof(LookupParams); }
}
