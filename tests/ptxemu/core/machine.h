// State of a launch, a program and a warp. The member functions are defined in separate files.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "launch.h"
#include "numbers.h"
#include "opcodes.h"

// Shadow of a byte of global memory. Epochs count barriers: each program begins a new one.
struct GShadow {
  uint32_t we, re, rfirst;     // epochs of the last write, the last reads, the launch's first read
  uint32_t rmask;              // warps that have read in epoch `re`
  int32_t wpc, rpc;            // instructions
  uint8_t ww, wlane, watomic;  // warp and lane of the write, and a flag for atomics
  uint32_t wsync, wins;        // warp synchronisations before it, and its index in the warp
};

// Shadow of a byte of shared memory.
struct SShadow {
  uint32_t we, re, rmask;
  int32_t wpc, rpc;
  int32_t apc;  // instruction of the pending copy, or index of a bulk copy
  uint32_t wsync, wins;
  uint8_t ww, wlane;
  uint8_t apend;  // copying warp + 1; 0: none; or BULK
  uint8_t proxy;  // written by the generic proxy, no proxy fence since
  uint8_t mbar;   // part of an mbarrier
};

// Tensor map: 128 bytes written by the launcher or `tensormap.replace`. The layout of the hardware
// is not published; this one is the emulator's own.
struct TensorMap {
  uint64_t address, stride[4];  // in bytes, of the dimensions from the second on
  uint32_t rank;                // less one
  uint32_t elem, swizzle, fill, interleave;
  uint32_t box[5], dim[5], element_stride[5];
};

// Copy between a tensor and shared memory, started by one lane.
struct Bulk {
  int pc, warp, lane;
  uint32_t base;  // offset in shared memory
  TensorMap map;
  int32_t at[5];
  int bytes, elem_bytes;
  uint32_t mbar;
  uint64_t phase;     // of the mbarrier, when it landed
  bool landed, gone;  // gone: every warp may use its bytes
  uint32_t seen;      // warps that have waited for it
};

struct Mbar {
  int pc;
  uint32_t count, pending;
  int64_t tx;
  uint64_t phase;
};

struct StoreGroup {
  uint32_t lanes;
  bool read;  // shared memory is
  std::vector<Bulk> stores;
};

// Bytes of a tensor with a pending store.
struct Unfinished {
  uint64_t begin, end;
  int pc, warp, lane;
};

struct Copy {
  int pc, lane;
  uint32_t dst;
  int size, src_size;
  const uint8_t* src;
  bool landed;
};

struct Span {
  uint32_t begin, end;
};

struct Mma {
  int pc;
  bool done;
  std::vector<Span> reads;
  std::vector<int32_t> registers, inputs;
  // Operands are read when the instruction is issued, shared memory whenever it runs.
  uint32_t snapshot[4][32];
  uint64_t desc_a, desc_b;
  bool add;
};

struct Group {
  int pc;
  uint32_t mask;
};

struct Warp {
  int id;
  std::vector<Group> groups;
  std::vector<uint32_t> regs, preds;
  bool waiting = false, done = false;
  int bar_pc = -1;
  uint32_t epoch = 0, sync = 0;
  uint64_t executed = 0;
  std::vector<std::vector<Copy>> committed;
  std::vector<Copy> open;
  std::vector<std::vector<Mma>> mma_committed;
  std::vector<Mma> mma_open;
  // By register: products under way that add to it, and that read their first operand from it.
  std::vector<uint8_t> reg_pending, reg_input;
  int n_pending = 0;
  bool blocked = false;      // in a wait for an mbarrier, since
  uint64_t blocked_at = 0;   // this state of `progress`
  bool gave_up = false;      // the wait under way, once
  int polls = 0;             // failed tests in a row
  std::vector<Bulk> stores;  // not committed
  std::vector<StoreGroup> store_groups;
};

struct Machine {
  Launch& L;
  bool checks, counting, truncating, ulp_off, strict;
  int64_t late;
  std::vector<Warp> warps;
  std::vector<uint8_t> shared;
  std::vector<SShadow> sshadow;
  std::vector<uint16_t> pending_reads;
  static std::vector<std::vector<GShadow>> gshadow;
  static uint32_t next_epoch;
  uint32_t launch_base = 0, cta_base = 0;
  std::mt19937_64 rng;
  int64_t cta = 0;
  int64_t ctaid[3];
  bool aborted = false;
  std::vector<Bulk> bulks;     // loads of this CTA
  std::vector<size_t> flying;  // those that have not landed
  std::map<uint32_t, Mbar> mbars;
  std::vector<Unfinished> unfinished;
  uint64_t progress = 0;         // changes with each change of an mbarrier
  std::vector<uint64_t> counts;  // executions of each instruction by this program
  uint64_t longest = 0;          // most executions of a program so far
  int64_t first_before = 0;      // `n_first` before this program
  uint32_t program = 0;          // number of programs begun
  // By segment and sector: the last program that read it through L1.
  std::vector<std::vector<uint32_t>> readers;

  explicit Machine(Launch& l) : L(l) {
    checks = l.flags & 1;
    counting = l.flags & 2;
    truncating = l.flags & 4;
    late = l.flags & 24;
    ulp_off = l.flags & 32;
    strict = l.flags & 64;
    rng.seed(l.seed);
    counts.assign(l.n_ins, 0);
    readers.resize(l.n_segments);
  }

  // shadow.cpp

