"""How an encoder is trained: a frozen set of numbers, and the named ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimbench.errors import UsageError
from slimbench.spec import Spec, typed_arguments


@dataclass(frozen=True)
class Recipe:
    """The defaults are the paper's (section 4); what it does not state is CLIP's (arXiv 2103.00020).

    warmup          epochs of linear warm-up; then a cosine to zero
    shared          width of the space in which slides and texts meet
    scale, scale_max  logit scale (inverse temperature) at the start, and its bound
    clip            gradient norm bound, for the reducers' parameters and for the rest apart
    drop_tokens     share of patches left out at random in training, as augmentation
    bucket          batches whose slides are sorted by length together: 1 = not at all
    checkpointing   recompute blocks in the backward pass instead of keeping their activations
    """

    epochs: int = 20
    warmup: float = 2.0
    lr: float = 5e-4
    weight_decay: float = 0.1
    beta2: float = 0.98
    batch: int = 16
    clip: float = 1.0
    shared: int = 512
    scale: float = 1 / 0.07
    scale_max: float = 100.0
    drop_tokens: float = 0.0
    bucket: int = 1
    checkpointing: bool = True


RECIPES = {
    "paper": Recipe(),
    "tiny": Recipe(
        epochs=10,
        warmup=1.0,
        lr=2e-3,
        weight_decay=0.05,
        batch=8,
        shared=64,
        scale=12.2,
        scale_max=50.0,
        drop_tokens=0.1,
        bucket=4,
        checkpointing=False,
    ),
}


def recipe(text: str) -> Recipe:
    """The recipe that `text` names, with changes behind a colon: `tiny`, `paper:epochs=4,batch=32`."""
    spec = Spec.parse(text)
    if spec.name not in RECIPES:
        raise UsageError(f"no recipe is called {spec.name!r}; known: {', '.join(RECIPES)}")
    return replace(RECIPES[spec.name], **typed_arguments(Recipe, spec))
