"""One-time comparison of the Triton kernels with the reference on the user's device.

Our tests cannot cover every device, driver and compiler. So `backend="auto"` uses the kernels on a
CUDA device only after a fixed set of equivalence cases (`setok_kernels.equivalence`) has passed
there. Child processes run the cases (`processes.py`): an out-of-bounds access ends the process that
launched the kernel, and a kernel that hangs can only be stopped with its process. The verdict is
cached for the device and all versions involved (`identity.py`, `verdict.py`), and `trust.py`
decides by it.
"""
