// An operation on the 32 lanes of a warp.
#pragma once

#include "machine.h"

typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t u64;
typedef int64_t s64;
typedef unsigned __int128 u128;
typedef __int128 s128;

enum Ty {
  T_U16,
  T_S16,
  T_U32,
  T_S32,
  T_U64,
  T_S64,
  T_F32,
  T_F64,
  T_F16,
  T_BF16,
  T_U8,
  T_S8,
  T_P,
  T_TF32
};
enum Cmp {
  C_EQ,
  C_NE,
  C_LT,
  C_LE,
  C_GT,
  C_GE,
  C_EQU,
  C_NEU,
  C_LTU,
  C_LEU,
  C_GTU,
  C_GEU,
  C_NUM,
  C_NAN
};

// Flags of loads, beside the size: as the type, the registers and the qualifiers say.
enum LoadFlags {
  SIGNED = 0x100,
  WIDE_REGISTER = 0x200,
  HALF_REGISTER = 0x400,
  WIDE_ADDRESS = 0x800,
  PAST_L1 = 0x1000
};

// What a register holds after a load of `size` bytes.
static inline u64 extended(u64 v, int size, int flags) {
  if (flags & SIGNED) {
    if (size == 1) v = (u64)(s64)(int8_t)v;
    if (size == 2) v = (u64)(s64)(int16_t)v;
    if (size == 4) v = (u64)(s64)(s32)v;
  }
  return flags & HALF_REGISTER ? v & 0xffff : v;
}

// A statement for each lane `l` of those in `m`.
#define FOR(...)                                                         \
  do {                                                                   \
    if (m == FULL) {                                                     \
      _Pragma("GCC ivdep") for (int l = 0; l < 32; l++) { __VA_ARGS__; } \
    } else {                                                             \
      for (int l = 0; l < 32; l++)                                       \
        if (m >> l & 1) {                                                \
          __VA_ARGS__;                                                   \
        }                                                                \
    }                                                                    \
  } while (0)

// Cases of a switch: an expression of one, two or three operands x, y, z of type T.
#define OP1(NAME, T, U, ...)              \
  case NAME: {                            \
    const U* x = (const U*)P(w, in.a[1]); \
    T* d = (T*)P(w, in.a[0]);             \
    FOR(d[l] = (__VA_ARGS__));            \
    break;                                \
  }
#define OP2(NAME, T, ...)                 \
  case NAME: {                            \
    const T* x = (const T*)P(w, in.a[1]); \
    const T* y = (const T*)P(w, in.a[2]); \
    T* d = (T*)P(w, in.a[0]);             \
    FOR(d[l] = (__VA_ARGS__));            \
    break;                                \
  }
#define OP3(NAME, T, ...)                 \
  case NAME: {                            \
    const T* x = (const T*)P(w, in.a[1]); \
    const T* y = (const T*)P(w, in.a[2]); \
    const T* z = (const T*)P(w, in.a[3]); \
    T* d = (T*)P(w, in.a[0]);             \
    FOR(d[l] = (__VA_ARGS__));            \
    break;                                \
  }
