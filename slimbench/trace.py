"""Where each patch of a slide went: the assignments of all reductions, composed on demand."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Trace:
    """The reductions of one slide in one forward pass, all on the CPU.

    patches  number of patches P of the slide
    assigns  {block ahead: [N] int64, new row of each token or -1}
    scores   {block ahead: [N] fp32}; absent where the reducer has no score
    """

    patches: int
    assigns: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)

    def token_of_patch(self, before: int | None = None) -> Tensor:
        """[P] int64: the row of the token that carries each patch, -1 = dropped, counting the reductions
        before block `before` (all of them when None)."""
        row = torch.arange(self.patches)
        for block, assign in sorted(self.assigns.items()):
            if before is None or block <= before:
                row = torch.where(row >= 0, assign[row.clamp(min=0)], row)
        return row

    def kept(self, before: int | None = None) -> Tensor:
        """[P] bool: the patches that are still carried by a token."""
        return self.token_of_patch(before) >= 0
