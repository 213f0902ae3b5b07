// Tensor maps: reading, checks, and creation by a program.
#include "lanes.h"

// The same order as in Python, engine.py.
enum MapFault {
  MAP_RANK,
  MAP_ELEMENT,
  MAP_ADDRESS,
  MAP_STRIDE,
  MAP_BOX,
  MAP_DIM,
  MAP_INNER,
  MAP_SWIZZLE,
  MAP_LAYOUT,
};

static const int ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4};
// By the mode of the swizzle: the width of its pattern.
static const int SWIZZLE_SPAN[] = {0, 32, 64, 128};

static int box_bytes(const TensorMap& map, int elem_bytes) {
  int64_t n = elem_bytes;
  for (uint32_t d = 0; d <= map.rank; d++) n *= map.box[d];
  return (int)n;
}

bool Machine::tensor_map(Warp& w, int pc, int lane, uint64_t address, TensorMap& map) {
  if (address % 64) report(MISALIGNED, pc, -1, w.id, -1, lane, -1, (int64_t)address);
  if (address >= (uint64_t)L.param_base &&
      address + 128 <= (uint64_t)(L.param_base + L.param_bytes)) {
    memcpy(&map, L.params + (address - L.param_base), sizeof map);
    return true;
  }
  Segment* s = in_global(w, pc, lane, address, 128, 64);
  if (!s) return false;
  int64_t offset = address - s->va;
  global_read(w, pc, lane, s, offset, 128);
  memcpy(&map, s->host + offset, sizeof map);
  return true;
}

bool Machine::check_map(Warp& w, int pc, int lane, int rank, Bulk& b) {
  const TensorMap& map = b.map;
  auto wrong = [&](MapFault fault) {
    report(TENSOR_MAP, pc, -1, w.id, -1, lane, -1, fault);
    return false;
  };
  if ((int)map.rank + 1 != rank) return wrong(MAP_RANK);
  if (map.elem >= sizeof ELEMENT_BYTES / sizeof *ELEMENT_BYTES) return wrong(MAP_ELEMENT);
  b.elem_bytes = ELEMENT_BYTES[map.elem];
  if (map.address % 16) return wrong(MAP_ADDRESS);
  for (int d = 0; d < rank; d++) {
    if (d + 1 < rank && (map.stride[d] % 16 || map.stride[d] >> 40)) return wrong(MAP_STRIDE);
    if (map.box[d] < 1 || map.box[d] > 256) return wrong(MAP_BOX);
    if (map.dim[d] < 1) return wrong(MAP_DIM);
    if (map.element_stride[d] != 1) return wrong(MAP_LAYOUT);
  }
  int inner = map.box[0] * b.elem_bytes;
  if (inner % 16) return wrong(MAP_INNER);
  if (map.swizzle > 3 || map.interleave || map.fill > 1) return wrong(MAP_LAYOUT);
  if (map.swizzle && inner != SWIZZLE_SPAN[map.swizzle]) return wrong(MAP_SWIZZLE);
  b.bytes = box_bytes(map, b.elem_bytes);
  return true;
}

// a: address, offset, value; imm: field, imm2: which dimension, imm3: the address has 64 bits
void Machine::map_replace(Warp& w, const Ins& in, int pc, uint32_t m) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(m >> lane & 1)) continue;
    uint32_t address =
        in.imm3 ? (uint32_t)((const uint64_t*)P(w, in.a[0]))[lane] : P(w, in.a[0])[lane];
    address += in.a[1];
    if (address % 128)
      report(MISALIGNED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
    if (address < L.shared_base || (int64_t)address + 128 > L.shared_base + L.shared_bytes) {
      report(OOB_SHARED, pc, -1, w.id, -1, lane, -1, (int64_t)address - L.shared_base);
      continue;
    }
    uint32_t offset = address - (uint32_t)L.shared_base;
    TensorMap* map = (TensorMap*)&shared[offset];
    void* fields[] = {&map->address,
                      &map->rank,
                      &map->box[in.imm2],
                      &map->dim[in.imm2],
                      &map->stride[in.imm2],
                      &map->element_stride[in.imm2],
                      &map->elem,
                      &map->interleave,
                      &map->swizzle,
                      &map->fill};
    bool wide = in.imm == 0 || in.imm == 4;
    uint8_t* to = (uint8_t*)fields[in.imm];
    shared_write(w, pc, lane, to - shared.data(), wide ? 8 : 4, nullptr);
    if (wide)
      memcpy(to, (const uint64_t*)P(w, in.a[2]) + lane, 8);
    else
      memcpy(to, P(w, in.a[2]) + lane, 4);
  }
}

// From shared memory into a tensor, by a whole warp; a: to, offset, from, offset
void Machine::map_copy(Warp& w, const Ins& in, int pc, uint32_t m) {
  if (m != FULL) report(WARP_SYNC, pc, -1, w.id, -1, -1, -1, (int64_t)m);
  int lane = __builtin_ctz(m);
  uint64_t to = ((const uint64_t*)P(w, in.a[0]))[lane] + (int64_t)in.a[1];
  uint32_t from =
      (uint32_t)((const uint64_t*)P(w, in.a[2]))[lane] + in.a[3] - (uint32_t)L.shared_base;
  if ((int64_t)from + 128 > L.shared_bytes) {
    report(OOB_SHARED, pc, -1, w.id, -1, lane, -1, from);
    return;
  }
  Segment* s = in_global(w, pc, lane, to, 128, 128);
  if (!s) return;
  shared_read(w, pc, lane, from, 128);
  global_write(w, pc, lane, s, to - s->va, 128, &shared[from], false);
  memcpy(s->host + (to - s->va), &shared[from], 128);
}
