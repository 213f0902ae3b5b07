// Execution of one warp: groups of diverged lanes, and dispatch of instructions.
#include "lanes.h"

// Merges groups at the same instruction. The lowest instruction comes first.
void Machine::reconverge(Warp& w) {
  if (w.groups.size() < 2) return;
  std::sort(w.groups.begin(), w.groups.end(),
            [](const Group& a, const Group& b) { return a.pc < b.pc; });
  size_t k = 0;
  for (size_t i = 1; i < w.groups.size(); i++) {
    if (w.groups[i].pc == w.groups[k].pc)
      w.groups[k].mask |= w.groups[i].mask;
    else
      w.groups[++k] = w.groups[i];
  }
  w.groups.resize(k + 1);
}

// Executes a branch or an exit. Returns true if the lanes diverged.
bool Machine::jump(Warp& w, const Ins& in, int& pc, u32 m, u32 lanes) {
  if (in.op == RET && m == lanes) {
    w.groups.erase(w.groups.begin());
    w.done = w.groups.empty();
    return true;
  }
  if (m == 0 || m == lanes) {
    pc = m == lanes ? in.imm : pc + 1;
    return false;
  }
  w.groups[0] = {pc + 1, lanes & ~m};
  if (in.op == BRA) w.groups.push_back({in.imm, m});
  return true;
}

// Returns false if the warp has to stop; the first group has the next instruction.
bool Machine::execute(Warp& w, const Ins& in, int pc, u32 m, u32 live) {
  auto whole_warp = [&]() {
    if (m != FULL) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
  };
  switch (in.op) {
    case NOP:
    case FENCE:
    case WGMMA_FENCE:
      return true;
    case TRAP:
      fatal(UNSUPPORTED, pc, w.id);
      return false;
    case BAR:
      if (m != live) {
        fatal(BARRIER, pc, w.id);
        return false;
      }
      w.waiting = true;
      w.bar_pc = pc;
      w.groups[0].pc = pc + 1;
      return false;
    case BAR_WARP:
      if (m != live) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, 0);
      w.sync++;
      return true;
    case FENCE_PROXY:
      // Writes that this thread has seen become visible to the other proxy: its own and, after a
      // barrier, those of others.
      if (checks && in.imm)
        for (auto& s : sshadow)
          if (s.proxy && (s.ww == w.id || s.we < w.epoch)) s.proxy = 0;
      return true;
    case LD_GLOBAL:
    case ST_GLOBAL:
      ld_st_global(w, in, pc, m);
      return true;
    case LD_SHARED:
    case ST_SHARED:
      ld_st_shared(w, in, pc, m);
      return true;
    case ATOM_GLOBAL:
      atom(w, in, pc, m);
      return true;
    case LDMATRIX:
    case STMATRIX:
      whole_warp();
      ldmatrix(w, in, pc);
      return true;
    case CP_ASYNC:
      cp_async(w, in, pc, m);
      return true;
    case CP_COMMIT:
    case CP_WAIT:
      // Groups are kept by warp.
      if (m != live) {
        fatal(UNSUPPORTED, pc, w.id);
        return false;
      }
      if (in.op == CP_WAIT) {
        cp_wait(w, in);
      } else {
        w.committed.push_back(std::move(w.open));
        w.open.clear();
      }
      return true;
    case MMA:
      whole_warp();
      mma(w, in);
      return true;
    case WGMMA:
      whole_warp();
      wgmma(w, in, pc);
      return !aborted;
    case WGMMA_COMMIT:
      w.mma_committed.push_back(std::move(w.mma_open));
      w.mma_open.clear();
      return true;
    case WGMMA_WAIT:
      wgmma_wait(w, in.imm);
      return true;
    case MBAR_INIT:
    case MBAR_INVAL:
    case MBAR_ARRIVE:
      mbar_op(w, in, pc, m);
      return true;
    case MBAR_WAIT:
      if (mbar_wait(w, in, pc, m)) {
        if (!w.polls) return true;
        // A failed test: let another warp run.
        w.groups[0].pc = pc + 1;
        return false;
      }
      if (w.blocked) {
        // Not counted: the number of turns of a wait is arbitrary.
        w.executed--;
        if (counting) {
          counts[pc]--;
          L.pc_lanes[pc] -= __builtin_popcount(m);
        }
        w.groups[0].pc = pc;
      }
      return false;
    case BULK_LOAD:
      bulk_load(w, in, pc, m);
      return !aborted;
    case BULK_STORE:
      bulk_store(w, in, pc, m);
      return !aborted;
    case BULK_COMMIT:
      bulk_commit(w, m);
      return true;
    case BULK_WAIT:
      bulk_wait(w, in, m);
      return true;
    case MAP_REPLACE:
      map_replace(w, in, pc, m);
      return true;
    case MAP_COPY:
      map_copy(w, in, pc, m);
      return true;
  }
  bool known = in.op < ADD16     ? moves(w, in, m)
               : in.op < ADD_F32 ? integers(w, in, m)
               : in.op < SHFL    ? floats(w, in, m)
                                 : collectives(w, in, pc, m, live);
  if (!known) fatal(UNSUPPORTED, pc, w.id);
  return known;
}

void Machine::step(Warp& w, int64_t quantum) {
  while (quantum > 0 && !w.done && !aborted) {
    reconverge(w);
    int limit = w.groups.size() > 1 ? w.groups[1].pc : INT32_MAX;
    int pc = w.groups[0].pc;
    const u32 lanes = w.groups[0].mask;
    u32 live = 0;
    for (auto& g : w.groups) live |= g.mask;
    bool split = false;
    while (pc < limit && quantum > 0 && !split) {
      const Ins& in = L.code[pc];
      u32 m = lanes;
      if (in.guard >= 0) {
        u32 p = w.preds[in.guard >> 1];
        m &= in.guard & 1 ? ~p : p;
      }
      quantum--;
      w.executed++;
      if (counting) {
        counts[pc]++;
        L.pc_lanes[pc] += __builtin_popcount(m);
      }
      if (w.executed > (u64)L.max_ins) {
        fatal(HANG, pc, w.id);
        return;
      }
      if (in.op == BRA || in.op == RET) {
        split = jump(w, in, pc, m, lanes);
        continue;
      }
      if (m) {
        if (w.n_pending && checks) touch_registers(w, in, pc);
        if (!execute(w, in, pc, m, live)) return;
      }
      pc++;
    }
    if (!split) w.groups[0].pc = pc;
  }
}
