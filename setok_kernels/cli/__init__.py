"""The console script `setok`: an import package of its own, `setok_cli`.

Importing `setok_kernels` imports torch. Modules here do so only when a command runs, so that
`--help`, `--version` and wrong arguments are answered at once. Nothing here imports `setokim` or
`setok_bench`: their commands come by entry points, see `commands`.
"""
