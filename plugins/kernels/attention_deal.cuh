// How the CTAs of a launch deal its work out among themselves, from lengths that only the device knows.
//
// Every CTA finds the same list of all items, those with most keys first, and takes its own part. The first item of
// each is the one of its number. How many of the rest it may take follows from the lowest goal below which all of them
// can be placed; in that proportion the CTAs take successive parts of the list.
#pragma once

#include "attention_work.cuh"

namespace dflash {

// A slot's part of the list.
struct SlotItems {
  int slot;
  int tiles;  // of keys, in an item
  int items;
};

// The list of a launch, by slots.
struct ItemList {
  const SlotItems* slots_smem;  // [B], those with most tiles first
  int batch;
  int ctas;

  // What is left when each CTA has had its first item, and the room for it. In tiles.
  struct Rest {
    long long tiles;
    long long room;  // of all CTAs
    long long goal;  // the most that a CTA may have
    int item;        // the longest; 0 if there is none
  };

  __device__ Rest find_rest() const {
    Rest rest{};
    long long all = 0;
    int number = 0;
    for (int i = 0; i < batch; ++i) {
      const SlotItems own = slots_smem[i];
      const int behind = number + own.items - max(number, ctas);  // items that are no CTA's first
      all += 1LL * own.tiles * own.items;
      if (behind > 0) rest.item = max(rest.item, own.tiles);
      if (behind > 0) rest.tiles += 1LL * own.tiles * behind;
      number += own.items;
    }
    if (rest.item == 0) return rest;
    // All can be placed where the goal is the even share and one item. Each lane tries a goal from the even share on.
    const int lane = threadIdx.x % kWarp, step = divide_up(rest.item, kWarp - 1);
    rest.goal = (all + ctas - 1) / ctas + 1LL * step * lane;
    rest.room = find_room(rest);
    const int first = __ffs(static_cast<int>(__ballot_sync(kAllLanes, rest.room >= rest.tiles))) - 1;
    rest.goal += 1LL * step * (first - lane);
    rest.room = find_room(rest);
    return rest;
  }

  __device__ long long find_room(const Rest& rest) const {
    long long room = 0;
    int number = 0;
    for (int i = 0; i < batch && number < ctas; ++i) {
      const SlotItems own = slots_smem[i];
      room += room_of(rest, own.tiles) * min(own.items, ctas - number);
      number += own.items;
    }
    return room;
  }

  // Of a CTA whose first item is so long: for whole items.
  static __device__ __forceinline__ long long room_of(const Rest& rest, int tiles) {
    const int room = static_cast<int>(max(rest.goal - tiles, 0LL));
    return room / rest.item * rest.item;
  }

  // The items [begin, end) of the rest that a CTA takes.
  struct Range {
    int begin;
    int end;
  };

  __device__ Range find_range(const Rest& rest, int cta) const {
    if (rest.item == 0) return {0, 0};
    long long before = 0, room = 0;
    int number = 0;
    for (int i = 0; i < batch && number <= cta; ++i) {
      const SlotItems own = slots_smem[i];
      room = room_of(rest, own.tiles);
      before += room * min(own.items, cta - number);
      number += own.items;
    }
    return {item_at(before * rest.tiles / rest.room), item_at((before + room) * rest.tiles / rest.room)};
  }

  // The item of the rest that begins nearest to so many tiles behind its beginning.
  __device__ int item_at(long long tiles) const {
    int number = 0;
    for (int i = 0; i < batch; ++i) {
      const SlotItems own = slots_smem[i];
      const int first = max(number, ctas), behind = number + own.items - first;
      number += own.items;
      if (behind <= 0) continue;
      if (tiles < 1LL * own.tiles * behind) return first + static_cast<int>((tiles + own.tiles / 2) / own.tiles);
      tiles -= 1LL * own.tiles * behind;
    }
    return number;
  }

  // The item of a number; a negative slot where there is none.
  __device__ Item find(const AttentionParams& p, int number) const {
    for (int i = 0; i < batch; ++i) {
      const SlotItems own = slots_smem[i];
      if (number >= own.items) {
        number -= own.items;
        continue;
      }
      const int splits = own.items / (p.row_tiles * p.kv_heads);
      // The last row tile first: under a causal mask it has the most keys.
      const int row_tile = p.row_tiles - 1 - number / splits / p.kv_heads;
      return {own.slot, number / splits % p.kv_heads, row_tile, number % splits, splits};
    }
    return {-1, 0, 0, 0, 1};
  }
};

// The list, in `smem`, which all threads write and may read. Each thread sorts in some of the slots.
__device__ inline ItemList list_items(const AttentionParams& p, unsigned char* smem) {
  SlotItems* sorted_smem = reinterpret_cast<SlotItems*>(smem);  // [B]
  int* splits_smem = reinterpret_cast<int*>(sorted_smem + p.batch);
  int* tiles_smem = splits_smem + p.batch;
  for (int slot = threadIdx.x; slot < p.batch; slot += kAttentionThreads) {
    const int tiles = count_tiles(p, slot);
    splits_smem[slot] = attention_splits(tiles, p.even_splits, p.split_limit);
    tiles_smem[slot] = divide_up(tiles, splits_smem[slot]);
  }
  __syncthreads();  // every slot's numbers are there
  for (int slot = threadIdx.x; slot < p.batch; slot += kAttentionThreads) {
    const int tiles = tiles_smem[slot];
    int place = 0;
    for (int other = 0; other < p.batch; ++other) {
      const int others = tiles_smem[other];
      place += others > tiles || (others == tiles && other < slot);
    }
    sorted_smem[place] = {slot, tiles, splits_smem[slot] * p.row_tiles * p.kv_heads};
  }
  __syncthreads();  // the list is whole
  return {sorted_smem, p.batch, static_cast<int>(gridDim.x)};
}

// A CTA's item in round `round`; a negative slot where none is left. `smem` is overwritten, by all threads, and free
// when they return.
__device__ inline Item find_item(const AttentionParams& p, unsigned char* smem, int round) {
  const ItemList list = list_items(p, smem);
  int number = static_cast<int>(blockIdx.x);
  if (round > 0) {
    const ItemList::Range own = list.find_range(list.find_rest(), number);
    number = own.begin + round - 1;
    if (number >= own.end) return {-1, 0, 0, 0, 1};
  }
  const Item item = list.find(p, number);
  __syncthreads();  // every thread has read the list
  return item;
}

constexpr int kDealBytes = kMaxSlots * (sizeof(SlotItems) + 2 * sizeof(int));  // of shared memory

}  // namespace dflash
