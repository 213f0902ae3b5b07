#include "operators.h"

#include "abi/library.h"

namespace setok {
namespace {

const Library kOperators("setok", "CPU",
                         {{"cluster", Boxed<cluster>::call},
                          {"cluster_backward", Boxed<cluster_backward>::call},
                          {"merge", Boxed<merge>::call},
                          {"merge_backward", Boxed<merge_backward>::call},
                          {"unmerge", Boxed<unmerge>::call},
                          {"unmerge_backward", Boxed<unmerge_backward>::call},
                          {"dpc_knn", Boxed<dpc_knn>::call},
                          {"threshold_greedy", Boxed<threshold_greedy>::call}});

}  // namespace
}  // namespace setok
