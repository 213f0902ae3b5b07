// mbarriers: phases that end when all arrivals and all expected bytes are complete.
#include "lanes.h"

Mbar* Machine::mbar_at(Warp& w, int pc, int lane, uint32_t address) {
  if (!in_shared(w, pc, lane, address, 8)) return nullptr;
  uint32_t offset = address - (uint32_t)L.shared_base;
  auto found = mbars.find(offset);
  if (found == mbars.end()) {
    report(MBARRIER, pc, -1, w.id, -1, lane, -1, offset);
    return nullptr;
  }
  if (checks) {
    SShadow* s = &sshadow[offset];
    if (s->we == w.epoch && s->ww != w.id)
      report(RACE_SHARED, pc, s->wpc, w.id, s->ww, lane, -1, offset);
    for (int i = 0; i < 8; i++, s++) {
      if (s->re != w.epoch) {
        s->re = w.epoch;
        s->rmask = 0;
      }
      s->rmask |= 1u << w.id;
      s->rpc = pc;
    }
  }
  return &found->second;
}

void Machine::settle(Mbar& b) {
  progress++;
  if (b.pending || b.tx) return;
  b.phase++;
  b.pending = b.count;
}

// a: address, offset, value; imm: arrives, imm2: expects bytes
void Machine::mbar_op(Warp& w, const Ins& in, int pc, uint32_t m) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(m >> lane & 1)) continue;
    uint32_t address = P(w, in.a[0])[lane] + in.a[1], value = P(w, in.a[2])[lane];
    uint32_t offset = address - (uint32_t)L.shared_base;
    if (in.op == MBAR_INIT) {
      if (!in_shared(w, pc, lane, address, 8)) continue;
      if (value < 1 || value >= 1u << 20) report(MBARRIER, pc, -1, w.id, -1, lane, -1, offset);
      shared_write(w, pc, lane, offset, 8, nullptr);
      if (checks)
        for (int i = 0; i < 8; i++) sshadow[offset + i].mbar = 1;
      mbars[offset] = Mbar{pc, value, value, 0, 0};
      progress++;
      continue;
    }
    Mbar* b = mbar_at(w, pc, lane, address);
    if (!b) continue;
    if (in.op == MBAR_INVAL) {
      // A copy that has not landed would overwrite the next use of the memory.
      bool early = b->tx != 0;
      for (size_t i : flying) early |= bulks[i].mbar == offset;
      if (early) report(MBARRIER, pc, b->pc, w.id, -1, lane, -1, offset);
      mbars.erase(offset);
      if (checks)
        for (int i = 0; i < 8; i++) sshadow[offset + i].mbar = 0;
      shared_write(w, pc, lane, offset, 8, nullptr);
      progress++;
      continue;
    }
    if (in.imm2) b->tx += value;
    if (in.imm) {
      uint32_t arrivals = in.imm2 ? 1 : value;
      // More arrivals than the phase expects.
      if (arrivals > b->pending) report(MBARRIER, pc, b->pc, w.id, -1, lane, -1, offset);
      b->pending -= std::min(arrivals, b->pending);
    }
    settle(*b);
  }
}

// a: predicate, address, offset, parity; imm: may wait. False: not complete, retry after a change.
bool Machine::mbar_wait(Warp& w, const Ins& in, int pc, uint32_t m) {
  uint32_t& d = w.preds[in.a[0]];
  // A wait may return early, so a program must check its result: each wait does so once, except in
  // runs that only count.
  if (checks && in.imm && !w.gave_up) {
    w.gave_up = true;
    d &= ~m;
    return true;
  }
  uint32_t done = 0;
  for (int lane = 0; lane < 32; lane++) {
    if (!(m >> lane & 1)) continue;
    Mbar* b = mbar_at(w, pc, lane, P(w, in.a[1])[lane] + in.a[2]);
    if (!b) {
      aborted = true;
      return false;
    }
    if ((b->phase & 1) != (P(w, in.a[3])[lane] & 1)) done |= 1u << lane;
  }
  if (done != m && in.imm) {
    w.blocked = true;
    w.blocked_at = progress;
    return false;
  }
  for (int lane = 0; lane < 32; lane++) {
    if (!(done >> lane & 1)) continue;
    uint32_t offset = P(w, in.a[1])[lane] + in.a[2] - (uint32_t)L.shared_base;
    uint64_t phase = mbars[offset].phase;
    for (Bulk& b : bulks)
      if (!b.gone && b.landed && b.mbar == offset && b.phase < phase) b.seen |= 1u << w.id;
    if (done == m) break;
  }
  d = (d & ~m) | done;
  w.gave_up = false;
  w.polls = done == m ? 0 : w.polls + 1;
  // It may poll indefinitely, unless no other warp can make progress.
  if (w.polls > 1000 && !flying.empty()) land_bulk(flying[0]);
  if (w.polls > 100000) {
    fatal(HANG, pc, w.id);
    return false;
  }
  return true;
}
