"""Grid pooling: the mean over square cells of the grid, the slide's own downsampling.

The control that any merging has to beat: what a lower magnification would have given for the same number of
tokens. The cell side s is the smallest with at most `keep` occupied cells, found by bisection (cells grow from
the upper left patch); then the fullest cells are halved along the raster until exactly `keep` are there.

Count class `exact`, O(N log N), memory O(N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from slimbench.reducer import Context, Merger, top_rows
from slimbench.tokens import Tokens


class GridPool(Merger):
    """Size-weighted mean of the tokens of a cell."""

    ordered = True

    def assign(self, tokens: Tokens, keep: int, context: Context) -> tuple[Tensor, None]:
        return topped_up(finest_cells(tokens.coords, keep), keep), None


def finest_cells(coords: Tensor, keep: int) -> Tensor:
    """Cells [N] int64 in [0, C), C <= keep, of the smallest square cells that 24 bisections find."""
    place = (coords - coords.amin(0)).double()
    low, high = 0.0, float(place.max()) + 1.0
    cells = torch.zeros(len(place), dtype=torch.int64, device=place.device)
    for _ in range(24):
        side = (low + high) / 2
        column, line = (place / side).floor().long().unbind(1)
        found, cell = (line * (int(column.max()) + 1) + column).unique(return_inverse=True)
        if len(found) > keep:
            low = side
            continue
        high, cells = side, cell
        if len(found) == keep:
            break
    return cells


def topped_up(cells: Tensor, keep: int) -> Tensor:
    """Groups [N] in [0, keep): the fullest cells halved along the raster, the first of equals first."""
    count = int(cells.max()) + 1
    while count < keep:
        members = torch.bincount(cells, minlength=count)
        halved = top_rows(members.float(), min(keep - count, int((members > 1).sum())))
        order = torch.argsort(cells, stable=True)
        first = members.cumsum(0) - members
        rank = torch.empty_like(cells)
        rank[order] = torch.arange(len(cells), device=cells.device) - first[cells[order]]
        number = torch.arange(count, device=cells.device)
        number[halved] = count + torch.arange(len(halved), device=cells.device)
        cells = torch.where(2 * rank >= members[cells], number[cells], cells)
        count += len(halved)
    return cells
