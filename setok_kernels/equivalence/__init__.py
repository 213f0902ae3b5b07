"""Comparison of the Triton kernels with the reference on the user's device."""
