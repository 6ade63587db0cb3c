"""Writes ``digests.json``: what training the seeded streams must give, by the plain reference.

Run by hand, only when the arithmetic of docs/design.md is changed on purpose:

    python tests/golden/make.py
"""

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "support"))

from golden_runs import KINDS, STREAMS  # noqa: E402
from running import RECIPES  # noqa: E402


def digests() -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {}
    for name, make in STREAMS.items():
        stream = make()
        out[name] = {}
        for kind in KINDS[name]:
            trainer = RECIPES[kind].trainer(stream.tables)
            trainer.train(stream)
            out[name][kind] = trainer.digest()
    return out


if __name__ == "__main__":
    text = json.dumps(digests(), indent=2) + "\n"
    (FOLDER / "digests.json").write_text(text)
    print(text, end="")
