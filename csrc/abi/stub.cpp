// Stands for torch's library when ours is linked, and is never loaded: in a process the name is
// that of the torch already there.

#include <cstdlib>

#include "functions.h"

#define SETOK_DEFINE(result, name, arguments) \
  result name arguments { std::abort(); }
extern "C" {
SETOK_TORCH_FUNCTIONS(SETOK_DEFINE)
}
