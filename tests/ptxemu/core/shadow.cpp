// Checks of accesses against shadow memory, with the last readers and writers of each byte.
#include "machine.h"

std::vector<std::vector<GShadow>> Machine::gshadow;
uint32_t Machine::next_epoch = 1;

void Machine::report(int kind, int pc1, int pc2, int warp1, int warp2, int lane, int segment,
                     int64_t offset) {
  for (int64_t i = 0; i < L.n_findings; i++) {
    Finding& f = L.findings[i];
    if (f.kind == kind && f.pc1 == pc1 && f.pc2 == pc2 && f.segment == segment) {
      f.count++;
      return;
    }
  }
  if (L.n_findings >= L.max_findings) return;
  L.findings[L.n_findings++] = {kind,  pc1,  pc2,     (int32_t)cta, warp1,
                                warp2, lane, segment, offset,       1};
}

void Machine::fatal(int kind, int pc, int warp) {
  report(kind, pc, -1, warp, -1, -1, -1, 0);
  aborted = true;
}

bool Machine::in_shared(Warp& w, int pc, int lane, uint32_t address, int n) {
  if (address < L.shared_base ||
      address + (uint64_t)n > (uint64_t)(L.shared_base + L.shared_bytes)) {
    report(OOB_SHARED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
    return false;
  }
  if (address % n) report(MISALIGNED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
  return true;
}

void Machine::report_bulk(Warp& w, int pc, int lane, SShadow* s, int64_t offset) {
  Bulk& b = bulks[s->apc];
  report(ASYNC_COPY, pc, b.pc, w.id, b.warp, lane, -1, offset);
}

void Machine::shared_read(Warp& w, int pc, int lane, uint32_t offset, int n, bool async_proxy) {
  if (!checks) return;
  SShadow* s = &sshadow[offset];
  uint32_t bit = 1u << w.id;
  for (int i = 0; i < n; i++, s++) {
    if (s->mbar) report(MBARRIER, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
    if (s->apend == BULK) {
      if (!may_touch(w, s)) report_bulk(w, pc, lane, s, offset + i);
    } else if (s->apend) {
      report(ASYNC_COPY, pc, s->apc, w.id, s->apend - 1, lane, -1, offset + i);
    } else if (s->we < cta_base) {
      report(UNINIT_SHARED, pc, -1, w.id, -1, lane, -1, offset + i);
    } else if (s->we == w.epoch) {
      if (s->ww != w.id)
        report(RACE_SHARED, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
      else if (s->wlane != lane && s->wsync == w.sync && s->wpc != pc)
        report(NOTE_LANES, pc, s->wpc, w.id, w.id, lane, -1, offset + i);
    }
    if (async_proxy && s->proxy) report(NOTE_PROXY, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
    if (s->re != w.epoch) {
      s->re = w.epoch;
      s->rmask = 0;
    }
    s->rmask |= bit;
    s->rpc = pc;
  }
}

// `same`: the memory already has the written bytes.
void Machine::shared_write(Warp& w, int pc, int lane, uint32_t offset, int n, const uint8_t* value,
                           bool copy) {
  if (!checks) return;
  SShadow* s = &sshadow[offset];
  uint32_t others = ~(1u << w.id);
  for (int i = 0; i < n; i++, s++) {
    if (s->mbar) report(MBARRIER, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
    if (s->apend == BULK) {
      if (!may_touch(w, s)) report_bulk(w, pc, lane, s, offset + i);
      s->apend = 0;
    } else if (s->apend) {
      // A copy may land on one that was issued before by the same warp only once that has landed.
      report(ASYNC_COPY, pc, s->apc, w.id, s->apend - 1, lane, -1, offset + i);
    } else if (s->we == w.epoch && s->ww != w.id) {
      bool same = value && shared[offset + i] == value[i];
      report(same ? NOTE_SAME_VALUE : RACE_SHARED, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
    } else if (s->we == w.epoch && s->wins == (uint32_t)w.executed && s->wlane != lane && value &&
               shared[offset + i] != value[i]) {
      report(SAME_INSTRUCTION, pc, pc, w.id, w.id, lane, -1, offset + i);
    }
    if (s->re == w.epoch && (s->rmask & others))
      report(RACE_SHARED, pc, s->rpc, w.id, __builtin_ctz(s->rmask & others), lane, -1, offset + i);
    if (pending_reads[offset + i]) report(ASYNC_OPERAND, pc, -1, w.id, -1, lane, -1, offset + i);
    s->we = w.epoch;
    s->ww = w.id;
    s->wlane = lane;
    s->wpc = pc;
    s->wsync = w.sync;
    s->wins = (uint32_t)w.executed;
    s->proxy = 1;
    if (copy) {
      s->apend = w.id + 1;
      s->apc = pc;
    }
  }
}

Segment* Machine::in_global(Warp& w, int pc, int lane, uint64_t address, int n, int align) {
  uint64_t i = (address >> 40) - 1;
  if (i < (uint64_t)L.n_segments) {
    Segment& s = L.segments[i];
    int64_t offset = (int64_t)(address - s.va);
    if (offset >= 0 && offset + n <= s.bytes) {
      if (address % align) report(MISALIGNED, pc, -1, w.id, -1, lane, i, offset);
      if (strict) {
        bool inside = false;
        for (int64_t k = 0; k < s.nspans && !inside; k++)
          inside = offset >= s.spans[2 * k] && offset + n <= s.spans[2 * k + 1];
        if (!inside) report(OOB_GLOBAL, pc, 1, w.id, -1, lane, i, offset);
      }
      return &s;
    }
    report(OOB_GLOBAL, pc, -1, w.id, -1, lane, i, offset);
    return nullptr;
  }
  // Name the segment before it, or none.
  report(OOB_GLOBAL, pc, -1, w.id, -1, lane, -1, (int64_t)address);
  return nullptr;
}

GShadow* Machine::global_shadow(Segment* s, int64_t offset) {
  size_t i = s - L.segments;
  if (gshadow.size() <= i) gshadow.resize(i + 1);
  if ((int64_t)gshadow[i].size() < s->bytes) gshadow[i].resize(s->bytes);
  return &gshadow[i][offset];
}

void Machine::global_read(Warp& w, int pc, int lane, Segment* s, int64_t offset, int n) {
  if (!checks || !shadowed(s)) return;
  GShadow* g = global_shadow(s, offset);
  uint32_t bit = 1u << w.id;
  int i_segment = s - L.segments;
  for (int i = 0; i < n; i++, g++) {
    if (s->init && !s->init[offset + i])
      report(UNINIT_GLOBAL, pc, -1, w.id, -1, lane, i_segment, offset + i);
    if (g->we >= launch_base) {
      if (g->we < cta_base)
        report(RACE_CTAS, pc, g->wpc, w.id, g->ww, lane, i_segment, offset + i);
      else if (g->we == w.epoch) {
        if (g->ww != w.id)
          report(RACE_GLOBAL, pc, g->wpc, w.id, g->ww, lane, i_segment, offset + i);
        else if (g->wlane != lane && g->wsync == w.sync)
          report(NOTE_LANES, pc, g->wpc, w.id, w.id, lane, i_segment, offset + i);
      }
    }
    if (g->re < launch_base) g->rfirst = w.epoch;
    if (g->re != w.epoch) {
      g->re = w.epoch;
      g->rmask = 0;
    }
    g->rmask |= bit;
    g->rpc = pc;
  }
}

void Machine::global_write(Warp& w, int pc, int lane, Segment* s, int64_t offset, int n,
                           const uint8_t* value, bool atomic) {
  if (s->init) memset(s->init + offset, 1, n);
  if (!checks || !shadowed(s)) return;
  GShadow* g = global_shadow(s, offset);
  uint32_t others = ~(1u << w.id);
  int i_segment = s - L.segments;
  for (int i = 0; i < n; i++, g++) {
    if (g->we >= launch_base && !(atomic && g->watomic)) {
      bool same = value && s->host[offset + i] == value[i];
      if (g->we < cta_base)
        report(same ? NOTE_SAME_VALUE : RACE_CTAS, pc, g->wpc, w.id, g->ww, lane, i_segment,
               offset + i);
      else if (g->we == w.epoch && g->ww != w.id)
        report(same ? NOTE_SAME_VALUE : RACE_GLOBAL, pc, g->wpc, w.id, g->ww, lane, i_segment,
               offset + i);
      else if (g->we == w.epoch && g->wins == (uint32_t)w.executed && g->wlane != lane && !same &&
               value && !atomic)
        report(SAME_INSTRUCTION, pc, pc, w.id, w.id, lane, i_segment, offset + i);
    }
    if (g->re >= launch_base) {
      if (g->rfirst < cta_base)
        report(RACE_CTAS, pc, g->rpc, w.id, -1, lane, i_segment, offset + i);
      else if (g->re == w.epoch && (g->rmask & others))
        report(RACE_GLOBAL, pc, g->rpc, w.id, __builtin_ctz(g->rmask & others), lane, i_segment,
               offset + i);
    }
    g->we = w.epoch;
    g->ww = w.id;
    g->wlane = lane;
    g->watomic = atomic;
    g->wpc = pc;
    g->wsync = w.sync;
    g->wins = (uint32_t)w.executed;
  }
}
