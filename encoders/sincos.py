"""Fixed sine-cosine positions on a square grid (MAE, arXiv 2111.06377), made when they are asked for.

The published table of Prov-GigaPath has a row for each of 1,000,000 cells: 3 GB. A row is two halves that
depend on one axis each, so 1,000 rows of half the width say the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimbench.errors import UsageError


class GridPositions(nn.Module):
    """coords [N, 2] -> [N, width] fp32; no parameters, nothing in the state dict.

    A cell (x, y) has the index floor(x) * side + floor(y) of the published table: the first half of its
    row are sines and cosines of y, the second of x, at the frequencies 10000 ** (-i / (width / 4)).
    """

    axis: Tensor

    def __init__(self, width: int, side: int = 1000) -> None:
        super().__init__()
        if width % 4:
            raise UsageError(f"sine-cosine positions need a width that is a multiple of 4, got {width}")
        self.side = side
        steps = torch.arange(width // 4, dtype=torch.float64)
        angles = torch.outer(torch.arange(side, dtype=torch.float64), 10_000.0 ** (-steps / (width // 4)))
        self.register_buffer("axis", torch.cat((angles.sin(), angles.cos()), 1).float(), persistent=False)

    def forward(self, coords: Tensor, slide: str) -> Tensor:
        """UsageError, naming the slide, for a cell outside of the grid; beyond its end y runs on into the
        next x, as in the published table."""
        cell = coords.floor().long()
        index = cell[:, 0] * self.side + cell[:, 1]
        if len(cell) and (int(cell.min()) < 0 or int(index.max()) >= self.side**2):
            low, high = cell.amin(0).tolist(), cell.amax(0).tolist()
            raise UsageError(
                f"slide {slide}: grid cells run from {low} to {high}, and the encoder's positions from "
                f"[0, 0] to [{self.side - 1}, {self.side - 1}]; check the coordinates in the cohort"
            )
        return torch.cat((self.axis[index % self.side], self.axis[index // self.side]), 1)
