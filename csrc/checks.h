// Checks of what an operation is given, whoever calls: a public function, a compiled graph that has
// read no value, or `torch.ops` itself. Each message names the argument, what was expected and what
// came. Checks run before the work, never inside it, so the first misfit is reported.

#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "tensors.h"

namespace setok {

using Dtypes = std::initializer_list<ScalarType>;

// Raises a ValueError in Python. Strings are put together by hand: the streams of newer compilers
// ask for a newer C++ library than old systems have.
[[noreturn]] void refuse(const char* name, const std::string& expected, const std::string& got);
[[noreturn]] void refuse(const char* name, const std::string& expected, int64_t got);
[[noreturn]] void refuse(const char* name, const std::string& expected, double got);

// `tensor` lies on the CPU, contiguous and with all of its storage, and has one of the dtypes and
// exactly this shape. An absent one fits.
void check_tensor(const char* name, const Tensor& tensor, Dtypes dtypes, const Shape& shape);
void check_tensor(const char* name, const Tensor* tensor, Dtypes dtypes, const Shape& shape);

// `value` is from `low` to `high`. A count is at least 1 and leaves room for shapes in 64 bits.
constexpr int64_t kMostCount = (int64_t{1} << 31) - 1;
void check_range(const char* name, int64_t value, int64_t low, int64_t high);
inline void check_count(const char* name, int64_t value) {
  check_range(name, value, 1, kMostCount);
}

// `value` is finite and at least `low`, or above it.
void check_number(const char* name, double value);
void check_at_least(const char* name, double value, double low);
void check_above(const char* name, double value, double low);

// All `count` indices are from `low` to `high`.
void check_indices(const char* name, const index_t* value, index_t count, index_t low,
                   index_t high);

// The images of tokens x (B, N, D) or (T, D) of any floating-point dtype, and which are valid.
Layout check_tokens(const Tensor& x, const Tensor* valid, const Tensor* cu_seqlens,
                    int64_t max_seqlen);

// Options of masks over tokens of `dim` features, whose results have the dtype `wide`.
Options check_options(const MaskOptions& given, index_t dim, const Tensor* learnable,
                      ScalarType wide);

// The four decisions about the images of `layout`, whose tokens have the shape `leading`.
void check_decisions(const Layout& layout, const Shape& leading, const Tensor& knn,
                     const Tensor& parent, const Tensor& seeds, const Tensor& counts, int64_t k,
                     int64_t max_clusters);

// A result with `rows` rows as merging reads it: labels (B, N) or (T,), and what belongs to each.
struct Members {
  const Tensor& labels;
  const Tensor& counts;
  const Tensor* masks;
  const Tensor* weights;
  const Tensor* cu_seqlens;
  int64_t max_seqlen, rows;
};

// The images of a result whose masks and weights have the dtype of the merged tokens.
Layout check_members(const Members& members, ScalarType dtype);

// Tokens x (..., D) for labels (...), in a dtype that merging accumulates in.
void check_merged(const Tensor& x, const Tensor& labels);

// Rows of a tensor (B, rows, D), whose other sizes are checked when the rows are known.
int64_t rows_of(const char* name, const Tensor& tensor);

// The images of a result whose rows `tokens` (B, rows, D) are spread over its tokens.
Layout check_spread(const Tensor& tokens, const Tensor& labels, const Tensor& counts,
                    const Tensor* masks, const Tensor* cu_seqlens, int64_t max_seqlen);

// Of masks with `rows` rows over these tokens.
Shape mask_shape(const Layout& layout, const Shape& leading, int64_t rows);

}  // namespace setok
