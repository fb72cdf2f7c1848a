"""What torch's compiler is shown: layers that are torch.nn's by type, and that it may trace all the same.

Dynamo, the front of torch.compile, breaks the graph at every instance of torch.nn.RNN, LSTM and GRU, whose
own forward would compile into one step after another. It asks isinstance and the switch
torch._dynamo.config.allow_rnn, nothing else. rnnfused's layers are such instances, yet one operation to a
compiler. The switch holds for the whole process: left on it changes how torch.nn's own layers compile (on
torch 2.13 their training on the CPU then fails), so it is on only while Dynamo looks at one of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["admit"]

# Where Dynamo looks at a layer: VariableBuilder.wrap_module.
_BUILDER = "torch._dynamo.variables.builder"


def admit(base: type) -> None:
    """Lets Dynamo trace instances of `base`, which are recurrent layers of torch.nn's by type.

    Dynamo is not imported, which takes as long as importing torch: it is changed when somebody imports it.
    """
    if _BUILDER in sys.modules:
        _teach(sys.modules[_BUILDER], base)
    else:
        sys.meta_path.insert(0, _AfterImport(base))


def _teach(builder: ModuleType, base: type) -> None:
    from torch._dynamo import config

    wrap = getattr(builder.VariableBuilder, "wrap_module", None)
    if wrap is None or not hasattr(config, "allow_rnn"):
        return  # a torch that asks in another way: where that matters, fullgraph=True says so

    def wrap_module(self: Any, value: Any) -> Any:
        if isinstance(value, base):
            with config.patch(allow_rnn=True):
                return wrap(self, value)
        return wrap(self, value)

    builder.VariableBuilder.wrap_module = wrap_module


class _AfterImport(MetaPathFinder):
    """Leaves every import to the other finders, and changes Dynamo's builder as soon as it is imported."""

    def __init__(self, base: type) -> None:
        self._base = base

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _BUILDER:
            return None
        others = [f for f in sys.meta_path if f is not self and hasattr(f, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ == _BUILDER:  # a loader may serve other modules
                _teach(module, self._base)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
