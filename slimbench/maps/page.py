"""A page of kept maps of one slide: one cell block by block, or reducers in rows by rates in columns.

An SVG has its patches as vectors, and beyond VECTORS squares on a page as pictures between vector text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slimbench.errors import UsageError
from slimbench.maps.colors import KEPT, LESION, RGB, colors
from slimbench.maps.kept import KeptMap, exit_name
from slimbench.maps.shapes import outline, rectangles
from slimbench.trace import STAYED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VECTORS = 250_000
PANEL = 2.2  # inches, the longer side
GONE, INK, GREY = "#e6e4df", "#1c1c1c", "#6b6b6b"
DPI = 200


def save_page(maps: Sequence[KeptMap], path: Path, thumbnail: Path | None = None) -> None:
    """Draw the maps of one slide to `path`, whose suffix (.png, .svg) says how.

    thumbnail  a picture of the tissue; default: what the maps know

    Raises UsageError without matplotlib, or for a thumbnail that is no picture.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError(
            "pictures need matplotlib, which is not installed: pip install 'slimbench[plot]' (geojson needs none)"
        ) from None
    tissue = _picture(thumbnail or next((each.thumbnail for each in maps if each.thumbnail), None))
    options = {"svg.fonttype": "none", "svg.hashsalt": "slimbench", "font.size": 8, "axes.titlesize": 8}
    with matplotlib.rc_context(options):
        figure = _blocks(maps[0], tissue) if len(maps) == 1 else _multiples(maps, tissue)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=DPI, facecolor="white", metadata=metadata)


def _picture(path: Path | None) -> NDArray[np.generic] | None:
    if path is None:
        return None
    from matplotlib.image import imread

    try:
        picture: NDArray[np.generic] = imread(path)
    except (OSError, SyntaxError) as error:  # what Pillow raises for a file that is no picture
        raise UsageError(f"--thumbnail {path} is no picture: {error}") from None
    return picture


