// Operators `torch.ops.setok.…` on the CPU; their schemas, shapes and gradients are in
// setok_kernels/ops.py. Tensors are contiguous; an absent optional tensor is null. A misfit raises
// an error with the name of the argument.

#pragma once

#include <array>

#include "abi/tensor.h"

namespace setok {

std::array<Tensor, 10> cluster(const Tensor& x, const Tensor* valid, const Tensor* importance,
                               const Tensor* budget, const Tensor* cu_seqlens, int64_t max_seqlen,
                               const Tensor* knn, const Tensor* parent, const Tensor* seeds,
                               const Tensor* counts, const Tensor* learnable, int64_t kernel,
                               int64_t alpha, double bandwidth, double beta, double temperature,
                               double offset, int64_t scale, double factor, bool score_norm_max,
                               int64_t k, int64_t max_clusters, bool distinct_seeds,
                               bool include_self, bool exact, double stop_residual, double min_mass,
                               int64_t dense_limit);

std::array<Tensor, 3> cluster_backward(
    const Tensor& x, const Tensor* valid, const Tensor* importance, const Tensor* cu_seqlens,
    int64_t max_seqlen, const Tensor& knn, const Tensor& parent, const Tensor& seeds,
    const Tensor& counts, const Tensor& masks, const Tensor& density, const Tensor& delta,
    const Tensor& score, const Tensor* grad_masks, const Tensor* grad_density,
    const Tensor* grad_delta, const Tensor* grad_score, const Tensor* saved,
    const Tensor* learnable, int64_t kernel, int64_t alpha, double bandwidth, double beta,
    double temperature, double offset, int64_t scale, double factor, bool score_norm_max);

Tensor merge(const Tensor& x, const Tensor* masks, const Tensor& labels, const Tensor& counts,
             const Tensor* weights, const Tensor* cu_seqlens, int64_t max_seqlen, int64_t rows,
             double eps);

Tensor unmerge(const Tensor& tokens, const Tensor* masks, const Tensor& labels,
               const Tensor& counts, const Tensor* cu_seqlens, int64_t max_seqlen);

std::array<Tensor, 3> merge_backward(const Tensor& grad, const Tensor& x, const Tensor* masks,
                                     const Tensor& labels, const Tensor& counts,
                                     const Tensor* weights, const Tensor* cu_seqlens,
                                     int64_t max_seqlen, double eps, bool need_masks);

std::array<Tensor, 2> unmerge_backward(const Tensor& grad, const Tensor& tokens,
                                       const Tensor* masks, const Tensor& labels,
                                       const Tensor& counts, const Tensor* cu_seqlens,
                                       int64_t max_seqlen, bool need_masks);

std::array<Tensor, 8> dpc_knn(const Tensor& x, const Tensor* valid, const Tensor* cu_seqlens,
                              int64_t max_seqlen, const Tensor* noise, const Tensor* importance,
                              const Tensor* budget, int64_t k, int64_t num_clusters,
                              double threshold, int64_t min_clusters, bool by_index, bool capped,
                              int64_t dense_limit);

std::array<Tensor, 3> threshold_greedy(const Tensor& x, const Tensor* valid,
                                       const Tensor* cu_seqlens, int64_t max_seqlen,
                                       double threshold);
}  // namespace setok
