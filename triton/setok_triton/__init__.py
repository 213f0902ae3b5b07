"""Triton kernels of setok_kernels with their launchers.

The package is `setok_triton` and not a part of `triton`: the folder above has no `__init__.py`, so
that `import triton` always finds the real one.
"""
