"""Where each patch of a slide went: the assignments of all reductions, composed on demand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

STAYED: Final = 255  # in `Trace.left`: the patch is there to the end


@dataclass
class Trace:
    """The reductions of one slide in one forward pass, all on the CPU.

    patches  number of patches P of the slide
    assigns  {block ahead: [N] int64, new row of each token or -1}
    scores   {block ahead: [N] fp32}; absent where the reducer has no score
    origins  {block ahead: [K] int64, Tokens.origin of the tokens that went on}
    fusion   [N] int64, the rows that slimbench.fusion.fused put together; None without last-layer fusion
    """

    patches: int
    assigns: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    origins: dict[int, Tensor] = field(default_factory=dict)
    fusion: Tensor | None = None

    def token_of_patch(self, before: int | None = None) -> Tensor:
        """[P] int64: the row of the token that carries each patch, -1 = dropped, counting the reductions
        before block `before` (all of them when None), not what last-layer fusion brings back."""
        row = torch.arange(self.patches)
        for block, assign in sorted(self.assigns.items()):
            if before is None or block <= before:
                row = torch.where(row >= 0, assign[row.clamp(min=0)], row)
        return row

    def kept(self, before: int | None = None) -> Tensor:
        """[P] bool: the patches that are still carried by a token."""
        return self.token_of_patch(before) >= 0

    def left(self) -> Tensor:
        """[P] uint8: the block ahead of which each patch left, STAYED for those that never did.

        A patch stays as long as a token stands at it (Tokens.origin): in a merger the heaviest member of
        each group does, and the others leave. Tokens that stand at no patch keep none.
        """
        left = torch.full((self.patches,), STAYED, dtype=torch.uint8)
        for block, origin in sorted(self.origins.items()):
            gone = torch.ones(self.patches, dtype=torch.bool)
            gone[origin[origin >= 0]] = False
            left[gone & (left == STAYED)] = block
        return left
