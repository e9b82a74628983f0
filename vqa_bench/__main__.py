"""`python -m vqa_bench` is the command `vqa-bench`."""

import sys

from vqa_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
