"""Where Prov-GigaPath's published weights lie on this machine, and a hash of them; imports no torch."""

from __future__ import annotations

from pathlib import Path

from slimbench.errors import CheckpointError
from slimbench.files import content_hash

FILE = "slide_encoder.pth"
GIGAPATH = "prov-gigapath/prov-gigapath"


def weights(checkpoint: str = GIGAPATH, download: bool = False) -> str:
    """16 hex digits of the file that `checkpoint` names (see `find_checkpoint`)."""
    return content_hash(find_checkpoint(checkpoint, download))


def find_checkpoint(checkpoint: str, download: bool = False) -> Path:
    """The file that `checkpoint` names; CheckpointError says how to get it. Only `download` uses the network."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        path = path / FILE
    if path.is_file():
        return path
    if path.suffix or checkpoint.count("/") != 1:
        raise CheckpointError(f"no checkpoint at {path}; name Prov-GigaPath's {FILE}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, FILE, local_files_only=not download))
    except (OSError, ValueError) as error:
        if download:
            raise CheckpointError(
                f"{FILE} of {checkpoint} cannot be downloaded ({type(error).__name__}); ask for access at "
                f"huggingface.co/{checkpoint} and set HF_TOKEN, or name a copy: gigapath:checkpoint=PATH"
            ) from error
        raise CheckpointError(
            f"{FILE} of {checkpoint} is not in this machine's Hugging Face cache; name a copy with "
            "gigapath:checkpoint=PATH, or fetch it with gigapath:download=true"
        ) from error
