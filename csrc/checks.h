// Checks of an operation's arguments, for every caller: a public function, a compiled graph (which
// reads no value), or `torch.ops` itself. Each message has the argument, the expected value and the
// actual one. Checks run before the computation, so the first misfit is reported.

#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "tensors.h"

namespace setok {

using Dtypes = std::initializer_list<ScalarType>;

// Raises a ValueError in Python. Strings are concatenated by hand: the streams of newer compilers
// need a newer C++ library than old systems have.
[[noreturn]] void refuse(const char* name, const std::string& expected, const std::string& got);
[[noreturn]] void refuse(const char* name, const std::string& expected, int64_t got);
[[noreturn]] void refuse(const char* name, const std::string& expected, double got);

// Checks that `tensor` is on the CPU, contiguous, with its storage, one of the dtypes and exactly
// this shape. An absent tensor passes.
void check_tensor(const char* name, const Tensor& tensor, Dtypes dtypes, const Shape& shape);
void check_tensor(const char* name, const Tensor* tensor, Dtypes dtypes, const Shape& shape);

// Checks that `value` is in [low, high]. A count is at least 1 and small enough for 64-bit shapes.
constexpr int64_t kMostCount = (int64_t{1} << 31) - 1;
void check_range(const char* name, int64_t value, int64_t low, int64_t high);
inline void check_count(const char* name, int64_t value) {
  check_range(name, value, 1, kMostCount);
}

// Checks that `value` is finite and at least `low`, or above it.
void check_number(const char* name, double value);
void check_at_least(const char* name, double value, double low);
void check_above(const char* name, double value, double low);

// Checks that all `count` indices are in [low, high].
void check_indices(const char* name, const index_t* value, index_t count, index_t low,
                   index_t high);

// Checks tokens x (B, N, D) or (T, D) of any floating-point dtype with their validity, and returns
// the image offsets.
Layout check_tokens(const Tensor& x, const Tensor* valid, const Tensor* cu_seqlens,
                    int64_t max_seqlen);

// Checks the weights of tokens of the shape `leading`: of the dtype `wide`, and for valid tokens
// finite and at least 0.
void check_importance(const Tensor* importance, const Tensor* valid, ScalarType wide,
                      const Shape& leading);

// Checks the maximum number of clusters of each image, from 0 to `high`.
void check_budget(const Tensor* budget, index_t images, int64_t high);

// Checks the options of masks over tokens of `dim` features, for results of the dtype `wide`.
Options check_options(const MaskOptions& given, index_t dim, const Tensor* learnable,
                      ScalarType wide);

// Checks the four decisions on the images of `layout`, whose tokens have the shape `leading`.
void check_decisions(const Layout& layout, const Shape& leading, const Tensor& knn,
                     const Tensor& parent, const Tensor& seeds, const Tensor& counts, int64_t k,
                     int64_t max_clusters);

// Operands of a merge with `rows` rows: labels (B, N) or (T,), with counts, masks and weights.
struct Members {
  const Tensor& labels;
  const Tensor& counts;
  const Tensor* masks;
  const Tensor* weights;
  const Tensor* cu_seqlens;
  int64_t max_seqlen, rows;
};

// Checks a result whose masks and weights have the dtype of the merged tokens.
Layout check_members(const Members& members, ScalarType dtype);

// Checks tokens x (..., D) for labels (...), in a dtype of the merge's accumulation.
void check_merged(const Tensor& x, const Tensor& labels);

// Returns the rows of a tensor (B, rows, D); its other sizes are checked later.
int64_t rows_of(const char* name, const Tensor& tensor);

// Checks a result whose rows `tokens` (B, rows, D) are spread over its tokens.
Layout check_spread(const Tensor& tokens, const Tensor& labels, const Tensor& counts,
                    const Tensor* masks, const Tensor* cu_seqlens, int64_t max_seqlen);

// Shape of masks with `rows` rows over these tokens.
Shape mask_shape(const Layout& layout, const Shape& leading, int64_t rows);

}  // namespace setok
