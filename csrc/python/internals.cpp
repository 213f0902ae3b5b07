// Optional module `setok_kernels._internals`: build information, and single kernels for tests and
// measurements. A wheel does not contain it.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../build_info.h"
#include "../density.h"
#include "../isa.h"
#include "../scope.h"
#include "../simd/kernels.h"

namespace py = pybind11;

namespace setok {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

constexpr size_t kAlignment = 64;

// Kernels need aligned operands; numpy's memory may be unaligned.
class Aligned {
 public:
  explicit Aligned(index_t count)
      : data_(static_cast<float*>(
            ::operator new(static_cast<size_t>(count) * sizeof(float), kAlign))) {}
  Aligned(const Floats& from) : Aligned(from.size()) {
    std::copy_n(from.data(), from.size(), data_);
  }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  ~Aligned() { ::operator delete(data_, kAlign); }

  float* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlign{kAlignment};
  float* data_;
};

void require(const char* name, const Floats& array, std::vector<index_t> shape) {
  const std::vector<index_t> got(array.shape(), array.shape() + array.ndim());
  bool fits = got.size() == shape.size();
  for (size_t at = 0; fits && at < shape.size(); ++at)
    fits = shape[at] < 0 ? got[at] > 0 : got[at] == shape[at];
  if (!fits) throw std::invalid_argument(std::string(name) + ": an array of another shape");
}

Floats array_of(const float* from, std::vector<py::ssize_t> shape) {
  return Floats(std::move(shape), from);
}

py::dict info() {
  const BuildInfo info = build_info();
  py::dict fields;
  fields["compiler"] = info.compiler;
  fields["cxx_standard"] = info.cxx_standard;
  fields["openmp"] = info.openmp;
  fields["isas"] = info.isas;
  fields["isa"] = info.isa;
  return fields;
}

Floats pack(const Floats& x) {
  require("x", x, {-1, -1});
  const index_t count = x.shape(0), dim = x.shape(1);
  if (count > kPanel) throw std::invalid_argument("x: more tokens than a panel has");
  const Aligned packed(dim * kPanel);
  kernels<float>().pack_panel(x.data(), dim, count, dim, packed.data());
  return array_of(packed.data(), {dim, kPanel});
}

Floats multiply(const Floats& a, const Floats& b, index_t repeats) {
  require("a", a, {-1, kPanel});
  require("b", b, {a.shape(0), kPanel});
  const Aligned left(a), right(b), tile(kPanel * kPanel);
  for (index_t again = 0; again < repeats; ++again)
    kernels<float>().multiply_panels(left.data(), right.data(), a.shape(0), tile.data(), kPanel);
  return array_of(tile.data(), {kPanel, kPanel});
}

std::optional<Floats> multiply_bf16(const Floats& a, const Floats& b) {
  require("a", a, {-1, -1});
  require("b", b, {-1, a.shape(1)});
  if (a.shape(0) > kPanel || b.shape(0) > kPanel)
    throw std::invalid_argument("a, b: more tokens than a panel has");
  if (kernels<float>().multiply_bf16 == nullptr) return std::nullopt;
  const index_t dim = a.shape(1);
  const Aligned left(dim * kPanel), right(dim * kPanel), tile(kPanel * kPanel);
  for (const auto& [x, packed] : {std::pair(&a, &left), std::pair(&b, &right)}) {
    kernels<float>().pack_bf16(x->data(), dim, x->shape(0), dim, packed->data());
  }
  kernels<float>().multiply_bf16(left.data(), right.data(), dim, tile.data(), kPanel);
  return array_of(tile.data(), {kPanel, kPanel});
}

py::array_t<index_t> nearest(const Floats& row, index_t token, index_t k, bool include_self) {
  require("row", row, {-1});
  const index_t n = row.size();
  if (k < 1) throw std::invalid_argument("k: expected at least 1");
  if (token < 0 || token >= n) throw std::invalid_argument("token: outside of the row");
  std::vector<float> distance(padded(n), kFar<float>);
  std::copy_n(row.data(), n, distance.begin());
  std::vector<int32_t> candidate(padded(n) + kLanes);
  py::array_t<index_t> knn(k);
  nearest_in_row(distance.data(), n, token, k, include_self, knn.mutable_data(), candidate.data());
  return knn;
}

std::tuple<Floats, Floats, float> scope_step_of(const Floats& row, const Floats& score,
                                                const Floats& scope, double bandwidth, double beta,
                                                double temperature, double offset) {
  require("row", row, {-1});
  require("score", score, {row.size()});
  require("scope", scope, {row.size()});
  const index_t n = row.size(), width = padded(n);
  std::vector<float> in[3], out[3];
  const Floats* const given[3] = {&row, &score, &scope};
  for (int at = 0; at < 3; ++at) {
    in[at].assign(width, 0);
    std::copy_n(given[at]->data(), n, in[at].begin());
    out[at].assign(width, 0);
  }
  ScopeState<float> state{};
  state.width = width;
  state.sigma = 1;
  state.score = in[1].data();
  state.scope = in[2].data();
  state.threshold = out[0].data();
  state.mask = out[1].data();
  state.next = out[2].data();
  Options options{};
  options.bandwidth = bandwidth;
  options.beta = beta;
  options.temperature = temperature;
  options.offset = offset;
  set_options(state, options);
  const float mass =
      kernels<float>().scope_step(state, Kernel::gaussian, Alpha::sigmoid, in[0].data());
  return {array_of(state.mask, {n}), array_of(state.next, {n}), mass};
}

}  // namespace
}  // namespace setok

PYBIND11_MODULE(_internals, m) {
  m.doc() = "Build information of setok_kernels, and kernels inside of its operators.";
  m.def("build_info", &setok::info,
        "Compiler, C++ standard, OpenMP, instruction sets of the kernels and the one in use.");
  m.def("cpu_isa", &setok::cpu_isa,
        "Best of avx512bf16, avx512, avx2 and baseline that this processor supports.");
  m.def(
      "choose_isa",
      [](const std::string& limit, const std::string& best) {
        return setok::choose_isa(limit.c_str(), best);
      },
      "Instruction set for a value of SETOK_CPU_CAPABILITY and the best of the processor.");
  m.def("pack_panel", &setok::pack, py::arg("x"),
        "x (count, D) of at most 32 tokens as a panel (D, 32), zeros behind the last.");
  m.def("multiply_panels", &setok::multiply, py::arg("a"), py::arg("b"), py::arg("repeats") = 1,
        "Inner products (32, 32) of the tokens of two panels (D, 32), `repeats` times for timing.");
  m.def("multiply_bf16", &setok::multiply_bf16, py::arg("a"), py::arg("b"),
        "Inner products (32, 32) of at most 32 tokens (count, D) each, whose features are bfloat16 "
        "numbers; None without instructions for them.");
  m.def("nearest_in_row", &setok::nearest, py::arg("row"), py::arg("token"), py::arg("k"),
        py::arg("include_self") = true,
        "The k nearest tokens of one, from its row of distances (N,), -1 behind the last.");
  m.def("scope_step", &setok::scope_step_of, py::arg("row"), py::arg("score"), py::arg("scope"),
        py::arg("bandwidth"), py::arg("beta"), py::arg("temperature"), py::arg("offset"),
        "Mask and next scope, both (N,), of a step of Algorithm 1 with a gaussian kernel and a "
        "sigmoid alpha, and the sum of the mask; from the distances of the seed, the score and the "
        "scope, all (N,).");
}
