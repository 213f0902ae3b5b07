// Comparisons and conversions of values.
#include "lanes.h"

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
    case C_EQ:
      return compare_lanes(x, y, m, [](T a, T b) { return a == b; });
    case C_NE:
      return compare_lanes(x, y, m, [&](T a, T b) { return a != b && !nan(a) && !nan(b); });
    case C_LT:
      return compare_lanes(x, y, m, [](T a, T b) { return a < b; });
    case C_LE:
      return compare_lanes(x, y, m, [](T a, T b) { return a <= b; });
    case C_GT:
      return compare_lanes(x, y, m, [](T a, T b) { return a > b; });
    case C_GE:
      return compare_lanes(x, y, m, [](T a, T b) { return a >= b; });
    case C_EQU:
      return compare_lanes(x, y, m, [&](T a, T b) { return a == b || nan(a) || nan(b); });
    case C_NEU:
      return compare_lanes(x, y, m, [](T a, T b) { return !(a == b); });
    case C_LTU:
      return compare_lanes(x, y, m, [](T a, T b) { return !(a >= b); });
    case C_LEU:
      return compare_lanes(x, y, m, [](T a, T b) { return !(a > b); });
    case C_GTU:
      return compare_lanes(x, y, m, [](T a, T b) { return !(a <= b); });
    case C_GEU:
      return compare_lanes(x, y, m, [](T a, T b) { return !(a < b); });
    case C_NUM:
      return compare_lanes(x, y, m, [&](T a, T b) { return !nan(a) && !nan(b); });
    default:
      return compare_lanes(x, y, m, [&](T a, T b) { return nan(a) || nan(b); });
  }
}

static u32 compare_typed(const u32* x, const u32* y, int ty, int cmp, u32 m) {
  u32 r = 0;
  switch (ty) {
    case T_U32:
      return compare((const u32*)x, (const u32*)y, cmp, m);
    case T_S32:
      return compare((const s32*)x, (const s32*)y, cmp, m);
    case T_U64:
      return compare((const u64*)x, (const u64*)y, cmp, m);
    case T_S64:
      return compare((const s64*)x, (const s64*)y, cmp, m);
    case T_F32:
      return compare((const float*)x, (const float*)y, cmp, m);
    case T_F64:
      return compare((const double*)x, (const double*)y, cmp, m);
    default: {
      float a[32], b[32];
      for (int l = 0; l < 32; l++) {
        u32 p = x[l] & 0xffff, q = y[l] & 0xffff;
        switch (ty) {
          case T_U16:
            a[l] = p;
            b[l] = q;
            break;
          case T_S16:
            a[l] = (int16_t)p;
            b[l] = (int16_t)q;
            break;
          case T_F16:
            a[l] = hf2f(p);
            b[l] = hf2f(q);
            break;
          default:
            a[l] = bf2f(p);
            b[l] = bf2f(q);
            break;
        }
      }
      return compare(a, b, cmp, m);
    }
  }
  return r;
}

