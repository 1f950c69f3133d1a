"""One colour for each time at which patches leave: the darker, the longer they stayed.

Lightness alone tells them apart, so they do in grey and to every eye; the lesion's orange is on no ramp.
"""

from __future__ import annotations

from collections.abc import Iterable

from slimbench.trace import STAYED

RGB = tuple[int, int, int]

KEPT: RGB = (13, 32, 74)
LESION: RGB = (224, 93, 6)
_RAMP: tuple[RGB, ...] = ((238, 230, 204), (176, 212, 190), (95, 173, 184), (52, 123, 166))


def colors(exits: Iterable[int]) -> dict[int, RGB]:
    """{left: colour} for the blocks at which patches leave, and for STAYED.

    >>> colors([1, 2, 255])
    {1: (238, 230, 204), 2: (52, 123, 166), 255: (13, 32, 74)}
    """
    blocks = sorted(set(exits) - {STAYED})
    ramp = {block: _between(place / max(len(blocks) - 1, 1)) for place, block in enumerate(blocks)}
    return ramp | {STAYED: KEPT}


def _between(share: float) -> RGB:
    """The colour at `share` of the ramp, linear between its stops."""
    at = share * (len(_RAMP) - 1)
    first = min(int(at), len(_RAMP) - 2)
    red, green, blue = (
        round(a + (b - a) * (at - first)) for a, b in zip(_RAMP[first], _RAMP[first + 1], strict=True)
    )
    return red, green, blue
