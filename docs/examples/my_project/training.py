"""Stands for the training code that a reader has: a trained model and the loaders of its data."""

from __future__ import annotations

from torch import nn

from fixtures import digits, edge_model

train_loader = digits.train_batches(batch_size=64)
test_loader = digits.test_batches(batch_size=100)


def load_trained_model() -> nn.Module:
    """Return a small network for `[N, 3, 32, 32]` images, trained on the digits."""
    return edge_model.digits().model
