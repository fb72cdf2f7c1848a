// The Python extension: a fast way to the operator, and what is no operator.
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "torch/autograd.h"
#include "torch/memory.h"
#include "torch/packed.h"

namespace {

namespace py = pybind11;
using rnnfused::Tensors;

// Exactly a tensor or a parameter: a subclass may have its own idea of what it is called with.
bool is_exact(py::handle object) {
  static const py::object& parameter = *new py::object(py::module_::import("torch.nn").attr("Parameter"));
  return THPVariable_CheckExact(object.ptr()) || Py_TYPE(object.ptr()) == (PyTypeObject*)parameter.ptr();
}

// What Python says where torch.nn asks something that is no tensor for its dimensions.
[[noreturn]] void refuse(py::handle object) {
  throw py::attribute_error("'" + std::string(Py_TYPE(object.ptr())->tp_name) +
                            "' object has no attribute 'dim'");
}

// False where one of the elements is no plain tensor. Throws what torch throws for one that is none.
bool read(const py::sequence& from, bool are_states, Tensors& to) {
  const size_t size = py::len(from);
  to.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    const py::object item = from[i];
    if (!THPVariable_Check(item.ptr())) {
      if (are_states) refuse(item);
      throw py::type_error("expected Tensor as element " + std::to_string(i) + " in argument 2, but got " +
                           Py_TYPE(item.ptr())->tp_name);
    }
    if (!is_exact(item)) return false;
    to.push_back(THPVariable_Unpack(item.ptr()));
  }
  return true;
}

std::optional<Tensors> recurrent(const std::string& layer, py::handle input, const py::sequence& hx,
                                 const py::sequence& params, const std::optional<at::Tensor>& batch_sizes) {
  if (!THPVariable_Check(input.ptr())) refuse(input);
  Tensors states, weights;
  if (!read(hx, true, states) || !read(params, false, weights) || !is_exact(input)) return std::nullopt;
  const at::Tensor& x = THPVariable_Unpack(input.ptr());
  const py::gil_scoped_release release;
  return rnnfused::recurrent_unwatched(layer, x, states, weights, batch_sizes);
}

// Throws what the operator would throw. Tensors of which somebody has an idea of his own are left to it.
void check(const std::string& layer, const at::Tensor& input, const py::sequence& hx,
           const py::sequence& params, const std::optional<at::Tensor>& batch_sizes) {
  Tensors states, weights;
  if (!read(hx, true, states) || !read(params, false, weights)) return;
  rnnfused::check_call(layer, input, states, weights, batch_sizes);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("recurrent", &recurrent, py::arg("layer"), py::arg("input"), py::arg("hx"), py::arg("params"),
        py::arg("batch_sizes"));
  m.def("check", &check, py::arg("layer"), py::arg("input"), py::arg("hx"), py::arg("params"),
        py::arg("batch_sizes"));
  py::class_<rnnfused::Frozen>(m, "Frozen")
      .def(py::init<const std::string&, Tensors>(), py::arg("layer"), py::arg("params"))
      .def("forward", &rnnfused::Frozen::forward, release(), py::arg("input"), py::arg("hx"),
           py::arg("batch_sizes"));
  py::class_<rnnfused::Stepper>(m, "Stepper")
      .def(py::init<const std::string&, Tensors, Tensors>(), py::arg("layer"), py::arg("params"),
           py::arg("hx"))
      .def("step", &rnnfused::Stepper::step, release(), py::arg("x"));
  m.def("cell_names", &rnnfused::cell_names);
  m.def("isa", &rnnfused::isa);
  m.def("available_isas", &rnnfused::available_isas);
  m.def("kept_bytes", &rnnfused::kept_bytes);
  m.def("empty_cache", &rnnfused::empty_cache);
  m.def("describe_plan", &rnnfused::describe_plan, py::arg("cell"), py::arg("steps"), py::arg("batch"),
        py::arg("input"), py::arg("hidden"), py::arg("output"), py::arg("layers"), py::arg("directions"),
        py::arg("f64"));
}