// Operands of one kind: floating point by value, or integers with their sign.
void Machine::cvt(Warp& w, const Ins& in, u32 m) {
  int to = in.imm & 0xff, from = in.imm >> 8 & 0xff,
      mode = in.imm2;  // mode: 1 rn 2 rz 3 rm 4 rp 5 rni 6 rzi 7 rmi 8 rpi 9 rna
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
        case T_U8:
          v = (uint8_t)raw;
          break;
        case T_S8:
          v = (int8_t)raw;
          break;
        case T_U16:
          v = (uint16_t)raw;
          break;
        case T_S16:
          v = (int16_t)raw;
          break;
        case T_U32:
          v = (u32)raw;
          break;
        case T_S32:
          v = (s32)raw;
          break;
        default:
          v = (s64)raw;
      }
      if (sat) {
        switch (to) {
          case T_U8:
            v = std::min<s64>(std::max<s64>(v, 0), 255);
            break;
          case T_S8:
            v = std::min<s64>(std::max<s64>(v, -128), 127);
            break;
          case T_U16:
            v = std::min<s64>(std::max<s64>(v, 0), 65535);
            break;
          case T_S16:
            v = std::min<s64>(std::max<s64>(v, -32768), 32767);
            break;
          case T_U32:
            v = std::min<s64>(std::max<s64>(v, 0), 4294967295LL);
            break;
          case T_S32:
            v = std::min<s64>(std::max<s64>(v, INT32_MIN), INT32_MAX);
            break;
        }
      }
      switch (to) {
        // Into a wider register: extended by the sign of the type.
        case T_U8:
          out = (uint8_t)v;
          break;
        case T_S8:
          out = (u64)(s64)(int8_t)v;
          break;
        case T_U16:
          out = (uint16_t)v;
          break;
        case T_S16:
          out = (u64)(s64)(int16_t)v;
          break;
        case T_U32:
          out = (u32)v;
          break;
        case T_S32:
          out = (u64)(s64)(s32)v;
          break;
        default:
          out = (u64)v;
      }
    } else {
      double v;
      bool exact_int = false;
      s64 iv = 0;
      switch (from) {
        case T_F32:
          v = as_f((u32)raw);
          if (flush) v = ftz((float)v);
          break;
        case T_F64:
          v = as_d(raw);
          break;
        case T_F16:
          v = hf2f((uint16_t)raw);
          break;
        case T_BF16:
          v = bf2f((uint16_t)raw);
          break;
        case T_U8:
          v = (uint8_t)raw;
          break;
        case T_S8:
          v = (int8_t)raw;
          break;
        case T_U16:
          v = (uint16_t)raw;
          break;
        case T_S16:
          v = (int16_t)raw;
          break;
        case T_U32:
          v = (u32)raw;
          break;
        case T_S32:
          v = (s32)raw;
          break;
        case T_S64:
          v = (double)(s64)raw;
          exact_int = true;
          iv = (s64)raw;
          break;
        default:
          v = (double)raw;
          break;
      }
      if (mode >= 5 && mode <= 8) {
        v = mode == 5   ? std::nearbyint(v)
            : mode == 6 ? std::trunc(v)
            : mode == 7 ? std::floor(v)
                        : std::ceil(v);
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
          case T_F64:
            out = as_u64(v);
            break;
          case T_F16:
            out = d2h(v);
            break;
          case T_BF16:
            out = d2bf(v);
            break;
          case T_TF32: {
            u32 u = (u32)raw;
            if (std::isfinite(v)) {
              if (mode == 9)
                u += 0x1000;
              else
                u += 0xfff + (u >> 13 & 1);
              u &= ~0x1fffu;
            }
            out = u;
            break;
          }
        }
      } else {
        // To an integer: saturates, NaN is 0 (of 64 bits and unsigned: the lowest bit pattern too).
        if (std::isnan(v))
          out = to == T_U64 || to == T_S64 ? 0x8000000000000000ull : 0;
        else
          switch (to) {
            case T_U8:
              out = v <= 0 ? 0 : v >= 255 ? 255 : (u64)v;
              break;
            case T_S8:
              out = (u64)(s64)(v <= -128 ? -128 : v >= 127 ? 127 : v);
              break;
            case T_U16:
              out = v <= 0 ? 0 : v >= 65535 ? 65535 : (u64)v;
              break;
            case T_S16:
              out = (u64)(s64)(v <= -32768 ? -32768 : v >= 32767 ? 32767 : v);
              break;
            case T_U32:
              out = v <= 0 ? 0 : v >= 4294967295.0 ? 4294967295u : (u64)v;
              break;
            case T_S32:
              out = (u64)(s64)(v <= INT32_MIN ? INT32_MIN : v >= INT32_MAX ? INT32_MAX : v);
              break;
            case T_U64:
              out = v <= 0 ? 0 : v >= 18446744073709551615.0 ? ~0ull : (u64)v;
              break;
            default:
              out = v <= -9223372036854775808.0  ? 1ull << 63
                    : v >= 9223372036854775807.0 ? ~0ull >> 1
                                                 : (u64)(s64)v;
          }
      }
    }
    if (d_wide)
      d64[l] = out;
    else {
      d32[l] = (u32)out;
      // 16-bit registers hold 16 bits.
      if (in.nx & 4) d32[l] &= 0xffff;
    }
  }
}
