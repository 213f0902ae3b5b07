#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"
#include "isa.h"

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
        fields["isas"] = info.isas;
        fields["isa"] = info.isa;
        return fields;
      },
      "Compiler, C++ standard, OpenMP, instruction sets of the kernels and the one in use.");

  m.def("cpu_isa", &setok::cpu_isa,
        "Best of avx512, avx2 and baseline that this processor supports.");

  m.def(
      "choose_isa",
      [](const std::string& limit, const std::string& best) {
        return setok::choose_isa(limit.c_str(), best);
      },
      "Instruction set for a value of SETOK_CPU_CAPABILITY and the best of the processor.");
}
