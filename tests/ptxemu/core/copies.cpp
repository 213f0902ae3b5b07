// Copies into shared memory by `cp.async`, in groups.
#include "lanes.h"

void Machine::land(Warp& w, Copy& c) {
  if (!c.landed) write_copy(c);
  if (!checks) return;
  SShadow* s = &sshadow[c.dst - L.shared_base];
  for (int i = 0; i < c.size; i++, s++) {
    s->apend = 0;
    s->we = w.epoch;
    s->ww = w.id;
    s->wlane = c.lane;
    s->wpc = c.pc;
    s->wsync = w.sync;
  }
}

void Machine::write_copy(Copy& c) {
  uint8_t* to = &shared[c.dst - L.shared_base];
  if (c.src_size) memcpy(to, c.src, c.src_size);
  memset(to + c.src_size, 0, c.size - c.src_size);
  c.landed = true;
}

void Machine::cp_async(Warp& w, const Ins& in, int pc, u32 m) {
  // a: shared address, offset, global address, offset, size in the source or NONE; imm: bytes;
  // imm2: past L1
  const u32* to = P(w, in.a[0]);
  const u64* from = (const u64*)P(w, in.a[2]);
  const u32* given = in.a[4] == NONE ? nullptr : P(w, in.a[4]);
  u64 address[32];
  u32 read = 0;
  for (int l = 0; l < 32; l++) {
    if (!(m >> l & 1)) continue;
    Copy c{pc,
           l,
           to[l] + (u32)in.a[1],
           in.imm,
           given ? std::min((int)given[l], in.imm) : in.imm,
           nullptr,
           false};
    address[l] = from[l] + (s64)in.a[3];
    if (!in_shared(w, pc, l, c.dst, c.size)) continue;
    if (c.src_size) {
      Segment* s = in_global(w, pc, l, address[l], c.src_size, c.size);
      if (s) {
        int64_t offset = address[l] - s->va;
        global_read(w, pc, l, s, offset, c.src_size);
        c.src = s->host + offset;
        read |= 1u << l;
      } else
        c.src_size = 0;
    }
    shared_write(w, pc, l, c.dst - L.shared_base, c.size, nullptr, true);
    if (lands_now()) write_copy(c);
    w.open.push_back(c);
  }
  if (counting) L.pc_cost[pc] += sectors(address, read, in.imm, !in.imm2);
}

// Waits for all groups but the newest `in.imm`.
void Machine::cp_wait(Warp& w, const Ins& in) {
  if (in.imm < 0) {  // wait_all: the open ones too
    w.committed.push_back(std::move(w.open));
    w.open.clear();
  }
  while ((int)w.committed.size() > std::max(in.imm, 0)) {
    for (Copy& c : w.committed.front()) land(w, c);
    w.committed.erase(w.committed.begin());
  }
}
