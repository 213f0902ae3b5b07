// Stands for torch's library when ours is linked, and is never loaded: in a process the name is
// that of the torch already there.

#include <cstdlib>

#include "functions.h"

#ifdef _WIN32
#define SETOK_EXPORT __declspec(dllexport)
#else
#define SETOK_EXPORT __attribute__((visibility("default")))
#endif
#define SETOK_DEFINE(result, name, arguments) \
  SETOK_EXPORT result name arguments { std::abort(); }
extern "C" {
SETOK_TORCH_FUNCTIONS(SETOK_DEFINE)
}