  void report(int kind, int pc1, int pc2, int warp1, int warp2, int lane, int segment,
              int64_t offset);
  void fatal(int kind, int pc, int warp);
  bool in_shared(Warp& w, int pc, int lane, uint32_t address, int n);
  void report_bulk(Warp& w, int pc, int lane, SShadow* s, int64_t offset);
  void shared_read(Warp& w, int pc, int lane, uint32_t offset, int n, bool async_proxy = false);
  void shared_write(Warp& w, int pc, int lane, uint32_t offset, int n, const uint8_t* value,
                    bool copy = false);
  Segment* in_global(Warp& w, int pc, int lane, uint64_t address, int n, int align);
  GShadow* global_shadow(Segment* s, int64_t offset);
  void global_read(Warp& w, int pc, int lane, Segment* s, int64_t offset, int n);
  void global_write(Warp& w, int pc, int lane, Segment* s, int64_t offset, int n,
                    const uint8_t* value, bool atomic);

  // Has this warp waited for the copy that wrote a byte?
  bool may_touch(Warp& w, SShadow* s) { return bulks[s->apc].seen >> w.id & 1; }

  // For tensors with few elements in a huge address range, only the bounds are checked.
  static bool shadowed(const Segment* s) { return s->bytes <= (int64_t)1 << 26; }

  // costs.cpp

  int bank_passes(const uint32_t* address, uint32_t mask, int n);
  int sectors(const uint64_t* address, uint32_t mask, int n, bool cached = false);
  void first_read(uint64_t sector);
  void add_counts();

  // copies.cpp

  void land(Warp& w, Copy& c);
  void write_copy(Copy& c);

  void cp_async(Warp& w, const Ins& in, int pc, uint32_t m);
  void cp_wait(Warp& w, const Ins& in);

  // tensor_map.cpp

  bool tensor_map(Warp& w, int pc, int lane, uint64_t address, TensorMap& map);
  bool check_map(Warp& w, int pc, int lane, int rank, Bulk& b);
  void map_replace(Warp& w, const Ins& in, int pc, uint32_t m);
  void map_copy(Warp& w, const Ins& in, int pc, uint32_t m);

  // bulk.cpp

  bool start_bulk(Warp& w, const Ins& in, int pc, int lane, Bulk& b);
  void bulk_load(Warp& w, const Ins& in, int pc, uint32_t m);
  void claim(Warp& w, int pc, int lane, uint32_t offset, int n, size_t index);
  void land_bulk(size_t index);
  void bulk_store(Warp& w, const Ins& in, int pc, uint32_t m);
  void store_bulk(Bulk& b);
  void store_done(Warp& w, Bulk& b);
  void bulk_commit(Warp& w, uint32_t m);
  void bulk_wait(Warp& w, const Ins& in, uint32_t m);
  void meet_unfinished(Warp& w, int pc, int lane, uint64_t address, int n);
  void bulk_barrier();
  void bulk_end();

  // mbarrier.cpp

  void settle(Mbar& b);
  Mbar* mbar_at(Warp& w, int pc, int lane, uint32_t address);
  void mbar_op(Warp& w, const Ins& in, int pc, uint32_t m);
  bool mbar_wait(Warp& w, const Ins& in, int pc, uint32_t m);

  // access.cpp

  void ld_st_global(Warp& w, const Ins& in, int pc, uint32_t m);
  void ld_st_shared(Warp& w, const Ins& in, int pc, uint32_t m);
  void atom(Warp& w, const Ins& in, int pc, uint32_t m);
  void ldmatrix(Warp& w, const Ins& in, int pc);

  // tensor_core.cpp

  void mma(Warp& w, const Ins& in);
  uint32_t desc_address(uint64_t desc, int row, int k, int elsize, bool mn_major, bool& ok);
  void wgmma(Warp& w, const Ins& in, int pc);
  void wgmma_compute(Warp& w, const Ins& in, Mma& job);
  void wgmma_wait(Warp& w, int left);
  void mma_done(Warp& w, Mma& job);
  void touch_registers(Warp& w, const Ins& in, int pc);

  // moves.cpp, integers.cpp, floats.cpp, convert.cpp, collectives.cpp; false: no such operation

  bool moves(Warp& w, const Ins& in, uint32_t m);
  bool integers(Warp& w, const Ins& in, uint32_t m);
  bool floats(Warp& w, const Ins& in, uint32_t m);
  void cvt(Warp& w, const Ins& in, uint32_t m);
  bool collectives(Warp& w, const Ins& in, int pc, uint32_t m, uint32_t live);

  // step.cpp, run.cpp

  void reconverge(Warp& w);
  bool jump(Warp& w, const Ins& in, int& pc, uint32_t m, uint32_t lanes);
  bool execute(Warp& w, const Ins& in, int pc, uint32_t m, uint32_t live);
  void step(Warp& w, int64_t quantum);
  void start_cta();
  void release();
  void run_cta();
  void run();

  // Does asynchronous work take effect at once?
  bool lands_now() { return late == 16 || (late == 0 && (rng() & 1)); }

  // Pointer to an operand's 32 lanes.
  uint32_t* P(Warp& w, int32_t v) {
    return v >= 0 ? w.regs.data() + v : const_cast<uint32_t*>(L.consts) + ~v;
  }
  float approx(double exact, uint32_t input) {
    float f = canon((float)exact);
    if (!ulp_off || f == 0 || !std::isfinite(f)) return f;
    uint32_t h = input * 2654435761u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    switch (h % 3) {
      case 0:
        return f;
      case 1:
        return std::nextafter(f, INFINITY);
      default:
        return std::nextafter(f, -INFINITY);
    }
  }
};
