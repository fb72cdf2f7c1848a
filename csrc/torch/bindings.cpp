// The Python extension: a fast way to the operator, and what is no operator.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "torch/autograd.h"
#include "torch/memory.h"
#include "torch/packed.h"
#include "torch/watchers.h"

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
  PyErr_Format(PyExc_AttributeError, "'%s' object has no attribute 'dim'", Py_TYPE(object.ptr())->tp_name);
  throw py::error_already_set();
}

// False where one of the elements is no plain tensor. Throws what torch throws for one that is none.
template <class List>
bool read(py::handle from, bool are_states, List& to) {
  const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(from.ptr(), "expected Tensors"));
  if (!items) throw py::error_already_set();
  PyObject* const* const item = PySequence_Fast_ITEMS(items.ptr());
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(items.ptr());
  to.reserve(size_t(size));
  for (Py_ssize_t i = 0; i < size; ++i) {
    if (!THPVariable_Check(item[i])) {
      if (are_states) refuse(item[i]);
      PyErr_Format(PyExc_TypeError, "expected Tensor as element %zd in argument 2, but got %s", i,
                   Py_TYPE(item[i])->tp_name);
      throw py::error_already_set();
    }
    if (!is_exact(item[i])) return false;
    to.push_back(THPVariable_Unpack(item[i]));
  }
  return true;
}

// A call's tensors, and whether all of them are exact: what is not goes to the operator, where a subclass is
// asked.
struct Given {
  at::Tensor input;
  c10::SmallVector<at::Tensor, 2> hx;
  c10::SmallVector<at::Tensor, 4> params;
  rnnfused::Layout layout;
  bool exact;

  Given(py::handle x, py::handle states, py::handle weights, py::handle batch_sizes, py::handle lengths,
        py::handle resets) {
    if (!THPVariable_Check(x.ptr())) refuse(x);
    exact = is_exact(x) && read(states, true, hx) && read(weights, false, params) &&
            read_optional(batch_sizes, "batch_sizes", layout.batch_sizes) &&
            read_optional(lengths, "lengths", layout.lengths) &&
            read_optional(resets, "resets", layout.resets);
    if (exact) input = THPVariable_Unpack(x.ptr());
  }

 private:
  static bool read_optional(py::handle from, const char* name, rnnfused::OptionalTensor& to) {
    if (from.is_none()) return true;
    if (!THPVariable_Check(from.ptr())) {
      PyErr_Format(PyExc_TypeError, "%s: expected a tensor, got %s", name, Py_TYPE(from.ptr())->tp_name);
      throw py::error_already_set();
    }
    if (!is_exact(from)) return false;
    to = THPVariable_Unpack(from.ptr());
    return true;
  }
};

std::optional<Tensors> recurrent(std::string_view layer, const Given& given) {
  if (!given.exact) return std::nullopt;
  const rnnfused::Arguments arguments{rnnfused::layer_options(layer), given.input, given.hx, given.params,
                                      given.layout};
  if (rnnfused::somebody_watches(arguments)) return std::nullopt;
  std::optional<py::gil_scoped_release> release;
  if (!rnnfused::is_short(arguments)) release.emplace();
  return rnnfused::recurrent_unwatched(arguments);
}

