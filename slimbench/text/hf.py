"""Frozen BERT-like text encoders, from a local folder or by their hub id, embedded once per text.

    slimbench sweep --text hf:model=path/to/checkpoint,pooling=mean

Nothing is downloaded unless `download=true` is asked for: looking for a model on an unreachable hub takes
half a minute per call.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimbench.errors import TextError
from slimbench.files import cache_folder, content_hash, replacing
from slimbench.text.tower import TextTower

if TYPE_CHECKING:
    import torch

PUBMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin")
_BATCH = 32
_SHARD = 512  # texts after which embeddings are written, so that an interruption costs little


class HuggingFaceText(TextTower):
    """A frozen encoder of transformers' AutoModel kind; the default is SLIM's PubMedBERT under its current id.

    training_reports  their mean embedding is subtracted: BERT's embeddings share one large direction
    model             a folder with config.json, tokenizer and weights, or a hub id
    pooling           "cls": the first token's last state (the paper's); "mean": over the text's tokens
    download          fetch the model from the hub if it is not on this machine

    Texts are cut at the model's number of positions. Embeddings are fp32, computed on the GPU where there is
    one, and kept in the user's cache by model and text, so every text is embedded once.
    Raises TextError when the model cannot be found or loaded.
    """

    def __init__(
        self,
        training_reports: Sequence[str],
        model: str = PUBMEDBERT,
        pooling: Literal["cls", "mean"] = "cls",
        download: bool = False,
    ) -> None:
        self._name, self._pooling = model, pooling
        self._reports = tuple(sorted(set(training_reports)))
        self._folder = _find(model, download)
        held = content_hash(self._folder, _weight_files(self._folder))
        self.dim = _read_config(self._folder, model).hidden_size
        self._cache = _EmbeddingCache(cache_folder() / "text" / f"{held}-{pooling}", self.dim)
        self.fingerprint = hashlib.sha256(repr((held, pooling, self._reports)).encode()).hexdigest()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[len(texts), dim] float32."""
        return self._raw(texts) - self._mean

    @cached_property
    def _mean(self) -> NDArray[np.float32]:
        if not self._reports:
            return np.zeros(self.dim, np.float32)
        return self._raw(self._reports).mean(axis=0, dtype=np.float64).astype(np.float32)

    def _raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings before the mean is subtracted, from the cache or computed into it."""
        missing = self._cache.missing(texts)
        if missing:
            tokenizer, model = self._loaded
            order = sorted(missing, key=len)  # texts of one batch need about the same number of tokens
            with _bar(len(order)) as advance:
                for start in range(0, len(order), _SHARD):
                    shard = order[start : start + _SHARD]
                    parts = [shard[row : row + _BATCH] for row in range(0, len(shard), _BATCH)]
                    rows = [advance(self._states(tokenizer, model, part)) for part in parts]
                    self._cache.add(shard, np.concatenate(rows))
        return self._cache.rows(texts)

    def _states(self, tokenizer: Any, model: Any, texts: list[str]) -> NDArray[np.float32]:
        import torch

        longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        batch = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        batch = batch.to(model.device)
        with torch.inference_mode():
            states: torch.Tensor = model(**batch).last_hidden_state
        if self._pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        rows: NDArray[np.float32] = pooled.float().cpu().numpy()
        return rows

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model in eval mode on the device they run on."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        given: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
                try:
                    model, loading = AutoModel.from_pretrained(self._folder, add_pooling_layer=False, **given)
                except TypeError:  # an architecture without a pooling layer does not know the word
                    model, loading = AutoModel.from_pretrained(self._folder, **given)
        except Exception as error:  # transformers raises a dozen kinds for a checkpoint that does not fit
            raise TextError(_unusable(self._name, error)) from error
        lacking = sorted(loading["missing_keys"])
        if lacking:
            raise TextError(
                f"text model {self._name}: its weights lack {len(lacking)} tensors, first {lacking[0]}"
            )
        model = model.float().eval().requires_grad_(False)
        return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu")


class _EmbeddingCache:
    """Embeddings by text, in memory and in a folder of npz shards that are written once and never changed."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder, self._dim = folder, dim

    @cached_property
    def _known(self) -> dict[bytes, NDArray[np.float32]]:
        known: dict[bytes, NDArray[np.float32]] = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                    keys, rows = file["keys"], file["rows"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue  # a damaged shard costs the time to embed its texts again
            if rows.shape == (len(keys), self._dim):
                known.update(zip(map(bytes, keys), rows, strict=True))
        return known

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The texts without an embedding, each once, in order."""
        return [text for text in dict.fromkeys(texts) if _key(text) not in self._known]

    def rows(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[len(texts), dim]; every text must be known."""
        return (
            np.stack([self._known[_key(text)] for text in texts])
            if texts
            else np.empty((0, self._dim), np.float32)
        )

    def add(self, texts: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Remember rows [n, dim] of n texts, on the disk too if it can be written."""
        keys = np.array([list(_key(text)) for text in texts], np.uint8)
        self._known.update(zip(map(bytes, keys), rows, strict=True))
        try:
            with (
                replacing(
                    self._folder / f"{hashlib.sha256(keys.tobytes()).hexdigest()[:16]}.npz"
                ) as temporary,
                temporary.open("wb") as file,
            ):
                np.savez(file, keys=keys, rows=rows)
        except OSError:
            return  # without a cache the texts are embedded again next time


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def weights(model: str = PUBMEDBERT, download: bool = False) -> str:
    """16 hex digits of the files that the embeddings of `model` depend on; imports no torch.

    Raises TextError when they are not on this machine and may not be downloaded.
    """
    folder = _find(model, download)
    return content_hash(folder, _weight_files(folder))


def _find(model: str, download: bool) -> Path:
    """The folder that holds `model`: itself, or its snapshot in the hub's local cache."""
    if Path(model).expanduser().is_dir():
        folder = Path(model).expanduser()
        if not _weight_files(folder):
            raise TextError(f"text model {model}: no model.safetensors or pytorch_model.bin in {folder}")
        return folder
    from huggingface_hub import snapshot_download

    with contextlib.suppress(OSError, ValueError):
        folder = Path(snapshot_download(model, local_files_only=True, allow_patterns=list(_FILES)))
        if _weight_files(folder):  # a download that was interrupted leaves a folder without them
            return folder
    if not download:
        how = "download=true" if model == PUBMEDBERT else f"model={model},download=true"
        raise TextError(
            f"text model {model}: no such folder, and not among the models downloaded to this machine; allow the "
            f"download with --text hf:{how}, give a folder with --text hf:model=FOLDER, or take one that needs no "
            "download, --text tfidf"
        )
    try:
        return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise TextError(
            f"text model {model}: download failed ({_short(error)}); check the id and the network"
        ) from None


def _weight_files(folder: Path) -> list[Path]:
    """The files that embeddings depend on, or none when there are no weights among them."""
    files = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
    return files if any(path.suffix in (".safetensors", ".bin") for path in files) else []


def _read_config(folder: Path, model: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise TextError(_unusable(model, error)) from None


def _unusable(model: str, error: Exception) -> str:
    return (
        f"text model {model} cannot be loaded ({_short(error)}); expected a folder with config.json, "
        "vocab.txt or tokenizer.json, and model.safetensors or pytorch_model.bin"
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its bars and reports, which go to stderr."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    """A function that passes rows on and moves a progress bar by their number; no bar without a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    hidden = not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task("embedding texts", total=total)

        def advance(rows: NDArray[np.float32]) -> NDArray[np.float32]:
            progress.advance(task, len(rows))
            return rows

        yield advance
