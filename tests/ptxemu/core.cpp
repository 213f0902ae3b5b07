// Functional emulator of the PTX that Triton emits: warps of 32 lanes in lockstep with
// reconvergence at the lowest program counter, CTAs one after the other in any order, and shadow
// memory that finds races, reads of memory nobody wrote, accesses outside of tensors.
//
// Compiled by build.py, called through ctypes (see engine.py for the layout of what is passed in).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

// The parser reads this list too: the position of a name is its number.
#define OPCODES(X) \
  X(NOP) X(BRA) X(RET) X(TRAP) X(BAR) X(BAR_WARP) X(FENCE) X(FENCE_PROXY) \
  X(MOV32) X(MOV64) X(MOVP) X(MOVP_IMM) X(NOTP) X(ANDP) X(ORP) X(XORP) X(SREG) X(LDPARAM) \
  X(PACK16) X(UNPACK16) X(PACK32) X(UNPACK32) X(PACK16_64) X(UNPACK16_64) X(PACK64_128) \
  X(ADD16) X(ADD32) X(ADD64) X(SUB16) X(SUB32) X(SUB64) X(MULLO16) X(MULLO32) X(MULLO64) \
  X(MULHI_S32) X(MULHI_U32) X(MULHI_S64) X(MULHI_U64) X(MULW_S16) X(MULW_U16) X(MULW_S32) X(MULW_U32) \
  X(MADLO32) X(MADLO64) X(MADW_S32) X(MADW_U32) \
  X(DIV_S32) X(DIV_U32) X(DIV_S64) X(DIV_U64) X(REM_S32) X(REM_U32) X(REM_S64) X(REM_U64) \
  X(MIN_S16) X(MAX_S16) X(MIN_U16) X(MAX_U16) \
  X(MIN_S32) X(MIN_U32) X(MIN_S64) X(MIN_U64) X(MAX_S32) X(MAX_U32) X(MAX_S64) X(MAX_U64) \
  X(NEG16) X(NEG32) X(NEG64) X(ABS_S32) X(ABS_S64) X(NOT16) X(NOT32) X(NOT64) \
  X(AND16) X(AND32) X(AND64) X(OR16) X(OR32) X(OR64) X(XOR16) X(XOR32) X(XOR64) \
  X(SHL16) X(SHL32) X(SHL64) X(SHR_U16) X(SHR_S16) X(SHR_U32) X(SHR_S32) X(SHR_U64) X(SHR_S64) \
  X(SHF_L) X(SHF_R) X(BFE_U32) X(BFE_S32) X(BFI32) X(PRMT) X(LOP3) X(POPC32) X(CLZ32) X(BREV32) X(BFIND_U32) \
  X(SELP32) X(SELP64) X(SETP) \
  X(ADD_F32) X(SUB_F32) X(MUL_F32) X(FMA_F32) X(MIN_F32) X(MAX_F32) X(NEG_F32) X(ABS_F32) \
  X(DIV_RN_F32) X(DIV_FULL_F32) X(SQRT_RN_F32) X(SQRT_APPROX_F32) X(RSQRT_APPROX_F32) X(RCP_RN_F32) \
  X(RCP_APPROX_F32) X(EX2_F32) X(LG2_F32) X(SIN_F32) X(COS_F32) X(TANH_F32) \
  X(ADD_F64) X(SUB_F64) X(MUL_F64) X(FMA_F64) X(MIN_F64) X(MAX_F64) X(NEG_F64) X(ABS_F64) X(DIV_F64) \
  X(SQRT_F64) X(RCP_F64) \
  X(ADD_H) X(SUB_H) X(MUL_H) X(FMA_H) X(MIN_H) X(MAX_H) X(NEG_H) X(ABS_H) \
  X(ADD_H2) X(SUB_H2) X(MUL_H2) X(FMA_H2) X(MIN_H2) X(MAX_H2) X(NEG_H2) X(ABS_H2) \
  X(CVT) X(CVT_PACK_H2) X(SHFL) X(VOTE) X(ACTIVEMASK) X(REDUX) X(ELECT) X(MATCH_ANY) \
  X(LD_GLOBAL) X(ST_GLOBAL) X(LD_SHARED) X(ST_SHARED) X(ATOM_GLOBAL) X(ATOM_SHARED) \
  X(LDMATRIX) X(STMATRIX) X(CP_ASYNC) X(CP_COMMIT) X(CP_WAIT) X(MMA) \
  X(WGMMA_FENCE) X(WGMMA_COMMIT) X(WGMMA_WAIT) X(WGMMA) \
  X(MBAR_INIT) X(MBAR_INVAL) X(MBAR_ARRIVE) X(MBAR_WAIT) \
  X(BULK_LOAD) X(BULK_STORE) X(BULK_COMMIT) X(BULK_WAIT) X(MAP_REPLACE) X(MAP_COPY)

enum Op {
#define X(n) n,
  OPCODES(X)
#undef X
};

// Of what can be wrong. Python has the same list.
enum Kind {
  OOB_GLOBAL = 1, MISALIGNED, OOB_SHARED, RACE_SHARED, RACE_GLOBAL, RACE_CTAS, UNINIT_GLOBAL,
  UNINIT_SHARED, ASYNC_COPY, BARRIER, WARP_SYNC, WGMMA_REGISTER, ASYNC_OPERAND, NOTE_LANES,
  NOTE_SAME_VALUE, NOTE_PROXY, HANG, UNSUPPORTED, SAME_INSTRUCTION, BARRIER_SITES, NOTE_WGMMA_INPUT,
  MBARRIER, NO_PROXY_FENCE, TENSOR_MAP,
};

static const int NONE = INT32_MIN;
static const uint32_t FULL = 0xffffffffu;
// In place of a warp that copies: a bulk copy, whose number is in `apc`.
static const uint8_t BULK = 0xff;

struct Ins {
  int32_t op, guard, a[8], nx, xo, imm, imm2, line, imm3;  // line: which of a are registers, << 24
};

struct Finding {
  int32_t kind, pc1, pc2, cta, warp1, warp2, lane, segment;
  int64_t offset, count;
};

struct GShadow {
  uint32_t we, re, rfirst, rmask;
  int32_t wpc, rpc;
  uint8_t ww, wlane, watomic, pad;
  uint32_t wsync, wins;  // warp synchronisations before, and which instruction of the warp it was
};

struct SShadow {
  uint32_t we, re, rmask;
  int32_t wpc, rpc, apc;
  uint32_t wsync, wins;
  uint8_t ww, wlane, apend, proxy;  // proxy: written by the generic proxy, no proxy fence since
  uint8_t mbar;                     // part of an mbarrier
};

struct Segment {
  uint8_t* host;      // of the first byte
  int64_t bytes;
  uint64_t va;        // where the kernel sees it
  uint8_t* init;      // one byte each, 0: never written; null: all written
  int64_t nspans;     // of the views that were passed, [begin, end) each
  int64_t* spans;
  int64_t reserved;
};

struct Launch {
  const Ins* code;
  const int32_t* pool;
  const uint32_t* consts;
  const uint8_t* params;
  Segment* segments;
  int64_t n_ins, n_regs, n_preds, n_segments;
  int64_t grid[3];
  int64_t num_warps, shared_bytes;
  uint64_t seed;
  int64_t flags;  // 1: checks, 2: counters, 4: tensor cores truncate, 8: copies land late, 16: early
                  // (neither: each at random), 32: approximations are one ulp off, 64: strict views
  int64_t max_ins;  // per warp, before a hang is reported
  uint64_t* pc_count;
  uint64_t* pc_lanes;
  uint64_t* pc_cost;  // sectors, or passes through the banks
  Finding* findings;
  int64_t max_findings;
  int64_t n_findings;  // out
  int64_t stop_cta;
  int64_t shared_base, param_base, param_bytes;
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

// What a tensor map holds: 128 bytes that the launcher or `tensormap.replace` fills in. Hardware's
// own layout is not published; nobody but the emulator reads this one.
struct TensorMap {
  uint64_t address, stride[4];  // in bytes, of the dimensions from the second on
  uint32_t rank;                // less one
  uint32_t elem, swizzle, fill, interleave;
  uint32_t box[5], dim[5], element_stride[5];
};

// A copy between a tensor and shared memory that an instruction of one lane started.
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

// Bytes of a tensor that a store still writes.
struct Unfinished {
  uint64_t begin, end;
  int pc, warp, lane;
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
  bool blocked = false;       // in a wait for an mbarrier, since
  uint64_t blocked_at = 0;    // this state of `progress`
  int polls = 0;              // failed tests in a row
  std::vector<Bulk> stores;   // not committed
  std::vector<StoreGroup> store_groups;
};

// ---- numbers

static inline float as_f(uint32_t x) { float f; memcpy(&f, &x, 4); return f; }
static inline uint32_t as_u(float f) { uint32_t x; memcpy(&x, &f, 4); return x; }
static inline double as_d(uint64_t x) { double f; memcpy(&f, &x, 8); return f; }
static inline uint64_t as_u64(double f) { uint64_t x; memcpy(&x, &f, 8); return x; }

static inline float bf2f(uint16_t h) { return as_f((uint32_t)h << 16); }
static inline float hf2f(uint16_t h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }

static inline uint16_t d2bf(double v) {
  if (std::isnan(v)) return 0x7fff;
  // Round to odd in float32 first: then the second rounding is the only one.
  float f = (float)v;
  uint32_t u = as_u(f);
  if (!std::isinf(f) && (double)f != v) {
    if (std::fabs((double)f) > std::fabs(v)) u -= 1;
    u |= 1;
  } else if (std::isinf(f) && !std::isinf(v)) {
    u = (u & 0x80000000u) | 0x7f7fffffu;
  }
  uint32_t rounded = u + 0x7fff + ((u >> 16) & 1);
  return (uint16_t)(rounded >> 16);
}
static inline uint16_t d2h(double v) {
  if (std::isnan(v)) return 0x7fff;
  _Float16 x = (_Float16)v;
  uint16_t h;
  memcpy(&h, &x, 2);
  return h;
}
static inline double h2d(uint16_t h, bool bf) { return bf ? bf2f(h) : hf2f(h); }
static inline uint16_t d2x(double v, bool bf) { return bf ? d2bf(v) : d2h(v); }

// Hardware makes one NaN, whatever the operands'.
static inline float canon(float f) { return f != f ? as_f(0x7fffffffu) : f; }
static inline float ftz(float f) {
  return std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f;
}

static inline double fmin_ptx(double a, double b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == 0 && b == 0) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
static inline double fmax_ptx(double a, double b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == 0 && b == 0) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

// What a tensor core does with products and an accumulator: exactly and rounded once, or aligned to
// the largest exponent with two bits more than float32 has, and cut off.
static inline float tc_sum(const double* products, int n, float c, bool truncate) {
  double s = c;
  if (!truncate) {
    // Products of 8 or 11 bits are exact; so is nearly always their sum in float64.
    double t = 0;
    for (int i = 0; i < n; i++) t += products[i];
    return canon((float)(s + t));
  }
  double top = std::fabs(s);
  bool special = !std::isfinite(s);
  for (int i = 0; i < n; i++) {
    special |= !std::isfinite(products[i]);
    top = std::max(top, std::fabs(products[i]));
  }
  if (special) {
    for (int i = 0; i < n; i++) s += products[i];
    return canon((float)s);
  }
  if (top == 0) return c;
  int e;
  std::frexp(top, &e);
  double unit = std::ldexp(1.0, e - 26), t = std::trunc(s / unit);
  for (int i = 0; i < n; i++) t += std::trunc(products[i] / unit);
  t *= unit;
  float f = (float)t;
  if (std::fabs((double)f) > std::fabs(t)) f = std::nextafter(f, 0.0f);
  return f;
}

// ---- the machine

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
  std::vector<Bulk> bulks;      // loads of this CTA
  std::vector<size_t> flying;   // those that have not landed
  std::map<uint32_t, Mbar> mbars;
  std::vector<Unfinished> unfinished;
  uint64_t progress = 0;        // changes with each change of an mbarrier

