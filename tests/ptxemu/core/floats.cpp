// Floating point: float32, float64, halves, approximations.
#include "lanes.h"

// The same of 16 bits and of pairs of them; imm says whether they are bfloat16.
#define HALF1(NAME, ...)             \
  case NAME: {                       \
    const u32* x = P(w, in.a[1]);    \
    u32* d = P(w, in.a[0]);          \
    FOR({                            \
      u32 X = x[l] & 0xffff;         \
      d[l] = (__VA_ARGS__) & 0xffff; \
    });                              \
    break;                           \
  }
#define HALF2(NAME, ...)                         \
  case NAME: {                                   \
    const u32* x = P(w, in.a[1]);                \
    const u32* y = P(w, in.a[2]);                \
    u32* d = P(w, in.a[0]);                      \
    bool b = in.imm & 1;                         \
    FOR({                                        \
      double X = h2d(x[l], b), Y = h2d(y[l], b); \
      d[l] = d2x(__VA_ARGS__, b);                \
    });                                          \
    break;                                       \
  }
#define PAIR1(NAME, ...)                                \
  case NAME: {                                          \
    const u32* x = P(w, in.a[1]);                       \
    u32* d = P(w, in.a[0]);                             \
    FOR({                                               \
      u32 r = 0;                                        \
      for (int h = 0; h < 2; h++) {                     \
        u32 X = x[l] >> (16 * h) & 0xffff;              \
        r |= (u32)((__VA_ARGS__) & 0xffff) << (16 * h); \
      }                                                 \
      d[l] = r;                                         \
    });                                                 \
    break;                                              \
  }
#define PAIR2(NAME, ...)                                                   \
  case NAME: {                                                             \
    const u32* x = P(w, in.a[1]);                                          \
    const u32* y = P(w, in.a[2]);                                          \
    u32* d = P(w, in.a[0]);                                                \
    bool b = in.imm & 1;                                                   \
    FOR({                                                                  \
      u32 r = 0;                                                           \
      for (int h = 0; h < 2; h++) {                                        \
        double X = h2d(x[l] >> (16 * h), b), Y = h2d(y[l] >> (16 * h), b); \
        r |= (u32)d2x(__VA_ARGS__, b) << (16 * h);                         \
      }                                                                    \
      d[l] = r;                                                            \
    });                                                                    \
    break;                                                                 \
  }

