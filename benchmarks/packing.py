"""Reading one slide from TRIDENT's chunks of one patch against reading its packed copy.

    python benchmarks/packing.py                        17,182 patches of 768, float32 and float16
    python benchmarks/packing.py --folder /mnt/slides   on another disk

The bar: the copy at least 5 times faster. Both are read as training reads them (`read_finite`: opened, checked
for NaN, float32), taking turns in one process and one thread, from the page cache; medians of CPU seconds and of
wall seconds. Below them, what a read of the copy consists of. `half` is half precision written as float32, as a
patch encoder under autocast leaves it: its copy is stored as float16.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from slimbench.cohorts.pack import pack_files
from slimbench.cohorts.readers.features import find_files, read_finite
from slimbench.cohorts.readers.file import as_rows
from slimbench.cohorts.readers.packed import checksum
from slimbench.runs.provenance import provenance

EDGE = 1024  # level-0 pixels of a patch of 512 at 20x on a slide scanned at 40x
STORED = {
    "float32": ("float32", "float32"),
    "half": ("float16", "float32"),
    "float16": ("float16", "float16"),
}  # name: precision of the values, type in TRIDENT's file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=17_182)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--folder", type=Path, help="where the files are written; default: a temporary folder"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(shlex.join(sys.argv))
    print(json.dumps(provenance()))
    print(f"{arguments.patches:,} x {arguments.dim}, medians of {arguments.repeats}, alternating")
    print("stored   read                    CPU ms   wall ms")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name, (values, stored) in STORED.items():
            rng = np.random.default_rng(0)
            features = rng.normal(size=(arguments.patches, arguments.dim)).astype(values).astype(stored)
            compare(Path(folder) / name, name, features, arguments.repeats)


def compare(folder: Path, name: str, features: np.ndarray, repeats: int) -> None:
    write_trident(folder / "trident" / "slide.h5", features)
    pack_files(find_files([folder / "trident"], "trident"), folder / "packed", workers=1)
    source = find_files([folder / "trident"], "trident")["slide"]
    copy = find_files([folder / "packed"], "packed")["slide"]
    one, other = read_finite(source, "slide"), read_finite(copy, "slide")
    assert np.array_equal(one.features, other.features)
    assert one.coords is not None and np.array_equal(one.coords, other.coords)
    packed, coords = from_hdf5(copy.path)
    rows = medians(
        {
            "TRIDENT's chunks": lambda: read_finite(source, "slide"),
            "packed copy": lambda: read_finite(copy, "slide"),
            "  of that, HDF5": lambda: from_hdf5(copy.path),
            "  checksum": lambda: checksum(packed, coords),
            "  to float32": lambda: as_rows(packed, copy.path),
            "  NaN screen": lambda: other.features.sum(),
        },
        repeats,
    )
    for read, (cpu, wall) in rows.items():
        print(f"{name:<9}{read:<20}{1000 * cpu:10.1f}{1000 * wall:10.1f}")
    cpu, wall = (rows["TRIDENT's chunks"][column] / rows["packed copy"][column] for column in (0, 1))
    print(f"{name:<9}times faster        {cpu:10.2f}{wall:10.2f}   (bar 5)")


def write_trident(path: Path, features: np.ndarray) -> None:
    """A slide as TRIDENT leaves it: one chunk a patch."""
    path.parent.mkdir(parents=True)
    patches, dim = features.shape
    side = int(np.ceil(patches**0.5))
    cells = np.stack((np.arange(patches) % side, np.arange(patches) // side), axis=1)
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("features", data=features, chunks=(1, dim), maxshape=(None, dim))
        stored.attrs["encoder"] = "conch_v15"
        coords = file.create_dataset("coords", data=cells * EDGE, chunks=(1, 2), maxshape=(None, 2))
        coords.attrs.update({"patch_size": 512, "patch_size_level0": EDGE, "target_magnification": 20})


def from_hdf5(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        return file["features"][()], file["coords"][()]


def medians(reads: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """{name: (CPU, wall)} seconds; every round runs each once."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in reads}
    for _ in range(repeats):
        for name, read in reads.items():
            cpu, wall = time.process_time(), time.perf_counter()
            read()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: (statistics.median(cpu for cpu, _ in rows), statistics.median(wall for _, wall in rows))
        for name, rows in taken.items()
    }


if __name__ == "__main__":
    main()
