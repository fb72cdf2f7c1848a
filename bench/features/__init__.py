"""torch.nn and rnnfused, feature by feature: `python -m bench.features` writes docs/features.md.

A probe is a function that uses a layer as a user would and checks what comes out against torch.nn's layers
in eager mode. It takes the classes of one column (`Layers`), so that both columns are written by the same
code. The probes lie by theme in files of their own; `probes.THEMES` lists the files.
"""
