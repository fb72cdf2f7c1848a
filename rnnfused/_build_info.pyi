"""How this copy of rnnfused was built; the module itself is written by CMakeLists.txt."""

version: str
torch: str
compiler: str
isas: tuple[str, ...]
cuda: str | None
cuda_archs: tuple[str, ...]
