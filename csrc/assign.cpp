// The operation `setok::assign`: the nearest centre of every token.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "gram.h"
#include "tensors.h"

namespace setok {
namespace {

using torch::stable::Tensor;

template <class T>
void assign_image(const T* x, const bool* valid, const index_t* centres, index_t count,
                  index_t tokens, index_t dim, index_t* labels) {
  parallel_blocks(tokens, 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      labels[i] = -1;
      if (valid != nullptr && !valid[i]) continue;
      T least = std::numeric_limits<T>::infinity();
      for (index_t c = 0; c < count; ++c) {
        if (centres[c] < 0) continue;
        // A centre is its own, even where another one equals it.
        const T d =
            centres[c] == i ? T{-1} : squared_distance(x + i * dim, x + centres[c] * dim, dim);
        if (d < least) {
          least = d;
          labels[i] = c;
        }
      }
    }
  });
}

// x (B, N, D) float32 or float64, valid (B, N), centres (B, C) tokens, -1 where there is none.
// (B, N) number of the nearest centre, ties lowest number; -1 for masked tokens and without any.
Tensor assign(const Tensor& x, std::optional<Tensor> valid, const Tensor& centres) {
  STD_TORCH_CHECK(x.dim() == 3 && x.is_contiguous() && centres.is_contiguous(),
                  "expected contiguous x (B, N, D) and centres (B, C)");
  const index_t images = x.size(0), tokens = x.size(1), dim = x.size(2), count = centres.size(1);
  Tensor labels = empty_index({images, tokens});
  const auto* centre = static_cast<const index_t*>(centres.const_data_ptr());
  const auto* mask = valid ? static_cast<const bool*>(valid->const_data_ptr()) : nullptr;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto* from = static_cast<const T*>(x.const_data_ptr());
    for (index_t b = 0; b < images; ++b)
      assign_image(from + b * tokens * dim, mask == nullptr ? nullptr : mask + b * tokens,
                   centre + b * count, count, tokens, dim, data<index_t>(labels) + b * tokens);
  };
  const Dtype dtype = dtype_of(x);
  STD_TORCH_CHECK(dtype == Dtype::f64 || dtype == Dtype::f32, "x: expected float32 or float64");
  if (dtype == Dtype::f64)
    run(double{});
  else
    run(float{});
  return labels;
}

}  // namespace
}  // namespace setok

STABLE_TORCH_LIBRARY_IMPL(setok, CPU, m) { m.impl("assign", TORCH_BOX(&setok::assign)); }