def _blocks(kept: KeptMap, tissue: NDArray[np.generic] | None) -> Figure:
    """When patches leave, then what is left after each block at which some did."""
    exits = [left for left in kept.exits if left != STAYED]
    number = 1 + len(exits) + (tissue is not None)
    columns = min(number, 4)
    figure, panels = _panels(kept, -(-number // columns), columns)
    places = iter(panels.ravel())
    if tissue is not None:
        _tissue(next(places), tissue)
    first, palette = next(places), {left: _hex(rgb) for left, rgb in colors(kept.exits).items()}
    _draw(first, kept, kept.record.key, palette, number)
    first.set_title("when patches leave")
    _scale(first, kept)
    for left in exits:
        panel = next(places)
        stays = {each: GONE if each <= left else _hex(KEPT) for each in kept.exits}
        _draw(panel, kept, f"{kept.record.key}-{left}", stays, number)
        panel.set_title(exit_name(left).replace("left", "kept"))
        panel.set_xlabel(_said(kept, kept.left > left), color=GREY, fontsize=7)
    cell = kept.record.cell
    _title(figure, [kept], f"{cell.reducer}, pruning rate {cell.rate:g}")
    _legend(figure, [kept])
    return figure


def _multiples(maps: Sequence[KeptMap], tissue: NDArray[np.generic] | None) -> Figure:
    names = row_names(maps)
    rows, rates = list(dict.fromkeys(names)), sorted({each.record.cell.rate for each in maps})
    lead = int(tissue is not None)
    figure, panels = _panels(maps[0], len(rows), len(rates) + lead)
    palette = {left: _hex(rgb) for left, rgb in colors(_exits(maps)).items()}
    if tissue is not None:
        _tissue(panels[0, 0], tissue)
    for each, name in zip(maps, names, strict=True):
        row, column = rows.index(name), rates.index(each.record.cell.rate) + lead
        panel = panels[row, column]
        _draw(panel, each, each.record.key, palette, len(maps))
        below_scale = 14 if row == len(rows) - 1 else 4
        panel.set_xlabel(_said(each, each.kept), color=GREY, fontsize=7, labelpad=below_scale)
    for row, name in enumerate(rows):
        panels[row, lead].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6, fontsize=9)
    for column, rate in enumerate(rates):
        panels[0, column + lead].set_title(f"pruning rate {rate:g}", fontsize=9)
    _scale(panels[-1, lead], maps[0])
    _title(figure, maps, "")
    _legend(figure, maps)
    return figure


def row_names(maps: Sequence[KeptMap]) -> list[str]:
    """The reducer of each map, with what else tells its cell from the others (never the rate).

    Where a cell of a cohort was trained at another rate, all say at which: one model is one row.
    """
    apart = {m.record.cohort_name for m in maps if m.record.cell.trained_at != m.record.cell.rate}
    facts = []
    for each in maps:
        cell = each.record.cell
        trained = f"trained at {cell.trained_at:g}" if each.record.cohort_name in apart else ""
        others = (
            each.record.cohort_name,
            cell.encoder,
            cell.schedule,
            cell.text,
            cell.recipe,
            cell.precision,
        )
        facts.append((cell.reducer, *others, trained))
    told = [place for place in range(1, len(facts[0])) if len({fact[place] for fact in facts}) > 1]
    return ["\n".join(filter(None, (fact[0], *(fact[place] for place in told)))) for fact in facts]


def _exits(maps: Sequence[KeptMap]) -> list[int]:
    return sorted({left for each in maps for left in each.exits})


def _panels(kept: KeptMap, rows: int, columns: int) -> tuple[Figure, NDArray[np.object_]]:
    """A figure of empty panels, each as wide and high as the slide is at one scale."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width, height = np.ptp(kept.coords, axis=0) + 1
    scale = PANEL / max(width, height)
    size = max(width * scale, 1.3) + 0.15, max(height * scale, 0.9) + 0.45
    layout = ConstrainedLayoutEngine(compress=True, h_pad=0.08, hspace=0.08)
    figure = Figure((max(columns * size[0] + 1.1, 5.5), rows * size[1] + 1.4), layout=layout)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    return figure, panels


def _draw(panel: Axes, kept: KeptMap, name: str, palette: dict[int, str], panels: int) -> None:
    """Every patch in the colour of when it left, groups named `<name>-<left>`, lesions outlined; one of so many
    panels."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Shape
    from matplotlib.patheffects import Normal, Stroke

    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    raster = panels * len(kept.left) > VECTORS
    codes = [Shape.MOVETO, Shape.LINETO, Shape.LINETO, Shape.LINETO, Shape.CLOSEPOLY]
    for left in kept.exits:
        boxes = rectangles(kept.coords[kept.left == left])
        points = boxes[:, None, :2] + corners * boxes[:, None, 2:]
        shape = Shape(points.reshape(-1, 2), np.tile(codes, len(boxes)))
        patch = PathPatch(shape, facecolor=palette[left], linewidth=0, antialiased=False)
        patch.set_gid(f"{name}-{'kept' if left == STAYED else left}")
        patch.set_rasterized(raster)
        patch.set_in_layout(False)  # as add_artist does, this keeps matplotlib from walking along every edge
        panel.add_artist(patch)
    if kept.lesion is not None:
        lines = LineCollection(list(outline(kept.coords[kept.lesion])), colors=_hex(LESION), linewidths=0.9)
        lines.set(capstyle="round", path_effects=[Stroke(linewidth=1.9, foreground="white"), Normal()])
        panel.add_collection(lines)
    low, high = kept.coords.min(axis=0), kept.coords.max(axis=0) + 1
    margin = 0.02 * max(high - low)
    panel.set_xlim(low[0] - margin, high[0] + margin)
    panel.set_ylim(high[1] + margin, low[1] - margin)
    panel.set_aspect("equal")


def _tissue(panel: Axes, picture: NDArray[np.generic]) -> None:
    panel.imshow(picture, cmap="gray")
    panel.set_title("tissue")


def _said(kept: KeptMap, there: NDArray[np.bool_]) -> str:
    """How many patches are there, and how many of the lesion's."""
    said = f"{there.sum():,} of {len(there):,} ({100 * there.mean():.1f} %)"
    if kept.lesion is not None:
        said += f"\nlesion {(there & kept.lesion).sum():,} of {kept.lesion.sum():,}"
    return said


def _scale(panel: Axes, kept: KeptMap) -> None:
    """A bar of a round number of patches under the panel's lower left corner."""
    from matplotlib.transforms import blended_transform_factory

    width = float(np.ptp(kept.coords[:, 0]) + 1)
    length = max(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step <= max(width / 2.5, 1))
    start = float(kept.coords[:, 0].min())
    low = blended_transform_factory(panel.transData, panel.transAxes)
    panel.plot([start, start + length], [-0.02, -0.02], color=INK, lw=1.4, transform=low, clip_on=False)
    pixels = "" if kept.patch_size is None else f" = {length * kept.patch_size:,.0f} px"
    text = f"{length} patch{'es' * (length > 1)}{pixels}"
    panel.text(start, -0.045, text, transform=low, va="top", fontsize=6.5, color=INK)


def _title(figure: Figure, maps: Sequence[KeptMap], what: str) -> None:
    kept = maps[0]
    cell = kept.record.cell
    cells = [each.record.cell for each in maps]
    common = [kept.record.cohort_name, kept.slide.label or "", f"{len(kept.left):,} patches"]
    common += [cell.encoder] * (len({each.encoder for each in cells}) == 1)
    common += [f"{cell.schedule} schedule"] * (len({each.schedule for each in cells}) == 1)
    common += [what, f"seed {cell.seed}"]
    figure.suptitle(
        f"{kept.slide.id}\n" + " · ".join(filter(None, common)), x=0.01, ha="left", fontsize=9, color=INK
    )


def _legend(figure: Figure, maps: Sequence[KeptMap]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [
        Patch(facecolor=_hex(rgb), edgecolor="#b5b5b5", linewidth=0.5, label=exit_name(left))
        for left, rgb in colors(_exits(maps)).items()
    ]
    if any(each.lesion is not None for each in maps):
        handles.append(Line2D([], [], color=_hex(LESION), lw=1.4, label="lesion"))
    figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=7.5)


def _hex(rgb: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
