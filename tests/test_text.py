"""Text towers: what every tower promises, and what each is."""

import numpy as np
import pytest

from slimbench.errors import TextError
from slimbench.text.tfidf import TfidfText

REPORTS = ("sections contain sevens in the upper left", "a lesion of nines , lower right", "nines and ones")


def test_tfidf_gives_the_same_row_alone_and_among_others():
    tower = TfidfText(REPORTS)
    together = tower.embed(REPORTS)
    assert together.shape == (3, 64) and together.dtype == np.float32
    for row, text in zip(together, REPORTS, strict=True):
        np.testing.assert_array_equal(tower.embed([text])[0], row)


def test_tfidf_equals_its_definition():
    tower = TfidfText(REPORTS, dim=8, seed=3)
    documents = [text.replace(",", " ").split() for text in REPORTS]
    words = sorted({word for document in documents for word in document})
    idf = {w: np.log(4 / (1 + sum(w in document for document in documents))) + 1 for w in words}
    single = {w: TfidfText([w, "other"], dim=8, seed=3) for w in words}
    vector = {}
    for w, tiny in single.items():
        row = tiny.embed([w])[0].astype(float) + tiny._mean
        vector[w] = row / np.linalg.norm(row)

    def by_hand(document):
        total = sum(
            idf[w] * document.count(w) * tower._vectors[words.index(w)] for w in sorted(set(document))
        )
        return total / np.linalg.norm(total)

    rows = np.stack([by_hand(document) for document in documents])
    np.testing.assert_allclose(tower.embed(REPORTS), rows - rows.mean(axis=0), atol=1e-6)
    for w in words:  # a word has one direction, whatever vocabulary it stands in
        own = tower._vectors[words.index(w)]
        np.testing.assert_allclose(vector[w], own / np.linalg.norm(own), atol=1e-6)


def test_tfidf_prompt_is_nearest_to_the_reports_that_hold_its_word():
    tower = TfidfText(REPORTS)
    rows = tower.embed(REPORTS)
    prompt = tower.embed(["a slide with unheard of sevens"])[0]
    assert int(np.argmax(rows @ prompt)) == 0


def test_tfidf_text_without_a_known_word_has_a_defined_row():
    tower = TfidfText(REPORTS)
    rows = tower.embed(["", "unheard"])
    assert np.isfinite(rows).all()
    np.testing.assert_array_equal(rows[0], rows[1])
    assert tower.embed([]).shape == (0, 64)


def test_tfidf_fingerprint_follows_reports_width_and_seed():
    prints = {
        TfidfText(REPORTS).fingerprint,
        TfidfText(REPORTS[:2]).fingerprint,
        TfidfText(REPORTS, dim=32).fingerprint,
        TfidfText(REPORTS, seed=1).fingerprint,
    }
    assert len(prints) == 4
    assert TfidfText(REPORTS).fingerprint in prints


@pytest.mark.parametrize("reports", [(), ("", " .,")])
def test_tfidf_without_words_is_one_clear_line(reports):
    with pytest.raises(TextError, match="training reports hold no word"):
        TfidfText(reports)
