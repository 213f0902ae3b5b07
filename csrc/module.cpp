#include <pybind11/pybind11.h>

#include "build_info.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU part of setok_kernels.";

  m.def(
      "build_info",
      [] {
        const setok::BuildInfo info = setok::build_info();
        py::dict fields;
        fields["compiler"] = info.compiler;
        fields["cxx_standard"] = info.cxx_standard;
        fields["openmp"] = info.openmp;
        fields["isa"] = info.isa;
        fields["clones"] = info.clones;
        return fields;
      },
      "Compiler, C++ standard, OpenMP, instruction set and clones for others of this module.");

  m.def("cpu_isa", &setok::cpu_isa,
        "Best of avx512, avx2 and baseline that this processor supports.");
}
