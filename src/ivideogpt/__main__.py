"""``python -m ivideogpt``: the same commands, for launchers that start modules."""

import sys

from ivideogpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
