// What TMA kernels of sm_90 do: mbarriers, tensor maps, and tiles copied between tensors and shared
// memory while the program goes on.
//
// A load claims its bytes of shared memory when it is issued. They are its own until it has landed,
// completed a phase of its mbarrier, and a warp has waited for that phase; the warps that have not
// may touch them behind a barrier of the whole program after that. A store reads shared memory until
// its group has been awaited, and what it writes to a tensor is nobody's before the full wait.

// The same order as in Python, engine.py.
enum MapFault {
  MAP_RANK, MAP_ELEMENT, MAP_ADDRESS, MAP_STRIDE, MAP_BOX, MAP_DIM, MAP_INNER, MAP_SWIZZLE, MAP_LAYOUT,
};

static const int ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4};
// By the mode of the swizzle: the width of its pattern.
static const int SWIZZLE_SPAN[] = {0, 32, 64, 128};

static int box_bytes(const TensorMap& map, int elem_bytes) {
  int64_t n = elem_bytes;
  for (uint32_t d = 0; d <= map.rank; d++) n *= map.box[d];
  return (int)n;
}

uint32_t Machine::swizzled(uint32_t address, uint32_t swizzle) {
  static const uint32_t bits[] = {0, 1, 3, 7};
  return address ^ (address >> 7 & bits[swizzle]) << 4;
}

bool Machine::tensor_map(Warp& w, int pc, int lane, uint64_t address, TensorMap& map) {
  if (address % 64) report(MISALIGNED, pc, -1, w.id, -1, lane, -1, (int64_t)address);
  if (address >= (uint64_t)L.param_base && address + 128 <= (uint64_t)(L.param_base + L.param_bytes)) {
    memcpy(&map, L.params + (address - L.param_base), sizeof map);
    return true;
  }
  Segment* s = in_global(w, pc, lane, address, 128, 64);
  if (!s) return false;
  int64_t offset = address - s->va;
  global_read(w, pc, lane, s, offset, 128);
  memcpy(&map, s->host + offset, sizeof map);
  return true;
}

bool Machine::check_map(Warp& w, int pc, int lane, int rank, Bulk& b) {
  const TensorMap& map = b.map;
  auto wrong = [&](MapFault fault) { report(TENSOR_MAP, pc, -1, w.id, -1, lane, -1, fault); return false; };
  if ((int)map.rank + 1 != rank) return wrong(MAP_RANK);
  if (map.elem >= sizeof ELEMENT_BYTES / sizeof *ELEMENT_BYTES) return wrong(MAP_ELEMENT);
  b.elem_bytes = ELEMENT_BYTES[map.elem];
  if (map.address % 16) return wrong(MAP_ADDRESS);
  for (int d = 0; d < rank; d++) {
    if (d + 1 < rank && (map.stride[d] % 16 || map.stride[d] >> 40)) return wrong(MAP_STRIDE);
    if (map.box[d] < 1 || map.box[d] > 256) return wrong(MAP_BOX);
    if (map.dim[d] < 1) return wrong(MAP_DIM);
    if (map.element_stride[d] != 1) return wrong(MAP_LAYOUT);
  }
  int inner = map.box[0] * b.elem_bytes;
  if (inner % 16) return wrong(MAP_INNER);
  if (map.swizzle > 3 || map.interleave || map.fill > 1) return wrong(MAP_LAYOUT);
  if (map.swizzle && inner != SWIZZLE_SPAN[map.swizzle]) return wrong(MAP_SWIZZLE);
  b.bytes = box_bytes(map, b.elem_bytes);
  return true;
}

