"""``python -m protoserve``: the same as the command ``protoserve``."""

import sys

from protoserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