  explicit Machine(Launch& l) : L(l) {
    checks = l.flags & 1;
    counting = l.flags & 2;
    truncating = l.flags & 4;
    late = l.flags & 24;
    ulp_off = l.flags & 32;
    strict = l.flags & 64;
    rng.seed(l.seed);
  }

  void report(int kind, int pc1, int pc2, int warp1, int warp2, int lane, int segment, int64_t offset) {
    for (int64_t i = 0; i < L.n_findings; i++) {
      Finding& f = L.findings[i];
      if (f.kind == kind && f.pc1 == pc1 && f.pc2 == pc2 && f.segment == segment) {
        f.count++;
        return;
      }
    }
    if (L.n_findings >= L.max_findings) return;
    L.findings[L.n_findings++] = {kind, pc1, pc2, (int32_t)cta, warp1, warp2, lane, segment, offset, 1};
  }

  void fatal(int kind, int pc, int warp) {
    report(kind, pc, -1, warp, -1, -1, -1, 0);
    aborted = true;
  }

  // -- shared memory

  bool in_shared(Warp& w, int pc, int lane, uint32_t address, int n) {
    if (address < L.shared_base || address + (uint64_t)n > (uint64_t)(L.shared_base + L.shared_bytes)) {
      report(OOB_SHARED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
      return false;
    }
    if (address % n) report(MISALIGNED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
    return true;
  }

  void shared_read(Warp& w, int pc, int lane, uint32_t offset, int n, bool async_proxy = false) {
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
        if (s->ww != w.id) report(RACE_SHARED, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
        else if (s->wlane != lane && s->wsync == w.sync && s->wpc != pc)
          report(NOTE_LANES, pc, s->wpc, w.id, w.id, lane, -1, offset + i);
      }
      if (async_proxy && s->proxy) report(NOTE_PROXY, pc, s->wpc, w.id, s->ww, lane, -1, offset + i);
      if (s->re != w.epoch) { s->re = w.epoch; s->rmask = 0; }
      s->rmask |= bit;
      s->rpc = pc;
    }
  }

  // Has this warp waited for the copy that wrote a byte?
  bool may_touch(Warp& w, SShadow* s) { return bulks[s->apc].seen >> w.id & 1; }

  void report_bulk(Warp& w, int pc, int lane, SShadow* s, int64_t offset) {
    Bulk& b = bulks[s->apc];
    report(ASYNC_COPY, pc, b.pc, w.id, b.warp, lane, -1, offset);
  }

  // `same`: the bytes that are written are there already.
  void shared_write(Warp& w, int pc, int lane, uint32_t offset, int n, const uint8_t* value, bool copy = false) {
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
      if (pending_reads[offset + i])
        report(ASYNC_OPERAND, pc, -1, w.id, -1, lane, -1, offset + i);
      s->we = w.epoch;
      s->ww = w.id;
      s->wlane = lane;
      s->wpc = pc;
      s->wsync = w.sync;
      s->wins = (uint32_t)w.executed;
      s->proxy = 1;
      if (copy) { s->apend = w.id + 1; s->apc = pc; }
    }
  }

  // -- global memory

