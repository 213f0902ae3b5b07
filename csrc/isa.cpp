#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#include "simd/kernels.h"

// build.py compiles the kernels of the same sets (INSTRUCTION_SETS).
#if defined(__x86_64__) && !defined(__APPLE__)
#define SETOK_X86 1
#include <cpuid.h>
#endif

namespace setok {
namespace {

struct Set {
  const char* name;
  bool (*supported)();
  const Kernels<float>* single;
  const Kernels<double>* wide;
};

#ifdef SETOK_X86
// Queries the processor directly: the compilers' __builtin_cpu_supports needs their run-time
// library, and zig's always returns false.
struct Processor {
  unsigned maker = 0, first = 0, seventh = 0, more = 0, extended = 0, saved = 0;

  Processor() {
    unsigned a, b, c, d;
    if (__get_cpuid(0, &a, &b, &c, &d)) maker = b;
    if (__get_cpuid(1, &a, &b, &c, &d)) first = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) seventh = b;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) more = a;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d)) extended = c;
    // Registers that the operating system saves at a context switch.
    if (first & bit_OSXSAVE) __asm__("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
  }

  static bool all(unsigned value, unsigned bits) { return (value & bits) == bits; }

  bool avx2() const {
    return all(first, bit_AVX | bit_FMA | bit_F16C | bit_MOVBE | bit_POPCNT) &&
           all(seventh, bit_AVX2 | bit_BMI | bit_BMI2) && all(extended, bit_ABM) &&
           all(saved, 0x06);
  }

  bool avx512() const {
    return avx2() && all(saved, 0xe6) &&
           all(seventh, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
  }

  // Intel's processors have half as many units for bfloat16 as for float32, and gain nothing.
  bool avx512bf16() const { return avx512() && all(more, 1u << 5) && maker == signature_AMD_ebx; }
};
#endif

constexpr Set kSets[] = {
#ifdef SETOK_X86
    {"avx512bf16", [] { return Processor().avx512bf16(); }, &avx512bf16::kFloat,
     &avx512bf16::kDouble},
    {"avx512", [] { return Processor().avx512(); }, &avx512::kFloat, &avx512::kDouble},
    {"avx2", [] { return Processor().avx2(); }, &avx2::kFloat, &avx2::kDouble},
#endif
    {"baseline", [] { return true; }, &baseline::kFloat, &baseline::kDouble}};

const Set& find(const std::string& name) {
  for (const Set& set : kSets)
    if (set.name == name) return set;
  throw std::logic_error("no kernels for " + name);
}

const Set& in_use() {
  static const Set& chosen = find(choose_isa(std::getenv("SETOK_CPU_CAPABILITY"), cpu_isa()));
  return chosen;
}

}  // namespace

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Set& set : kSets) names.emplace_back(set.name);
  return names;
}

std::string cpu_isa() {
  for (const Set& set : kSets)
    if (set.supported()) return set.name;
  throw std::logic_error("the baseline is for every processor");
}

std::string choose_isa(const char* limit, const std::string& best) {
  if (limit == nullptr || *limit == '\0') return best;
  std::string usable;
  for (const Set* set = &find(best); set != std::end(kSets); ++set) {
    if (limit == std::string(set->name)) return limit;
    usable += (usable.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("SETOK_CPU_CAPABILITY: expected one of " + usable +
                              " on this processor, got '" + limit + "'");
}

std::string isa() { return in_use().name; }

template <>
const Kernels<float>& kernels() {
  return *in_use().single;
}

template <>
const Kernels<double>& kernels() {
  return *in_use().wide;
}

}  // namespace setok
