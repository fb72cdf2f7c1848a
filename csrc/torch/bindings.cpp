#include <torch/csrc/utils/pybind.h>

#include "torch/memory.h"
#include "torch/ops.h"
#include "torch/packed.h"

namespace rnnfused {
void bind_tangents(pybind11::module_& m);  // tangents_bindings.cpp
}

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("layer_forward", &rnnfused::layer_forward, release(), py::arg("cell"), py::arg("x"), py::arg("h0"),
        py::arg("c0"), py::arg("weights"), py::arg("batch_sizes"), py::arg("save"), py::arg("recompute"));
  m.def("layer_backward", &rnnfused::layer_backward, release(), py::arg("cell"), py::arg("x"), py::arg("h0"),
        py::arg("c0"), py::arg("weights"), py::arg("batch_sizes"), py::arg("y"), py::arg("tape"),
        py::arg("dy"), py::arg("dhn"), py::arg("dcn"), py::arg("wanted"), py::arg("recompute"));
  m.def("stack_forward", &rnnfused::stack_forward, release(), py::arg("cell"), py::arg("x"), py::arg("h0"),
        py::arg("c0"), py::arg("params"), py::arg("batch_sizes"), py::arg("has_biases"), py::arg("layers"),
        py::arg("bidirectional"), py::arg("batch_first"));
  m.def("check_input", &rnnfused::check_input, py::arg("x"));
  py::class_<rnnfused::Frozen>(m, "Frozen")
      .def(py::init<std::string, std::vector<at::Tensor>, bool, int64_t, bool>(), py::arg("cell"),
           py::arg("params"), py::arg("has_biases"), py::arg("layers"), py::arg("bidirectional"))
      .def("forward", &rnnfused::Frozen::forward, release(), py::arg("x"), py::arg("h0"), py::arg("c0"),
           py::arg("batch_sizes"), py::arg("batch_first"));
  py::class_<rnnfused::Stepper>(m, "Stepper")
      .def(py::init<const std::string&, const std::vector<at::Tensor>&, const at::Tensor&,
                    const std::optional<at::Tensor>&, bool>(),
           py::arg("cell"), py::arg("params"), py::arg("h"), py::arg("c"), py::arg("has_biases"))
      .def("step", &rnnfused::Stepper::step, release(), py::arg("x"));
  m.def("cell_names", &rnnfused::cell_names);
  m.def("isa", &rnnfused::isa);
  m.def("available_isas", &rnnfused::available_isas);
  m.def("kept_bytes", &rnnfused::kept_bytes);
  m.def("empty_cache", &rnnfused::empty_cache);
  m.def("describe_plan", &rnnfused::describe_plan, py::arg("cell"), py::arg("steps"), py::arg("batch"),
        py::arg("input"), py::arg("hidden"), py::arg("output"), py::arg("layers"), py::arg("directions"),
        py::arg("f64"));
  rnnfused::bind_tangents(m);
}
