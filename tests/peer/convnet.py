"""A plain torch module: every layer kind PEFT adapts outside a transformer."""

from __future__ import annotations

import torch
from torch import nn


class ConvNet(nn.Module):
    """One branch per layer kind PEFT can adapt outside a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.conv1 = nn.Conv1d(3, 10, 3)
        self.conv2 = nn.Conv2d(3, 8, (3, 2))
        self.conv3 = nn.Conv3d(2, 6, (2, 3, 2))
        self.point2 = nn.Conv2d(3, 7, 1)
        self.point3 = nn.Conv3d(2, 5, 1)
        self.square2 = nn.Conv2d(4, 4, 3)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.mha = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 9)

    def forward(self, ids: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Run every branch on slices of one image (4, 6, 6, 6) and return all outputs, flat."""
        words = self.embed(ids)
        outputs = [
            self.conv1(image[:3, 0, 0][None]),
            self.conv2(image[:3, 0][None]),
            self.conv3(image[:2][None]),
            self.point2(image[:3, 1][None]),
            self.point3(image[:2][None]),
            self.square2(image[:, 2][None]),
            self.grouped(image[:, 3][None]),
            self.mha(words, words, words, need_weights=False)[0],
            self.head(words),
        ]
        return torch.cat([output.flatten() for output in outputs])
