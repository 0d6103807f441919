"""`python -m benchmarks [loop] [gateway] [feedback] [distill] [--feedback FILE] [--quick] [--litellm [FOLDER]]`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks import gateway, loop
from benchmarks.distill import rows as distill
from benchmarks.feedback import rows as feedback

NAMES = ("loop", "gateway", "feedback", "distill")


def main() -> None:
    """Run the benchmarks that were asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="which to run; all when none is named")
    parser.add_argument(
        "--feedback", type=Path, help="loop, distill: JSON lines of real feedback, for the figures about learning"
    )
    parser.add_argument(
        "--quick", action="store_true", help="gateway, feedback, distill: a short look that keeps no result"
    )
    parser.add_argument(
        "--litellm",
        nargs="?",
        const="",
        default=os.environ.get("EVERSWARM_BENCH_LITELLM"),
        metavar="ENVIRONMENT",
        help="gateway: compare with LiteLLM, in this virtual environment or else in one made under var (0.6 GB); "
        "EVERSWARM_BENCH_LITELLM names one too",
    )
    arguments = parser.parse_args()
    names = arguments.names or NAMES
    if "loop" in names:
        loop.run(arguments.feedback)
    if "gateway" in names:
        environment = Path(arguments.litellm) if arguments.litellm else None
        gateway.run(quick=arguments.quick, with_litellm=arguments.litellm is not None, litellm=environment)
    if "feedback" in names:
        feedback.run(quick=arguments.quick)
    if "distill" in names:
        distill.run(arguments.feedback, quick=arguments.quick)


if __name__ == "__main__":
    main()
