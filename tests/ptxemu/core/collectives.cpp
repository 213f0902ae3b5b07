// Collective operations of a warp: shuffles, votes, reductions.
#include "lanes.h"

bool Machine::collectives(Warp& w, const Ins& in, int pc, u32 m, u32 live) {
  switch (in.op) {
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
          case 1:
            j = l - (int)bval;
            inside = j >= maxlane;
            break;
          case 2:
            j = l + (int)bval;
            inside = j <= maxlane;
            break;
          case 3:
            j = l ^ (int)bval;
            inside = j <= maxlane;
            break;
          default:
            j = minlane | (int)(bval & ~segmask & 31);
            inside = j <= maxlane;
        }
        if (!inside) j = l;
        if (!(m >> j & 1)) {
          report(WARP_SYNC, pc, -1, w.id, -1, l, -1, j);
          j = l;
        }
        d[l] = copy[j];
        p |= (u32)inside << l;
      }
      if (in.imm2 >= 0) {
        u32& q = w.preds[in.imm2];
        q = (q & ~m) | p;
      }
      break;
    }
    case VOTE: {
      // imm: 0 ballot 1 any 2 all 3 uni; a: d, pred*2+neg, membermask
      u32 x = w.preds[in.a[1] >> 1];
      if (in.a[1] & 1) x = ~x;
      x &= m;
      if ((P(w, in.a[2])[__builtin_ctz(m)] & live) != m)
        report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
      if (in.imm == 0) {
        u32* d = P(w, in.a[0]);
        FOR(d[l] = x);
      } else {
        bool v = in.imm == 1 ? x != 0 : in.imm == 2 ? x == m : x == 0 || x == m;
        u32& d = w.preds[in.a[0]];
        d = (d & ~m) | (v ? m : 0);
      }
      break;
    }
    case ACTIVEMASK: {
      u32* d = P(w, in.a[0]);
      FOR(d[l] = m);
      break;
    }
    case REDUX: {
      // imm: 0 add 1 min 2 max 3 and 4 or 5 xor; imm2: type
      const u32* x = P(w, in.a[1]);
      u32* d = P(w, in.a[0]);
      if ((P(w, in.a[2])[__builtin_ctz(m)] & live) != m)
        report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
      u32 r = x[__builtin_ctz(m)];
      bool first = true;
      for (int l = 0; l < 32; l++) {
        if (!(m >> l & 1)) continue;
        if (first) {
          first = false;
          continue;
        }
        switch (in.imm) {
          case 0:
            r += x[l];
            break;
          case 1:
            r = in.imm2 == T_S32   ? (u32)std::min((s32)r, (s32)x[l])
                : in.imm2 == T_F32 ? as_u((float)fmin_ptx(as_f(r), as_f(x[l])))
                                   : std::min(r, x[l]);
            break;
          case 2:
            r = in.imm2 == T_S32   ? (u32)std::max((s32)r, (s32)x[l])
                : in.imm2 == T_F32 ? as_u((float)fmax_ptx(as_f(r), as_f(x[l])))
                                   : std::max(r, x[l]);
            break;
          case 3:
            r &= x[l];
            break;
          case 4:
            r |= x[l];
            break;
          case 5:
            r ^= x[l];
            break;
        }
      }
      FOR(d[l] = r);
      break;
    }
    case ELECT: {
      int leader = __builtin_ctz(m);
      if (in.a[0] != NONE) {
        u32* d = P(w, in.a[0]);
        FOR(d[l] = leader);
      }
      u32& d = w.preds[in.a[1]];
      d = (d & ~m) | (1u << leader);
      break;
    }

    default:
      return false;
  }
  return true;
}
