"""Writes ``trace_v1_*.tet``: one file per codec of version 1 of the trace format.

Run by hand, only for a new version (the old files stay):

    python tests/golden/make_trace.py
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "support"))

from tiered_embed.traces import write_tet  # noqa: E402
from trace_samples import CODECS, small  # noqa: E402

if __name__ == "__main__":
    for codec in CODECS:
        write_tet(small(), FOLDER / f"trace_v1_{codec}.tet", codec)
