from collections.abc import Sequence

from torch import Tensor

def layer_forward(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    save: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]: ...
def layer_backward(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    y: Tensor,
    tape: Tensor,
    dy: Tensor | None,
    dhn: Tensor | None,
    dcn: Tensor | None,
    wanted: Sequence[bool],
    recompute: bool,
) -> list[Tensor | None]: ...
def layer_tangent(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    y: Tensor,
    tangents: Sequence[Tensor | None],
) -> list[Tensor | None]: ...
def layer_gradient_tangent(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    y: Tensor,
    outer: Sequence[Tensor | None],
    outer_tangents: Sequence[Tensor | None],
    tangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]: ...
def layer_double_backward(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    y: Tensor,
    outer: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[list[Tensor | None], list[Tensor | None]]: ...
def layer_gate_gradients(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    y: Tensor,
    outer: Sequence[Tensor | None],
) -> tuple[list[list[Tensor | None]], list[Tensor | None]]: ...
def stack_forward(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor | None]: ...
def check_input(x: Tensor) -> None: ...

class Frozen:
    def __init__(
        self, cell: str, params: Sequence[Tensor], has_biases: bool, layers: int, bidirectional: bool
    ) -> None: ...
    def forward(
        self, x: Tensor, h0: Tensor, c0: Tensor | None, batch_sizes: Tensor | None, batch_first: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...

class Stepper:
    def __init__(
        self, cell: str, params: Sequence[Tensor], h: Tensor, c: Tensor | None, has_biases: bool
    ) -> None: ...
    def step(self, x: Tensor) -> Tensor: ...

def cell_names() -> list[str]: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def kept_bytes() -> int: ...
def empty_cache() -> None: ...
def describe_plan(
    cell: str,
    steps: int,
    batch: int,
    input: int,
    hidden: int,
    output: int,
    layers: int,
    directions: int,
    f64: bool,
) -> tuple[str, int, int, int, int]: ...
