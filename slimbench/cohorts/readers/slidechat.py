"""SlideChat: one CSV per slide, `<slide id without UUID>.csv`, whose first 512 columns are CONCH features.

The first line is a header. No coordinates: the row order is the position. Files with fewer than 512
columns are taken whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers.file import FeatureFile, as_rows
from slimbench.errors import CohortError

WIDTH = 512


class SlideChatFile(FeatureFile):
    """One slide in a CSV."""

    format = "slidechat"
    suffixes = (".csv",)

    @classmethod
    def detect(cls, path: Path) -> bool:
        return True

    def read(self, slide_id: str) -> Patches:
        import pandas as pd

        try:
            frame = pd.read_csv(self.path, dtype=np.float32, encoding="utf-8-sig")
        except FileNotFoundError:
            raise CohortError(f"no feature file {self.path}") from None
        except (OSError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            reason = " ".join(str(error).split())
            raise CohortError(f"{self.path}: not a CSV of features ({reason})") from None
        return Patches(as_rows(frame.to_numpy()[:, :WIDTH], self.path))
