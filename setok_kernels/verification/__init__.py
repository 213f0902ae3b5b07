"""The Triton kernels are compared with the reference on the user's own device, once.

No test of ours can speak for a device, driver and compiler that we have not seen. So
`backend="auto"` takes the kernels on a CUDA device only after a fixed set of equivalence cases
(`cases.py`) has passed there. Child processes run them (`child.py`): a kernel that reads out of
bounds ends the process that launched it, and one that never ends can be stopped only with it. The
verdict is remembered for the device and all versions involved (`identity.py`, `verdict.py`), and
`trust.py` decides by it.
"""