// For each row of the tile: its number, the address of its first element inside of the tensor, and
// which of its elements are inside, from `low` to before `high`.
template <class F>
void Machine::for_rows(const Bulk& b, F f) {
  const TensorMap& map = b.map;
  int rows = 1;
  for (uint32_t d = 1; d <= map.rank; d++) rows *= map.box[d];
  int64_t low = std::max<int64_t>(0, -(int64_t)b.at[0]);
  int64_t high = std::min<int64_t>(map.box[0], (int64_t)map.dim[0] - b.at[0]);
  for (int row = 0; row < rows; row++) {
    uint64_t address = map.address;
    bool inside = true;
    for (uint32_t d = 1, rest = row; d <= map.rank; d++) {
      int64_t i = (int64_t)b.at[d] + rest % map.box[d];
      rest /= map.box[d];
      inside &= i >= 0 && i < (int64_t)map.dim[d];
      address += i * map.stride[d - 1];
    }
    address += (b.at[0] + low) * b.elem_bytes;
    f(row, address, inside ? low : 0, inside ? std::max(low, high) : 0);
  }
}

// Every 16 bytes of a row go to a place of their own.
template <class F>
static void for_chunks(const Bulk& b, int64_t shared_base, int row, F f) {
  int inner = b.map.box[0] * b.elem_bytes;
  for (int i = 0; i < inner; i += 16) {
    uint32_t address = b.base + (uint32_t)shared_base + row * inner + i;
    f(i, Machine::swizzled(address, b.map.swizzle) - (uint32_t)shared_base);
  }
}

// What loads and stores have in common: the operands, and whether they are possible.
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

// -- loads

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
    // Nothing would ever complete the phase.
    if (!start_bulk(w, in, pc, lane, b)) { aborted = true; return; }
    uint32_t at = P(w, in.a[3])[lane] + in.a[4];
    if (!mbar_at(w, pc, lane, at)) { aborted = true; return; }
    b.mbar = at - (uint32_t)L.shared_base;
    size_t index = bulks.size();
    for_rows(b, [&](int row, uint64_t address, int64_t low, int64_t high) {
      if (checks)
        for_chunks(b, L.shared_base, row, [&](int, uint32_t to) { claim(w, pc, lane, to, 16, index); });
      if (high <= low) return;
      int n = (int)(high - low) * b.elem_bytes;
      if (counting) L.pc_cost[pc] += (address + n - 1) / 32 - address / 32 + 1;
      if (Segment* s = in_global(w, pc, lane, address, n, 1)) global_read(w, pc, lane, s, address - s->va, n);
    });
    bulks.push_back(b);
    flying.push_back(index);
    if (late == 16 || (late == 0 && (rng() & 1))) land_bulk(index);
  }
}

