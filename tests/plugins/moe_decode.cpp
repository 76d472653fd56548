// What the kernels of DFlashMoE make of 16 bytes of weights, for the tests.
#include "moe_weights.cuh"

// Eights of elements 0 … kPieces-1 of a block, as pairs of bfloat16 in the products' order.
template <int kFormat, bool kRare>
static void expand(const void* bytes, const void* scales, unsigned* pairs) {
  dflash::MoeBlock<kFormat> block;
  block.load(static_cast<const unsigned char*>(bytes), static_cast<const unsigned char*>(scales));
  for (int piece = 0; piece < block.kPieces; ++piece) {
    unsigned four[4];
    block.template piece<kRare>(four, piece);
    for (int i = 0; i < 4; ++i) pairs[piece * 4 + i] = four[i];
  }
}

extern "C" {

int is_rare(const void* bytes, const void* scale) {
  dflash::MoeBlock<dflash::kMoeMxfp4> block;
  block.load(static_cast<const unsigned char*>(bytes), static_cast<const unsigned char*>(scale));
  return block.is_rare();
}
void expand_bfloat16(const void* bytes, unsigned* pairs) { expand<dflash::kMoeBfloat16, false>(bytes, nullptr, pairs); }
void expand_mxfp4(const void* bytes, const void* scale, unsigned* pairs) {
  expand<dflash::kMoeMxfp4, false>(bytes, scale, pairs);
}
void expand_mxfp4_rare(const void* bytes, const void* scale, unsigned* pairs) {
  expand<dflash::kMoeMxfp4, true>(bytes, scale, pairs);
}
// 16 codes of FP8.
void expand_fp8(const void* bytes, const void* scale, unsigned* pairs) {
  dflash::MoeBlock<dflash::kMoeFp8> block;
  block.load(static_cast<const unsigned char*>(bytes), static_cast<const unsigned char*>(scale));
  for (int piece = 0; piece < block.kPieces; ++piece) {
    unsigned four[4];
    block.piece(four, piece);
    for (int i = 0; i < 4; ++i) pairs[piece * 4 + i] = four[i];
  }
}
void expand_nvfp4(const void* bytes, const void* scales, unsigned* pairs) {
  expand<dflash::kMoeNvfp4, false>(bytes, scales, pairs);
}
float nvfp4_worth(const float* scale_2) { return dflash::MoeBlock<dflash::kMoeNvfp4>::worth(scale_2, 0); }
void order_eight(const uint4* eight, uint4* ordered) { *ordered = dflash::in_products_order(*eight); }
int place(int i) { return dflash::place_of<dflash::kMoeMxfp4>(i); }
}
