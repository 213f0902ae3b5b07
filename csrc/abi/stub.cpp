// Link-time stand-in for torch's library. It is never loaded: at run time the name resolves to the
// torch of the process.

#include <cstdlib>

#include "functions.h"

#define SETOK_DEFINE(result, name, arguments) \
  result name arguments { std::abort(); }
extern "C" {
SETOK_TORCH_FUNCTIONS(SETOK_DEFINE)
}
