"""Cropr: keep the patches that a learned query, taught by the task itself, points at.

Bergner et al., "Token Cropr", arXiv 2412.00965; SLIM puts one behind every block but the last. As published:

    score      a = K(x) . q, the raw dot product of one learned query with the keys K(x) = W x of the block's
               output: no norm, no scale, no softmax. W and q fold into one vector, so at inference this is
               all there is: one matrix-vector product.
    aggregator z = softmax(a / sqrt(D)) X, then z + MLP(LN(z)); its auxiliary head, the trainer's
               projection, is aligned with the report by a CLIP loss of its own. Training only.
    gradient   stops at x: the module learns from the encoder and the encoder does not learn from it.

The official code lets [CLS] into the aggregator's softmax although it is never ranked: a shortcut past the
patches that is a switch here (`aggregate_cls`). It returns tokens by descending score; here that is
`order=score`. Its recipe trains Cropr faster than the blocks by way of layer decay; here that is `lr_scale`.

The SLIM paper writes K(x); Cropr's code has W as a switch that is off, and only without it do SLIM's parameters
come to the 66 M that the paper states: `keys=identity`. Both rank by one vector, but a product of W and q turns
faster under Adam than a bare q: on digits at 90 %, three seeds with W kept 0.99, 0.95 and 0.98 of the lesion
patches and two with a bare query 0.86 and 0.97 (`slimbench sweep --rates 0.9 --seeds 0-2`), hence the default.
Count class `exact`, O(N D).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from slimbench.reducer import Context, Pruner
from slimbench.tokens import Tokens


class Cropr(Pruner):
    """One query; arguments as in the module's docstring.

    keys           "linear" or "identity": whether keys are projected
    detach         False lets the auxiliary loss reach the encoder (deep supervision)
    aggregate_cls  True puts [CLS] among the aggregated tokens, as the official code does
    mlp_ratio      hidden width of the aggregator's MLP as a multiple of D
    """

    supervised = True
    lr_scale = 5.0

    def __init__(
        self,
        dim: int,
        *,
        keys: Literal["linear", "identity"] = "linear",
        detach: bool = True,
        aggregate_cls: bool = False,
        mlp_ratio: float = 4.0,
        order: Literal["raster", "score"] = "raster",
    ) -> None:
        super().__init__(dim, order=order)
        self.detach = detach
        self.aggregate_cls = aggregate_cls
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=dim**-0.5))
        self.key = nn.Linear(dim, dim, bias=False) if keys == "linear" else None
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        hidden = int(mlp_ratio * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def score(self, tokens: Tokens, context: Context) -> Tensor:
        return tokens.x.float() @ self.direction()

    def supervise(self, tokens: Tokens, context: Context) -> Tensor:
        """[D]: what the aggregator makes of all N tokens, before any is pruned."""
        x = torch.cat((context.cls.unsqueeze(0), tokens.x)) if self.aggregate_cls else tokens.x
        x = x.float()
        z = ((x @ self.direction()) * self.dim**-0.5).softmax(dim=0) @ x
        summary: Tensor = z + self.mlp(self.norm(z))
        return summary

    def direction(self) -> Tensor:
        """[D] W^T q: the one vector that tokens are ranked along."""
        return self.query if self.key is None else self.query @ self.key.weight
