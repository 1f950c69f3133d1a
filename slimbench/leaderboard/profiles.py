"""Profiles as a table: what each reducer costs, beside the unpruned row and the paper's figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from slimbench.leaderboard.published import sources
from slimbench.leaderboard.table import EMPTY, Cell, Column, Table, count, number, percent, words
from slimbench.measure.profile import Profile
from slimbench.spec import Spec

PAPER_TABLE, PAPER_PATCHES, PAPER_ENCODERS = 5, 17_182, ("slim", "slim-base")
OF_PAPER = ("none", "cropr")


@dataclass(frozen=True)
class Line:
    """A profile, the unpruned profile it is read against, and the FLOPs that the paper gives for it."""

    profile: Profile
    unpruned: Profile | None
    paper: float | None
    paper_unpruned: float | None


@dataclass(frozen=True)
class _Field:
    column: Column
    of: Callable[[Line], Cell]


def profile_table(profiles: Iterable[Profile]) -> Table:
    """One row per profile, in order; columns that no row fills are left out."""
    found = list(profiles)
    paper = published_flops()
    lines = [_line(profile, found, paper) for profile in found]
    cells = [[field.of(line) for field in FIELDS] for line in lines]
    used = [index for index in range(len(FIELDS)) if any(row[index] is not EMPTY for row in cells)]
    return Table(
        "Costs of one slide",
        tuple(FIELDS[index].column for index in used),
        tuple(tuple(row[index] for index in used) for row in cells),
        tuple(_notes(found, lines)),
    )


def published_flops() -> dict[float, float]:
    """{pruning rate: FLOPs of one slide} of the paper's table 5."""
    return {
        row.rate: row.metrics["flops"]
        for source in sources()
        for row in source.rows
        if row.table == PAPER_TABLE and row.rate is not None and "flops" in row.metrics
    }


def _line(profile: Profile, others: Sequence[Profile], paper: Mapping[float, float]) -> Line:
    same = ("encoder", "patches", "cohort", "precision", "dim", "slides", "device")

    def setting(other: Profile) -> list[object]:
        return [getattr(other.subject, name) for name in same]

    unpruned = [o for o in others if o.subject.reducer == "none" and setting(o) == setting(profile)]
    subject = profile.subject
    is_papers = (
        subject.patches == PAPER_PATCHES
        and subject.encoder in PAPER_ENCODERS
        and subject.schedule == "geometric"
        and Spec.parse(subject.reducer).name in OF_PAPER
    )
    theirs = paper.get(subject.rate) if is_papers else None
    return Line(profile, unpruned[0] if unpruned else None, theirs, paper.get(0.0) if is_papers else None)


def _notes(profiles: Sequence[Profile], lines: Sequence[Line]) -> Iterable[str]:
    yield (
        "FLOPs: 2 x multiply-accumulates of matrix products and attention; stated by the encoder and counted "
        "by torch and fvcore, equal to the unit. padded: with torchscale's zero-padded segments."
    )
    for threads, precision, backend, warm_up in dict.fromkeys(
        (p.threads, p.subject.precision, p.attention_backend, p.warm_up) for p in profiles
    ):
        yield (
            f"{precision}, {threads} thread{'s' * (threads != 1)}, attention {backend}; a batch is one slide; "
            f"warm-up: {warm_up}; of peak: of a square matrix product in the same process."
        )
    yield from dict.fromkeys(_of_cohort(profile) for profile in profiles if profile.subject.cohort)
    yield from dict.fromkeys(_machine(profile) for profile in profiles)
    if any(line.paper is not None for line in lines):
        yield "paper: the SLIM paper's table 5, as published."


def _of_cohort(profile: Profile) -> str:
    return (
        f"{profile.subject.cohort}: {len(profile.patches)} slides at equal steps of its sizes; FLOPs, tokens and "
        "[CLS] are means over them, latency is over all their passes, memory is the largest slide's."
    )


def _machine(profile: Profile) -> str:
    machine = profile.provenance.get("machine", {})
    if not machine:
        return "machine: not recorded"
    gpus = machine.get("gpus") or []
    flags = " ".join(machine.get("flags", [])) or "none"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, flags {flags}{', ' + ', '.join(gpus) if gpus else ''}"
    )


def _over(value: float | None, base: float | None) -> Cell:
    return EMPTY if value is None or not base else Cell(f"{value / base:.3f}", value / base)


def _seconds(value: float) -> Cell:
    return Cell(f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms", value)


def _patches(line: Line) -> Cell:
    sizes = line.profile.patches
    if len(sizes) == 1:
        return count(sizes[0])
    return Cell(f"{min(sizes):,} to {max(sizes):,}".replace(",", " "), sum(sizes) / len(sizes))


def _per_token(line: Line) -> Cell:
    if line.profile.subject.cohort is not None:  # the largest slide's peak over which slide's tokens?
        return EMPTY
    return number(line.profile.pass_bytes / 1024 / (line.profile.patches[0] + 1), 1)


FIELDS = (
    _Field(Column("encoder", number=False, rank=2), lambda x: words(x.profile.subject.encoder)),
    _Field(Column("reducer", number=False), lambda x: words(x.profile.subject.reducer)),
    _Field(Column("rate"), lambda x: number(x.profile.subject.rate, 2)),
    _Field(Column("patches", rank=1), _patches),
    _Field(Column("last block", "tokens", rank=1), lambda x: count(round(x.profile.tokens_per_block[-1]))),
    _Field(Column("ours", "FLOPs"), lambda x: number(x.profile.counted)),
    _Field(
        Column("÷ none", "FLOPs"),
        lambda x: _over(x.profile.counted, x.unpruned.counted if x.unpruned else None),
    ),
    _Field(Column("padded", "FLOPs", rank=3), lambda x: number(x.profile.padded)),
    _Field(Column("paper", "FLOPs"), lambda x: number(x.paper)),
    _Field(Column("paper ÷ none", "FLOPs"), lambda x: _over(x.paper, x.paper_unpruned)),
    _Field(Column("ours ÷ paper", "FLOPs", rank=1), lambda x: _over(x.profile.counted, x.paper)),
    _Field(Column("median", "latency"), lambda x: _seconds(x.profile.median_s)),
    _Field(
        Column("p95", "latency", rank=3),
        lambda x: _seconds(x.profile.p95_s) if x.profile.passes > 1 else EMPTY,
    ),
    _Field(Column("core", "latency", rank=2), lambda x: _seconds(x.profile.core_s)),
    _Field(
        Column("core ÷ none", "latency"),
        lambda x: _over(x.profile.core_s, x.unpruned.core_s if x.unpruned else None),
    ),
    _Field(Column("patches/s", rank=3), lambda x: number(x.profile.patches_per_s, 1)),
    _Field(Column("of peak", rank=3), lambda x: percent(x.profile.peak_share)),
    _Field(Column("reducer's share", rank=2), lambda x: percent(x.profile.reducer_share)),
    _Field(Column("pass MiB", "memory", rank=1), lambda x: number(x.profile.pass_bytes / 2**20, 0)),
    _Field(Column("KiB/token", "memory", rank=3), _per_token),
    _Field(
        Column("sees", "[CLS]", rank=2), lambda x: percent(x.profile.reach[0] if x.profile.reach else None)
    ),
    _Field(
        Column("reaches", "[CLS]", rank=2),
        lambda x: percent(x.profile.reach[-1] if x.profile.reach else None),
    ),
)
