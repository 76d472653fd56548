// DFlashAccept: which token each row of logits becomes, and how many of the drafts that confirms.
//
//   choice[b, r]  = argmax(l) where temperature <= 0, else the first token v in vocabulary order for which
//                   sum_{w <= v} m_w > u sum_w m_w;  m_w = e^((l_w - max l) / temperature) where top-k, top-p and
//                   min-p keep w
//   accepted[b]   = how many of the drafts input_ids[b, num_known + r], r = 0, 1, … equal choice[b, r] before the
//                   first that does not
//   new_ids[b]    = choice[b, 0 … accepted], then -1; the last of them is the bonus
//
// l = logits[b, r], or what DFlashAdjust made of it; u = uniforms[b, past_len + num_known + r], the number of the
// position that the row decides. Shapes and types stand in accept_params.h. Three launches, since a row is the work of
// many CTAs, and the prefix that of all rows of a slot:
//   dflash_accept_scan    grid (chunks, B·R), 256 threads: the largest logit of a chunk, and where it first stands;
//                         where the slot samples the chunk's mass, relative to that logit's
//   dflash_accept_choose  grid (B·R), 1024 threads: merges the chunks, samples where the slot asks for it; 33 KB of
//                         shared memory (accept_sample.cuh). Without a filter it reads one chunk of the row again
//   dflash_accept_finish  grid (B), one warp: the prefix
// None waits for the host, and none asks it for a length.
//
// A row with a NaN, or whose largest logit is not finite, decides no token: its new id is -1, and it confirms no draft.
// It is not sampled, and its choice is stored as ~token. The bonus is a token of the vocabulary whatever comes in,
// since the drafter reads its embedding.
#include "accept_params.h"
#include "accept_sample.cuh"
#include "best.cuh"
#include "device.cuh"

namespace dflash {

constexpr int kScanWarps = kScanThreads / kWarp;
constexpr int kScanLoads = kScanElements / (4 * kScanThreads);  // of 16 bytes for each thread

static_assert(kScanElements == 4 * kScanThreads * kScanLoads, "the loads of a chunk are the same for every thread");
static_assert(kWarp % kScanWarps == 0, "one warp reads what every warp of the CTA found");
static_assert(kFinishThreads == kWarp, "the prefix is found by one warp");

__device__ __forceinline__ bool is_nan(float x) { return x != x; }

// The largest of the warps' bests; every warp finds it.
__device__ __forceinline__ Best cta_best(Best best, Best* found_smem) {
  if (lane_of_thread() == 0) found_smem[warp_of_thread()] = best;
  __syncthreads();  // every warp's best is there
  return lanes_best(found_smem[lane_of_thread() % kScanWarps]);
}

// A CTA's elements [begin, end) of a row: single elements up to the first address that 16 divides (where 4 does not
// divide V rows start anywhere), vectors, and the elements behind them. Where there is nothing to load stands NaN,
// which is neither the largest, nor equal to it, nor has mass.
struct Chunk {
  int begin, end, head, tail;
  float4 loaded[kScanLoads];
  float before, behind;

  __device__ __forceinline__ Chunk(const float* row_gmem, int begin, int end) : begin(begin), end(end) {
    const int thread = static_cast<int>(threadIdx.x);
    const int misaligned = static_cast<int>(reinterpret_cast<size_t>(row_gmem + begin) / sizeof(float) % 4);
    head = min(end, begin + (4 - misaligned) % 4);
    tail = head + vectors() * 4;
    const float4* vectors_gmem = reinterpret_cast<const float4*>(row_gmem + head);
    const float none = __int_as_float(0x7fffffff);
#pragma unroll
    for (int i = 0; i < kScanLoads; ++i) {
      loaded[i] = has_vector(i) ? vectors_gmem[i * kScanThreads + thread] : float4{none, none, none, none};
    }
    before = begin + thread < head ? row_gmem[begin + thread] : none;
    behind = tail + thread < end ? row_gmem[tail + thread] : none;
  }

