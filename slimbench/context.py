"""What a reducer may look at beside its tokens: [CLS], the attention of the block ahead, seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slimbench.errors import ReducerError
from slimbench.seeds import generator
from slimbench.tokens import Tokens


class AttentionAhead(Protocol):
    """The attention of the block ahead, as far as a reducer may look into it.

    The block AHEAD, not the one that just ran: it exists also before the first block, it is what the
    kept tokens will meet, and nothing has to be stored for it. All before rotary positions.
    """

    def keys(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, H, d]"""
        ...

    def mean_keys(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, d]: the mean over heads, at 1/H of the cost of `keys`"""
        ...

    def values(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, H, d]"""
        ...

    def queries(self, x: Tensor) -> Tensor:
        """x [N, D] -> [N, H, d]"""
        ...


@dataclass(frozen=True)
class Context:
    """What stands around the tokens; the methods compute, detached, only when they are called.

    tokens    the tokens that are being reduced
    cls       [D] the slide's [CLS] token
    layer     index of the block ahead, 0 = the first
    seed      integer seed of (run, slide, layer, step)
    training  whether gradients are wanted and summaries are supervised
    trace     whether `assign` and `scores` are to be recorded
    truth     [P] bool, True where a patch is known to be diagnostic; None where nobody knows
    """

    tokens: Tokens
    cls: Tensor
    layer: int
    seed: int
    training: bool = False
    trace: bool = False
    truth: Tensor | None = None
    ahead: AttentionAhead | None = None

    def generator(self) -> torch.Generator:
        """A fresh generator on the tokens' device: the same numbers whenever it is asked for."""
        return generator(self.seed, self.tokens.device)

    @torch.no_grad()
    def keys(self) -> Tensor:
        """[N, H, d] keys that the block ahead will use, before rotary positions."""
        return self._attention().keys(self.tokens.x.detach())

    @torch.no_grad()
    def mean_keys(self) -> Tensor:
        """[N, d] mean over heads of `keys`, at 1/H of their cost (ToMe's metric, arXiv 2210.09461)."""
        return self._attention().mean_keys(self.tokens.x.detach())

    @torch.no_grad()
    def values(self) -> Tensor:
        """[N, H, d] values that the block ahead will use."""
        return self._attention().values(self.tokens.x.detach())

    @torch.no_grad()
    def mean_query(self) -> Tensor:
        """[H, d] mean over patches of the queries of the block ahead (PACT's score query)."""
        return self._attention().queries(self.tokens.x.detach()).mean(0)

    @torch.no_grad()
    def cls_query(self) -> Tensor:
        """[H, d] the query of [CLS] in the block ahead, before rotary positions."""
        return self._attention().queries(self.cls.detach().unsqueeze(0))[0]

    @torch.no_grad()
    def cls_attention(self) -> Tensor:
        """[H, N] fp32: the DENSE softmax row of [CLS] over all patches, log(size) on the logits.

        In dilated attention [CLS] itself sees 17.9 % of 17,182 patches, all near the top edge, so a
        ranking by the sparse row would keep the top edge of the slide.
        """
        return self.attention_of(self.cls_query())

    @torch.no_grad()
    def attention_of(self, query: Tensor) -> Tensor:
        """[H, N] fp32: the dense softmax row of any query [H, d], as `cls_attention` is of [CLS]'s."""
        logits = torch.einsum("hd,nhd->hn", query.float(), self.keys().float()) * query.shape[-1] ** -0.5
        return (logits + self.tokens.size.log()).softmax(dim=1)

    def _attention(self) -> AttentionAhead:
        if self.ahead is None:
            raise ReducerError(
                "this reducer ranks by the encoder's attention, and this encoder has none; "
                "use an encoder with blocks, such as slim"
            )
        return self.ahead
