// What the lanes of a warp do together: shuffles, votes, matrix loads, tensor-core products.
#include "emulator.h"

namespace emulator {

uint32_t shuffle(const char* what, Place place, unsigned mask, uint32_t value, int from) {
  struct Exchange {
    uint32_t given, got;
    int from;
  } mine{value, 0, from};
  together(what, place, mask, mine, [=](Exchange** lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!lanes[lane]) continue;
      const Exchange* source = lanes[lanes[lane]->from];
      if (!source) fail(what, "a lane reads from one that does not take part", place);
      lanes[lane]->got = source->given;
    }
  });
  return mine.got;
}

unsigned match(const char* what, Place place, unsigned mask, uint32_t value) {
  struct Match {
    uint32_t value;
    unsigned lanes;
  } mine{value, 0};
  together(what, place, mask, mine, [](Match** lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int other = 0; lanes[lane] && other < kLanes; ++other) {
        if (lanes[other] && lanes[other]->value == lanes[lane]->value) lanes[lane]->lanes |= 1u << other;
      }
    }
  });
  return mine.lanes;
}

unsigned ballot(const char* what, Place place, unsigned mask, bool predicate) {
  struct Vote {
    bool mine;
    unsigned all;
  } vote{predicate, 0};
  together(what, place, mask, vote, [](Vote** lanes) {
    unsigned all = 0;
    for (int lane = 0; lane < kLanes; ++lane) all |= static_cast<unsigned>(lanes[lane] && lanes[lane]->mine) << lane;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lanes[lane]) lanes[lane]->all = all;
    }
  });
  return vote.all;
}

}  // namespace emulator

namespace dflash {

using emulator::kLanes;
using emulator::Place;

constexpr unsigned kWholeWarp = ~0u;

static void load_matrix(const char* what, unsigned (&r)[4], const void* row_smem, Place place, bool transposed) {
  struct Load {
    const uint16_t* row;  // 8 elements
    unsigned* r;
  } mine{static_cast<const uint16_t*>(row_smem), r};
  check_shared(row_smem, what, place);
  together(what, place, kWholeWarp, mine, [=](Load** lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int j = 0; j < 4; ++j) {
        Load** rows = lanes + 8 * j;
        const unsigned low = transposed ? rows[2 * t]->row[g] : rows[g]->row[2 * t];
        const unsigned high = transposed ? rows[2 * t + 1]->row[g] : rows[g]->row[2 * t + 1];
        lanes[lane]->r[j] = low | high << 16;
      }
    }
  });
}

void load_matrix_x4(unsigned (&r)[4], const void* row_smem, Place place) {
  load_matrix("load_matrix_x4", r, row_smem, place, false);
}

void load_matrix_x4_transposed(unsigned (&r)[4], const void* row_smem, Place place) {
  load_matrix("load_matrix_x4_transposed", r, row_smem, place, true);
}

static float of_bfloat16(unsigned bits) { return bits_as<float>(bits << 16); }

static void multiply_add(const char* what, float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Place place,
                         float (*number)(unsigned)) {
  struct Operands {
    float* c;
    const unsigned *a, *b;
  } mine{c, a, b};
  together(what, place, kWholeWarp, mine, [=](Operands** lanes) {
    const auto low = [=](unsigned pair) { return number(pair & 0xffff); };
    const auto high = [=](unsigned pair) { return number(pair >> 16); };
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const Operands& own = *lanes[lane];
      for (int j = 0; j < 4; ++j) {
        a[g + j % 2 * 8][2 * t + j / 2 * 8] = low(own.a[j]);
        a[g + j % 2 * 8][2 * t + j / 2 * 8 + 1] = high(own.a[j]);
        c[g + j / 2 * 8][2 * t + j % 2] = own.c[j];
      }
      for (int j = 0; j < 2; ++j) {
        b[2 * t + 8 * j][g] = low(own.b[j]);
        b[2 * t + 8 * j + 1][g] = high(own.b[j]);
      }
    }
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int j = 0; j < 4; ++j) lanes[lane]->c[j] = c[lane / 4 + j / 2 * 8][2 * (lane % 4) + j % 2];
    }
  });
}

void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Place place) {
  multiply_add("multiply_add", c, a, b, place, of_bfloat16);
}

void multiply_add_half(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Place place) {
  multiply_add("multiply_add_half", c, a, b, place, float_from_half);
}

}  // namespace dflash
