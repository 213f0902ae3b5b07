// Asynchronous copies of tiles between tensors and shared memory.
//
// A load owns its bytes of shared memory from its issue until it has landed, completed a phase of
// its mbarrier, and a warp has waited for that phase. Other warps may touch them after a later
// barrier of the whole program. A store reads shared memory until its group has been awaited; its
// bytes of the tensor must not be accessed before the full wait.

#include "bulk.h"

// Operands of loads and stores, with their checks.
bool Machine::start_bulk(Warp& w, const Ins& in, int pc, int lane, Bulk& b) {
  b = Bulk{};
  b.pc = pc;
  b.warp = w.id;
  b.lane = lane;
  uint32_t address = P(w, in.a[0])[lane] + in.a[1];
  for (int d = 0; d < in.imm; d++) b.at[d] = (int32_t)P(w, L.pool[in.xo + d])[lane];
  if (!tensor_map(w, pc, lane, ((const uint64_t*)P(w, in.a[2]))[lane], b.map)) return false;
  if (!check_map(w, pc, lane, in.imm, b)) return false;
  b.base = address - (uint32_t)L.shared_base;
  if (address % 128) {
    report(MISALIGNED, pc, -1, w.id, -1, lane, -1, b.base);
    return false;
  }
  if (address < L.shared_base || (int64_t)address + b.bytes > L.shared_base + L.shared_bytes) {
    report(OOB_SHARED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
    return false;
  }
  return true;
}

void Machine::claim(Warp& w, int pc, int lane, uint32_t offset, int n, size_t index) {
  SShadow* s = &sshadow[offset];
  uint32_t others = ~(1u << w.id);
  for (int i = 0; i < n; i++, s++) {
    if (s->mbar) report(MBARRIER, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
    if (s->apend == BULK) {
      if (!may_touch(w, s)) report_bulk(w, pc, lane, s, offset + i);
    } else if (s->apend) {
      report(ASYNC_COPY, pc, s->apc, w.id, s->apend - 1, lane, -1, offset + i);
    } else if (s->we == w.epoch && s->ww != w.id) {
      report(RACE_SHARED, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
    } else if (s->we >= cta_base && s->proxy) {
      report(NO_PROXY_FENCE, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
    }
    if (s->re == w.epoch && (s->rmask & others))
      report(RACE_SHARED, pc, s->rpc, w.id, __builtin_ctz(s->rmask & others), lane, -1, offset + i);
    if (pending_reads[offset + i]) report(ASYNC_OPERAND, pc, -1, w.id, -1, lane, -1, offset + i);
    s->apend = BULK;
    s->apc = (int32_t)index;
    s->we = w.epoch;
    s->ww = w.id;
    s->wlane = lane;
    s->wpc = pc;
    s->wsync = w.sync;
    s->wins = (uint32_t)w.executed;
    s->proxy = 0;
  }
}

void Machine::bulk_load(Warp& w, const Ins& in, int pc, uint32_t m) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(m >> lane & 1)) continue;
    Bulk b;
    // The phase would never complete.
    if (!start_bulk(w, in, pc, lane, b)) {
      aborted = true;
      return;
    }
    uint32_t at = P(w, in.a[3])[lane] + in.a[4];
    if (!mbar_at(w, pc, lane, at)) {
      aborted = true;
      return;
    }
    b.mbar = at - (uint32_t)L.shared_base;
    size_t index = bulks.size();
    for_rows(b, [&](int row, uint64_t address, int64_t low, int64_t high) {
      if (checks)
        for_chunks(b, L.shared_base, row,
                   [&](int, uint32_t to) { claim(w, pc, lane, to, 16, index); });
      if (high <= low) return;
      int n = (int)(high - low) * b.elem_bytes;
      if (counting) L.pc_cost[pc] += (address + n - 1) / 32 - address / 32 + 1;
      if (Segment* s = in_global(w, pc, lane, address, n, 1))
        global_read(w, pc, lane, s, address - s->va, n);
    });
    bulks.push_back(b);
    flying.push_back(index);
    if (lands_now()) land_bulk(index);
  }
}

void Machine::land_bulk(size_t index) {
  Bulk& b = bulks[index];
  flying.erase(std::find(flying.begin(), flying.end(), index));
  uint8_t line[256 * 8];
  for_rows(b, [&](int row, uint64_t address, int64_t low, int64_t high) {
    // NaN, if the map requests it, has all bits set.
    memset(line, b.map.fill ? 0xff : 0, sizeof line);
    int64_t n = (high - low) * b.elem_bytes, i = (int64_t)(address >> 40) - 1;
    if (n > 0 && i >= 0 && i < L.n_segments) {
      const Segment& s = L.segments[i];
      int64_t offset = (int64_t)(address - s.va);
      if (offset >= 0 && offset + n <= s.bytes)
        memcpy(line + low * b.elem_bytes, s.host + offset, n);
    }
    for_chunks(b, L.shared_base, row,
               [&](int i, uint32_t to) { memcpy(&shared[to], line + i, 16); });
  });
  b.landed = true;
  progress++;
  auto found = mbars.find(b.mbar);
  if (found == mbars.end()) {
    report(MBARRIER, b.pc, -1, b.warp, -1, b.lane, -1, b.mbar);
    return;
  }
  b.phase = found->second.phase;
  found->second.tx -= b.bytes;
  settle(found->second);
}

void Machine::bulk_store(Warp& w, const Ins& in, int pc, uint32_t m) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(m >> lane & 1)) continue;
    Bulk b;
    if (!start_bulk(w, in, pc, lane, b)) {
      aborted = true;
      return;
    }
    for_rows(b, [&](int row, uint64_t address, int64_t low, int64_t high) {
      if (checks)
        for_chunks(b, L.shared_base, row, [&](int, uint32_t from) {
          const SShadow& s = sshadow[from];
          if (s.we >= cta_base && s.proxy)
            report(NO_PROXY_FENCE, pc, s.wpc, w.id, s.ww, lane, -1, from);
          shared_read(w, pc, lane, from, 16);
          for (int i = 0; i < 16; i++) pending_reads[from + i]++;
        });
      if (high <= low) return;
      int n = (int)(high - low) * b.elem_bytes;
      if (counting) L.pc_cost[pc] += (address + n - 1) / 32 - address / 32 + 1;
      if (Segment* s = in_global(w, pc, lane, address, n, 1)) {
        global_write(w, pc, lane, s, address - s->va, n, nullptr, false);
        unfinished.push_back({address, address + n, pc, w.id, lane});
      }
    });
    if (lands_now()) store_bulk(b);
    w.stores.push_back(b);
  }
}