  Segment* in_global(Warp& w, int pc, int lane, uint64_t address, int n, int align) {
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

  // Of tensors that take most of the address space for few numbers, only the bounds are checked.
  static bool shadowed(const Segment* s) { return s->bytes <= (int64_t)1 << 26; }

  GShadow* global_shadow(Segment* s, int64_t offset) {
    size_t i = s - L.segments;
    if (gshadow.size() <= i) gshadow.resize(i + 1);
    if ((int64_t)gshadow[i].size() < s->bytes) gshadow[i].resize(s->bytes);
    return &gshadow[i][offset];
  }

  void global_read(Warp& w, int pc, int lane, Segment* s, int64_t offset, int n) {
    if (!checks || !shadowed(s)) return;
    GShadow* g = global_shadow(s, offset);
    uint32_t bit = 1u << w.id;
    int i_segment = s - L.segments;
    for (int i = 0; i < n; i++, g++) {
      if (s->init && !s->init[offset + i]) report(UNINIT_GLOBAL, pc, -1, w.id, -1, lane, i_segment, offset + i);
      if (g->we >= launch_base) {
        if (g->we < cta_base) report(RACE_CTAS, pc, g->wpc, w.id, g->ww, lane, i_segment, offset + i);
        else if (g->we == w.epoch) {
          if (g->ww != w.id) report(RACE_GLOBAL, pc, g->wpc, w.id, g->ww, lane, i_segment, offset + i);
          else if (g->wlane != lane && g->wsync == w.sync)
            report(NOTE_LANES, pc, g->wpc, w.id, w.id, lane, i_segment, offset + i);
        }
      }
      if (g->re < launch_base) g->rfirst = w.epoch;
      if (g->re != w.epoch) { g->re = w.epoch; g->rmask = 0; }
      g->rmask |= bit;
      g->rpc = pc;
    }
  }

  void global_write(Warp& w, int pc, int lane, Segment* s, int64_t offset, int n, const uint8_t* value, bool atomic) {
    if (s->init) memset(s->init + offset, 1, n);
    if (!checks || !shadowed(s)) return;
    GShadow* g = global_shadow(s, offset);
    uint32_t others = ~(1u << w.id);
    int i_segment = s - L.segments;
    for (int i = 0; i < n; i++, g++) {
      if (g->we >= launch_base && !(atomic && g->watomic)) {
        bool same = value && s->host[offset + i] == value[i];
        if (g->we < cta_base)
          report(same ? NOTE_SAME_VALUE : RACE_CTAS, pc, g->wpc, w.id, g->ww, lane, i_segment, offset + i);
        else if (g->we == w.epoch && g->ww != w.id)
          report(same ? NOTE_SAME_VALUE : RACE_GLOBAL, pc, g->wpc, w.id, g->ww, lane, i_segment, offset + i);
        else if (g->we == w.epoch && g->wins == (uint32_t)w.executed && g->wlane != lane && !same && value && !atomic)
          report(SAME_INSTRUCTION, pc, pc, w.id, w.id, lane, i_segment, offset + i);
      }
      if (g->re >= launch_base) {
        if (g->rfirst < cta_base) report(RACE_CTAS, pc, g->rpc, w.id, -1, lane, i_segment, offset + i);
        else if (g->re == w.epoch && (g->rmask & others))
          report(RACE_GLOBAL, pc, g->rpc, w.id, __builtin_ctz(g->rmask & others), lane, i_segment, offset + i);
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

  // -- costs

  int bank_passes(const uint32_t* address, uint32_t mask, int n) {
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
          for (; k < known; k++) if (words[bank][k] == word) break;
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

  int sectors(const uint64_t* address, uint32_t mask, int n) {
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

  // -- asynchronous work

  void land(Warp& w, Copy& c) {
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

  void write_copy(Copy& c) {
    uint8_t* to = &shared[c.dst - L.shared_base];
    if (c.src_size) memcpy(to, c.src, c.src_size);
    memset(to + c.src_size, 0, c.size - c.src_size);
    c.landed = true;
  }

  // -- mbarriers and bulk copies, see bulk.h

  bool tensor_map(Warp& w, int pc, int lane, uint64_t address, TensorMap& map);
  bool check_map(Warp& w, int pc, int lane, int rank, Bulk& b);
  template <class F>
  void for_rows(const Bulk& b, F f);
  static uint32_t swizzled(uint32_t address, uint32_t swizzle);
  bool start_bulk(Warp& w, const Ins& in, int pc, int lane, Bulk& b);
  void bulk_load(Warp& w, const Ins& in, int pc, uint32_t m);
  void bulk_store(Warp& w, const Ins& in, int pc, uint32_t m);
  void bulk_commit(Warp& w, uint32_t m);
  void bulk_wait(Warp& w, const Ins& in, uint32_t m);
  void meet_unfinished(Warp& w, int pc, int lane, uint64_t address, int n);
  void claim(Warp& w, int pc, int lane, uint32_t offset, int n, size_t index);
  void land_bulk(size_t index);
  void store_bulk(Bulk& b);
  void store_done(Warp& w, Bulk& b);
  void settle(Mbar& b);
  Mbar* mbar_at(Warp& w, int pc, int lane, uint32_t address);
  void mbar_op(Warp& w, const Ins& in, int pc, uint32_t m);
  bool mbar_wait(Warp& w, const Ins& in, int pc, uint32_t m);
  void bulk_barrier();
  void bulk_end();
  void map_replace(Warp& w, const Ins& in, int pc, uint32_t m);
  void map_copy(Warp& w, const Ins& in, int pc, uint32_t m);

  // -- one warp

  void step(Warp& w, int64_t quantum);
  void mma(Warp& w, const Ins& in, int pc);
  void wgmma(Warp& w, const Ins& in, int pc);
  void wgmma_compute(Warp& w, const Ins& in, Mma& job);
  void mma_done(Warp& w, Mma& job);
  uint32_t desc_address(uint64_t desc, int row, int k, int elsize, bool mn_major, bool& ok);
  void run_cta();
  void run();
  bool ld_st_global(Warp& w, const Ins& in, int pc, uint32_t m);
  void ld_st_shared(Warp& w, const Ins& in, int pc, uint32_t m);
  void atom(Warp& w, const Ins& in, int pc, uint32_t m);
  void ldmatrix(Warp& w, const Ins& in, int pc, uint32_t m);
  void cvt(Warp& w, const Ins& in, uint32_t m);
  void touch_registers(Warp& w, const Ins& in, int pc);

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
      case 0: return f;
      case 1: return std::nextafter(f, INFINITY);
      default: return std::nextafter(f, -INFINITY);
    }
  }
};

std::vector<std::vector<GShadow>> Machine::gshadow;
uint32_t Machine::next_epoch = 1;

#define FOR(...) \
  { \
    if (m == FULL) { \
      _Pragma("GCC ivdep") for (int l = 0; l < 32; l++) { __VA_ARGS__; } \
    } else { \
      for (int l = 0; l < 32; l++) if (m >> l & 1) { __VA_ARGS__; } \
    } \
  }
#define UN(T, U, e) { const U* x = (const U*)P(w, in.a[1]); T* d = (T*)P(w, in.a[0]); FOR(d[l] = (e)) } break;
#define BIN(T, e) \
  { const T* x = (const T*)P(w, in.a[1]); const T* y = (const T*)P(w, in.a[2]); T* d = (T*)P(w, in.a[0]); FOR(d[l] = (e)) } break;
#define TER(T, e) \
  { const T* x = (const T*)P(w, in.a[1]); const T* y = (const T*)P(w, in.a[2]); const T* z = (const T*)P(w, in.a[3]); \
    T* d = (T*)P(w, in.a[0]); FOR(d[l] = (e)) } break;
#define WIDE(D, T, e) \
  { const T* x = (const T*)P(w, in.a[1]); const T* y = (const T*)P(w, in.a[2]); D* d = (D*)P(w, in.a[0]); FOR(d[l] = (e)) } break;

typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;
typedef int64_t s64;
typedef unsigned __int128 u128;
typedef __int128 s128;

enum Ty { T_U16, T_S16, T_U32, T_S32, T_U64, T_S64, T_F32, T_F64, T_F16, T_BF16, T_U8, T_S8, T_P, T_TF32 };
enum Cmp { C_EQ, C_NE, C_LT, C_LE, C_GT, C_GE, C_EQU, C_NEU, C_LTU, C_LEU, C_GTU, C_GEU, C_NUM, C_NAN };

template <class T, class F>
static inline u32 compare_lanes(const T* x, const T* y, u32 m, F f) {
  u32 r = 0;
  for (int l = 0; l < 32; l++) r |= (u32)(f(x[l], y[l]) ? 1 : 0) << l;
  return r & m;
}

template <class T>
static u32 compare(const T* x, const T* y, int cmp, u32 m) {
  auto nan = [](T a) { return a != a; };
  switch (cmp) {
    case C_EQ: return compare_lanes(x, y, m, [](T a, T b) { return a == b; });
    case C_NE: return compare_lanes(x, y, m, [&](T a, T b) { return a != b && !nan(a) && !nan(b); });
    case C_LT: return compare_lanes(x, y, m, [](T a, T b) { return a < b; });
    case C_LE: return compare_lanes(x, y, m, [](T a, T b) { return a <= b; });
    case C_GT: return compare_lanes(x, y, m, [](T a, T b) { return a > b; });
    case C_GE: return compare_lanes(x, y, m, [](T a, T b) { return a >= b; });
    case C_EQU: return compare_lanes(x, y, m, [&](T a, T b) { return a == b || nan(a) || nan(b); });
    case C_NEU: return compare_lanes(x, y, m, [](T a, T b) { return !(a == b); });
    case C_LTU: return compare_lanes(x, y, m, [](T a, T b) { return !(a >= b); });
    case C_LEU: return compare_lanes(x, y, m, [](T a, T b) { return !(a > b); });
    case C_GTU: return compare_lanes(x, y, m, [](T a, T b) { return !(a <= b); });
    case C_GEU: return compare_lanes(x, y, m, [](T a, T b) { return !(a < b); });
    case C_NUM: return compare_lanes(x, y, m, [&](T a, T b) { return !nan(a) && !nan(b); });
    default: return compare_lanes(x, y, m, [&](T a, T b) { return nan(a) || nan(b); });
  }
}

static u32 compare_typed(const u32* x, const u32* y, int ty, int cmp, u32 m) {
  u32 r = 0;
  switch (ty) {
    case T_U32: return compare((const u32*)x, (const u32*)y, cmp, m);
    case T_S32: return compare((const s32*)x, (const s32*)y, cmp, m);
    case T_U64: return compare((const u64*)x, (const u64*)y, cmp, m);
    case T_S64: return compare((const s64*)x, (const s64*)y, cmp, m);
    case T_F32: return compare((const float*)x, (const float*)y, cmp, m);
    case T_F64: return compare((const double*)x, (const double*)y, cmp, m);
    default: {
      float a[32], b[32];
      for (int l = 0; l < 32; l++) {
        u32 p = x[l] & 0xffff, q = y[l] & 0xffff;
        switch (ty) {
          case T_U16: a[l] = p; b[l] = q; break;
          case T_S16: a[l] = (int16_t)p; b[l] = (int16_t)q; break;
          case T_F16: a[l] = hf2f(p); b[l] = hf2f(q); break;
          default: a[l] = bf2f(p); b[l] = bf2f(q); break;
        }
      }
      return compare(a, b, cmp, m);
    }
  }
  return r;
}

// Operands of one kind: floating point by value, or integers with their sign.
void Machine::cvt(Warp& w, const Ins& in, u32 m) {
  int to = in.imm & 0xff, from = in.imm >> 8 & 0xff, mode = in.imm2;  // mode: 1 rn 2 rz 3 rm 4 rp 5 rni 6 rzi 7 rmi 8 rpi 9 rna
  bool sat = in.imm3 & 1, flush = in.imm3 & 2, relu = in.imm3 & 4;
  const u32* x32 = P(w, in.a[1]);
  const u64* x64 = (const u64*)x32;
  u32* d32 = P(w, in.a[0]);
  u64* d64 = (u64*)d32;
  bool d_wide = in.nx & 1, x_wide = in.nx & 2;  // widths of the registers
  for (int l = 0; l < 32; l++) {
    if (!(m >> l & 1)) continue;
    u64 raw = x_wide ? x64[l] : x32[l];
    bool float_in = from == T_F32 || from == T_F64 || from == T_F16 || from == T_BF16;
    bool float_out = to == T_F32 || to == T_F64 || to == T_F16 || to == T_BF16 || to == T_TF32;
    u64 out = 0;
    if (!float_in && !float_out) {
      s64 v = 0;
      switch (from) {
        case T_U8: v = (uint8_t)raw; break;
        case T_S8: v = (int8_t)raw; break;
        case T_U16: v = (uint16_t)raw; break;
        case T_S16: v = (int16_t)raw; break;
        case T_U32: v = (u32)raw; break;
        case T_S32: v = (s32)raw; break;
        default: v = (s64)raw;
      }
      if (sat) {
        switch (to) {
          case T_U8: v = std::min<s64>(std::max<s64>(v, 0), 255); break;
          case T_S8: v = std::min<s64>(std::max<s64>(v, -128), 127); break;
          case T_U16: v = std::min<s64>(std::max<s64>(v, 0), 65535); break;
          case T_S16: v = std::min<s64>(std::max<s64>(v, -32768), 32767); break;
          case T_U32: v = std::min<s64>(std::max<s64>(v, 0), 4294967295LL); break;
          case T_S32: v = std::min<s64>(std::max<s64>(v, INT32_MIN), INT32_MAX); break;
        }
      }
      switch (to) {
        // Into a wider register: extended by the sign of the type.
        case T_U8: out = (uint8_t)v; break;
        case T_S8: out = (u64)(s64)(int8_t)v; break;
        case T_U16: out = (uint16_t)v; break;
        case T_S16: out = (u64)(s64)(int16_t)v; break;
        case T_U32: out = (u32)v; break;
        case T_S32: out = (u64)(s64)(s32)v; break;
        default: out = (u64)v;
      }
    } else {
      double v;
      bool exact_int = false;
      s64 iv = 0;
      switch (from) {
        case T_F32: v = as_f((u32)raw); if (flush) v = ftz((float)v); break;
        case T_F64: v = as_d(raw); break;
        case T_F16: v = hf2f((uint16_t)raw); break;
        case T_BF16: v = bf2f((uint16_t)raw); break;
        case T_U8: v = (uint8_t)raw; break;
        case T_S8: v = (int8_t)raw; break;
        case T_U16: v = (uint16_t)raw; break;
        case T_S16: v = (int16_t)raw; break;
        case T_U32: v = (u32)raw; break;
        case T_S32: v = (s32)raw; break;
        case T_S64: v = (double)(s64)raw; exact_int = true; iv = (s64)raw; break;
        default: v = (double)raw; break;
      }
      if (mode >= 5 && mode <= 8) {
        v = mode == 5 ? std::nearbyint(v) : mode == 6 ? std::trunc(v) : mode == 7 ? std::floor(v) : std::ceil(v);
      }
      if (float_out) {
        if (sat) v = std::isnan(v) ? 0 : std::min(std::max(v, 0.0), 1.0);
        if (relu) v = v > 0 ? v : 0;
        switch (to) {
          case T_F32: {
            float f = exact_int ? (float)iv : (float)v;
            if (mode == 2 && std::fabs((double)f) > std::fabs(v)) f = std::nextafter(f, 0.0f);
            if (mode == 3 && (double)f > v) f = std::nextafter(f, -INFINITY);
            if (mode == 4 && (double)f < v) f = std::nextafter(f, INFINITY);
            out = as_u(canon(f));
            break;
          }
          case T_F64: out = as_u64(v); break;
          case T_F16: out = d2h(v); break;
          case T_BF16: out = d2bf(v); break;
          case T_TF32: {
            u32 u = (u32)raw;
            if (std::isfinite(v)) {
              if (mode == 9) u += 0x1000;
              else u += 0xfff + (u >> 13 & 1);
              u &= ~0x1fffu;
            }
            out = u;
            break;
          }
        }
      } else {
        // To an integer: saturates, NaN is 0 (of 64 bits and unsigned: the lowest bit pattern too).
        if (std::isnan(v)) out = to == T_U64 || to == T_S64 ? 0x8000000000000000ull : 0;
        else switch (to) {
          case T_U8: out = v <= 0 ? 0 : v >= 255 ? 255 : (u64)v; break;
          case T_S8: out = (u64)(s64)(v <= -128 ? -128 : v >= 127 ? 127 : v); break;
          case T_U16: out = v <= 0 ? 0 : v >= 65535 ? 65535 : (u64)v; break;
          case T_S16: out = (u64)(s64)(v <= -32768 ? -32768 : v >= 32767 ? 32767 : v); break;
          case T_U32: out = v <= 0 ? 0 : v >= 4294967295.0 ? 4294967295u : (u64)v; break;
          case T_S32: out = (u64)(s64)(v <= INT32_MIN ? INT32_MIN : v >= INT32_MAX ? INT32_MAX : v); break;
          case T_U64: out = v <= 0 ? 0 : v >= 18446744073709551615.0 ? ~0ull : (u64)v; break;
          default: out = v <= -9223372036854775808.0 ? 1ull << 63 : v >= 9223372036854775807.0 ? ~0ull >> 1 : (u64)(s64)v;
        }
      }
    }
    if (d_wide) d64[l] = out;
    else {
      d32[l] = (u32)out;
      // 16-bit registers hold 16 bits.
      if (in.nx & 4) d32[l] &= 0xffff;
    }
  }
}

bool Machine::ld_st_global(Warp& w, const Ins& in, int pc, u32 m) {
  const u64* base = (const u64*)P(w, in.a[0]);
  int size = in.imm & 0xff, n = in.nx;
  bool store = in.op == ST_GLOBAL;
  const int32_t* list = L.pool + in.xo;
  u64 address[32];
  for (int l = 0; l < 32; l++) address[l] = base[l] + (s64)in.a[1];
  for (int l = 0; l < 32; l++) {
    if (!(m >> l & 1)) continue;
    Segment* s = in_global(w, pc, l, address[l], size * n, size * n);
    if (s && !unfinished.empty()) meet_unfinished(w, pc, l, address[l], size * n);
    uint8_t buffer[32];
    if (store) {
      for (int i = 0; i < n; i++) {
        u32* x = P(w, list[i]);
        if (size == 8) memcpy(buffer + 8 * i, (u64*)x + l, 8);
        else memcpy(buffer + size * i, x + l, size);
      }
      if (!s) continue;
      int64_t offset = address[l] - s->va;
      global_write(w, pc, l, s, offset, size * n, buffer, false);
      memcpy(s->host + offset, buffer, size * n);
    } else {
      if (s) {
        int64_t offset = address[l] - s->va;
        global_read(w, pc, l, s, offset, size * n);
        memcpy(buffer, s->host + offset, size * n);
      } else memset(buffer, 0xcd, sizeof buffer);
      for (int i = 0; i < n; i++) {
        if (list[i] == NONE) continue;
        u32* d = P(w, list[i]);
        u64 v = 0;
        memcpy(&v, buffer + size * i, size);
        if (in.imm & 0x100) v = size == 1 ? (u64)(s64)(int8_t)v : size == 2 ? (u64)(s64)(int16_t)v : size == 4 ? (u64)(s64)(s32)v : v;
        if (in.imm & 0x200) ((u64*)d)[l] = v;
        else d[l] = in.imm & 0x400 ? (u32)v & 0xffff : (u32)v;
      }
    }
  }
  if (counting) L.pc_cost[pc] += sectors(address, m, size * n);
  return true;
}

void Machine::ld_st_shared(Warp& w, const Ins& in, int pc, u32 m) {
  const u32* base = P(w, in.a[0]);
  int size = in.imm & 0xff, n = in.nx;
  bool store = in.op == ST_SHARED;
  const int32_t* list = L.pool + in.xo;
  u32 address[32];
  // 64-bit registers may hold the address too.
  if (in.imm & 0x800) for (int l = 0; l < 32; l++) address[l] = (u32)((const u64*)base)[l] + in.a[1];
  else for (int l = 0; l < 32; l++) address[l] = base[l] + in.a[1];
  for (int l = 0; l < 32; l++) {
    if (!(m >> l & 1)) continue;
    bool fine = in_shared(w, pc, l, address[l], size * n);
    u32 offset = address[l] - L.shared_base;
    uint8_t buffer[32];
    if (store) {
      for (int i = 0; i < n; i++) {
        u32* x = P(w, list[i]);
        if (size == 8) memcpy(buffer + 8 * i, (u64*)x + l, 8);
        else memcpy(buffer + size * i, x + l, size);
      }
      if (!fine) continue;
      shared_write(w, pc, l, offset, size * n, buffer);
      memcpy(&shared[offset], buffer, size * n);
    } else {
      if (fine) {
        shared_read(w, pc, l, offset, size * n);
        memcpy(buffer, &shared[offset], size * n);
      } else memset(buffer, 0xcd, sizeof buffer);
      for (int i = 0; i < n; i++) {
        if (list[i] == NONE) continue;
        u32* d = P(w, list[i]);
        u64 v = 0;
        memcpy(&v, buffer + size * i, size);
        if (in.imm & 0x100) v = size == 1 ? (u64)(s64)(int8_t)v : size == 2 ? (u64)(s64)(int16_t)v : size == 4 ? (u64)(s64)(s32)v : v;
        if (in.imm & 0x200) ((u64*)d)[l] = v;
        else d[l] = in.imm & 0x400 ? (u32)v & 0xffff : (u32)v;
      }
    }
  }
  if (counting) L.pc_cost[pc] += bank_passes(address, m, size * n);
}

// imm: type, imm2: 0 add 1 max 2 min 3 exch 4 cas 5 and 6 or 7 xor; a: dest or NONE, address, offset, value, value2
void Machine::atom(Warp& w, const Ins& in, int pc, u32 m) {
  bool on_shared = in.op == ATOM_SHARED;
  int ty = in.imm, size = ty == T_U64 || ty == T_S64 || ty == T_F64 ? 8 : 4;
  const u32* x = P(w, in.a[3]);
  const u32* y = in.a[4] == NONE ? x : P(w, in.a[4]);
  int first = rng() % 32;
  u64 address[32];
  for (int l = 0; l < 32; l++)
    address[l] = (on_shared && !(in.imm3 & 1) ? P(w, in.a[1])[l] : ((u64*)P(w, in.a[1]))[l]) + in.a[2];
  for (int k = 0; k < 32; k++) {
    int l = (first + k) % 32;
    if (!(m >> l & 1)) continue;
    uint8_t* p;
    Segment* s = nullptr;
    int64_t offset;
    if (on_shared) {
      if (!in_shared(w, pc, l, address[l], size)) continue;
      offset = address[l] - L.shared_base;
      p = &shared[offset];
    } else {
      s = in_global(w, pc, l, address[l], size, size);
      if (!s) continue;
      offset = address[l] - s->va;
      p = s->host + offset;
      if (s->init && !s->init[offset]) report(UNINIT_GLOBAL, pc, -1, w.id, -1, l, s - L.segments, offset);
    }
    u64 old = 0, now = 0;
    memcpy(&old, p, size);
    u64 v = size == 8 ? ((const u64*)x)[l] : x[l], v2 = size == 8 ? ((const u64*)y)[l] : y[l];
    switch (in.imm2) {
      case 0:
        if (ty == T_F32) now = as_u(as_f(old) + as_f(v));
        else if (ty == T_F64) now = as_u64(as_d(old) + as_d(v));
        else now = old + v;
        break;
      case 1:
        now = ty == T_S32 ? (u64)(u32)std::max((s32)old, (s32)v) : ty == T_S64 ? (u64)std::max((s64)old, (s64)v) : std::max(old, v);
        break;
      case 2:
        now = ty == T_S32 ? (u64)(u32)std::min((s32)old, (s32)v) : ty == T_S64 ? (u64)std::min((s64)old, (s64)v) : std::min(old, v);
        break;
      case 3: now = v; break;
      case 4: now = old == v ? v2 : old; break;
      case 5: now = old & v; break;
      case 6: now = old | v; break;
      case 7: now = old ^ v; break;
    }
    if (on_shared) { shared_read(w, pc, l, offset, size); }
    else global_write(w, pc, l, s, offset, size, nullptr, true);
    memcpy(p, &now, size);
    if (in.a[0] != NONE) {
      if (size == 8) ((u64*)P(w, in.a[0]))[l] = old;
      else P(w, in.a[0])[l] = (u32)old;
    }
  }
  if (counting && !on_shared) L.pc_cost[pc] += sectors(address, m, size);
}

void Machine::ldmatrix(Warp& w, const Ins& in, int pc, u32 m) {
  int n = in.nx;
  bool trans = in.imm & 1, store = in.op == STMATRIX;
  const u32* base = P(w, in.a[0]);
  const int32_t* list = L.pool + in.xo;
  u32 address[32];
  for (int l = 0; l < 32; l++) address[l] = base[l] + in.a[1];
  uint16_t tile[4][8][8];
  memset(tile, 0xcd, sizeof tile);
  if (store) {
    for (int i = 0; i < n; i++) {
      const u32* x = P(w, list[i]);
      for (int l = 0; l < 32; l++)
        for (int h = 0; h < 2; h++) {
          int r = l / 4, c = 2 * (l % 4) + h;
          uint16_t v = x[l] >> (16 * h);
          if (trans) tile[i][c][r] = v; else tile[i][r][c] = v;
        }
    }
  }
  for (int i = 0; i < n; i++)
    for (int r = 0; r < 8; r++) {
      int l = 8 * i + r;
      if (!in_shared(w, pc, l, address[l], 16)) continue;
      u32 offset = address[l] - L.shared_base;
      if (store) {
        shared_write(w, pc, l, offset, 16, (uint8_t*)tile[i][r]);
        memcpy(&shared[offset], tile[i][r], 16);
      } else {
        shared_read(w, pc, l, offset, 16);
        memcpy(tile[i][r], &shared[offset], 16);
      }
    }
  if (!store)
    for (int i = 0; i < n; i++) {
      u32* d = P(w, list[i]);
      for (int l = 0; l < 32; l++) {
        int r = l / 4, c = 2 * (l % 4);
        d[l] = trans ? tile[i][c][r] | (u32)tile[i][c + 1][r] << 16 : tile[i][r][c] | (u32)tile[i][r][c + 1] << 16;
      }
    }
  if (counting) L.pc_cost[pc] += bank_passes(address, n == 4 ? FULL : n == 2 ? 0xffffu : 0xffu, 16);
}

// imm: type of the operands, imm2: k; pool: 4 of d, then a, b, c.
void Machine::mma(Warp& w, const Ins& in, int pc) {
  const int32_t* o = L.pool + in.xo;
  int ty = in.imm, K = in.imm2, na = in.imm3 & 0xff, nb = in.imm3 >> 8;
  double A[16][16], B[16][8];
  bool tf = ty == T_TF32;
  for (int l = 0; l < 32; l++) {
    int g = l / 4, t = l % 4;
    for (int i = 0; i < na; i++) {
      u32 v = P(w, o[4 + i])[l];
      int row = g + 8 * (i & 1);
      if (tf) A[row][t + 4 * (i >> 1)] = as_f(v & ~0x1fffu);
      else for (int h = 0; h < 2; h++) A[row][2 * t + h + 8 * (i >> 1)] = h2d(v >> (16 * h), ty == T_BF16);
    }
    for (int i = 0; i < nb; i++) {
      u32 v = P(w, o[4 + na + i])[l];
      if (tf) B[t + 4 * i][g] = as_f(v & ~0x1fffu);
      else for (int h = 0; h < 2; h++) B[2 * t + h + 8 * i][g] = h2d(v >> (16 * h), ty == T_BF16);
    }
  }
  float D[4][32];
  double products[16];
  for (int l = 0; l < 32; l++) {
    int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; i++) {
      int row = g + 8 * (i >> 1), col = 2 * t + (i & 1);
      for (int k = 0; k < K; k++) products[k] = A[row][k] * B[k][col];
      D[i][l] = tc_sum(products, K, as_f(P(w, o[4 + na + nb + i])[l]), truncating);
    }
  }
  for (int i = 0; i < 4; i++) memcpy(P(w, o[i]), D[i], 128);
}

// Byte address of an element of a tile that a wgmma descriptor names. Rows along M or N.
u32 Machine::desc_address(u64 desc, int row, int k, int elsize, bool mn_major, bool& ok) {
  u32 start = (desc & 0x3fff) << 4, lbo = (desc >> 16 & 0x3fff) << 4, sbo = (desc >> 32 & 0x3fff) << 4;
  int base_offset = desc >> 49 & 7, swizzle = desc >> 62;
  if (base_offset) ok = false;
  u32 a;
  if (!mn_major) {
    if (swizzle == 0) a = start + (row % 8) * 16 + (row / 8) * sbo + (k * elsize / 16) * lbo + (k * elsize) % 16;
    else {
      int width = swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32;
      a = start + (row % 8) * width + (row / 8) * sbo + k * elsize;
    }
  } else {
    int per = 16 / elsize, chunk = row / per, within = (row % per) * elsize;
    if (swizzle == 0) a = start + chunk * sbo + (k % 8) * 16 + (k / 8) * lbo + within;
    else {
      int width = swizzle == 1 ? 8 : swizzle == 2 ? 4 : 2;  // in units of 16 bytes
      a = start + (chunk % width) * 16 + (chunk / width) * lbo + (k % 8) * width * 16 + (k / 8) * sbo + within;
    }
  }
  if (swizzle == 1) a ^= (a >> 7 & 7) << 4;
  else if (swizzle == 2) a ^= (a >> 7 & 3) << 4;
  else if (swizzle == 3) a ^= (a >> 7 & 1) << 4;
  return a;
}

// a: 0 descriptor or first register of A, 1 descriptor of B, 2 scale_d predicate (index*2+neg) or NONE-> imm;
// imm: type, imm2: N, imm3: bits 0: A in registers, 1: A is M-major, 2: B is N-major, 3: scale_d constant, 4: negate A, 5: negate B
// pool: N/2 accumulators, then 4 of A where in registers.
void Machine::wgmma(Warp& w, const Ins& in, int pc) {
  Mma job;
  job.pc = pc;
  job.done = false;
  int N = in.imm2, nd = N / 2, ty = in.imm, elsize = ty == T_TF32 ? 4 : 2, K = 32 / elsize;
  const int32_t* o = L.pool + in.xo;
  bool ra = in.imm3 & 1;
  for (int i = 0; i < nd; i++) job.registers.push_back(o[i]);
  if (ra) for (int i = 0; i < 4; i++) { memcpy(job.snapshot[i], P(w, o[nd + i]), 128); job.inputs.push_back(o[nd + i]); }
  // Which bytes of shared memory are read, and whether they may be.
  bool ok = true;
  std::vector<u32> touched;
  auto scan = [&](u64 desc, int first, int rows, bool mn) {
    for (int r = first; r < first + rows; r++)
      for (int k = 0; k < K; k++) touched.push_back(desc_address(desc, r, k, elsize, mn, ok));
  };
  job.desc_b = ((const u64*)P(w, in.a[1]))[0];
  job.desc_a = ra ? 0 : ((const u64*)P(w, in.a[0]))[0];
  job.add = in.imm3 & 8;
  if (in.a[2] != NONE) {
    u32 p = w.preds[in.a[2] >> 1];
    job.add = ((in.a[2] & 1) ? ~p : p) & 1;
  }
  scan(job.desc_b, 0, N, in.imm3 & 4);
  if (!ra) scan(job.desc_a, 16 * (w.id % 4), 16, in.imm3 & 2);
  if (!ok) { fatal(UNSUPPORTED, pc, w.id); return; }
  for (u32 t : touched)
    if (!in_shared(w, pc, 0, t, elsize)) return;
  std::sort(touched.begin(), touched.end());
  for (size_t i = 0; i < touched.size();) {
    size_t j = i + 1;
    while (j < touched.size() && touched[j] <= touched[j - 1] + elsize) j++;
    u32 b = touched[i] - L.shared_base, e = touched[j - 1] + elsize - L.shared_base;
    job.reads.push_back({b, e});
    shared_read(w, pc, 0, b, e - b, true);
    if (checks) for (u32 k = b; k < e; k++) pending_reads[k]++;
    i = j;
  }
  for (int32_t r : job.registers) { w.reg_pending[r]++; w.n_pending++; }
  for (int32_t r : job.inputs) w.reg_input[r]++;
  bool now = late == 16 || (late == 0 && (rng() & 1));
  // Accumulation has an order: what came before must be done.
  bool earlier = false;
  for (auto& g : w.mma_committed) for (auto& j : g) earlier |= !j.done;
  for (auto& j : w.mma_open) earlier |= !j.done;
  if (now && !earlier) wgmma_compute(w, in, job);
  w.mma_open.push_back(job);
}

void Machine::wgmma_compute(Warp& w, const Ins& in, Mma& job) {
  int N = in.imm2, nd = N / 2, ty = in.imm, elsize = ty == T_TF32 ? 4 : 2, K = 32 / elsize;
  const int32_t* o = L.pool + in.xo;
  bool ra = in.imm3 & 1, ok = true;
  auto value = [&](u32 address) -> double {
    const uint8_t* p = &shared[address - L.shared_base];
    if (elsize == 4) { u32 v; memcpy(&v, p, 4); return as_f(v & ~0x1fffu); }
    uint16_t h; memcpy(&h, p, 2);
    return h2d(h, ty == T_BF16);
  };
  double A[16][16];
  static thread_local double B[256][16];
  u64 desc_a = job.desc_a, desc_b = job.desc_b;
  bool add = job.add;
  for (int n = 0; n < N; n++)
    for (int k = 0; k < K; k++) B[n][k] = value(desc_address(desc_b, n, k, elsize, in.imm3 & 4, ok));
  if (ra) {
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        u32 v = job.snapshot[i][l];
        int row = l / 4 + 8 * (i & 1), t = l % 4;
        if (elsize == 4) A[row][t + 4 * (i >> 1)] = as_f(v & ~0x1fffu);
        else for (int h = 0; h < 2; h++) A[row][2 * t + h + 8 * (i >> 1)] = h2d(v >> (16 * h), ty == T_BF16);
      }
  } else {
    for (int r = 0; r < 16; r++)
      for (int k = 0; k < K; k++) A[r][k] = value(desc_address(desc_a, 16 * (w.id % 4) + r, k, elsize, in.imm3 & 2, ok));
  }
  double sign = ((in.imm3 >> 4 & 1) != (in.imm3 >> 5 & 1)) ? -1 : 1;
  double products[16];
  for (int j = 0; j < nd; j++) {
    float* d = (float*)P(w, o[j]);
    for (int l = 0; l < 32; l++) {
      int row = l / 4 + 8 * ((j >> 1) & 1), col = 8 * (j / 4) + 2 * (l % 4) + (j & 1);
      for (int k = 0; k < K; k++) products[k] = sign * A[row][k] * B[col][k];
      d[l] = tc_sum(products, K, add ? d[l] : 0.0f, truncating);
    }
  }
  job.done = true;
}

void Machine::mma_done(Warp& w, Mma& job) {
  if (!job.done) wgmma_compute(w, L.code[job.pc], job);
  for (int32_t r : job.registers) { w.reg_pending[r]--; w.n_pending--; }
  for (int32_t r : job.inputs) w.reg_input[r]--;
  if (!checks) return;
  for (Span& s : job.reads)
    for (u32 k = s.begin; k < s.end; k++) {
      pending_reads[k]--;
      // Done with reading now: later writes need a barrier after this point.
      SShadow& h = sshadow[k];
      if (h.re != w.epoch) { h.re = w.epoch; h.rmask = 0; }
      h.rmask |= 1u << w.id;
      h.rpc = job.pc;
    }
}

// imm3 of no instruction tells its registers: the parser lists all it names in `names`.
void Machine::touch_registers(Warp& w, const Ins& in, int pc) {
  if (in.op == WGMMA || in.op == WGMMA_FENCE || in.op == WGMMA_COMMIT || in.op == WGMMA_WAIT) return;
  auto look = [&](int32_t v) {
    if (v >= 0 && v < (int32_t)w.reg_pending.size() && w.reg_pending[v]) {
      int by = -1;
      for (auto& g : w.mma_committed) for (auto& j : g) for (auto r : j.registers) if (r == v) by = j.pc;
      for (auto& j : w.mma_open) for (auto r : j.registers) if (r == v) by = j.pc;
      report(WGMMA_REGISTER, pc, by, w.id, w.id, -1, -1, v);
    }
    // A new value in a register that a product still reads: the assembler may give it another one.
    if (v >= 0 && v < (int32_t)w.reg_input.size() && w.reg_input[v])
      report(NOTE_WGMMA_INPUT, pc, -1, w.id, w.id, -1, -1, v);
  };
  // Operands that are registers: bits of line >> 24 say which of a[] are.
  int which = in.line >> 24 & 0xff;
  for (int i = 0; i < 8; i++) if (which >> i & 1) look(in.a[i]);
  for (int i = 0; i < in.nx && (in.op == LD_GLOBAL || in.op == ST_GLOBAL || in.op == LD_SHARED || in.op == ST_SHARED ||
                                in.op == LDMATRIX || in.op == STMATRIX || in.op == PACK16 || in.op == PACK32 ||
                                in.op == UNPACK16 || in.op == UNPACK32); i++)
    look(L.pool[in.xo + i]);
}

#include "bulk.h"

void Machine::step(Warp& w, int64_t quantum) {
  while (quantum > 0 && !w.done && !w.waiting && !aborted) {
    if (w.groups.size() > 1) {
      std::sort(w.groups.begin(), w.groups.end(), [](const Group& a, const Group& b) { return a.pc < b.pc; });
      size_t k = 0;
      for (size_t i = 1; i < w.groups.size(); i++) {
        if (w.groups[i].pc == w.groups[k].pc) w.groups[k].mask |= w.groups[i].mask;
        else w.groups[++k] = w.groups[i];
      }
      w.groups.resize(k + 1);
    }
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
      if (counting) { L.pc_count[pc]++; L.pc_lanes[pc] += __builtin_popcount(m); }
      if (w.executed > (u64)L.max_ins) { fatal(HANG, pc, w.id); return; }
      if (in.op == BRA) {
        if (m == lanes) pc = in.imm;
        else if (m == 0) pc++;
        else {
          w.groups[0] = {pc + 1, lanes & ~m};
          w.groups.push_back({in.imm, m});
          split = true;
        }
        continue;
      }
      if (in.op == RET) {
        if (m == lanes) {
          w.groups.erase(w.groups.begin());
          if (w.groups.empty()) w.done = true;
          split = true;
        } else {
          w.groups[0] = {pc + 1, lanes & ~m};
          split = true;
        }
        continue;
      }
      if (m == 0) { pc++; continue; }
      if (w.n_pending && checks) touch_registers(w, in, pc);
      switch (in.op) {
        case NOP: case FENCE: break;
        case TRAP: fatal(UNSUPPORTED, pc, w.id); return;
        case BAR:
          if (m != live) { fatal(BARRIER, pc, w.id); return; }
          w.waiting = true;
          w.bar_pc = pc;
          w.groups[0].pc = pc + 1;
          return;
        case BAR_WARP:
          if (m != live) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, 0);
          w.sync++;
          break;
        case FENCE_PROXY:
          // Whatever this thread has seen written goes to the other proxy: of its own and, behind a
          // barrier, of the others.
          if (checks && in.imm)
            for (auto& s : sshadow) if (s.proxy && (s.ww == w.id || s.we < w.epoch)) s.proxy = 0;
          break;
        case MOV32: UN(u32, u32, x[l])
        case MOV64: UN(u64, u64, x[l])
        case MOVP: { u32 x = w.preds[in.a[1]]; u32& d = w.preds[in.a[0]]; d = (d & ~m) | (x & m); } break;
        case MOVP_IMM: { u32 x = in.imm ? FULL : 0; u32& d = w.preds[in.a[0]]; d = (d & ~m) | (x & m); } break;
        case NOTP: { u32 x = ~w.preds[in.a[1]]; u32& d = w.preds[in.a[0]]; d = (d & ~m) | (x & m); } break;
        case ANDP: { u32 x = w.preds[in.a[1]] & w.preds[in.a[2]]; u32& d = w.preds[in.a[0]]; d = (d & ~m) | (x & m); } break;
        case ORP: { u32 x = w.preds[in.a[1]] | w.preds[in.a[2]]; u32& d = w.preds[in.a[0]]; d = (d & ~m) | (x & m); } break;
        case XORP: { u32 x = w.preds[in.a[1]] ^ w.preds[in.a[2]]; u32& d = w.preds[in.a[0]]; d = (d & ~m) | (x & m); } break;
        case SREG: {
          u32* d = P(w, in.a[0]);
          u32 v = 0;
          switch (in.imm) {
            case 0: FOR(d[l] = w.id * 32 + l) break;
            case 1: case 2: FOR(d[l] = 0) break;
            case 3: v = ctaid[0]; FOR(d[l] = v) break;
            case 4: v = ctaid[1]; FOR(d[l] = v) break;
            case 5: v = ctaid[2]; FOR(d[l] = v) break;
            case 6: v = L.num_warps * 32; FOR(d[l] = v) break;
            case 7: v = L.grid[0]; FOR(d[l] = v) break;
            case 8: v = L.grid[1]; FOR(d[l] = v) break;
            case 9: v = L.grid[2]; FOR(d[l] = v) break;
            case 10: FOR(d[l] = l) break;
            case 11: v = w.id; FOR(d[l] = v) break;
            default: v = 1; FOR(d[l] = v)
          }
        } break;
        case LDPARAM: {
          u64 v = 0;
          int size = in.imm & 0xff;
          memcpy(&v, L.params + in.imm2, size);
          if (in.imm & 0x100) v = size == 4 ? (u64)(s64)(s32)v : size == 2 ? (u64)(s64)(int16_t)v : size == 1 ? (u64)(s64)(int8_t)v : v;
          if (in.imm & 0x200) { u64* d = (u64*)P(w, in.a[0]); FOR(d[l] = v) }
          else { u32* d = P(w, in.a[0]); u32 v32 = in.imm & 0x400 ? (u32)v & 0xffff : (u32)v; FOR(d[l] = v32) }
        } break;
        case PACK16: {  // pool: low, high
          const u32 *x = P(w, L.pool[in.xo]), *y = P(w, L.pool[in.xo + 1]);
          u32* d = P(w, in.a[0]);
          FOR(d[l] = (x[l] & 0xffff) | y[l] << 16)
        } break;
        case UNPACK16: {
          const u32* x = P(w, in.a[0]);
          u32 copy[32];
          memcpy(copy, x, 128);
          for (int i = 0; i < 2; i++) {
            if (L.pool[in.xo + i] == NONE) continue;
            u32* d = P(w, L.pool[in.xo + i]);
            FOR(d[l] = copy[l] >> (16 * i) & 0xffff)
          }
        } break;
        case PACK32: {
          const u32 *x = P(w, L.pool[in.xo]), *y = P(w, L.pool[in.xo + 1]);
          u64* d = (u64*)P(w, in.a[0]);
          FOR(d[l] = x[l] | (u64)y[l] << 32)
        } break;
        case UNPACK32: {
          const u64* x = (const u64*)P(w, in.a[0]);
          u64 copy[32];
          memcpy(copy, x, 256);
          for (int i = 0; i < 2; i++) {
            if (L.pool[in.xo + i] == NONE) continue;
            u32* d = P(w, L.pool[in.xo + i]);
            FOR(d[l] = copy[l] >> (32 * i))
          }
        } break;
        case PACK16_64: {
          u64* d = (u64*)P(w, in.a[0]);
          for (int l = 0; l < 32; l++) if (m >> l & 1) {
            u64 v = 0;
            for (int i = 0; i < 4; i++) v |= (u64)(P(w, L.pool[in.xo + i])[l] & 0xffff) << (16 * i);
            d[l] = v;
          }
        } break;
        case UNPACK16_64: {
          u64 copy[32];
          memcpy(copy, P(w, in.a[0]), 256);
          for (int i = 0; i < 4; i++) {
            if (L.pool[in.xo + i] == NONE) continue;
            u32* d = P(w, L.pool[in.xo + i]);
            FOR(d[l] = copy[l] >> (16 * i) & 0xffff)
          }
        } break;
        case ADD16: BIN(u32, (x[l] + y[l]) & 0xffff)
        case SUB16: BIN(u32, (x[l] - y[l]) & 0xffff)
        case MULLO16: BIN(u32, (x[l] * y[l]) & 0xffff)
        case ADD32: BIN(u32, x[l] + y[l])
        case ADD64: BIN(u64, x[l] + y[l])
        case SUB32: BIN(u32, x[l] - y[l])
        case SUB64: BIN(u64, x[l] - y[l])
        case MULLO32: BIN(u32, x[l] * y[l])
        case MULLO64: BIN(u64, x[l] * y[l])
        case MULHI_S32: BIN(s32, (s32)((s64)x[l] * y[l] >> 32))
        case MULHI_U32: BIN(u32, (u32)((u64)x[l] * y[l] >> 32))
        case MULHI_S64: BIN(s64, (s64)((s128)x[l] * y[l] >> 64))
        case MULHI_U64: BIN(u64, (u64)((u128)x[l] * y[l] >> 64))
        case MULW_S16: BIN(u32, (u32)((s32)(int16_t)x[l] * (s32)(int16_t)y[l]))
        case MULW_U16: BIN(u32, (x[l] & 0xffff) * (y[l] & 0xffff))
        case MULW_S32: {
          s64 t[32];
          const s32 *x = (const s32*)P(w, in.a[1]), *y = (const s32*)P(w, in.a[2]);
          s64* d = (s64*)P(w, in.a[0]);
          for (int l = 0; l < 32; l++) t[l] = (s64)x[l] * y[l];
          FOR(d[l] = t[l])
        } break;
        case MULW_U32: {
          u64 t[32];
          const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]);
          u64* d = (u64*)P(w, in.a[0]);
          for (int l = 0; l < 32; l++) t[l] = (u64)x[l] * y[l];
          FOR(d[l] = t[l])
        } break;
        case MADLO32: TER(u32, x[l] * y[l] + z[l])
        case MADLO64: TER(u64, x[l] * y[l] + z[l])
        case MADW_S32: {
          const s32 *x = (const s32*)P(w, in.a[1]), *y = (const s32*)P(w, in.a[2]);
          const s64* z = (const s64*)P(w, in.a[3]);
          s64* d = (s64*)P(w, in.a[0]);
          FOR(d[l] = (s64)x[l] * y[l] + z[l])
        } break;
        case MADW_U32: {
          const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]);
          const u64* z = (const u64*)P(w, in.a[3]);
          u64* d = (u64*)P(w, in.a[0]);
          FOR(d[l] = (u64)x[l] * y[l] + z[l])
        } break;
        // By 0: all ones. The lowest by -1: the lowest.
        case DIV_S32: BIN(s32, y[l] == 0 ? -1 : y[l] == -1 ? (s32)(0u - (u32)x[l]) : x[l] / y[l])
        case DIV_U32: BIN(u32, y[l] == 0 ? FULL : x[l] / y[l])
        case DIV_S64: BIN(s64, y[l] == 0 ? -1 : y[l] == -1 ? (s64)(0ull - (u64)x[l]) : x[l] / y[l])
        case DIV_U64: BIN(u64, y[l] == 0 ? ~0ull : x[l] / y[l])
        case REM_S32: BIN(s32, y[l] == 0 ? x[l] : y[l] == -1 ? 0 : x[l] % y[l])
        case REM_U32: BIN(u32, y[l] == 0 ? x[l] : x[l] % y[l])
        case REM_S64: BIN(s64, y[l] == 0 ? x[l] : y[l] == -1 ? 0 : x[l] % y[l])
        case REM_U64: BIN(u64, y[l] == 0 ? x[l] : x[l] % y[l])
        case MIN_S16: BIN(u32, (u32)std::min((int16_t)x[l], (int16_t)y[l]) & 0xffff)
        case MAX_S16: BIN(u32, (u32)std::max((int16_t)x[l], (int16_t)y[l]) & 0xffff)
        case MIN_U16: BIN(u32, std::min(x[l] & 0xffff, y[l] & 0xffff))
        case MAX_U16: BIN(u32, std::max(x[l] & 0xffff, y[l] & 0xffff))
        case MIN_S32: BIN(s32, x[l] < y[l] ? x[l] : y[l])
        case MIN_U32: BIN(u32, x[l] < y[l] ? x[l] : y[l])
        case MIN_S64: BIN(s64, x[l] < y[l] ? x[l] : y[l])
        case MIN_U64: BIN(u64, x[l] < y[l] ? x[l] : y[l])
        case MAX_S32: BIN(s32, x[l] > y[l] ? x[l] : y[l])
        case MAX_U32: BIN(u32, x[l] > y[l] ? x[l] : y[l])
        case MAX_S64: BIN(s64, x[l] > y[l] ? x[l] : y[l])
        case MAX_U64: BIN(u64, x[l] > y[l] ? x[l] : y[l])
        case NEG16: UN(u32, u32, (0u - x[l]) & 0xffff)
        case NEG32: UN(u32, u32, 0u - x[l])
        case NEG64: UN(u64, u64, 0ull - x[l])
        case ABS_S32: UN(u32, s32, x[l] < 0 ? 0u - (u32)x[l] : (u32)x[l])
        case ABS_S64: UN(u64, s64, x[l] < 0 ? 0ull - (u64)x[l] : (u64)x[l])
        case NOT16: UN(u32, u32, ~x[l] & 0xffff)
        case NOT32: UN(u32, u32, ~x[l])
        case NOT64: UN(u64, u64, ~x[l])
        case AND16: BIN(u32, x[l] & y[l] & 0xffff)
        case AND32: BIN(u32, x[l] & y[l])
        case AND64: BIN(u64, x[l] & y[l])
        case OR16: BIN(u32, (x[l] | y[l]) & 0xffff)
        case OR32: BIN(u32, x[l] | y[l])
        case OR64: BIN(u64, x[l] | y[l])
        case XOR16: BIN(u32, (x[l] ^ y[l]) & 0xffff)
        case XOR32: BIN(u32, x[l] ^ y[l])
        case XOR64: BIN(u64, x[l] ^ y[l])
        // The second operand of a shift has 32 bits whatever the first has.
        case SHL16: BIN(u32, y[l] > 15 ? 0 : x[l] << y[l] & 0xffff)
        case SHL32: BIN(u32, y[l] > 31 ? 0 : x[l] << y[l])
        case SHL64: { const u64* x = (const u64*)P(w, in.a[1]); const u32* y = P(w, in.a[2]); u64* d = (u64*)P(w, in.a[0]); FOR(d[l] = y[l] > 63 ? 0 : x[l] << y[l]) } break;
        case SHR_U16: BIN(u32, y[l] > 15 ? 0 : (x[l] & 0xffff) >> y[l])
        case SHR_S16: BIN(u32, (u32)((s32)(int16_t)x[l] >> (y[l] > 15 ? 15 : y[l])) & 0xffff)
        case SHR_U32: BIN(u32, y[l] > 31 ? 0 : x[l] >> y[l])
        case SHR_S32: BIN(u32, (u32)((s32)x[l] >> (y[l] > 31 ? 31 : y[l])))
        case SHR_U64: { const u64* x = (const u64*)P(w, in.a[1]); const u32* y = P(w, in.a[2]); u64* d = (u64*)P(w, in.a[0]); FOR(d[l] = y[l] > 63 ? 0 : x[l] >> y[l]) } break;
        case SHR_S64: { const s64* x = (const s64*)P(w, in.a[1]); const u32* y = P(w, in.a[2]); s64* d = (s64*)P(w, in.a[0]); FOR(d[l] = x[l] >> (y[l] > 63 ? 63 : y[l])) } break;
        case SHF_L: TER(u32, (u32)((((u64)y[l] << 32 | x[l]) << (in.imm ? z[l] & 31 : std::min(z[l], 32u))) >> 32))
        case SHF_R: TER(u32, (u32)(((u64)y[l] << 32 | x[l]) >> (in.imm ? z[l] & 31 : std::min(z[l], 32u))))
        case BFE_U32: TER(u32, (y[l] & 255) > 31 || (z[l] & 255) == 0 ? 0 : (x[l] >> (y[l] & 255)) & ((z[l] & 255) > 31 ? FULL : (1u << (z[l] & 255)) - 1))
        case BFE_S32: {
          const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *z = P(w, in.a[3]);
          u32* d = P(w, in.a[0]);
          FOR({
            u32 pos = y[l] & 255, len = z[l] & 255;
            u32 r = 0;
            if (len) {
              u32 msb = std::min(pos + len - 1, 31u);
              bool neg = x[l] >> msb & 1;
              for (u32 i = 0; i < 32; i++) {
                bool bit = i < len && pos + i <= 31 ? x[l] >> (pos + i) & 1 : neg;
                r |= (u32)bit << i;
              }
            }
            d[l] = r;
          })
        } break;
        case BFI32: {
          const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *p = P(w, in.a[3]), *n = P(w, in.a[4]);
          u32* d = P(w, in.a[0]);
          FOR({
            u32 pos = p[l] & 255, len = n[l] & 255, r = y[l];
            for (u32 i = 0; i < len && pos + i < 32; i++) r = (r & ~(1u << (pos + i))) | (x[l] >> i & 1) << (pos + i);
            d[l] = r;
          })
        } break;
        case PRMT: {
          const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *z = P(w, in.a[3]);
          u32* d = P(w, in.a[0]);
          FOR({
            u64 v = (u64)y[l] << 32 | x[l];
            u32 r = 0;
            for (int i = 0; i < 4; i++) {
              u32 s = z[l] >> (4 * i) & 15;
              u32 b = v >> (8 * (s & 7)) & 255;
              if (s & 8) b = b & 128 ? 255 : 0;
              r |= b << (8 * i);
            }
            d[l] = r;
          })
        } break;
        case LOP3: {
          const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *z = P(w, in.a[3]);
          u32* d = P(w, in.a[0]);
          int t = in.imm;
          FOR({
            u32 a = x[l], b = y[l], c = z[l], r = 0;
            if (t & 1) r |= ~a & ~b & ~c;
            if (t & 2) r |= ~a & ~b & c;
            if (t & 4) r |= ~a & b & ~c;
            if (t & 8) r |= ~a & b & c;
            if (t & 16) r |= a & ~b & ~c;
            if (t & 32) r |= a & ~b & c;
            if (t & 64) r |= a & b & ~c;
            if (t & 128) r |= a & b & c;
            d[l] = r;
          })
        } break;
        case POPC32: UN(u32, u32, (u32)__builtin_popcount(x[l]))
        case CLZ32: UN(u32, u32, x[l] ? (u32)__builtin_clz(x[l]) : 32u)
        case BREV32: {
          const u32* x = P(w, in.a[1]);
          u32* d = P(w, in.a[0]);
          FOR({ u32 r = 0; for (int i = 0; i < 32; i++) r |= (x[l] >> i & 1) << (31 - i); d[l] = r; })
        } break;
        case BFIND_U32: UN(u32, u32, x[l] ? 31u - (u32)__builtin_clz(x[l]) : FULL)
        case SELP32: {
          const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]);
          u32* d = P(w, in.a[0]);
          u32 p = w.preds[in.a[3]];
          FOR(d[l] = p >> l & 1 ? x[l] : y[l])
        } break;
        case SELP64: {
          const u64 *x = (const u64*)P(w, in.a[1]), *y = (const u64*)P(w, in.a[2]);
          u64* d = (u64*)P(w, in.a[0]);
          u32 p = w.preds[in.a[3]];
          FOR(d[l] = p >> l & 1 ? x[l] : y[l])
        } break;
        case SETP: {
          // imm: type, imm2: comparison, imm3: 0 alone, 1 and, 2 or, 3 xor with a predicate; a: p, x, y, q (p2), r (*2+neg)
          u32 r = compare_typed(P(w, in.a[1]), P(w, in.a[2]), in.imm, in.imm2, FULL);
          u32 r2 = ~r;
          if (in.imm3) {
            u32 c = w.preds[in.a[4] >> 1];
            if (in.a[4] & 1) c = ~c;
            r = in.imm3 == 1 ? r & c : in.imm3 == 2 ? r | c : r ^ c;
            r2 = in.imm3 == 1 ? r2 & c : in.imm3 == 2 ? r2 | c : r2 ^ c;
          }
          if (in.a[0] != NONE) { u32& d = w.preds[in.a[0]]; d = (d & ~m) | (r & m); }
          if (in.a[3] != NONE) { u32& d = w.preds[in.a[3]]; d = (d & ~m) | (r2 & m); }
        } break;
        case ADD_F32: BIN(float, canon(x[l] + y[l]))
        case SUB_F32: BIN(float, canon(x[l] - y[l]))
        case MUL_F32: BIN(float, canon(x[l] * y[l]))
        case FMA_F32: TER(float, canon(__builtin_fmaf(x[l], y[l], z[l])))
        case MIN_F32: BIN(float, in.imm && (x[l] != x[l] || y[l] != y[l]) ? as_f(0x7fffffff) : canon((float)fmin_ptx(x[l], y[l])))
        case MAX_F32: BIN(float, in.imm && (x[l] != x[l] || y[l] != y[l]) ? as_f(0x7fffffff) : canon((float)fmax_ptx(x[l], y[l])))
        case NEG_F32: UN(u32, u32, x[l] ^ 0x80000000u)
        case ABS_F32: UN(u32, u32, x[l] & 0x7fffffffu)
        case DIV_RN_F32: BIN(float, canon(x[l] / y[l]))
        case DIV_FULL_F32: {
          // As compiled: the reciprocal of the scaled divisor, rounded, times the scaled dividend.
          const float *x = (const float*)P(w, in.a[1]), *y = (const float*)P(w, in.a[2]);
          float* d = (float*)P(w, in.a[0]);
          FOR({
            float a = x[l], b = y[l], r;
            if (!std::isfinite(a) || !std::isfinite(b) || b == 0 || a == 0) r = a / b;
            else {
              int e;
              float f = std::frexp(b, &e);
              float q = a * approx(1.0 / (double)f, as_u(f));
              r = (float)std::ldexp((double)q, -e);
            }
            d[l] = canon(r);
          })
        } break;
        case SQRT_RN_F32: UN(float, float, canon(std::sqrt(x[l])))
        case SQRT_APPROX_F32: {
          const float* x = (const float*)P(w, in.a[1]);
          float* d = (float*)P(w, in.a[0]);
          FOR(d[l] = approx(std::sqrt((double)(in.imm ? ftz(x[l]) : x[l])), as_u(x[l])))
        } break;
        case RSQRT_APPROX_F32: {
          const float* x = (const float*)P(w, in.a[1]);
          float* d = (float*)P(w, in.a[0]);
          FOR(d[l] = approx(1 / std::sqrt((double)(in.imm ? ftz(x[l]) : x[l])), as_u(x[l])))
        } break;
        case RCP_RN_F32: UN(float, float, 1.0f / x[l])
        case RCP_APPROX_F32: {
          const float* x = (const float*)P(w, in.a[1]);
          float* d = (float*)P(w, in.a[0]);
          FOR({ float r = approx(1 / (double)(in.imm ? ftz(x[l]) : x[l]), as_u(x[l])); d[l] = in.imm ? ftz(r) : r; })
        } break;
        case EX2_F32: {
          const float* x = (const float*)P(w, in.a[1]);
          float* d = (float*)P(w, in.a[0]);
          FOR({ float r = approx(std::exp2((double)x[l]), as_u(x[l])); d[l] = in.imm ? ftz(r) : r; })
        } break;
        case LG2_F32: {
          const float* x = (const float*)P(w, in.a[1]);
          float* d = (float*)P(w, in.a[0]);
          FOR(d[l] = approx(std::log2((double)(in.imm ? ftz(x[l]) : x[l])), as_u(x[l])))
        } break;
        case SIN_F32: UN(float, float, (float)std::sin((double)x[l]))
        case COS_F32: UN(float, float, (float)std::cos((double)x[l]))
        case TANH_F32: UN(float, float, (float)std::tanh((double)x[l]))
        case ADD_F64: BIN(double, x[l] + y[l])
        case SUB_F64: BIN(double, x[l] - y[l])
        case MUL_F64: BIN(double, x[l] * y[l])
        case FMA_F64: TER(double, __builtin_fma(x[l], y[l], z[l]))
        case MIN_F64: BIN(double, fmin_ptx(x[l], y[l]))
        case MAX_F64: BIN(double, fmax_ptx(x[l], y[l]))
        case NEG_F64: UN(u64, u64, x[l] ^ (1ull << 63))
        case ABS_F64: UN(u64, u64, x[l] & ~(1ull << 63))
        case DIV_F64: BIN(double, x[l] / y[l])
        case SQRT_F64: UN(double, double, std::sqrt(x[l]))
        case RCP_F64: UN(double, double, 1 / x[l])
        // Halves, imm: bfloat16 or not.
