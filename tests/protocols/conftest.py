"""The packages of examples/protocols are imported from where they are, not installed."""

from __future__ import annotations

import sys

from protocol_packages import PACKAGES

sys.path[:0] = [str(package) for package in PACKAGES if str(package) not in sys.path]