void Machine::store_bulk(Bulk& b) {
  uint8_t line[256 * 8];
  for_rows(b, [&](int row, uint64_t address, int64_t low, int64_t high) {
    for_chunks(b, L.shared_base, row,
               [&](int i, uint32_t from) { memcpy(line + i, &shared[from], 16); });
    int64_t n = (high - low) * b.elem_bytes, i = (int64_t)(address >> 40) - 1;
    if (n <= 0 || i < 0 || i >= L.n_segments) return;
    const Segment& s = L.segments[i];
    int64_t offset = (int64_t)(address - s.va);
    if (offset >= 0 && offset + n <= s.bytes) memcpy(s.host + offset, line + low * b.elem_bytes, n);
  });
  b.landed = true;
}

// Frees its bytes of shared memory; other warps need a barrier.
void Machine::store_done(Warp& w, Bulk& b) {
  if (!b.landed) store_bulk(b);
  if (!checks) return;
  for_rows(b, [&](int row, uint64_t, int64_t, int64_t) {
    for_chunks(b, L.shared_base, row, [&](int, uint32_t from) {
      for (int i = 0; i < 16; i++) {
        pending_reads[from + i]--;
        SShadow& h = sshadow[from + i];
        if (h.re != w.epoch) {
          h.re = w.epoch;
          h.rmask = 0;
        }
        h.rmask |= 1u << w.id;
        h.rpc = b.pc;
      }
    });
  });
}

void Machine::bulk_commit(Warp& w, uint32_t m) {
  StoreGroup group{m, false, {}};
  std::vector<Bulk> rest;
  for (Bulk& b : w.stores) (m >> b.lane & 1 ? group.stores : rest).push_back(b);
  w.stores.swap(rest);
  w.store_groups.push_back(std::move(group));
}

// Waits for all groups but the newest `in.imm`; with imm2, only for their reads of shared memory.
void Machine::bulk_wait(Warp& w, const Ins& in, uint32_t m) {
  int open = 0;
  bool only_read = in.imm2;
  for (StoreGroup& g : w.store_groups) open += (g.lanes & m) && !(only_read && g.read);
  for (StoreGroup& g : w.store_groups) {
    if (open <= in.imm) break;
    if (!(g.lanes & m) || (only_read && g.read)) continue;
    open--;
    if (!g.read)
      for (Bulk& b : g.stores) store_done(w, b);
    g.read = true;
    if (only_read) continue;
    g.lanes = 0;
    auto done = [&](const Unfinished& u) {
      for (Bulk& b : g.stores)
        if (u.pc == b.pc && u.warp == b.warp && u.lane == b.lane) return true;
      return false;
    };
    unfinished.erase(std::remove_if(unfinished.begin(), unfinished.end(), done), unfinished.end());
  }
  auto gone = [](const StoreGroup& g) { return !g.lanes; };
  w.store_groups.erase(std::remove_if(w.store_groups.begin(), w.store_groups.end(), gone),
                       w.store_groups.end());
}

// Checks an access to a tensor against stores that have not been awaited.
void Machine::meet_unfinished(Warp& w, int pc, int lane, uint64_t address, int n) {
  for (const Unfinished& u : unfinished)
    if (address < u.end && address + n > u.begin) {
      int64_t segment = (int64_t)(address >> 40) - 1;
      report(ASYNC_COPY, pc, u.pc, w.id, u.warp, lane, (int)segment,
             (int64_t)(address - L.segments[segment].va));
      return;
    }
}

// After a barrier, copies that one warp has awaited are visible to all.
void Machine::bulk_barrier() {
  for (size_t k = 0; k < bulks.size(); k++) {
    Bulk& b = bulks[k];
    if (b.gone || !b.seen) continue;
    b.gone = true;
    b.seen = FULL;
    if (!checks) continue;
    for_rows(b, [&](int row, uint64_t, int64_t, int64_t) {
      for_chunks(b, L.shared_base, row, [&](int, uint32_t to) {
        for (int i = 0; i < 16; i++) {
          SShadow& s = sshadow[to + i];
          if (s.apend == BULK && s.apc == (int32_t)k) s.apend = 0;
        }
      });
    });
  }
}

// End of the program: its shared memory goes to another one.
void Machine::bulk_end() {
  for (Bulk& b : bulks)
    if (!b.seen) report(ASYNC_COPY, b.pc, -1, b.warp, -1, b.lane, -1, b.base);
  for (Warp& w : warps) {
    auto lost = [&](Bulk& b) {
      report(ASYNC_COPY, b.pc, -1, w.id, -1, b.lane, -1, b.base);
      if (!b.landed) store_bulk(b);
    };
    for (Bulk& b : w.stores) lost(b);
    for (StoreGroup& g : w.store_groups)
      if (!g.read)
        for (Bulk& b : g.stores) lost(b);
  }
}