#define HALF1(e) { const u32* x = P(w, in.a[1]); u32* d = P(w, in.a[0]); bool b = in.imm & 1; (void)b; FOR({ u32 X = x[l] & 0xffff; d[l] = (e) & 0xffff; }) } break;
#define HALF2(e) { const u32* x = P(w, in.a[1]); const u32* y = P(w, in.a[2]); u32* d = P(w, in.a[0]); bool b = in.imm & 1; \
    FOR({ double X = h2d(x[l], b), Y = h2d(y[l], b); d[l] = d2x(e, b); }) } break;
#define PAIR1(e) { const u32* x = P(w, in.a[1]); u32* d = P(w, in.a[0]); bool b = in.imm & 1; (void)b; \
    FOR({ u32 r = 0; for (int h = 0; h < 2; h++) { u32 X = x[l] >> (16 * h) & 0xffff; r |= (u32)((e) & 0xffff) << (16 * h); } d[l] = r; }) } break;
#define PAIR2(e) { const u32* x = P(w, in.a[1]); const u32* y = P(w, in.a[2]); u32* d = P(w, in.a[0]); bool b = in.imm & 1; \
    FOR({ u32 r = 0; for (int h = 0; h < 2; h++) { double X = h2d(x[l] >> (16 * h), b), Y = h2d(y[l] >> (16 * h), b); r |= (u32)d2x(e, b) << (16 * h); } d[l] = r; }) } break;
        case ADD_H: HALF2(X + Y)
        case SUB_H: HALF2(X - Y)
        case MUL_H: HALF2(X * Y)
        case MIN_H: HALF2(in.imm & 2 && (X != X || Y != Y) ? NAN : fmin_ptx(X, Y))
        case MAX_H: HALF2(in.imm & 2 && (X != X || Y != Y) ? NAN : fmax_ptx(X, Y))
        case NEG_H: HALF1(X ^ 0x8000)
        case ABS_H: HALF1(X & 0x7fff)
        case FMA_H: { const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *z = P(w, in.a[3]); u32* d = P(w, in.a[0]); bool b = in.imm & 1;
          FOR(d[l] = d2x(h2d(x[l], b) * h2d(y[l], b) + h2d(z[l], b), b)) } break;
        case ADD_H2: PAIR2(X + Y)
        case SUB_H2: PAIR2(X - Y)
        case MUL_H2: PAIR2(X * Y)
        case MIN_H2: PAIR2(in.imm & 2 && (X != X || Y != Y) ? NAN : fmin_ptx(X, Y))
        case MAX_H2: PAIR2(in.imm & 2 && (X != X || Y != Y) ? NAN : fmax_ptx(X, Y))
        case NEG_H2: PAIR1(X ^ 0x8000)
        case ABS_H2: PAIR1(X & 0x7fff)
        case FMA_H2: { const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *z = P(w, in.a[3]); u32* d = P(w, in.a[0]); bool b = in.imm & 1;
          FOR({ u32 r = 0; for (int h = 0; h < 2; h++) r |= (u32)d2x(h2d(x[l] >> (16 * h), b) * h2d(y[l] >> (16 * h), b) + h2d(z[l] >> (16 * h), b), b) << (16 * h); d[l] = r; }) } break;
        case CVT: cvt(w, in, m); break;
        case CVT_PACK_H2: {  // high, low
          const float *x = (const float*)P(w, in.a[1]), *y = (const float*)P(w, in.a[2]);
          u32* d = P(w, in.a[0]);
          bool b = in.imm & 1;
          FOR(d[l] = (u32)d2x(x[l], b) << 16 | d2x(y[l], b))
        } break;
        case SHFL: {
          // imm: 0 idx 1 up 2 down 3 bfly; a: d, x, b, c, membermask; imm2: predicate out or -1
          const u32 *x = P(w, in.a[1]), *b = P(w, in.a[2]), *c = P(w, in.a[3]), *mm = P(w, in.a[4]);
          u32* d = P(w, in.a[0]);
          u32 copy[32], p = 0;
          memcpy(copy, x, 128);
          u32 members = mm[__builtin_ctz(m)];
          if ((members & live) != m) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
          for (int l = 0; l < 32; l++) {
            if (!(m >> l & 1)) continue;
            u32 segmask = c[l] >> 8 & 31, clamp = c[l] & 31, bval = b[l] & 31;
            int maxlane = (l & segmask) | (clamp & ~segmask), minlane = l & segmask, j;
            bool inside;
            switch (in.imm) {
              case 1: j = l - (int)bval; inside = j >= maxlane; break;
              case 2: j = l + (int)bval; inside = j <= maxlane; break;
              case 3: j = l ^ (int)bval; inside = j <= maxlane; break;
              default: j = minlane | (int)(bval & ~segmask & 31); inside = j <= maxlane;
            }
            if (!inside) j = l;
            if (!(m >> j & 1)) { report(WARP_SYNC, pc, -1, w.id, -1, l, -1, j); j = l; }
            d[l] = copy[j];
            p |= (u32)inside << l;
          }
          if (in.imm2 >= 0) { u32& q = w.preds[in.imm2]; q = (q & ~m) | p; }
        } break;
        case VOTE: {
          // imm: 0 ballot 1 any 2 all 3 uni; a: d, pred*2+neg, membermask
          u32 x = w.preds[in.a[1] >> 1];
          if (in.a[1] & 1) x = ~x;
          x &= m;
          if ((P(w, in.a[2])[__builtin_ctz(m)] & live) != m) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
          if (in.imm == 0) { u32* d = P(w, in.a[0]); FOR(d[l] = x) }
          else {
            bool v = in.imm == 1 ? x != 0 : in.imm == 2 ? x == m : x == 0 || x == m;
            u32& d = w.preds[in.a[0]];
            d = (d & ~m) | (v ? m : 0);
          }
        } break;
        case ACTIVEMASK: { u32* d = P(w, in.a[0]); FOR(d[l] = m) } break;
        case REDUX: {
          // imm: 0 add 1 min 2 max 3 and 4 or 5 xor; imm2: type
          const u32* x = P(w, in.a[1]);
          u32* d = P(w, in.a[0]);
          if ((P(w, in.a[2])[__builtin_ctz(m)] & live) != m) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
          u32 r = x[__builtin_ctz(m)];
          bool first = true;
          for (int l = 0; l < 32; l++) {
            if (!(m >> l & 1)) continue;
            if (first) { first = false; continue; }
            switch (in.imm) {
              case 0: r += x[l]; break;
              case 1: r = in.imm2 == T_S32 ? (u32)std::min((s32)r, (s32)x[l]) : in.imm2 == T_F32 ? as_u((float)fmin_ptx(as_f(r), as_f(x[l]))) : std::min(r, x[l]); break;
              case 2: r = in.imm2 == T_S32 ? (u32)std::max((s32)r, (s32)x[l]) : in.imm2 == T_F32 ? as_u((float)fmax_ptx(as_f(r), as_f(x[l]))) : std::max(r, x[l]); break;
              case 3: r &= x[l]; break;
              case 4: r |= x[l]; break;
              case 5: r ^= x[l]; break;
            }
          }
          FOR(d[l] = r)
        } break;
        case ELECT: {
          int leader = __builtin_ctz(m);
          if (in.a[0] != NONE) { u32* d = P(w, in.a[0]); FOR(d[l] = leader) }
          u32& d = w.preds[in.a[1]];
          d = (d & ~m) | (1u << leader);
        } break;
        case LD_GLOBAL: case ST_GLOBAL: ld_st_global(w, in, pc, m); break;
        case LD_SHARED: case ST_SHARED: ld_st_shared(w, in, pc, m); break;
        case ATOM_GLOBAL: case ATOM_SHARED: atom(w, in, pc, m); break;
        case LDMATRIX: case STMATRIX:
          if (m != FULL) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
          ldmatrix(w, in, pc, m);
          break;
        case CP_ASYNC: {
          // a: shared address, offset, global address, offset, size in the source or NONE; imm: bytes
          const u32* to = P(w, in.a[0]);
          const u64* from = (const u64*)P(w, in.a[2]);
          const u32* given = in.a[4] == NONE ? nullptr : P(w, in.a[4]);
          u64 address[32];
          u32 read = 0;
          for (int l = 0; l < 32; l++) {
            if (!(m >> l & 1)) continue;
            Copy c{pc, l, to[l] + (u32)in.a[1], in.imm, given ? std::min((int)given[l], in.imm) : in.imm, nullptr, false};
            address[l] = from[l] + (s64)in.a[3];
            if (!in_shared(w, pc, l, c.dst, c.size)) continue;
            if (c.src_size) {
              Segment* s = in_global(w, pc, l, address[l], c.src_size, c.size);
              if (s) {
                int64_t offset = address[l] - s->va;
                global_read(w, pc, l, s, offset, c.src_size);
                c.src = s->host + offset;
                read |= 1u << l;
              } else c.src_size = 0;
            }
            shared_write(w, pc, l, c.dst - L.shared_base, c.size, nullptr, true);
            if (late == 16 || (late == 0 && (rng() & 1))) write_copy(c);
            w.open.push_back(c);
          }
          if (counting) L.pc_cost[pc] += sectors(address, read, in.imm);
        } break;
        case CP_COMMIT:
          if (m != live) { fatal(UNSUPPORTED, pc, w.id); return; }
          w.committed.push_back(std::move(w.open));
          w.open.clear();
          break;
        case CP_WAIT:
          if (m != live) { fatal(UNSUPPORTED, pc, w.id); return; }
          if (in.imm < 0) {  // wait_all: the open ones too
            w.committed.push_back(std::move(w.open));
            w.open.clear();
          }
          while ((int)w.committed.size() > std::max(in.imm, 0)) {
            for (Copy& c : w.committed.front()) land(w, c);
            w.committed.erase(w.committed.begin());
          }
          break;
        case MMA:
          if (m != FULL) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
          mma(w, in, pc);
          break;
        case MBAR_INIT: case MBAR_INVAL: case MBAR_ARRIVE:
          mbar_op(w, in, pc, m);
          if (aborted) return;
          break;
        case MBAR_WAIT:
          if (!mbar_wait(w, in, pc, m)) {
            if (aborted) return;
            // As if it had not run: how often a wait turns says nothing.
            w.executed--;
            if (counting) { L.pc_count[pc]--; L.pc_lanes[pc] -= __builtin_popcount(m); }
            w.groups[0].pc = pc;
            return;
          }
          if (w.polls) { w.groups[0].pc = pc + 1; return; }
          break;
        case BULK_LOAD: bulk_load(w, in, pc, m); if (aborted) return; break;
        case BULK_STORE: bulk_store(w, in, pc, m); if (aborted) return; break;
        case BULK_COMMIT: bulk_commit(w, m); break;
        case BULK_WAIT: bulk_wait(w, in, m); break;
        case MAP_REPLACE: map_replace(w, in, pc, m); break;
        case MAP_COPY: map_copy(w, in, pc, m); if (aborted) return; break;
        case WGMMA_FENCE: break;
        case WGMMA:
          if (m != FULL) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
          wgmma(w, in, pc);
          if (aborted) return;
          break;
        case WGMMA_COMMIT:
          w.mma_committed.push_back(std::move(w.mma_open));
          w.mma_open.clear();
          break;
        case WGMMA_WAIT:
          while ((int)w.mma_committed.size() > in.imm) {
            for (Mma& j : w.mma_committed.front()) mma_done(w, j);
            w.mma_committed.erase(w.mma_committed.begin());
          }
          break;
        default:
          fatal(UNSUPPORTED, pc, w.id);
          return;
      }
      pc++;
    }
    if (!split) w.groups[0].pc = pc;
  }
}

