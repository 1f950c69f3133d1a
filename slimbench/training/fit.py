"""The training loop: contrastive alignment of a slide encoder with frozen text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimbench.block_encoder import BlockEncoder
from slimbench.cohorts.cohort import Slide
from slimbench.encoder import Plan
from slimbench.errors import CohortError, SlimbenchError
from slimbench.seeds import seed_of
from slimbench.training.contrastive import text_ids
from slimbench.training.model import Aligned, reducers_of
from slimbench.training.recipe import Recipe
from slimbench.training.slides import SlideLoader, thinned, training_batches


@dataclass(frozen=True)
class History:
    """Alignment loss of the embedding, mean of each epoch, and the number of optimiser steps."""

    losses: tuple[float, ...]
    steps: int


def fit(
    model: Aligned,
    slides: Sequence[Slide],
    texts: dict[str, Tensor],
    load: SlideLoader,
    recipe: Recipe,
    plan: Plan,
    precision: str,
    report: Callable[[int, int, float], None],
) -> History:
    """Train `model` in place, deterministically for a given plan.seed, machine and thread count.

    slides  training slides with a report
    texts   {report: [text_dim] frozen embedding}
    report  called after each step with (steps done, steps in all, smoothed loss)
    """
    if len(slides) < 2:
        raise CohortError(
            f"{load.cohort.name}: {len(slides)} training slides have a report, alignment needs at least 2; "
            "name a reports table in the cohort file"
        )
    device = load.device
    groups = parameter_groups(model, recipe)
    # Reducers are clipped apart: under one norm their auxiliary losses would set the encoder's step size.
    clipped_together = [
        [parameter for group in groups if group["of_reducer"] is which for parameter in group["params"]]
        for which in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=True)
    base_lrs = [group["lr"] for group in optimizer.param_groups]
    if isinstance(model.encoder, BlockEncoder):
        model.encoder.checkpointing = recipe.checkpointing
    model.train()
    step, smoothed, losses = 0, math.nan, []
    per_epoch = len(training_batches(slides, recipe.batch, recipe.bucket, plan.seed, 0))
    total = recipe.epochs * per_epoch
    for epoch in range(recipe.epochs):
        epoch_losses: list[float] = []
        for batch in training_batches(slides, recipe.batch, recipe.bucket, plan.seed, epoch):
            factor = learning_rate_factor(step, total, recipe.warmup * per_epoch)
            for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = lr * factor
            inputs = [
                thinned(load(slide.id), recipe.drop_tokens, seed_of("thin", plan.seed, slide.id, epoch))
                for slide in batch
            ]
            reports = [slide.report or "" for slide in batch]
            text = torch.stack([texts[report_text] for report_text in reports]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                encoded = model.encoder(inputs, replace(plan, step=step))
                loss, main = model.loss(encoded, text, text_ids(reports).to(device))
            value = float(main.detach())
            if not math.isfinite(float(loss.detach())):
                raise SlimbenchError(
                    f"the training loss is {float(loss.detach())} at step {step}; "
                    "lower the learning rate, as in --recipe paper:lr=1e-4"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for together in clipped_together:
                nn.utils.clip_grad_norm_(together, recipe.clip)
            optimizer.step()
            step += 1
            epoch_losses.append(value)
            smoothed = value if math.isnan(smoothed) else 0.9 * smoothed + 0.1 * value
            report(step, total, smoothed)
        losses.append(sum(epoch_losses) / len(epoch_losses))
    model.eval()
    return History(tuple(losses), step)


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear from 0 over `warmup` steps, then a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / max(warmup, 1)
    progress = (step - warmup) / max(total - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: Aligned, recipe: Recipe) -> list[dict[str, Any]]:
    """Encoder and reducers apart, each with and without weight decay (none on vectors and scalars).

    A reducer learns at its own multiple of the rate, and so do the heads that supervise it.
    """
    scale_of: dict[int, float] = {}
    for name, reducer in reducers_of(model.encoder):
        members = [*reducer.parameters()]
        if name in model.summary_heads:
            members += [*model.summary_heads[name].parameters(), model.summary_log_scales[name]]
        scale_of.update({id(parameter): reducer.lr_scale for parameter in members})
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            of_reducer = id(parameter) in scale_of
            key = (of_reducer, scale_of.get(id(parameter), 1.0), parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": members,
            "lr": recipe.lr * scale,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "of_reducer": of_reducer,
        }
        for (of_reducer, scale, decayed), members in groups.items()
    ]
