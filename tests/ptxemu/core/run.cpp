// Execution of a launch: serial programs in any order, with interleaved warps.
#include "lanes.h"

void Machine::start_cta() {
  cta_base = next_epoch;
  program++;
  shared.assign(L.shared_bytes, 0xcd);
  if (checks) {
    if ((int64_t)sshadow.size() < L.shared_bytes) sshadow.assign(L.shared_bytes, SShadow{});
    for (auto& s : sshadow) s.apend = s.proxy = s.mbar = 0;
  }
  pending_reads.assign(L.shared_bytes, 0);
  bulks.clear();
  flying.clear();
  mbars.clear();
  unfinished.clear();
  warps.assign(L.num_warps, Warp{});
  for (int i = 0; i < L.num_warps; i++) {
    Warp& w = warps[i];
    w.id = i;
    w.groups.assign(1, Group{0, FULL});
    w.regs.assign(L.n_regs, 0xcdcdcdcd);
    w.preds.assign(L.n_preds + 1, 0xaaaa5555);
    w.reg_pending.assign(L.n_regs + 1, 0);
    w.reg_input.assign(L.n_regs + 1, 0);
    w.epoch = cta_base;
  }
}

// Barrier: releases the warps when all have arrived.
void Machine::release() {
  int pc = -1, other = -1, first = -1, done = 0;
  uint32_t e = 0;
  for (Warp& w : warps) {
    e = std::max(e, w.epoch);
    if (w.done) {
      done++;
    } else if (pc < 0) {
      pc = w.bar_pc;
      first = w.id;
    } else if (w.bar_pc != pc) {
      other = w.id;
    }
  }
  if (other >= 0) report(BARRIER_SITES, pc, warps[other].bar_pc, first, other, -1, -1, 0);
  if (done) report(BARRIER, pc, -1, first, -1, -1, -1, done);
  for (Warp& w : warps) {
    if (w.done) continue;
    w.waiting = false;
    w.epoch = e + 1;
    w.sync = 0;
  }
  bulk_barrier();
}

void Machine::run_cta() {
  start_cta();
  while (!aborted) {
    std::vector<int> ready;
    int waiting = 0, blocked = -1;
    for (Warp& w : warps) {
      if (w.done) continue;
      if (w.waiting)
        waiting++;
      else if (w.blocked && w.blocked_at == progress)
        blocked = w.id;
      else
        ready.push_back(w.id);
    }
    // A copy lands at any time, or only when a warp has to wait for it.
    bool landing = ready.empty() ? blocked >= 0 : late == 0 && rng() % 4 == 0;
    if (!flying.empty() && landing) {
      land_bulk(flying[rng() % flying.size()]);
    } else if (!ready.empty()) {
      Warp& w = warps[ready[rng() % ready.size()]];
      w.blocked = false;
      // Usually runs to the next barrier, sometimes only a few instructions.
      step(w, rng() % 4 ? INT64_MAX : 1 + (int64_t)(rng() % 64));
    } else if (blocked >= 0) {
      // No warp is left that could end the wait.
      fatal(HANG, warps[blocked].groups[0].pc, blocked);
    } else if (waiting) {
      release();
    } else {
      bulk_end();
      break;
    }
  }
  uint32_t e = cta_base;
  for (auto& w : warps) e = std::max(e, w.epoch);
  next_epoch = e + 1;
}

void Machine::run() {
  // Reset the shadows before the epoch counter overflows.
  if (next_epoch > 0xf0000000u) {
    gshadow.clear();
    next_epoch = 1;
  }
  launch_base = next_epoch;
  int64_t total = L.grid[0] * L.grid[1] * L.grid[2];
  std::vector<int64_t> order(total);
  for (int64_t i = 0; i < total; i++) order[i] = i;
  std::shuffle(order.begin(), order.end(), rng);
  for (int64_t i : order) {
    cta = i;
    ctaid[0] = i % L.grid[0];
    ctaid[1] = i / L.grid[0] % L.grid[1];
    ctaid[2] = i / (L.grid[0] * L.grid[1]);
    run_cta();
    add_counts();
    if (aborted) break;
  }
}

extern "C" int emulate(Launch* launch) {
  launch->n_findings = launch->n_first = launch->n_longest_first = 0;
  Machine machine(*launch);
  machine.run();
  return machine.aborted;
}

extern "C" const char* opcode_names() {
  static const char names[] =
#define X(n) #n " "
      OPCODES(X)
#undef X
      ;
  return names;
}

extern "C" int64_t launch_bytes() { return sizeof(Launch); }
