from collections.abc import Callable, Sequence

import torch
from torch import Tensor

def recurrent(
    layer: str,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    /,
) -> list[Tensor] | None: ...
def check(
    layer: str,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None = ...,
    resets: Tensor | None = ...,
) -> None: ...

class Frozen:
    def __init__(self, layer: str, params: Sequence[Tensor]) -> None: ...
    def forward(
        self,
        input: Tensor,
        hx: Sequence[Tensor],
        batch_sizes: Tensor | None,
        lengths: Tensor | None = ...,
        resets: Tensor | None = ...,
    ) -> list[Tensor] | None: ...

class Stepper:
    def __init__(
        self,
        layer: str,
        params: Sequence[Tensor],
        hx: Sequence[Tensor],
        type: torch.dtype,
        before: Stepper | None = ...,
    ) -> None: ...
    def step(self, x: Tensor, active: Tensor | None = ..., out: Tensor | None = ...) -> Tensor: ...
    def at_rest(self, body: Callable[[], object], writes: bool) -> None: ...

def cell_names() -> list[str]: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def terms_at_once(dtype: torch.dtype) -> int: ...
def scarcity() -> tuple[int, bool]: ...
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
    dtype: torch.dtype,
) -> tuple[str, int, int, int, int]: ...