void Machine::land_bulk(size_t index) {
  Bulk& b = bulks[index];
  flying.erase(std::find(flying.begin(), flying.end(), index));
  uint8_t line[256 * 8];
  for_rows(b, [&](int row, uint64_t address, int64_t low, int64_t high) {
    // Not a number, where the map asks for that, is all bits set.
    memset(line, b.map.fill ? 0xff : 0, sizeof line);
    int64_t n = (high - low) * b.elem_bytes, i = (int64_t)(address >> 40) - 1;
    if (n > 0 && i >= 0 && i < L.n_segments) {
      const Segment& s = L.segments[i];
      int64_t offset = (int64_t)(address - s.va);
      if (offset >= 0 && offset + n <= s.bytes) memcpy(line + low * b.elem_bytes, s.host + offset, n);
    }
    for_chunks(b, L.shared_base, row, [&](int i, uint32_t to) { memcpy(&shared[to], line + i, 16); });
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

// -- stores

void Machine::bulk_store(Warp& w, const Ins& in, int pc, uint32_t m) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(m >> lane & 1)) continue;
    Bulk b;
    if (!start_bulk(w, in, pc, lane, b)) { aborted = true; return; }
    for_rows(b, [&](int row, uint64_t address, int64_t low, int64_t high) {
      if (checks)
        for_chunks(b, L.shared_base, row, [&](int, uint32_t from) {
          const SShadow& s = sshadow[from];
          if (s.we >= cta_base && s.proxy) report(NO_PROXY_FENCE, pc, s.wpc, w.id, s.ww, lane, -1, from);
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
    if (late == 16 || (late == 0 && (rng() & 1))) store_bulk(b);
    w.stores.push_back(b);
  }
}

void Machine::store_bulk(Bulk& b) {
  uint8_t line[256 * 8];
  for_rows(b, [&](int row, uint64_t address, int64_t low, int64_t high) {
    for_chunks(b, L.shared_base, row, [&](int i, uint32_t from) { memcpy(line + i, &shared[from], 16); });
    int64_t n = (high - low) * b.elem_bytes, i = (int64_t)(address >> 40) - 1;
    if (n <= 0 || i < 0 || i >= L.n_segments) return;
    const Segment& s = L.segments[i];
    int64_t offset = (int64_t)(address - s.va);
    if (offset >= 0 && offset + n <= s.bytes) memcpy(s.host + offset, line + low * b.elem_bytes, n);
  });
  b.landed = true;
}

// Its bytes of shared memory are free, for others behind a barrier.
void Machine::store_done(Warp& w, Bulk& b) {
  if (!b.landed) store_bulk(b);
  if (!checks) return;
  for_rows(b, [&](int row, uint64_t, int64_t, int64_t) {
    for_chunks(b, L.shared_base, row, [&](int, uint32_t from) {
      for (int i = 0; i < 16; i++) {
        pending_reads[from + i]--;
        SShadow& h = sshadow[from + i];
        if (h.re != w.epoch) { h.re = w.epoch; h.rmask = 0; }
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

// All groups but the newest `in.imm`; with imm2, as far as they read shared memory.
void Machine::bulk_wait(Warp& w, const Ins& in, uint32_t m) {
  int open = 0;
  bool only_read = in.imm2;
  for (StoreGroup& g : w.store_groups) open += (g.lanes & m) && !(only_read && g.read);
  for (StoreGroup& g : w.store_groups) {
    if (open <= in.imm) break;
    if (!(g.lanes & m) || (only_read && g.read)) continue;
    open--;
    if (!g.read) for (Bulk& b : g.stores) store_done(w, b);
    g.read = true;
    if (only_read) continue;
    g.lanes = 0;
    auto done = [&](const Unfinished& u) {
      for (Bulk& b : g.stores) if (u.pc == b.pc && u.warp == b.warp && u.lane == b.lane) return true;
      return false;
    };
    unfinished.erase(std::remove_if(unfinished.begin(), unfinished.end(), done), unfinished.end());
  }
  auto gone = [](const StoreGroup& g) { return !g.lanes; };
  w.store_groups.erase(std::remove_if(w.store_groups.begin(), w.store_groups.end(), gone), w.store_groups.end());
}

// An access to a tensor, where a store has not been awaited.
void Machine::meet_unfinished(Warp& w, int pc, int lane, uint64_t address, int n) {
  for (const Unfinished& u : unfinished)
    if (address < u.end && address + n > u.begin) {
      int64_t segment = (int64_t)(address >> 40) - 1;
      report(ASYNC_COPY, pc, u.pc, w.id, u.warp, lane, (int)segment, (int64_t)(address - L.segments[segment].va));
      return;
    }
}

// -- mbarriers

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
    if (s->we == w.epoch && s->ww != w.id) report(RACE_SHARED, pc, s->wpc, w.id, s->ww, lane, -1, offset);
    for (int i = 0; i < 8; i++, s++) {
      if (s->re != w.epoch) { s->re = w.epoch; s->rmask = 0; }
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
      if (checks) for (int i = 0; i < 8; i++) sshadow[offset + i].mbar = 1;
      mbars[offset] = Mbar{pc, value, value, 0, 0};
      progress++;
      continue;
    }
    Mbar* b = mbar_at(w, pc, lane, address);
    if (!b) continue;
    if (in.op == MBAR_INVAL) {
      // A copy that has not landed would write into what the memory is used for next.
      bool early = b->tx != 0;
      for (size_t i : flying) early |= bulks[i].mbar == offset;
      if (early) report(MBARRIER, pc, b->pc, w.id, -1, lane, -1, offset);
      mbars.erase(offset);
      if (checks) for (int i = 0; i < 8; i++) sshadow[offset + i].mbar = 0;
      shared_write(w, pc, lane, offset, 8, nullptr);
      progress++;
      continue;
    }
    if (in.imm2) b->tx += value;
    if (in.imm) {
      uint32_t arrivals = in.imm2 ? 1 : value;
      // More than the phase waits for.
      if (arrivals > b->pending) report(MBARRIER, pc, b->pc, w.id, -1, lane, -1, offset);
      b->pending -= std::min(arrivals, b->pending);
    }
    settle(*b);
  }
}

// a: predicate, address, offset, parity; imm: may wait. False: not yet, try again when something has
// changed.
bool Machine::mbar_wait(Warp& w, const Ins& in, int pc, uint32_t m) {
  uint32_t done = 0;
  for (int lane = 0; lane < 32; lane++) {
    if (!(m >> lane & 1)) continue;
    Mbar* b = mbar_at(w, pc, lane, P(w, in.a[1])[lane] + in.a[2]);
    if (!b) { aborted = true; return false; }
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
  uint32_t& d = w.preds[in.a[0]];
  d = (d & ~m) | done;
  w.polls = done == m ? 0 : w.polls + 1;
  // It may turn for as long as it likes, but not when nobody else can do anything.
  if (w.polls > 1000 && !flying.empty()) land_bulk(flying[0]);
  if (w.polls > 100000) { fatal(HANG, pc, w.id); return false; }
  return true;
}

// All warps have met: what one of them has waited for is there for all.
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

// The program has ended: its memory is another's now.
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
      if (!g.read) for (Bulk& b : g.stores) lost(b);
  }
}

// -- tensor maps that a program makes

// a: address, offset, value; imm: field, imm2: which dimension, imm3: the address has 64 bits
void Machine::map_replace(Warp& w, const Ins& in, int pc, uint32_t m) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(m >> lane & 1)) continue;
    uint32_t address = in.imm3 ? (uint32_t)((const uint64_t*)P(w, in.a[0]))[lane] : P(w, in.a[0])[lane];
    address += in.a[1];
    if (address % 128) report(MISALIGNED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
    if (address < L.shared_base || (int64_t)address + 128 > L.shared_base + L.shared_bytes) {
      report(OOB_SHARED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
      continue;
    }
    uint32_t offset = address - (uint32_t)L.shared_base;
    TensorMap* map = (TensorMap*)&shared[offset];
    void* fields[] = {&map->address, &map->rank, &map->box[in.imm2], &map->dim[in.imm2], &map->stride[in.imm2],
                      &map->element_stride[in.imm2], &map->elem, &map->interleave, &map->swizzle, &map->fill};
    bool wide = in.imm == 0 || in.imm == 4;
    uint8_t* to = (uint8_t*)fields[in.imm];
    shared_write(w, pc, lane, to - shared.data(), wide ? 8 : 4, nullptr);
    if (wide) memcpy(to, (const uint64_t*)P(w, in.a[2]) + lane, 8);
    else memcpy(to, P(w, in.a[2]) + lane, 4);
  }
}

// From shared memory into a tensor, by a whole warp; a: to, offset, from, offset
void Machine::map_copy(Warp& w, const Ins& in, int pc, uint32_t m) {
  if (m != FULL) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
  int lane = __builtin_ctz(m);
  uint64_t to = ((const uint64_t*)P(w, in.a[0]))[lane] + (int64_t)in.a[1];
  uint32_t from = (uint32_t)((const uint64_t*)P(w, in.a[2]))[lane] + in.a[3] - (uint32_t)L.shared_base;
  if ((int64_t)from + 128 > L.shared_bytes) {
    report(OOB_SHARED, pc, -1, w.id, -1, lane, -1, from);
    return;
  }
  Segment* s = in_global(w, pc, lane, to, 128, 128);
  if (!s) return;
  shared_read(w, pc, lane, from, 128);
  global_write(w, pc, lane, s, to - s->va, 128, &shared[from], false);
  memcpy(s->host + (to - s->va), &shared[from], 128);
}
