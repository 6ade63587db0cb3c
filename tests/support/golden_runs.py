"""The streams and recipes whose digests ``golden/digests.json`` holds."""

import streams
from running import OPTIMIZERS, RECIPES

__all__ = ["KINDS", "STREAMS"]

STREAMS = {
    "generated": streams.generated,
    "duplicates_130": lambda: streams.duplicates(130),
    "duplicates_1": lambda: streams.duplicates(1),
    "maxima": streams.maxima,
}
KINDS = {
    "generated": list(RECIPES),
    "duplicates_130": list(OPTIMIZERS),
    "duplicates_1": list(OPTIMIZERS),
    "maxima": ["sgd", "ftrl", "rowwise_adagrad_bfloat16"],
}
