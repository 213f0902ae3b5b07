// Moves of registers, predicates, special registers and parameters.
#include "lanes.h"

// A predicate, one bit a lane.
static void assign(Warp& w, int32_t p, u32 m, u32 value) {
  w.preds[p] = (w.preds[p] & ~m) | (value & m);
}

bool Machine::moves(Warp& w, const Ins& in, u32 m) {
  switch (in.op) {
    OP1(MOV32, u32, u32, x[l]);
    OP1(MOV64, u64, u64, x[l]);
    case MOVP:
      assign(w, in.a[0], m, w.preds[in.a[1]]);
      break;
    case MOVP_IMM:
      assign(w, in.a[0], m, in.imm ? FULL : 0);
      break;
    case NOTP:
      assign(w, in.a[0], m, ~w.preds[in.a[1]]);
      break;
    case ANDP:
      assign(w, in.a[0], m, w.preds[in.a[1]] & w.preds[in.a[2]]);
      break;
    case ORP:
      assign(w, in.a[0], m, w.preds[in.a[1]] | w.preds[in.a[2]]);
      break;
    case XORP:
      assign(w, in.a[0], m, w.preds[in.a[1]] ^ w.preds[in.a[2]]);
      break;
    case SREG: {
      u32* d = P(w, in.a[0]);
      u32 v = 0;
      switch (in.imm) {
        case 0:
          FOR(d[l] = w.id * 32 + l);
          break;
        case 1:
        case 2:
          FOR(d[l] = 0);
          break;
        case 3:
          v = ctaid[0];
          FOR(d[l] = v);
          break;
        case 4:
          v = ctaid[1];
          FOR(d[l] = v);
          break;
        case 5:
          v = ctaid[2];
          FOR(d[l] = v);
          break;
        case 6:
          v = L.num_warps * 32;
          FOR(d[l] = v);
          break;
        case 7:
          v = L.grid[0];
          FOR(d[l] = v);
          break;
        case 8:
          v = L.grid[1];
          FOR(d[l] = v);
          break;
        case 9:
          v = L.grid[2];
          FOR(d[l] = v);
          break;
        case 10:
          FOR(d[l] = l);
          break;
        case 11:
          v = w.id;
          FOR(d[l] = v);
          break;
        default:
          v = 1;
          FOR(d[l] = v);
      }
      break;
    }
    case LDPARAM: {
      u64 v = 0;
      int size = in.imm & 0xff;
      int64_t offset = in.imm2;
      if (in.a[1] != NONE) {
        // A parameter has no address that depends on the thread.
        offset += ((const u64*)P(w, in.a[1]))[__builtin_ctz(m)] - L.param_base;
        if (offset < 0 || offset + size > L.param_bytes) return false;
      }
      memcpy(&v, L.params + offset, size);
      v = extended(v, size, in.imm);
      if (in.imm & WIDE_REGISTER) {
        u64* d = (u64*)P(w, in.a[0]);
        FOR(d[l] = v);
      } else {
        u32* d = P(w, in.a[0]);
        FOR(d[l] = (u32)v);
      }
      break;
    }
    case PACK16: {  // pool: low, high
      const u32 *x = P(w, L.pool[in.xo]), *y = P(w, L.pool[in.xo + 1]);
      u32* d = P(w, in.a[0]);
      FOR(d[l] = (x[l] & 0xffff) | y[l] << 16);
      break;
    }
    case UNPACK16: {
      const u32* x = P(w, in.a[0]);
      u32 copy[32];
      memcpy(copy, x, 128);
      for (int i = 0; i < 2; i++) {
        if (L.pool[in.xo + i] == NONE) continue;
        u32* d = P(w, L.pool[in.xo + i]);
        FOR(d[l] = copy[l] >> (16 * i) & 0xffff);
      }
      break;
    }
    case PACK32: {
      const u32 *x = P(w, L.pool[in.xo]), *y = P(w, L.pool[in.xo + 1]);
      u64* d = (u64*)P(w, in.a[0]);
      FOR(d[l] = x[l] | (u64)y[l] << 32);
      break;
    }
    case UNPACK32: {
      const u64* x = (const u64*)P(w, in.a[0]);
      u64 copy[32];
      memcpy(copy, x, 256);
      for (int i = 0; i < 2; i++) {
        if (L.pool[in.xo + i] == NONE) continue;
        u32* d = P(w, L.pool[in.xo + i]);
        FOR(d[l] = copy[l] >> (32 * i));
      }
      break;
    }
    case PACK16_64: {
      u64* d = (u64*)P(w, in.a[0]);
      for (int l = 0; l < 32; l++)
        if (m >> l & 1) {
          u64 v = 0;
          for (int i = 0; i < 4; i++) v |= (u64)(P(w, L.pool[in.xo + i])[l] & 0xffff) << (16 * i);
          d[l] = v;
        }
      break;
    }
    case UNPACK16_64: {
      u64 copy[32];
      memcpy(copy, P(w, in.a[0]), 256);
      for (int i = 0; i < 4; i++) {
        if (L.pool[in.xo + i] == NONE) continue;
        u32* d = P(w, L.pool[in.xo + i]);
        FOR(d[l] = copy[l] >> (16 * i) & 0xffff);
      }
      break;
    }

    default:
      return false;
  }
  return true;
}
