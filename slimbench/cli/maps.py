"""`slimbench maps`: which patches of a slide were kept, as pictures and for QuPath."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimbench.cli.boards import OutFolder, records_of
from slimbench.cli.sweeps import OUT

if TYPE_CHECKING:
    from slimbench.maps.kept import KeptMap

FORMATS = ("png", "svg", "geojson")


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("maps", short_help="Which patches were kept.")(maps)


def maps(
    out: OutFolder = OUT,
    slides: Annotated[
        list[str] | None,
        typer.Option("--slide", metavar="ID", help="A test slide. Repeat it for more."),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="png|svg|geojson", help="A picture, or objects for QuPath.")
    ] = "png",
    reducers: Annotated[
        list[str] | None,
        typer.Option("--reducer", metavar="NAME", help="Rows to draw. Default: all that reduce."),
    ] = None,
    rates: Annotated[
        str | None, typer.Option("--rates", metavar="RATES", help="As in 0.5-0.9 or 0.5,0.8. Default: all.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Default: the lowest of those cells.")
    ] = None,
    thumbnail: Annotated[
        Path | None,
        typer.Option("--thumbnail", metavar="FILE", help="A picture of the tissue to put beside them."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where files go. Default: OUT/maps.")
    ] = None,
) -> None:
    """Draw which patches of a slide were kept, how far, and where the lesion is.

    One reducer at one rate is drawn block by block; more of them as rows by rates on one page. GeoJSON has a
    file for each, in level-0 pixels, for QuPath's File > Import objects from file.

    \b
    Examples:
      slimbench maps slimbench-out --slide test-0003
      slimbench maps slimbench-out --slide test-0003 --reducer cropr --rates 0.9 --format svg
      slimbench maps study --slide TCGA-XX-0001 --reducer cropr --rates 0.8 --format geojson
    """
    from slimbench.errors import UsageError
    from slimbench.maps.geojson import geojson
    from slimbench.maps.kept import kept_maps
    from slimbench.maps.page import save_page
    from slimbench.runs.grid import parse_rates
    from slimbench.runs.store import Store, write_whole

    if format not in FORMATS:
        raise UsageError(f"no format is called {format!r}; known: {', '.join(FORMATS)}")
    if thumbnail is not None and (format == "geojson" or len(slides or ()) > 1):
        raise UsageError("--thumbnail is the picture of one slide, and goes with --format png or svg")
    if not slides:
        raise UsageError("no slide is named; add --slide ID, one of the cohort's test slides")
    folder = to or out / "maps"
    wanted = parse_rates(rates) if rates else ()
    for found in kept_maps(Store(out), records_of(out), slides, reducers or (), wanted, seed):
        if format == "geojson":
            for each in found:
                path = folder / f"{_name(each)}.geojson"
                write_whole(path, geojson(each).encode(), replace=True)
                print(path)
        else:
            name = _name(found[0]) if len(found) == 1 else _plain(found[0].slide.id)
            path = folder / f"{name}.{format}"
            save_page(found, path, thumbnail)
            print(path)


def _name(kept: KeptMap) -> str:
    """What a file of one cell is called: slide, reducer, rate and the first digits of the cell's key."""
    cell = kept.record.cell
    return _plain(f"{kept.slide.id}.{cell.reducer}.{cell.rate:g}.{kept.record.key[:6]}")


def _plain(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name)
