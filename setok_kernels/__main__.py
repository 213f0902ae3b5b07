"""`python -m setok_kernels`: the console script `setok`."""

import sys

from setok_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