  __device__ __forceinline__ int vectors() const { return (end - head) / 4; }
  __device__ __forceinline__ bool has_vector(int i) const {
    return i * kScanThreads + static_cast<int>(threadIdx.x) < vectors();
  }

  // The largest that this warp has. A NaN that was loaded makes it infinite.
  __device__ __forceinline__ Best best() const {
    const int thread = static_cast<int>(threadIdx.x);
    bool bad = (begin + thread < head && is_nan(before)) || (tail + thread < end && is_nan(behind));
    float largest = fmaxf(-kInfinity, fmaxf(before, behind));
#pragma unroll
    for (int i = 0; i < kScanLoads; ++i) {
      largest = fmaxf(largest, fmaxf(fmaxf(loaded[i].x, loaded[i].y), fmaxf(loaded[i].z, loaded[i].w)));
      const bool any = is_nan(loaded[i].x) || is_nan(loaded[i].y) || is_nan(loaded[i].z) || is_nan(loaded[i].w);
      bad = bad || (any && has_vector(i));
    }
    largest = lanes_max(largest);

    // From back to front, so that the first of equals is what remains.
    int index = behind == largest ? tail + thread : end - 1;
#pragma unroll
    for (int i = kScanLoads - 1; i >= 0; --i) {
      const int first = head + 4 * (i * kScanThreads + thread);
      if (loaded[i].w == largest) index = first + 3;
      if (loaded[i].z == largest) index = first + 2;
      if (loaded[i].y == largest) index = first + 1;
      if (loaded[i].x == largest) index = first;
    }
    if (before == largest) index = begin + thread;
    return lanes_best({bad ? kInfinity : largest, index});
  }

  // The mass that this thread has.
  __device__ __forceinline__ float mass(const Masses& masses) const {
    float sum = masses.of(before) + masses.of(behind);
#pragma unroll
    for (int i = 0; i < kScanLoads; ++i) {
      sum += masses.of(loaded[i].x);
      sum += masses.of(loaded[i].y);
      sum += masses.of(loaded[i].z);
      sum += masses.of(loaded[i].w);
    }
    return sum;
  }
};

// What row `row` of all chooses from.
__device__ __forceinline__ const float* logits_of(const AcceptParams& p, long long row) {
  return (p.adjusts[row / p.rows] ? p.adjusted : p.logits) + row * p.vocab;
}

__device__ int sample(const AcceptParams& p, Shared* smem, Best best, int slot, int row) {
  const float top_p = p.top_p[slot];
  const int top_k = p.top_k[slot];
  const long long position = 0LL + p.past_len[slot] + p.num_known[slot] + row;
  const long long last = p.positions - 1;
  const float u = p.uniforms[1LL * slot * p.positions + max(0LL, min(position, last))];
  const float* logits_gmem = logits_of(p, 1LL * slot * p.rows + row);
  Tokens tokens = {smem, logits_gmem, best.value, p.temperature[slot], p.vocab, false, 0};
  const long long first_chunk = (1LL * slot * p.rows + row) * p.chunks;
  const Chunks chunks = {p.chunk_found + 2 * first_chunk, p.chunks};
  float total;
  find_chunk(tokens, chunks, kInfinity, &total);
  const bool filtered = top_k > 0 || top_p < 1.f;
  const float kept = filtered ? cut_off(tokens, total, static_cast<float>(top_k), top_p) : kFloor;
  const float floor = fmaxf(kept, min_p_floor(p.min_p[slot]));
  Range range = {0, tokens.size, 0.f, -1.f};
  if (!filtered && floor == kFloor) range = find_chunk(tokens, chunks, u * total, &total);
  return draw(tokens, floor, u, range);
}

}  // namespace dflash

