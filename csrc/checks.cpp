#include "checks.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>

namespace setok {
namespace {

constexpr Dtypes kFloats = {ScalarType::Double, ScalarType::Float, ScalarType::BFloat16,
                            ScalarType::Half};
constexpr Dtypes kWide = {ScalarType::Double, ScalarType::Float};
constexpr Dtypes kOffsets = {ScalarType::Int, ScalarType::Long};

std::string names_of(Dtypes dtypes) {
  std::string names;
  for (const ScalarType* dtype = dtypes.begin(); dtype != dtypes.end(); ++dtype) {
    if (dtype != dtypes.begin()) names += dtype + 1 == dtypes.end() ? " or " : ", ";
    names += name_of(*dtype);
  }
  return names;
}

// Formats sizes like a Python tuple.
std::string text_of(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::string between(int64_t low, int64_t high) {
  return "from " + std::to_string(low) + " to " + std::to_string(high);
}

// Sharded training may free the storage of a tensor but keep its shape.
bool has_storage(const Tensor& tensor) {
  const int64_t last = tensor.storage_offset() + tensor.numel();
  return tensor.storage_size() >= last * tensor.element_size();
}

// Checks the weights of the tokens i with counts(i); the others are never read.
template <class T, class F>
void check_weights(const char* name, const T* weight, index_t count, const F& counts) {
  // NaN fails the comparison.
  const auto fits = [=](T value) { return value >= 0 && value <= std::numeric_limits<T>::max(); };
  for (index_t i = 0; i < count; ++i)
    if (counts(i) && !fits(weight[i]))
      refuse(name, "finite values of at least 0", static_cast<double>(weight[i]));
}

// Image offsets of tokens of shape `leading`.
Layout check_layout(const Shape& leading, const Tensor* cu_seqlens, int64_t max_seqlen) {
  if (cu_seqlens) {
    const Shape shape = shape_of(*cu_seqlens);
    if (shape.size() != 1 || shape[0] < 1) refuse("cu_seqlens", "shape (B + 1,)", text_of(shape));
    check_tensor("cu_seqlens", cu_seqlens, kOffsets, shape);
  }
  const Layout layout(leading, cu_seqlens);
  const std::vector<index_t>& start = layout.start;
  const auto fall = std::adjacent_find(start.begin(), start.end(), std::greater<>());
  if (fall != start.end())
    refuse("cu_seqlens", "non-decreasing offsets",
           std::to_string(fall[0]) + " before " + std::to_string(fall[1]));
  if (cu_seqlens && (start.front() != 0 || start.back() != leading[0]))
    refuse("cu_seqlens", "offsets " + between(0, leading[0]), between(start.front(), start.back()));
  for (index_t b = 0; b < layout.images(); ++b)
    if (layout.tokens(b) > max_seqlen)
      refuse("max_seqlen", "at least " + std::to_string(layout.tokens(b)), max_seqlen);
  return layout;
}

}  // namespace

void refuse(const char* name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + got);
}
void refuse(const char* name, const std::string& expected, int64_t got) {
  refuse(name, expected, std::to_string(got));
}
void refuse(const char* name, const std::string& expected, double got) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", got);
  refuse(name, expected, std::string(text));
}

void check_tensor(const char* name, const Tensor& tensor, Dtypes dtypes, const Shape& shape) {
  if (!tensor.is_cpu()) refuse(name, "a tensor on the CPU", "one on another device");
  const ScalarType dtype = tensor.scalar_type();
  if (std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end())
    refuse(name, "dtype " + names_of(dtypes), name_of(dtype));
  const auto sizes = tensor.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()))
    refuse(name, "shape " + text_of(shape), text_of(shape_of(tensor)));
  if (!tensor.is_contiguous())
    refuse(name, "a contiguous tensor",
           "strides " + text_of({tensor.strides().begin(), tensor.strides().end()}));
  if (!has_storage(tensor)) refuse(name, "a tensor with its storage", "one whose storage is freed");
}

void check_tensor(const char* name, const Tensor* tensor, Dtypes dtypes, const Shape& shape) {
  if (tensor) check_tensor(name, *tensor, dtypes, shape);
}

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) refuse(name, "a value " + between(low, high), value);
}

void check_number(const char* name, double value) {
  if (!std::isfinite(value)) refuse(name, "a finite number", value);
}

void check_at_least(const char* name, double value, double low) {
  check_number(name, value);
  if (value < low) refuse(name, "at least " + std::to_string(static_cast<int64_t>(low)), value);
}

void check_above(const char* name, double value, double low) {
  check_number(name, value);
  if (value <= low) refuse(name, "more than " + std::to_string(static_cast<int64_t>(low)), value);
}

void check_indices(const char* name, const index_t* value, index_t count, index_t low,
                   index_t high) {
  const index_t* misfit =
      std::find_if(value, value + count, [=](index_t v) { return v < low || v > high; });
  if (misfit != value + count) refuse(name, "values " + between(low, high), *misfit);
}

Layout check_tokens(const Tensor& x, const Tensor* valid, const Tensor* cu_seqlens,
                    int64_t max_seqlen) {
  const Shape shape = shape_of(x);
  if (shape.size() != (cu_seqlens ? 2 : 3))
    refuse("x", cu_seqlens ? "shape (T, D) with cu_seqlens" : "shape (B, N, D)", text_of(shape));
  check_tensor("x", x, kFloats, shape);
  if (shape.back() < 1) refuse("x", "at least 1 feature", "shape " + text_of(shape));
  const Shape leading(shape.begin(), shape.end() - 1);
  check_tensor("valid", valid, {ScalarType::Bool}, leading);
  return check_layout(leading, cu_seqlens, max_seqlen);
}

