"""Runnable models: ``dlrm`` is the model, ``demo`` trains it through the tiers."""
