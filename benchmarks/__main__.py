"""`python -m benchmarks [loop] [--feedback FILE]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import loop


def main() -> None:
    """Run the benchmarks that were asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], "loop"], help="which to run; all when none is named")
    parser.add_argument("--feedback", type=Path, help="JSON lines of real feedback, for the figures about learning")
    arguments = parser.parse_args()
    loop.run(arguments.feedback)


if __name__ == "__main__":
    main()
