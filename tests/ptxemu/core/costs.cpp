// Cost of an access: passes through the banks of shared memory, sectors of global memory.
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

int Machine::sectors(const uint64_t* address, uint32_t mask, int n) {
  uint64_t seen[64];
  int count = 0;
  for (int l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    for (uint64_t s = address[l] / 32; s <= (address[l] + n - 1) / 32; s++) {
      bool found = false;
      for (int k = count - 1; k >= 0 && !found; k--) found = seen[k] == s;
      if (!found && count < 64) seen[count++] = s;
    }
  }
  return count;
}