extern "C" __global__ void __launch_bounds__(dflash::kScanThreads)
    dflash_accept_scan(const __grid_constant__ dflash::AcceptParams p) {
  using namespace dflash;
  __shared__ Best found_smem[kScanWarps];
  __shared__ float mass_smem[kScanWarps];
  const long long row = blockIdx.y;
  const int begin = static_cast<int>(blockIdx.x) * kScanElements;
  const Chunk chunk(logits_of(p, row), begin, min(p.vocab, begin + kScanElements));
  const Best best = cta_best(chunk.best(), found_smem);
  const float temperature = p.temperature[blockIdx.y / p.rows];
  const long long at = row * p.chunks + blockIdx.x;
  if (threadIdx.x == 0) {
    p.chunk_found[2 * at] = best.value;
    p.chunk_argmax[at] = best.index;
  }
  if (!(temperature > 0.f)) return;
  const float mass = lanes_sum(chunk.mass(Masses(best.value, temperature)));
  if (lane_of_thread() == 0) mass_smem[warp_of_thread()] = mass;
  __syncthreads();  // every warp's mass is there
  if (threadIdx.x > 0) return;
  float sum = 0.f;
  for (int warp = 0; warp < kScanWarps; ++warp) sum += mass_smem[warp];
  p.chunk_found[2 * at + 1] = sum;
}

extern "C" __global__ void __launch_bounds__(dflash::kChooseThreads)
    dflash_accept_choose(const __grid_constant__ dflash::AcceptParams p) {
  using namespace dflash;
  __shared__ Shared smem;
  const long long index = blockIdx.x;
  const int slot = static_cast<int>(blockIdx.x) / p.rows;
  // Every warp merges the chunks for itself: they are few, and no barrier is needed.
  Best best = {-kInfinity, p.vocab};
  for (int chunk = lane_of_thread(); chunk < p.chunks; chunk += kWarp) {
    best = better(best, {p.chunk_found[2 * (index * p.chunks + chunk)], p.chunk_argmax[index * p.chunks + chunk]});
  }
  best = lanes_best(best);
  const bool finite = fabsf(best.value) < kInfinity;
  int choice = finite ? best.index : ~best.index;
  if (p.temperature[slot] > 0.f && finite) {
    choice = sample(p, &smem, best, slot, static_cast<int>(blockIdx.x) % p.rows);
  }
  if (threadIdx.x == 0) p.choice[index] = choice;
}

extern "C" __global__ void __launch_bounds__(dflash::kFinishThreads)
    dflash_accept_finish(const __grid_constant__ dflash::AcceptParams p) {
  using namespace dflash;
  const int slot = blockIdx.x;
  const int known = p.num_known[slot];
  const int* choice_gmem = p.choice + 1LL * slot * p.rows;         // [R]
  const long long* ids_gmem = p.input_ids + 1LL * slot * p.width;  // [S]
  int accepted = p.rows - 1;                                       // the last row has no draft to confirm
  for (int first = 0; first < p.rows - 1; first += kWarp) {
    const int row = first + lane_of_thread();
    const bool drafted = static_cast<unsigned>(known + row) < static_cast<unsigned>(p.width);
    const bool valid = row >= p.rows - 1 || choice_gmem[row] >= 0;
    const bool hit = row >= p.rows - 1 || (drafted && valid && ids_gmem[known + row] == choice_gmem[row]);
    const unsigned missed = ~__ballot_sync(kAllLanes, hit);
    if (missed == 0) continue;
    accepted = first + __ffs(static_cast<int>(missed)) - 1;
    break;
  }
  for (int row = lane_of_thread(); row < p.rows; row += kWarp) {
    p.new_ids[1LL * slot * p.rows + row] = row <= accepted ? max(choice_gmem[row], -1) : -1;
  }
  if (lane_of_thread() > 0) return;
  p.num_new[slot] = accepted + 1;
  p.next_len[slot] = p.past_len[slot] + known + accepted;
  const int choice = choice_gmem[accepted];
  p.bonus[slot] = choice < 0 ? ~choice : choice;
}
