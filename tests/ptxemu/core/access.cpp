// Loads, stores and atomics, element by element.
#include "lanes.h"

// Bytes that a lane stores from a register, which may be wider.
static void low_bytes(const u32* x, bool wide, int lane, int size, uint8_t* to) {
  if (wide)
    memcpy(to, (const u64*)x + lane, size);
  else
    memcpy(to, x + lane, size);
}

// Bytes that a lane loads into a register, which may be wider.
static void load_into(u32* to, int lane, const uint8_t* from, int size, int flags) {
  u64 v = 0;
  memcpy(&v, from, size);
  v = extended(v, size, flags);
  if (flags & WIDE_REGISTER)
    ((u64*)to)[lane] = v;
  else
    to[lane] = (u32)v;
}

void Machine::ld_st_global(Warp& w, const Ins& in, int pc, u32 m) {
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
        low_bytes(P(w, list[i]), in.imm2 >> i & 1, l, size, buffer + size * i);
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
      } else
        memset(buffer, 0xcd, sizeof buffer);
      for (int i = 0; i < n; i++) {
        if (list[i] != NONE) load_into(P(w, list[i]), l, buffer + size * i, size, in.imm);
      }
    }
  }
  if (counting) {
    bool cached = !store && !(in.imm & PAST_L1);
    L.pc_cost[pc] += sectors(address, m, size * n, cached);
  }
}

void Machine::ld_st_shared(Warp& w, const Ins& in, int pc, u32 m) {
  const u32* base = P(w, in.a[0]);
  int size = in.imm & 0xff, n = in.nx;
  bool store = in.op == ST_SHARED;
  const int32_t* list = L.pool + in.xo;
  u32 address[32];
  // 64-bit registers may hold the address too.
  if (in.imm & WIDE_ADDRESS)
    for (int l = 0; l < 32; l++) address[l] = (u32)((const u64*)base)[l] + in.a[1];
  else
    for (int l = 0; l < 32; l++) address[l] = base[l] + in.a[1];
  for (int l = 0; l < 32; l++) {
    if (!(m >> l & 1)) continue;
    bool fine = in_shared(w, pc, l, address[l], size * n);
    u32 offset = address[l] - L.shared_base;
    uint8_t buffer[32];
    if (store) {
      for (int i = 0; i < n; i++) {
        low_bytes(P(w, list[i]), in.imm2 >> i & 1, l, size, buffer + size * i);
      }
      if (!fine) continue;
      shared_write(w, pc, l, offset, size * n, buffer);
      memcpy(&shared[offset], buffer, size * n);
    } else {
      if (fine) {
        shared_read(w, pc, l, offset, size * n);
        memcpy(buffer, &shared[offset], size * n);
      } else
        memset(buffer, 0xcd, sizeof buffer);
      for (int i = 0; i < n; i++) {
        if (list[i] != NONE) load_into(P(w, list[i]), l, buffer + size * i, size, in.imm);
      }
    }
  }
  if (counting) L.pc_cost[pc] += bank_passes(address, m, size * n);
}

// imm: type, imm2: 0 add 1 max 2 min 3 exch 4 cas 5 and 6 or 7 xor; a: dest or NONE, address,
// offset, value, value2
void Machine::atom(Warp& w, const Ins& in, int pc, u32 m) {
  int ty = in.imm, size = ty == T_U64 || ty == T_S64 || ty == T_F64 ? 8 : 4;
  const u32* x = P(w, in.a[3]);
  const u32* y = in.a[4] == NONE ? x : P(w, in.a[4]);
  int first = rng() % 32;
  u64 address[32];
  for (int l = 0; l < 32; l++) address[l] = ((u64*)P(w, in.a[1]))[l] + in.a[2];
  for (int k = 0; k < 32; k++) {
    int l = (first + k) % 32;
    if (!(m >> l & 1)) continue;
    Segment* s = in_global(w, pc, l, address[l], size, size);
    if (!s) continue;
    if (!unfinished.empty()) meet_unfinished(w, pc, l, address[l], size);
    int64_t offset = address[l] - s->va;
    uint8_t* p = s->host + offset;
    if (s->init && !s->init[offset])
      report(UNINIT_GLOBAL, pc, -1, w.id, -1, l, s - L.segments, offset);
    u64 old = 0, now = 0;
    memcpy(&old, p, size);
    u64 v = size == 8 ? ((const u64*)x)[l] : x[l], v2 = size == 8 ? ((const u64*)y)[l] : y[l];
    switch (in.imm2) {
      case 0:
        if (ty == T_F32)
          now = as_u(as_f(old) + as_f(v));
        else if (ty == T_F64)
          now = as_u64(as_d(old) + as_d(v));
        else
          now = old + v;
        break;
      case 1:
        now = ty == T_S32   ? (u64)(u32)std::max((s32)old, (s32)v)
              : ty == T_S64 ? (u64)std::max((s64)old, (s64)v)
                            : std::max(old, v);
        break;
      case 2:
        now = ty == T_S32   ? (u64)(u32)std::min((s32)old, (s32)v)
              : ty == T_S64 ? (u64)std::min((s64)old, (s64)v)
                            : std::min(old, v);
        break;
      case 3:
        now = v;
        break;
      case 4:
        now = old == v ? v2 : old;
        break;
      case 5:
        now = old & v;
        break;
      case 6:
        now = old | v;
        break;
      case 7:
        now = old ^ v;
        break;
    }
    global_write(w, pc, l, s, offset, size, nullptr, true);
    memcpy(p, &now, size);
    if (in.a[0] != NONE) {
      if (size == 8)
        ((u64*)P(w, in.a[0]))[l] = old;
      else
        P(w, in.a[0])[l] = (u32)old;
    }
  }
  if (counting) L.pc_cost[pc] += sectors(address, m, size);
}

void Machine::ldmatrix(Warp& w, const Ins& in, int pc) {
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
          if (trans)
            tile[i][c][r] = v;
          else
            tile[i][r][c] = v;
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
        d[l] = trans ? tile[i][c][r] | (u32)tile[i][c + 1][r] << 16
                     : tile[i][r][c] | (u32)tile[i][r][c + 1] << 16;
      }
    }
  if (counting) L.pc_cost[pc] += bank_passes(address, n == 4 ? FULL : n == 2 ? 0xffffu : 0xffu, 16);
}
