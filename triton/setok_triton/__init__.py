"""Triton kernels of setok_kernels with their launchers.

The package is called `setok_triton`, and the folder above has no `__init__.py`, so that
`import triton` always finds the real Triton.
"""
