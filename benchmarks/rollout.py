"""How fast clips are imagined, beside the official way: the command ``ivideogpt bench rollout``, from a checkout.

    .venv/bin/python benchmarks/rollout.py [CHECKPOINT] [--size official-64] [--batch 1] [--out benchmarks/results]

See docs/performance.md for what is measured and how to read the table.
"""

from __future__ import annotations

import sys

from ivideogpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "rollout", *sys.argv[1:]]))
