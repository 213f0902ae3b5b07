// Products of tiles: `mma` on registers, and asynchronous `wgmma` on shared memory.
#include "lanes.h"

// imm: type of the operands, imm2: k; pool: 4 of d, then a, b, c.
void Machine::mma(Warp& w, const Ins& in) {
  const int32_t* o = L.pool + in.xo;
  int ty = in.imm, K = in.imm2, na = in.imm3 & 0xff, nb = in.imm3 >> 8;
  double A[16][16], B[16][8];
  bool tf = ty == T_TF32;
  for (int l = 0; l < 32; l++) {
    int g = l / 4, t = l % 4;
    for (int i = 0; i < na; i++) {
      u32 v = P(w, o[4 + i])[l];
      int row = g + 8 * (i & 1);
      if (tf)
        A[row][t + 4 * (i >> 1)] = as_f(v & ~0x1fffu);
      else
        for (int h = 0; h < 2; h++)
          A[row][2 * t + h + 8 * (i >> 1)] = h2d(v >> (16 * h), ty == T_BF16);
    }
    for (int i = 0; i < nb; i++) {
      u32 v = P(w, o[4 + na + i])[l];
      if (tf)
        B[t + 4 * i][g] = as_f(v & ~0x1fffu);
      else
        for (int h = 0; h < 2; h++) B[2 * t + h + 8 * i][g] = h2d(v >> (16 * h), ty == T_BF16);
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
  u32 start = (desc & 0x3fff) << 4, lbo = (desc >> 16 & 0x3fff) << 4,
      sbo = (desc >> 32 & 0x3fff) << 4;
  int base_offset = desc >> 49 & 7, swizzle = desc >> 62;
  if (base_offset) ok = false;
  u32 a;
  if (!mn_major) {
    if (swizzle == 0)
      a = start + (row % 8) * 16 + (row / 8) * sbo + (k * elsize / 16) * lbo + (k * elsize) % 16;
    else {
      int width = swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32;
      a = start + (row % 8) * width + (row / 8) * sbo + k * elsize;
    }
  } else {
    int per = 16 / elsize, chunk = row / per, within = (row % per) * elsize;
    if (swizzle == 0)
      a = start + chunk * sbo + (k % 8) * 16 + (k / 8) * lbo + within;
    else {
      int width = swizzle == 1 ? 8 : swizzle == 2 ? 4 : 2;  // in units of 16 bytes
      a = start + (chunk % width) * 16 + (chunk / width) * lbo + (k % 8) * width * 16 +
          (k / 8) * sbo + within;
    }
  }
  if (swizzle == 1)
    a ^= (a >> 7 & 7) << 4;
  else if (swizzle == 2)
    a ^= (a >> 7 & 3) << 4;
  else if (swizzle == 3)
    a ^= (a >> 7 & 1) << 4;
  return a;
}

// a: 0 descriptor or first register of A, 1 descriptor of B, 2 scale_d predicate (index*2+neg) or
// NONE-> imm; imm: type, imm2: N, imm3: bits 0: A in registers, 1: A is M-major, 2: B is N-major,
// 3: scale_d constant, 4: negate A, 5: negate B pool: N/2 accumulators, then 4 of A where in
// registers.
void Machine::wgmma(Warp& w, const Ins& in, int pc) {
  Mma job;
  job.pc = pc;
  job.done = false;
  int N = in.imm2, nd = N / 2, ty = in.imm, elsize = ty == T_TF32 ? 4 : 2, K = 32 / elsize;
  const int32_t* o = L.pool + in.xo;
  bool ra = in.imm3 & 1;
  for (int i = 0; i < nd; i++) job.registers.push_back(o[i]);
  if (ra)
    for (int i = 0; i < 4; i++) {
      memcpy(job.snapshot[i], P(w, o[nd + i]), 128);
      job.inputs.push_back(o[nd + i]);
    }
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
  if (!ok) {
    fatal(UNSUPPORTED, pc, w.id);
    return;
  }
  for (u32 t : touched)
    if (!in_shared(w, pc, 0, t, elsize)) return;
  std::sort(touched.begin(), touched.end());
  for (size_t i = 0; i < touched.size();) {
    size_t j = i + 1;
    while (j < touched.size() && touched[j] <= touched[j - 1] + elsize) j++;
    u32 b = touched[i] - L.shared_base, e = touched[j - 1] + elsize - L.shared_base;
    job.reads.push_back({b, e});
    shared_read(w, pc, 0, b, e - b, true);
    if (checks)
      for (u32 k = b; k < e; k++) pending_reads[k]++;
    i = j;
  }
  for (int32_t r : job.registers) {
    w.reg_pending[r]++;
    w.n_pending++;
  }
  for (int32_t r : job.inputs) w.reg_input[r]++;
  bool now = lands_now();
  // Accumulation is ordered: earlier products must be complete.
  bool earlier = false;
  for (auto& g : w.mma_committed)
    for (auto& j : g) earlier |= !j.done;
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
    if (elsize == 4) {
      u32 v;
      memcpy(&v, p, 4);
      return as_f(v & ~0x1fffu);
    }
    uint16_t h;
    memcpy(&h, p, 2);
    return h2d(h, ty == T_BF16);
  };
  double A[16][16];
  static thread_local double B[256][16];
  u64 desc_a = job.desc_a, desc_b = job.desc_b;
  bool add = job.add;
  for (int n = 0; n < N; n++)
    for (int k = 0; k < K; k++)
      B[n][k] = value(desc_address(desc_b, n, k, elsize, in.imm3 & 4, ok));
  if (ra) {
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) {
        u32 v = job.snapshot[i][l];
        int row = l / 4 + 8 * (i & 1), t = l % 4;
        if (elsize == 4)
          A[row][t + 4 * (i >> 1)] = as_f(v & ~0x1fffu);
        else
          for (int h = 0; h < 2; h++)
            A[row][2 * t + h + 8 * (i >> 1)] = h2d(v >> (16 * h), ty == T_BF16);
      }
  } else {
    for (int r = 0; r < 16; r++)
      for (int k = 0; k < K; k++)
        A[r][k] = value(desc_address(desc_a, 16 * (w.id % 4) + r, k, elsize, in.imm3 & 2, ok));
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
  for (int32_t r : job.registers) {
    w.reg_pending[r]--;
    w.n_pending--;
  }
  for (int32_t r : job.inputs) w.reg_input[r]--;
  if (!checks) return;
  for (Span& s : job.reads)
    for (u32 k = s.begin; k < s.end; k++) {
      pending_reads[k]--;
      // Done with reading now: later writes need a barrier after this point.
      SShadow& h = sshadow[k];
      if (h.re != w.epoch) {
        h.re = w.epoch;
        h.rmask = 0;
      }
      h.rmask |= 1u << w.id;
      h.rpc = job.pc;
    }
}

// Checks an instruction that uses accumulators or operands of a pending product.
void Machine::touch_registers(Warp& w, const Ins& in, int pc) {
  if (in.op == WGMMA || in.op == WGMMA_FENCE || in.op == WGMMA_COMMIT || in.op == WGMMA_WAIT)
    return;
  auto look = [&](int32_t v) {
    if (v >= 0 && v < (int32_t)w.reg_pending.size() && w.reg_pending[v]) {
      int by = -1;
      for (auto& g : w.mma_committed)
        for (auto& j : g)
          for (auto r : j.registers)
            if (r == v) by = j.pc;
      for (auto& j : w.mma_open)
        for (auto r : j.registers)
          if (r == v) by = j.pc;
      report(WGMMA_REGISTER, pc, by, w.id, w.id, -1, -1, v);
    }
    // Overwrites an operand of a pending product; the assembler may rename the register.
    if (v >= 0 && v < (int32_t)w.reg_input.size() && w.reg_input[v])
      report(NOTE_WGMMA_INPUT, pc, -1, w.id, w.id, -1, -1, v);
  };
  // Operands that are registers: bits of `uses` say which of a[] are.
  int which = in.uses;
  for (int i = 0; i < 8; i++)
    if (which >> i & 1) look(in.a[i]);
  for (int i = 0;
       i < in.nx && (in.op == LD_GLOBAL || in.op == ST_GLOBAL || in.op == LD_SHARED ||
                     in.op == ST_SHARED || in.op == LDMATRIX || in.op == STMATRIX ||
                     in.op == PACK16 || in.op == PACK32 || in.op == UNPACK16 || in.op == UNPACK32);
       i++)
    look(L.pool[in.xo + i]);
}

void Machine::wgmma_wait(Warp& w, int left) {
  while ((int)w.mma_committed.size() > left) {
    for (Mma& j : w.mma_committed.front()) mma_done(w, j);
    w.mma_committed.erase(w.mma_committed.begin());
  }
}
