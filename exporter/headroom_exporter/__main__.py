"""``python -m headroom_exporter``."""

import sys

from headroom_exporter.cli import main

if __name__ == "__main__":
    sys.exit(main())
