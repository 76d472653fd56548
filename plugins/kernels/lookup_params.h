// The parameters of the DFlashLookup kernel, and the numbers of its choice. Plain C++, read by the kernel, its launcher
// and tests.
#pragma once

namespace dflash {

struct LookupParams {
  const float* history;        // [B, H]: token ids by position, with the step's
  const long long* input_ids;  // [B, S]: only S counts
  const int* num_known;        // [B]
  const int* past_len;         // [B]: past_len + S < H
  const int* next_len;         // [B]
  const long long* bonus;      // [B]
  const long long* drafts;     // [B, D]: the drafter's
  const int* tally;            // [B, kTallySize]: a class, then a mean of each class less its prior
  const int* draft_sources;    // [B]
  long long* next_drafts;      // [B, D]
  int* next_tally;             // [B, kTallySize]
  int batch;
  int width;       // S
  int num_drafts;  // D
  int rows;        // H
};

constexpr int kLookupThreads = 512;
constexpr int kFromLookup = 2;  // draft_sources; 1 is the drafter alone
constexpr int kFromBoth = 3;
constexpr int kNumClasses = 5;   // of blocks: the drafter's, and four of matches by their length
constexpr int kNoMatch = 5;      // the class of lookup's blocks without a match, which has no mean
constexpr int kTallySize = 6;    // the class of the next block, and the means of all
constexpr int kMinMatch = 2;     // tokens from which on a match is better than none
constexpr int kSecondMatch = 3;  // from which on it is of class 2,
constexpr int kThirdMatch = 4;   // of class 3,
constexpr int kMaxMatch = 6;     // of class 4; longer matches count as this long
constexpr int kMeanShare = 8;    // a block moves a mean by 1 / kMeanShare of the difference
constexpr int kMeanUnit = 256;   // of a mean: one draft
constexpr int kPriorOfDrafter = 208;
constexpr int kPriorOfFirst = 256;
constexpr int kPriorOfSecond = 384;
constexpr int kPriorOfThird = 640;
constexpr int kPriorOfFourth = 1024;

}  // namespace dflash
