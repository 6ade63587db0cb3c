"""Every optimizer, with every weight decay and clipping, for the tests that go through them all."""

from dataclasses import replace
from typing import Any

import tiered_embed as te

SPECS: dict[str, te.optim.Optimizer] = {
    o.__class__.__name__: o
    for o in (
        te.optim.SGD(lr=0.1),
        te.optim.MomentumSGD(lr=0.05, momentum=0.8),
        te.optim.Adagrad(lr=0.05, eps=1e-8),
        te.optim.RowWiseAdagrad(lr=0.05, eps=1e-8),
        te.optim.RowWiseRMSProp(lr=0.02, alpha=0.95),
        te.optim.Adam(lr=0.02, beta1=0.85, beta2=0.99),
        te.optim.AdamW(lr=0.02, beta1=0.85, beta2=0.99),
        te.optim.PartialRowWiseAdam(lr=0.02, beta1=0.85, beta2=0.99),
        te.optim.LAMB(lr=0.02, beta1=0.85, beta2=0.99),
        te.optim.PartialRowWiseLAMB(lr=0.02, beta1=0.85, beta2=0.99),
        te.optim.LARSSGD(lr=2.0, eta=0.01, momentum=0.8),
        te.optim.FTRL(lr=0.1, beta=1.0, l1=0.05, l2_penalty=0.01),
    )
}

DECAYS: dict[str, dict[str, Any]] = {
    "no decay": {"weight_decay": 0.0},
    "l2": {"weight_decay": 0.03, "weight_decay_mode": "l2"},
    "decoupled": {"weight_decay": 0.03, "weight_decay_mode": "decoupled"},
}

# For gradients in which some values, rows and steps exceed these and some do not.
CLIPS: dict[str, dict[str, Any]] = {
    "no clip": {},
    "value": {"clip_value": 0.5},
    "row": {"clip_row_norm": 1.0},
    "global": {"clip_global_norm": 3.0},
    "all": {"clip_value": 0.5, "clip_row_norm": 1.0, "clip_global_norm": 2.0},
}


def spec(name: str, decay: str, clip: str) -> te.optim.Optimizer:
    return replace(SPECS[name], **DECAYS[decay], **CLIPS[clip])
