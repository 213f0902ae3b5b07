#include "operators.h"

#include "abi/library.h"

// Several versions in one process have different namespaces.
#define SETOK_TEXT_OF(name) #name
#define SETOK_TEXT(name) SETOK_TEXT_OF(name)
#ifdef TORCH_EXTENSION_NAME
#define SETOK_NAMESPACE SETOK_TEXT(TORCH_EXTENSION_NAME)
#else
#define SETOK_NAMESPACE "setok"
#endif

namespace setok {
namespace {

const Library kOperators(SETOK_NAMESPACE, "CPU",
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
