"""Runs one kind of torture in this process and prints its report as JSON, in the last line."""

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", help="where files go; a temporary directory by default")
    args = parser.parse_args()
    warnings.simplefilter("ignore")

    import torch

    from kinds import KINDS

    torch.set_num_threads(1)  # a forked child cannot use a pool of threads of its parent's
    kind = KINDS[args.kind]
    with tempfile.TemporaryDirectory(prefix="te-torture-", dir=args.folder) as folder:
        os.chdir(folder)  # a fuzzed path may be a relative one
        try:
            report = kind.run(args.count, args.seed, Path(folder))
        finally:
            os.chdir("/")
    print(report.to_json())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
