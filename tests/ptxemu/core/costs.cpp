// Cost of an access: passes through the banks of shared memory, sectors of global memory, and the
// sectors that a program reads for the first time.
#include "machine.h"

int Machine::bank_passes(const uint32_t* address, uint32_t mask, int n) {
  // 128-bit accesses go a quarter of a warp at a time, 64-bit ones half of it.
  int per = n >= 16 ? 8 : n == 8 ? 16 : 32, passes = 0;
  for (int first = 0; first < 32; first += per) {
    uint32_t words[32][8];
    int used[32] = {}, most = 0;
    for (int l = first; l < first + per; l++) {
      if (!(mask >> l & 1)) continue;
      for (int b = 0; b < n; b += 4) {
        uint32_t word = (address[l] + b) / 4;
        int bank = word % 32, k = 0;
        int known = std::min(used[bank], 8);
        for (; k < known; k++)
          if (words[bank][k] == word) break;
        if (k == known) {
          if (used[bank] < 8) words[bank][used[bank]] = word;
          used[bank]++;
          most = std::max(most, used[bank]);
        }
      }
    }
    passes += most;
  }
  return passes;
}

int Machine::sectors(const uint64_t* address, uint32_t mask, int n, bool cached) {
  uint64_t seen[64];
  int count = 0;
  for (int l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    for (uint64_t s = address[l] / 32; s <= (address[l] + n - 1) / 32; s++) {
      bool found = false;
      for (int k = count - 1; k >= 0 && !found; k--) found = seen[k] == s;
      if (found || count == 64) continue;
      seen[count++] = s;
      if (cached) first_read(s);
    }
  }
  return count;
}

// Counts a sector that this program has not read through L1 before.
void Machine::first_read(uint64_t sector) {
  uint64_t i = (sector * 32 >> 40) - 1;
  if (i >= (uint64_t)L.n_segments) return;
  const Segment& s = L.segments[i];
  if (shadowed(&s)) {
    uint64_t first = s.va / 32, all = (s.va + s.bytes + 31) / 32 - first, at = sector - first;
    if (at >= all) return;
    if (readers[i].empty()) readers[i].assign(all, 0);
    if (readers[i][at] == program) return;
    readers[i][at] = program;
  }
  L.n_first++;
}

// Adds the executions of a program to those of the launch.
void Machine::add_counts() {
  uint64_t total = 0;
  for (int64_t i = 0; i < L.n_ins; i++) {
    total += counts[i];
    L.pc_count[i] += counts[i];
  }
  if (total > longest) {
    longest = total;
    L.n_longest_first = L.n_first - first_before;
    std::copy(counts.begin(), counts.end(), L.pc_longest);
  }
  std::fill(counts.begin(), counts.end(), 0);
  first_before = L.n_first;
}
