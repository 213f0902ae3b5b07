// Integer arithmetic, bits, comparisons and selections.
#include "lanes.h"

bool Machine::integers(Warp& w, const Ins& in, u32 m) {
  switch (in.op) {
    OP2(ADD16, u32, (x[l] + y[l]) & 0xffff);
    OP2(SUB16, u32, (x[l] - y[l]) & 0xffff);
    OP2(MULLO16, u32, (x[l] * y[l]) & 0xffff);
    OP2(ADD32, u32, x[l] + y[l]);
    OP2(ADD64, u64, x[l] + y[l]);
    OP2(SUB32, u32, x[l] - y[l]);
    OP2(SUB64, u64, x[l] - y[l]);
    OP2(MULLO32, u32, x[l] * y[l]);
    OP2(MULLO64, u64, x[l] * y[l]);
    OP2(MULHI_S32, s32, (s32)((s64)x[l] * y[l] >> 32));
    OP2(MULHI_U32, u32, (u32)((u64)x[l] * y[l] >> 32));
    OP2(MULHI_S64, s64, (s64)((s128)x[l] * y[l] >> 64));
    OP2(MULHI_U64, u64, (u64)((u128)x[l] * y[l] >> 64));
    OP2(MULW_S16, u32, (u32)((s32)(int16_t)x[l] * (s32)(int16_t)y[l]));
    OP2(MULW_U16, u32, (x[l] & 0xffff) * (y[l] & 0xffff));
    case MULW_S32: {
      s64 t[32];
      const s32 *x = (const s32*)P(w, in.a[1]), *y = (const s32*)P(w, in.a[2]);
      s64* d = (s64*)P(w, in.a[0]);
      for (int l = 0; l < 32; l++) t[l] = (s64)x[l] * y[l];
      FOR(d[l] = t[l]);
      break;
    }
    case MULW_U32: {
      u64 t[32];
      const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]);
      u64* d = (u64*)P(w, in.a[0]);
      for (int l = 0; l < 32; l++) t[l] = (u64)x[l] * y[l];
      FOR(d[l] = t[l]);
      break;
    }
      OP3(MADLO32, u32, x[l] * y[l] + z[l]);
      OP3(MADLO64, u64, x[l] * y[l] + z[l]);
    case MADW_S32: {
      const s32 *x = (const s32*)P(w, in.a[1]), *y = (const s32*)P(w, in.a[2]);
      const s64* z = (const s64*)P(w, in.a[3]);
      s64* d = (s64*)P(w, in.a[0]);
      FOR(d[l] = (s64)x[l] * y[l] + z[l]);
      break;
    }
    case MADW_U32: {
      const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]);
      const u64* z = (const u64*)P(w, in.a[3]);
      u64* d = (u64*)P(w, in.a[0]);
      FOR(d[l] = (u64)x[l] * y[l] + z[l]);
      break;
    }
      // By 0: all ones. The lowest by -1: the lowest.
      OP2(DIV_S32, s32, y[l] == 0 ? -1 : y[l] == -1 ? (s32)(0u - (u32)x[l]) : x[l] / y[l]);
      OP2(DIV_U32, u32, y[l] == 0 ? FULL : x[l] / y[l]);
      OP2(DIV_S64, s64, y[l] == 0 ? -1 : y[l] == -1 ? (s64)(0ull - (u64)x[l]) : x[l] / y[l]);
      OP2(DIV_U64, u64, y[l] == 0 ? ~0ull : x[l] / y[l]);
      OP2(REM_S32, s32, y[l] == 0 ? x[l] : y[l] == -1 ? 0 : x[l] % y[l]);
      OP2(REM_U32, u32, y[l] == 0 ? x[l] : x[l] % y[l]);
      OP2(REM_S64, s64, y[l] == 0 ? x[l] : y[l] == -1 ? 0 : x[l] % y[l]);
      OP2(REM_U64, u64, y[l] == 0 ? x[l] : x[l] % y[l]);
      OP2(MIN_S16, u32, (u32)std::min((int16_t)x[l], (int16_t)y[l]) & 0xffff);
      OP2(MAX_S16, u32, (u32)std::max((int16_t)x[l], (int16_t)y[l]) & 0xffff);
      OP2(MIN_U16, u32, std::min(x[l] & 0xffff, y[l] & 0xffff));
      OP2(MAX_U16, u32, std::max(x[l] & 0xffff, y[l] & 0xffff));
      OP2(MIN_S32, s32, x[l] < y[l] ? x[l] : y[l]);
      OP2(MIN_U32, u32, x[l] < y[l] ? x[l] : y[l]);
      OP2(MIN_S64, s64, x[l] < y[l] ? x[l] : y[l]);
      OP2(MIN_U64, u64, x[l] < y[l] ? x[l] : y[l]);
      OP2(MAX_S32, s32, x[l] > y[l] ? x[l] : y[l]);
      OP2(MAX_U32, u32, x[l] > y[l] ? x[l] : y[l]);
      OP2(MAX_S64, s64, x[l] > y[l] ? x[l] : y[l]);
      OP2(MAX_U64, u64, x[l] > y[l] ? x[l] : y[l]);
      OP1(NEG16, u32, u32, (0u - x[l]) & 0xffff);
      OP1(NEG32, u32, u32, 0u - x[l]);
      OP1(NEG64, u64, u64, 0ull - x[l]);
      OP1(ABS_S32, u32, s32, x[l] < 0 ? 0u - (u32)x[l] : (u32)x[l]);
      OP1(ABS_S64, u64, s64, x[l] < 0 ? 0ull - (u64)x[l] : (u64)x[l]);
      OP1(NOT16, u32, u32, ~x[l] & 0xffff);
      OP1(NOT32, u32, u32, ~x[l]);
      OP1(NOT64, u64, u64, ~x[l]);
      OP2(AND16, u32, x[l] & y[l] & 0xffff);
      OP2(AND32, u32, x[l] & y[l]);
      OP2(AND64, u64, x[l] & y[l]);
      OP2(OR16, u32, (x[l] | y[l]) & 0xffff);
      OP2(OR32, u32, x[l] | y[l]);
      OP2(OR64, u64, x[l] | y[l]);
      OP2(XOR16, u32, (x[l] ^ y[l]) & 0xffff);
      OP2(XOR32, u32, x[l] ^ y[l]);
      OP2(XOR64, u64, x[l] ^ y[l]);
      // The second operand of a shift has 32 bits whatever the first has.
      OP2(SHL16, u32, y[l] > 15 ? 0 : x[l] << y[l] & 0xffff);
      OP2(SHL32, u32, y[l] > 31 ? 0 : x[l] << y[l]);
    case SHL64: {
      const u64* x = (const u64*)P(w, in.a[1]);
      const u32* y = P(w, in.a[2]);
      u64* d = (u64*)P(w, in.a[0]);
      FOR(d[l] = y[l] > 63 ? 0 : x[l] << y[l]);
      break;
    }
      OP2(SHR_U16, u32, y[l] > 15 ? 0 : (x[l] & 0xffff) >> y[l]);
      OP2(SHR_S16, u32, (u32)((s32)(int16_t)x[l] >> (y[l] > 15 ? 15 : y[l])) & 0xffff);
      OP2(SHR_U32, u32, y[l] > 31 ? 0 : x[l] >> y[l]);
      OP2(SHR_S32, u32, (u32)((s32)x[l] >> (y[l] > 31 ? 31 : y[l])));
    case SHR_U64: {
      const u64* x = (const u64*)P(w, in.a[1]);
      const u32* y = P(w, in.a[2]);
      u64* d = (u64*)P(w, in.a[0]);
      FOR(d[l] = y[l] > 63 ? 0 : x[l] >> y[l]);
      break;
    }
    case SHR_S64: {
      const s64* x = (const s64*)P(w, in.a[1]);
      const u32* y = P(w, in.a[2]);
      s64* d = (s64*)P(w, in.a[0]);
      FOR(d[l] = x[l] >> (y[l] > 63 ? 63 : y[l]));
      break;
    }
      OP3(SHF_L, u32,
          (u32)((((u64)y[l] << 32 | x[l]) << (in.imm ? z[l] & 31 : std::min(z[l], 32u))) >> 32));
      OP3(SHF_R, u32,
          (u32)(((u64)y[l] << 32 | x[l]) >> (in.imm ? z[l] & 31 : std::min(z[l], 32u))));
      OP3(BFE_U32, u32,
          (y[l] & 255) > 31 || (z[l] & 255) == 0
              ? 0
              : (x[l] >> (y[l] & 255)) & ((z[l] & 255) > 31 ? FULL : (1u << (z[l] & 255)) - 1));
    case BFE_U64: {
      const u64* x = (const u64*)P(w, in.a[1]);
      const u32 *y = P(w, in.a[2]), *z = P(w, in.a[3]);
      u64* d = (u64*)P(w, in.a[0]);
      FOR({
        u32 pos = y[l] & 255, len = z[l] & 255;
        u64 kept = len > 63 ? ~0ull : (1ull << len) - 1;
        d[l] = pos > 63 ? 0 : (x[l] >> pos) & kept;
      });
      break;
    }
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
      });
      break;
    }
    case BFI32: {
      const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *p = P(w, in.a[3]), *n = P(w, in.a[4]);
      u32* d = P(w, in.a[0]);
      FOR({
        u32 pos = p[l] & 255, len = n[l] & 255, r = y[l];
        for (u32 i = 0; i < len && pos + i < 32; i++)
          r = (r & ~(1u << (pos + i))) | (x[l] >> i & 1) << (pos + i);
        d[l] = r;
      });
      break;
    }
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
      });
      break;
    }
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
      });
      break;
    }
      OP1(POPC32, u32, u32, (u32)__builtin_popcount(x[l]));
      OP1(POPC64, u32, u64, (u32)__builtin_popcountll(x[l]));
      OP1(CLZ32, u32, u32, x[l] ? (u32)__builtin_clz(x[l]) : 32u);
    case BREV32: {
      const u32* x = P(w, in.a[1]);
      u32* d = P(w, in.a[0]);
      FOR({
        u32 r = 0;
        for (int i = 0; i < 32; i++) r |= (x[l] >> i & 1) << (31 - i);
        d[l] = r;
      });
      break;
    }
      OP1(BFIND_U32, u32, u32, x[l] ? 31u - (u32)__builtin_clz(x[l]) : FULL);
    case SELP32: {
      const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]);
      u32* d = P(w, in.a[0]);
      u32 p = w.preds[in.a[3]];
      FOR(d[l] = p >> l & 1 ? x[l] : y[l]);
      break;
    }
    case SELP64: {
      const u64 *x = (const u64*)P(w, in.a[1]), *y = (const u64*)P(w, in.a[2]);
      u64* d = (u64*)P(w, in.a[0]);
      u32 p = w.preds[in.a[3]];
      FOR(d[l] = p >> l & 1 ? x[l] : y[l]);
      break;
    }
    case SETP: {
      // imm: type, imm2: comparison, imm3: 0 alone, 1 and, 2 or, 3 xor with a predicate; a: p, x,
      // y, q (p2), r (*2+neg)
      u32 r = compare_typed(P(w, in.a[1]), P(w, in.a[2]), in.imm, in.imm2, FULL);
      u32 r2 = ~r;
      if (in.imm3) {
        u32 c = w.preds[in.a[4] >> 1];
        if (in.a[4] & 1) c = ~c;
        r = in.imm3 == 1 ? r & c : in.imm3 == 2 ? r | c : r ^ c;
        r2 = in.imm3 == 1 ? r2 & c : in.imm3 == 2 ? r2 | c : r2 ^ c;
      }
      if (in.a[0] != NONE) {
        u32& d = w.preds[in.a[0]];
        d = (d & ~m) | (r & m);
      }
      if (in.a[3] != NONE) {
        u32& d = w.preds[in.a[3]];
        d = (d & ~m) | (r2 & m);
      }
      break;
    }

    default:
      return false;
  }
  return true;
}
