"""Drop-in replacements for the clustering functions of other projects.

Each module has the names, arguments, results and dtypes of one project, so only the import changes
(docs/migrate.md). Each function documents its intended differences.
"""

from setok_kernels.compat import chatunivi, divt, setok, tcformer

__all__ = ["chatunivi", "divt", "setok", "tcformer"]
