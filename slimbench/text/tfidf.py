"""TF-IDF of the training reports times fixed random word vectors: a text tower that needs no download.

Every word has its own vector, the same in every cohort; a text is the TF-IDF-weighted sum of its
words' vectors. Word order is lost, and a prompt works as soon as one of its words is in a training report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slimbench.errors import TextError
from slimbench.seeds import seed_of
from slimbench.text.tower import TextTower


class TfidfText(TextTower):
    """Random projection of TF-IDF (scikit-learn's smoothed idf, words of any letters and digits).

    training_reports  texts that the vocabulary, the idf and the mean are taken from
    dim               width of the embedding
    seed              of the word vectors, N(0, 1)

    A row is the L2-normalised sum minus the mean row of the training reports; words outside the
    vocabulary count for nothing, and a text without any known word is at minus that mean.
    Raises TextError when the training reports hold no word.
    """

    def __init__(self, training_reports: Sequence[str], dim: int = 64, seed: int = 0) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.dim = dim
        self._tfidf = TfidfVectorizer(token_pattern=r"\w+", dtype=np.float64)
        try:
            weights = self._tfidf.fit_transform(training_reports)
        except ValueError:
            raise TextError(
                f"the {len(training_reports)} training reports hold no word; name a reports table in the "
                "cohort file, or an encoder without text"
            ) from None
        words = self._tfidf.get_feature_names_out()
        self._vectors = np.stack([_word_vector(word, dim, seed) for word in words])
        self._mean = _normalised(weights @ self._vectors).mean(axis=0)
        digest = hashlib.sha256(repr((dim, seed, list(words))).encode())
        digest.update(np.ascontiguousarray(self._tfidf.idf_).tobytes())
        digest.update(self._mean.astype(np.float32).tobytes())
        self.fingerprint = digest.hexdigest()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[len(texts), dim] float32."""
        if not texts:
            return np.empty((0, self.dim), np.float32)
        rows = _normalised(self._tfidf.transform(texts) @ self._vectors) - self._mean
        return rows.astype(np.float32)


def _word_vector(word: str, dim: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed_of("word", seed, word)).normal(size=dim)


def _normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length one; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
