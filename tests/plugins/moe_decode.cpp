// What the kernels of DFlashMoE make of 16 bytes of weights, for the tests.
#include "moe_weights.cuh"

// Eights of elements 0 … kPieces-1 of a block, as pairs of bfloat16 in the products' order.
template <int kFormat, bool kLarge>
static void expand(const void* bytes, const void* scales, unsigned* pairs) {
  dflash::MoeBlock<kFormat> block;
  block.load(static_cast<const unsigned char*>(bytes), static_cast<const unsigned char*>(scales));
  for (int piece = 0; piece < block.kPieces; ++piece) {
    unsigned four[4];
    block.template piece<kLarge>(four, piece);
    for (int i = 0; i < 4; ++i) pairs[piece * 4 + i] = four[i];
  }
}

extern "C" {

int is_large(const void* bytes, const void* scale) {
  dflash::MoeBlock<dflash::kMoeMxfp4> block;
  block.load(static_cast<const unsigned char*>(bytes), static_cast<const unsigned char*>(scale));
  return block.is_large();
}
void expand_bfloat16(const void* bytes, unsigned* pairs) { expand<dflash::kMoeBfloat16, false>(bytes, nullptr, pairs); }
void expand_mxfp4(const void* bytes, const void* scale, unsigned* pairs) {
  expand<dflash::kMoeMxfp4, false>(bytes, scale, pairs);
}
void expand_mxfp4_large(const void* bytes, const void* scale, unsigned* pairs) {
  expand<dflash::kMoeMxfp4, true>(bytes, scale, pairs);
}
void expand_nvfp4(const void* bytes, const void* scales, unsigned* pairs) {
  expand<dflash::kMoeNvfp4, false>(bytes, scales, pairs);
}
float nvfp4_worth(const float* scale_2) { return dflash::MoeBlock<dflash::kMoeNvfp4>::worth(scale_2, 0); }
void order_eight(const uint4* eight, uint4* ordered) { *ordered = dflash::in_products_order(*eight); }
int place(int i) { return dflash::place_of<dflash::kMoeMxfp4>(i); }
}
