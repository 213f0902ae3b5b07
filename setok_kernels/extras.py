"""Errors for optional packages: each is imported on use and installed by an extra."""

import contextlib
from collections.abc import Iterator


class MissingExtraError(ModuleNotFoundError):
    """Error for a package that is not installed; the message has the pip command.

    Attributes:
        extra: extra of setok-kernels that installs the package.
    """

    extra: str | None = None


@contextlib.contextmanager
def from_extra(extra: str) -> Iterator[None]:
    """Add the pip command to the error if an import in the block fails.

        with from_extra("generate"):
            from diffusers import DDIMScheduler

    Args:
        extra: extra of setok-kernels that installs the package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        package = error.name.partition(".")[0]
        message = f'needs {package}: pip install "setok-kernels[{extra}]"'
        missing = MissingExtraError(message, name=error.name)
        missing.extra = extra
        raise missing from error