void Machine::run_cta() {
  int n = L.num_warps;
  cta_base = next_epoch;
  shared.assign(L.shared_bytes, 0xcd);
  if (checks) {
    if ((int64_t)sshadow.size() < L.shared_bytes) sshadow.assign(L.shared_bytes, SShadow{});
    for (auto& s : sshadow) { s.apend = 0; s.proxy = 0; s.mbar = 0; }
  }
  pending_reads.assign(L.shared_bytes, 0);
  bulks.clear();
  flying.clear();
  mbars.clear();
  unfinished.clear();
  warps.resize(n);
  for (int i = 0; i < n; i++) {
    Warp& w = warps[i];
    w.id = i;
    w.groups.assign(1, Group{0, FULL});
    w.regs.assign(L.n_regs, 0xcdcdcdcd);
    w.preds.assign(L.n_preds + 1, 0xaaaa5555);
    w.reg_pending.assign(L.n_regs + 1, 0);
    w.reg_input.assign(L.n_regs + 1, 0);
    w.n_pending = 0;
    w.waiting = w.done = false;
    w.epoch = cta_base;
    w.sync = 0;
    w.executed = 0;
    w.committed.clear();
    w.open.clear();
    w.mma_committed.clear();
    w.mma_open.clear();
    w.blocked = false;
    w.polls = 0;
    w.stores.clear();
    w.store_groups.clear();
  }
  while (!aborted) {
    int ready[64], count = 0, waiting = 0, done = 0, blocked = -1;
    for (int i = 0; i < n; i++) {
      if (warps[i].done) done++;
      else if (warps[i].waiting) waiting++;
      else if (warps[i].blocked && warps[i].blocked_at == progress) blocked = i;
      else ready[count++] = i;
    }
    // A copy lands at any time, or not before somebody cannot go on without it.
    if (!flying.empty() && (count ? late == 0 && rng() % 4 == 0 : blocked >= 0)) {
      land_bulk(flying[rng() % flying.size()]);
      continue;
    }
    if (count) {
      Warp& w = warps[ready[rng() % count]];
      w.blocked = false;
      // Mostly to the next barrier, sometimes a few instructions.
      step(w, rng() % 4 ? INT64_MAX : 1 + (int64_t)(rng() % 64));
      continue;
    }
    // Nobody is left who could end the wait.
    if (blocked >= 0) { fatal(HANG, warps[blocked].groups[0].pc, blocked); break; }
    if (!waiting) break;
    int pc = -1, other = -1, first = -1;
    for (int i = 0; i < n; i++)
      if (warps[i].waiting) {
        if (pc < 0) { pc = warps[i].bar_pc; first = i; }
        else if (warps[i].bar_pc != pc) other = i;
      }
    if (other >= 0) report(BARRIER_SITES, pc, warps[other].bar_pc, first, other, -1, -1, 0);
    if (done) report(BARRIER, pc, -1, first, -1, -1, -1, done);
    uint32_t e = 0;
    for (auto& w : warps) e = std::max(e, w.epoch);
    for (auto& w : warps)
      if (w.waiting) { w.waiting = false; w.epoch = e + 1; w.sync = 0; }
    bulk_barrier();
  }
  if (!aborted) bulk_end();
  uint32_t e = cta_base;
  for (auto& w : warps) e = std::max(e, w.epoch);
  next_epoch = e + 1;
}

void Machine::run() {
  // Far from the end of the numbers: shadows start over.
  if (next_epoch > 0xf0000000u) { gshadow.clear(); next_epoch = 1; }
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
    if (aborted) break;
  }
}

extern "C" int emulate(Launch* launch) {
  launch->n_findings = 0;
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