bool Machine::floats(Warp& w, const Ins& in, u32 m) {
  switch (in.op) {
    OP2(ADD_F32, float, canon(x[l] + y[l]));
    OP2(SUB_F32, float, canon(x[l] - y[l]));
    OP2(MUL_F32, float, canon(x[l] * y[l]));
    OP3(FMA_F32, float, canon(__builtin_fmaf(x[l], y[l], z[l])));
    OP2(MIN_F32, float,
        in.imm && (x[l] != x[l] || y[l] != y[l]) ? as_f(0x7fffffff)
                                                 : canon((float)fmin_ptx(x[l], y[l])));
    OP2(MAX_F32, float,
        in.imm && (x[l] != x[l] || y[l] != y[l]) ? as_f(0x7fffffff)
                                                 : canon((float)fmax_ptx(x[l], y[l])));
    OP1(NEG_F32, u32, u32, x[l] ^ 0x80000000u);
    OP1(ABS_F32, u32, u32, x[l] & 0x7fffffffu);
    OP2(DIV_RN_F32, float, canon(x[l] / y[l]));
    case DIV_FULL_F32: {
      // As compiled: the reciprocal of the scaled divisor, rounded, times the scaled dividend.
      const float *x = (const float*)P(w, in.a[1]), *y = (const float*)P(w, in.a[2]);
      float* d = (float*)P(w, in.a[0]);
      FOR({
        float a = x[l], b = y[l], r;
        if (!std::isfinite(a) || !std::isfinite(b) || b == 0 || a == 0)
          r = a / b;
        else {
          int e;
          float f = std::frexp(b, &e);
          float q = a * approx(1.0 / (double)f, as_u(f));
          r = (float)std::ldexp((double)q, -e);
        }
        d[l] = canon(r);
      });
      break;
    }
      OP1(SQRT_RN_F32, float, float, canon(std::sqrt(x[l])));
    case SQRT_APPROX_F32: {
      const float* x = (const float*)P(w, in.a[1]);
      float* d = (float*)P(w, in.a[0]);
      FOR(d[l] = approx(std::sqrt((double)(in.imm ? ftz(x[l]) : x[l])), as_u(x[l])));
      break;
    }
    case RSQRT_APPROX_F32: {
      const float* x = (const float*)P(w, in.a[1]);
      float* d = (float*)P(w, in.a[0]);
      FOR(d[l] = approx(1 / std::sqrt((double)(in.imm ? ftz(x[l]) : x[l])), as_u(x[l])));
      break;
    }
      OP1(RCP_RN_F32, float, float, 1.0f / x[l]);
    case RCP_APPROX_F32: {
      const float* x = (const float*)P(w, in.a[1]);
      float* d = (float*)P(w, in.a[0]);
      FOR({
        float r = approx(1 / (double)(in.imm ? ftz(x[l]) : x[l]), as_u(x[l]));
        d[l] = in.imm ? ftz(r) : r;
      });
      break;
    }
    case EX2_F32: {
      const float* x = (const float*)P(w, in.a[1]);
      float* d = (float*)P(w, in.a[0]);
      FOR({
        float r = approx(std::exp2((double)x[l]), as_u(x[l]));
        d[l] = in.imm ? ftz(r) : r;
      });
      break;
    }
    case LG2_F32: {
      const float* x = (const float*)P(w, in.a[1]);
      float* d = (float*)P(w, in.a[0]);
      FOR(d[l] = approx(std::log2((double)(in.imm ? ftz(x[l]) : x[l])), as_u(x[l])));
      break;
    }
      OP1(SIN_F32, float, float, (float)std::sin((double)x[l]));
      OP1(COS_F32, float, float, (float)std::cos((double)x[l]));
      OP1(TANH_F32, float, float, (float)std::tanh((double)x[l]));
      OP2(ADD_F64, double, x[l] + y[l]);
      OP2(SUB_F64, double, x[l] - y[l]);
      OP2(MUL_F64, double, x[l] * y[l]);
      OP3(FMA_F64, double, __builtin_fma(x[l], y[l], z[l]));
      OP2(MIN_F64, double, fmin_ptx(x[l], y[l]));
      OP2(MAX_F64, double, fmax_ptx(x[l], y[l]));
      OP1(NEG_F64, u64, u64, x[l] ^ (1ull << 63));
      OP1(ABS_F64, u64, u64, x[l] & ~(1ull << 63));
      OP2(DIV_F64, double, x[l] / y[l]);
      OP1(SQRT_F64, double, double, std::sqrt(x[l]));
      OP1(RCP_F64, double, double, 1 / x[l]);
      // Halves, imm: bfloat16 or not.
      HALF2(ADD_H, X + Y);
      HALF2(SUB_H, X - Y);
      HALF2(MUL_H, X * Y);
      HALF2(MIN_H, in.imm & 2 && (X != X || Y != Y) ? NAN : fmin_ptx(X, Y));
      HALF2(MAX_H, in.imm & 2 && (X != X || Y != Y) ? NAN : fmax_ptx(X, Y));
      HALF1(NEG_H, X ^ 0x8000);
      HALF1(ABS_H, X & 0x7fff);
    case FMA_H: {
      const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *z = P(w, in.a[3]);
      u32* d = P(w, in.a[0]);
      bool b = in.imm & 1;
      FOR(d[l] = d2x(h2d(x[l], b) * h2d(y[l], b) + h2d(z[l], b), b));
      break;
    }
      PAIR2(ADD_H2, X + Y);
      PAIR2(SUB_H2, X - Y);
      PAIR2(MUL_H2, X * Y);
      PAIR2(MIN_H2, in.imm & 2 && (X != X || Y != Y) ? NAN : fmin_ptx(X, Y));
      PAIR2(MAX_H2, in.imm & 2 && (X != X || Y != Y) ? NAN : fmax_ptx(X, Y));
      PAIR1(NEG_H2, X ^ 0x8000);
      PAIR1(ABS_H2, X & 0x7fff);
    case FMA_H2: {
      const u32 *x = P(w, in.a[1]), *y = P(w, in.a[2]), *z = P(w, in.a[3]);
      u32* d = P(w, in.a[0]);
      bool b = in.imm & 1;
      FOR({
        u32 r = 0;
        for (int h = 0; h < 2; h++)
          r |=
              (u32)d2x(
                  h2d(x[l] >> (16 * h), b) * h2d(y[l] >> (16 * h), b) + h2d(z[l] >> (16 * h), b), b)
              << (16 * h);
        d[l] = r;
      });
      break;
    }
    case CVT:
      cvt(w, in, m);
      break;
    case CVT_PACK_H2: {  // high, low
      const float *x = (const float*)P(w, in.a[1]), *y = (const float*)P(w, in.a[2]);
      u32* d = P(w, in.a[0]);
      bool b = in.imm & 1;
      FOR(d[l] = (u32)d2x(x[l], b) << 16 | d2x(y[l], b));
      break;
    }

    default:
      return false;
  }
  return true;
}
