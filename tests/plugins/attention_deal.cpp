// Which items the CTAs of an attention launch take, for the tests.
#include "attention_deal.cuh"
#include "emulator.h"

// Five numbers for each item, as struct Item has them, in the order in which a CTA takes them; behind them a negative
// slot. `items` holds `most` of them for each CTA.
extern "C" void deal(const dflash::AttentionParams* params, int ctas, int most, int* items) {
  const int shared_bytes = dflash::kDealBytes;
  emulator::run(dim3(ctas), dim3(dflash::kAttentionThreads), shared_bytes, [=] {
    DFLASH_SHARED_MEMORY(smem);
    for (int round = 0; round < most; ++round) {
      const dflash::Item item = dflash::find_item(*params, smem, round);
      if (threadIdx.x == 0) reinterpret_cast<dflash::Item*>(items)[blockIdx.x * most + round] = item;
      if (item.slot < 0) return;
    }
  });
}
