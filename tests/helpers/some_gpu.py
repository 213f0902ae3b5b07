"""A GPU that is nowhere, for tests of what is remembered of one."""

from setok_kernels.verification.identity import Identity

IDENTITY = Identity(
    device="Some GPU",
    capability="9.0",
    uuid="GPU-1",
    driver="13000",
    torch="2.13.0",
    triton="3.7.1",
    package="0.1.0",
    sources="abc",
)