void check_importance(const Tensor* importance, const Tensor* valid, ScalarType wide,
                      const Shape& leading) {
  if (importance == nullptr) return;
  check_tensor("importance", *importance, {wide}, leading);
  const bool* mask = values<bool>(valid, 0);
  for_type_of(*importance, [&](auto zero) {
    check_weights("importance", values<decltype(zero)>(*importance), importance->numel(),
                  [=](index_t i) { return mask == nullptr || mask[i]; });
  });
}

void check_budget(const Tensor* budget, index_t images, int64_t high) {
  if (budget == nullptr) return;
  check_tensor("budget", *budget, {ScalarType::Long}, {images});
  check_indices("budget", values<index_t>(*budget), images, 0, high);
}

Options check_options(const MaskOptions& given, index_t dim, const Tensor* learnable,
                      ScalarType wide) {
  check_tensor("learnable", learnable, {wide}, {4});
  check_range("kernel", given.kernel, 0, static_cast<int64_t>(Kernel::epanechnikov));
  check_range("alpha", given.alpha, 0, static_cast<int64_t>(Alpha::kernel));
  check_range("scale", given.scale, 0, static_cast<int64_t>(GivenScale::number));
  const Options options = given.options(dim, learnable);
  check_above("bandwidth", options.bandwidth, 0);
  check_number("beta", options.beta);
  check_above("temperature", options.temperature, 0);
  check_number("offset", options.offset);
  if (static_cast<GivenScale>(given.scale) == GivenScale::number)
    check_above("factor", given.factor, 0);
  return options;
}

void check_decisions(const Layout& layout, const Shape& leading, const Tensor& knn,
                     const Tensor& parent, const Tensor& seeds, const Tensor& counts, int64_t k,
                     int64_t max_clusters) {
  const index_t images = layout.images();
  Shape neighbours = leading;
  neighbours.push_back(k);
  check_tensor("knn", knn, {ScalarType::Long}, neighbours);
  check_tensor("parent", parent, {ScalarType::Long}, leading);
  check_tensor("seeds", seeds, {ScalarType::Long}, {images, max_clusters});
  check_tensor("counts", counts, {ScalarType::Long}, {images});
  for (index_t b = 0; b < images; ++b) {
    const index_t start = layout.start[b], tokens = layout.tokens(b);
    check_indices("knn", values<index_t>(knn) + start * k, tokens * k, -1, tokens - 1);
    check_indices("parent", values<index_t>(parent) + start, tokens, -1, tokens - 1);
    check_indices("seeds", values<index_t>(seeds) + b * max_clusters, max_clusters, -1, tokens - 1);
  }
  check_indices("counts", values<index_t>(counts), images, 0, max_clusters);
}

Layout check_members(const Members& members, ScalarType dtype) {
  const Shape leading = shape_of(members.labels);
  if (leading.size() != (members.cu_seqlens ? 1 : 2))
    refuse("labels", members.cu_seqlens ? "shape (T,) with cu_seqlens" : "shape (B, N)",
           text_of(leading));
  check_tensor("labels", members.labels, {ScalarType::Long}, leading);
  const Layout layout = check_layout(leading, members.cu_seqlens, members.max_seqlen);
  const int64_t rows = members.rows;
  check_range("rows", rows, 0, kMostCount);
  check_tensor("counts", members.counts, {ScalarType::Long}, {layout.images()});
  check_tensor("masks", members.masks, {dtype}, mask_shape(layout, leading, rows));
  check_tensor("weights", members.weights, {dtype}, leading);
  const auto* labels = values<index_t>(members.labels);
  check_indices("labels", labels, members.labels.numel(), -1, rows - 1);
  // Masks have one more row for the residual.
  check_indices("counts", values<index_t>(members.counts), layout.images(), 0,
                members.masks ? rows - 1 : rows);
  if (members.weights)
    for_type_of(*members.weights, [&](auto zero) {
      check_weights("weights", values<decltype(zero)>(*members.weights), members.labels.numel(),
                    [=](index_t i) { return labels[i] >= 0; });
    });
  return layout;
}

void check_merged(const Tensor& x, const Tensor& labels) {
  check_tensor("x", x, kWide, feature_shape(labels, x.dim() > 0 ? x.size(-1) : 1));
}

int64_t rows_of(const char* name, const Tensor& tensor) {
  const Shape shape = shape_of(tensor);
  if (shape.size() != 3) refuse(name, "shape (B, rows, D)", text_of(shape));
  return shape[1];
}

Layout check_spread(const Tensor& tokens, const Tensor& labels, const Tensor& counts,
                    const Tensor* masks, const Tensor* cu_seqlens, int64_t max_seqlen) {
  const int64_t rows = rows_of("tokens", tokens);
  const Layout layout = check_members(
      {labels, counts, masks, nullptr, cu_seqlens, max_seqlen, rows}, wide_of(tokens));
  check_tensor("tokens", tokens, kWide, {layout.images(), rows, tokens.size(-1)});
  return layout;
}

Shape mask_shape(const Layout& layout, const Shape& leading, int64_t rows) {
  if (layout.packed) return {rows, leading[0]};
  return {leading[0], rows, leading[1]};
}

}  // namespace setok
