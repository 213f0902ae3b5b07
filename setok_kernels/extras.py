"""Packages that only some users need: each is imported where it is used, and an extra brings it."""

import contextlib
from collections.abc import Iterator


class MissingExtraError(ModuleNotFoundError):
    """A package is not installed; the message says what to install.

    Attributes:
        extra: the extra of setok-kernels that brings the package.
    """

    extra: str | None = None


@contextlib.contextmanager
def from_extra(extra: str) -> Iterator[None]:
    """Name the remedy where an import within the block finds no package.

        with from_extra("generate"):
            from diffusers import DDIMScheduler

    Args:
        extra: an extra of setok-kernels that brings the package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        package = error.name.partition(".")[0]
        said = f'needs {package}: pip install "setok-kernels[{extra}]"'
        missing = MissingExtraError(said, name=error.name)
        missing.extra = extra
        raise missing from error
