"""What a text tower is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class TextTower(ABC):
    """A frozen text encoder; built as `Tower(training_reports=[...], **arguments)`.

    dim          width of its embeddings
    fingerprint  hash of weights or fit: part of a cell's key
    """

    dim: int
    fingerprint: str

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[len(texts), dim] float32, not normalised. The same text always gives the same row."""
