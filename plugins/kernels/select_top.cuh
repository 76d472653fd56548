// The largest elements of a row of floats, in order, found by one CTA that reads each of them once.
//
// A thread holds 64 elements in registers. The k-th best of the threads' own best elements is a bound: at least k
// elements reach it, and only k threads have any that do. Those go into shared memory, at most 64·k of them and mostly
// little more than k, and each is ranked by counting those before it. Order: by value, largest first, then by place,
// lowest first. NaN counts as -infinity.
#pragma once

#include "device.cuh"
#include "select_params.h"

namespace dflash {

constexpr int kNoPlace = 0x7fffff00;  // + a thread's number, where it has no element: behind all places

static_assert(kSelectElements == 4 * kSelectThreads * kSelectLoads, "the loads are the same for every thread");
static_assert(kSelectMaxTopK <= kSelectThreads, "the bound is one of the threads' best");

struct Element {
  float value;
  int place;
};

__device__ __forceinline__ bool is_before(Element a, Element b) {
  return a.value > b.value || (a.value == b.value && a.place < b.place);
}

// What the threads of a CTA share; `found` has room for 65·k elements.
struct TopShared {
  Element best[kSelectThreads];
  Element kept[kSelectMaxTopK];
  Element bound;
  int count;
};

// How many of `count` elements stand before `own`, which may be one of them.
__device__ __forceinline__ int rank_of(Element own, const Element* elements_smem, int count) {
  int rank = 0;
  for (int i = 0; i < count; ++i) rank += is_before(elements_smem[i], own) ? 1 : 0;
  return rank;
}

class RowTop {
 public:
  __device__ RowTop(TopShared* shared, Element* found_smem, int k)
      : smem_(shared), found_smem_(found_smem), k_(k), thread_(static_cast<int>(threadIdx.x)) {}

  // Fill shared->kept with the k best of row_gmem[begin, end), in order; -infinity at kNoPlace or behind where there
  // are fewer. Elements are read 16 bytes at a time from multiples of 16 bytes on, singly at both ends.
  __device__ void run(const float* row_gmem, int begin, int end) {
    if (thread_ < k_) smem_->kept[thread_] = {-kInfinity, kNoPlace + thread_};
    const int lead = static_cast<int>(reinterpret_cast<size_t>(row_gmem + begin) / sizeof(float) % 4);
    for (int first = begin - lead; first < end; first += kSelectElements) {
      load(row_gmem, first, begin, end);
      merge(first);
    }
  }

 private:
  // All loads are on their way before the first is looked at. NaN becomes -infinity, and NaN is what is not there: it
  // equals nothing, and is not the larger of two.
  __device__ void load(const float* row_gmem, int first, int begin, int end) {
    if (first >= begin && first + kSelectElements <= end) {
#pragma unroll
      for (int i = 0; i < kSelectLoads; ++i) {
        loaded_[i] = *reinterpret_cast<const float4*>(row_gmem + place(first, i));
      }
#pragma unroll
      for (int i = 0; i < kSelectLoads; ++i) {
        for_each(loaded_[i], [](float& x) { x = fmaxf(x, -kInfinity); });
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kSelectLoads; ++i) {
      int at = place(first, i);
      loaded_[i] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (at >= begin && at + 4 <= end) {
        loaded_[i] = *reinterpret_cast<const float4*>(row_gmem + at);
      } else if (at + 4 > begin && at < end) {
        for_each(loaded_[i], [&](float& x) {
          if (at >= begin && at < end) x = row_gmem[at];
          ++at;
        });
      }
    }
#pragma unroll
    for (int i = 0; i < kSelectLoads; ++i) {
      int at = place(first, i);
      for_each(loaded_[i], [&](float& x) {
        x = at >= begin && at < end ? fmaxf(x, -kInfinity) : __int_as_float(0x7fffffff);
        ++at;
      });
    }
  }

  // Merge the elements in registers into the kept ones.
  __device__ void merge(int first) {
    const Element own = thread_best(first);
    smem_->best[thread_] = own;
    if (thread_ == 0) smem_->count = 0;
    __syncthreads();  // the threads' best are there, and the kept ones of the round before
    if (rank_of(own, smem_->best, kSelectThreads) == k_ - 1) smem_->bound = own;
    if (thread_ < k_) {
      add(smem_->kept[thread_]);
      smem_->kept[thread_] = {-kInfinity, kNoPlace + thread_};
    }
    __syncthreads();  // the bound is there
    if (!is_before(smem_->bound, own)) add_reaching(first, smem_->bound);
    __syncthreads();  // all that reach the bound are there
    const int count = smem_->count;
    for (int i = thread_; i < count; i += kSelectThreads) {
      const Element found = found_smem_[i];
      const int rank = rank_of(found, found_smem_, count);
      if (rank < k_) smem_->kept[rank] = found;
    }
    __syncthreads();  // the kept ones are there, and the others may be overwritten
  }

  // The first of this thread's largest elements.
  __device__ Element thread_best(int first) const {
    float largest = -kInfinity;
#pragma unroll
    for (int i = 0; i < kSelectLoads; ++i) {
      largest = fmaxf(largest, fmaxf(fmaxf(loaded_[i].x, loaded_[i].y), fmaxf(loaded_[i].z, loaded_[i].w)));
    }
    int best = kNoPlace + thread_;
#pragma unroll
    for (int i = kSelectLoads - 1; i >= 0; --i) {
      const int at = place(first, i);
      if (loaded_[i].w == largest) best = at + 3;
      if (loaded_[i].z == largest) best = at + 2;
      if (loaded_[i].y == largest) best = at + 1;
      if (loaded_[i].x == largest) best = at;
    }
    return {largest, best};
  }

  // Add this thread's elements that reach the bound: few threads have any.
  __device__ void add_reaching(int first, Element bound) {
    int count = 0;
    visit(first, [&](Element element) { count += reaches(element, bound) ? 1 : 0; });
    int to = atomicAdd(&smem_->count, count);
    visit(first, [&](Element element) {
      if (reaches(element, bound)) found_smem_[to++] = element;
    });
  }

  // False for what is not there.
  __device__ static bool reaches(Element a, Element bound) {
    return a.value > bound.value || (a.value == bound.value && a.place <= bound.place);
  }

  // All elements of this thread, in order.
  template <typename Visit>
  __device__ void visit(int first, Visit visit_one) {
#pragma unroll
    for (int i = 0; i < kSelectLoads; ++i) {
      int at = place(first, i);
      for_each(loaded_[i], [&](float x) { visit_one({x, at++}); });
    }
  }

  __device__ void add(Element element) { found_smem_[atomicAdd(&smem_->count, 1)] = element; }

  __device__ int place(int first, int load) const { return first + 4 * (load * kSelectThreads + thread_); }

  template <typename Visit>
  __device__ static void for_each(float4& four, Visit visit) {
    visit(four.x);
    visit(four.y);
    visit(four.z);
    visit(four.w);
  }

  TopShared* smem_;
  Element* found_smem_;
  int k_;
  int thread_;
  float4 loaded_[kSelectLoads];
};

}  // namespace dflash