// recurrent(layer, input, hx, params, batch_sizes, lengths, resets). Python calls it as it calls its own
// functions: pybind11's way would take as long as all checks of a small layer.
PyObject* recurrent_from_python(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  try {
    if (count != 7) {
      PyErr_Format(PyExc_TypeError, "recurrent() takes 7 positional arguments but %zd were given", count);
      return nullptr;
    }
    Py_ssize_t length = 0;
    const char* const layer = PyUnicode_AsUTF8AndSize(arguments[0], &length);
    if (!layer) return nullptr;
    std::optional<Tensors> found =
        recurrent({layer, size_t(length)},
                  Given(arguments[1], arguments[2], arguments[3], arguments[4], arguments[5], arguments[6]));
    if (!found) Py_RETURN_NONE;
    auto list = py::reinterpret_steal<py::object>(PyList_New(Py_ssize_t(found->size())));
    if (!list) return nullptr;
    for (size_t i = 0; i < found->size(); ++i) {
      PyObject* const wrapped = THPVariable_Wrap(std::move((*found)[i]));
      if (!wrapped) return nullptr;
      PyList_SET_ITEM(list.ptr(), Py_ssize_t(i), wrapped);
    }
    return list.release().ptr();
  } catch (...) {
    torch::translate_exception_to_python(std::current_exception());
    return nullptr;
  }
}

PyMethodDef recurrent_method{"recurrent",
                             reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&recurrent_from_python)),
                             METH_FASTCALL, nullptr};

std::optional<Tensors> frozen_forward(rnnfused::Frozen& frozen, py::handle input, const py::sequence& hx,
                                      py::handle batch_sizes, py::handle lengths, py::handle resets) {
  const Given given(input, hx, py::tuple(), batch_sizes, lengths, resets);
  if (!given.exact) return std::nullopt;
  const py::gil_scoped_release release;
  return frozen.forward(given.input, given.hx, given.layout);
}

// Throws what the operator would throw.
void check(const std::string& layer, py::handle input, const py::sequence& hx, const py::sequence& params,
           py::handle batch_sizes, py::handle lengths, py::handle resets) {
  const Given given(input, hx, params, batch_sizes, lengths, resets);
  if (given.exact) rnnfused::check_call(layer, given.input, given.hx, given.params, given.layout);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.attr("recurrent") = py::reinterpret_steal<py::object>(PyCFunction_New(&recurrent_method, nullptr));
  m.def("check", &check, py::arg("layer"), py::arg("input"), py::arg("hx"), py::arg("params"),
        py::arg("batch_sizes"), py::arg("lengths") = py::none(), py::arg("resets") = py::none());
  py::class_<rnnfused::Frozen>(m, "Frozen")
      .def(py::init<const std::string&, Tensors>(), py::arg("layer"), py::arg("params"))
      .def("forward", &frozen_forward, py::arg("input"), py::arg("hx"), py::arg("batch_sizes"),
           py::arg("lengths") = py::none(), py::arg("resets") = py::none());
  py::class_<rnnfused::Stepper>(m, "Stepper")
      .def(py::init<const std::string&, Tensors, Tensors, at::ScalarType, const rnnfused::Stepper*>(),
           py::arg("layer"), py::arg("params"), py::arg("hx"), py::arg("type"),
           py::arg("before") = py::none())
      .def("step", &rnnfused::Stepper::step, release(), py::arg("x"), py::arg("active") = py::none(),
           py::arg("out") = py::none())
      .def(
          "at_rest",
          [](rnnfused::Stepper& stepper, const py::function& body, bool writes) {
            // Who waits for a step must not keep the others from ending theirs.
            const py::gil_scoped_release without;
            stepper.at_rest(writes, [&] {
              const py::gil_scoped_acquire with;
              body();
            });
          },
          py::arg("body"), py::arg("writes"));
  m.def("cell_names", &rnnfused::cell_names);
  m.def("isa", &rnnfused::isa);
  m.def("available_isas", &rnnfused::available_isas);
  m.def("terms_at_once", &rnnfused::terms_at_once, py::arg("dtype"));
  m.def("scarcity", &rnnfused::scarcity);
  m.def("kept_bytes", &rnnfused::kept_bytes);
  m.def("empty_cache", &rnnfused::empty_cache);
  m.def("describe_plan", &rnnfused::describe_plan, py::arg("cell"), py::arg("steps"), py::arg("batch"),
        py::arg("input"), py::arg("hidden"), py::arg("output"), py::arg("layers"), py::arg("directions"),
        py::arg("dtype"));
}
