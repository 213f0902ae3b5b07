"""Drop-ins for the clustering functions of other projects, on the kernels of this one.

Each module has the names, arguments, results and dtypes of one project: change the import, keep
the rest (docs/migrate.md). What is different on purpose stands at each function.
"""

from setok_kernels.compat import chatunivi, divt, setok, tcformer

__all__ = ["chatunivi", "divt", "setok", "tcformer"]
