"""Feature files of every format, as their programs write them, and files that must not be trusted."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from slimbench.cohorts.cohort import Patches
from slimbench.cohorts.readers import FORMATS
from slimbench.cohorts.readers.features import entries, find_files, read_finite
from slimbench.cohorts.readers.file import as_rows
from slimbench.cohorts.readers.packed import write_packed
from slimbench.cohorts.readers.titan import TitanFile
from slimbench.errors import CohortError

pytestmark = pytest.mark.usefixtures("own_cache")
ROOM = Path(__file__).parents[1] / "slimbench" / "cohorts" / "readers"
ROWS = np.random.default_rng(5).normal(size=(7, 6)).astype(np.float32)
CELLS = np.array([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (4, 1), (0, 2)])


def only(path, format=None):
    """The one slide at `path`: its name, its format and what is read of it."""
    ((name, file),) = find_files([path], format).items()
    return name, file.format, read_finite(file, name)


def h5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name] = value
    return path


def refused(path, pattern, format=None):
    """Reading and looking at the slide must both stop with one line that names the file."""
    for look in (lambda file, name: file.read(name), lambda file, name: file.head(name)):
        with pytest.raises(CohortError, match=pattern) as caught:
            for name, file in find_files([path], format).items():
                look(file, name)
        assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_every_reader_is_listed_once():
    shared = {"__init__", "features", "file", "hdf5"}
    assert {file.stem for file in ROOM.glob("*.py")} - shared == {
        target.rpartition(":")[0].rpartition(".")[2] for target in FORMATS.values()
    }


@pytest.mark.parametrize("loaded", [True, False], ids=["torch", "no torch"])
@pytest.mark.parametrize("writeable", [True, False])
def test_every_half_keeps_its_value(monkeypatch, loaded, writeable):
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    halves.flags.writeable = writeable
    rows = as_rows(halves, Path("slide.h5"))
    assert rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.writeable
    expected = [[float(half) for half in row] for row in halves]
    np.testing.assert_array_equal(rows, np.array(expected, np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("batched", [False, True])
def test_trident_patches_have_grid_units(tmp_path, write_trident, dtype, batched):
    written = write_trident(tmp_path / "f", "s-1", dtype=dtype, batched=batched, edge=1024)
    name, format, patches = only(tmp_path / "f")
    assert (name, format) == ("s-1", "trident")
    assert patches.features.dtype == np.float32 and patches.coords.dtype == np.float32
    np.testing.assert_array_equal(patches.features, written)
    np.testing.assert_array_equal(patches.coords, np.stack((np.arange(12) % 5, np.arange(12) // 5), axis=1))


def test_the_patch_size_at_level_0_gives_the_pixels_back(tmp_path, write_trident):
    """coords * patch_size is what the file held; formats in another unit say None."""
    write_trident(tmp_path / "t", "s", edge=1036)
    patches = only(tmp_path / "t")[2]
    assert patches.patch_size == 1036
    pixels = np.stack((np.arange(12) % 5, np.arange(12) // 5), axis=1) * 1036
    np.testing.assert_array_equal(np.rint(patches.coords * patches.patch_size), pixels)
    (tmp_path / "packed").mkdir()
    write_packed(tmp_path / "packed" / "s.h5", patches, "kind")
    assert only(tmp_path / "packed")[2].patch_size == 1036
    clam = h5(tmp_path / "clam.h5", features=ROWS, coords=CELLS * 448 + 1000)
    assert only(clam)[2].patch_size is None  # the step, which may be less or more than the edge
    with h5py.File(clam, "a") as file:
        file["coords"].attrs.update({"patch_size": 56, "custom_downsample": 4})
    assert only(clam)[2].patch_size == 224
    with h5py.File(h5(tmp_path / "stamp.h5", feats=ROWS, coords=CELLS * 256.0), "a") as file:
        file.attrs.update({"unit": "um", "tile_size_um": 256.0})
    assert only(tmp_path / "stamp.h5", "stamp")[2].patch_size is None


def test_trident_slide_features_are_one_row_without_place(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["features"] = ROWS[0]
        file["coords"] = CELLS * 512
    _, format, patches = only(tmp_path)
    assert format == "trident" and patches.coords is None
    np.testing.assert_array_equal(patches.features, ROWS[:1])


@pytest.mark.parametrize("shape", [(0,), (0, 6), (1, 0, 6)])
def test_an_empty_slide_is_legal(tmp_path, shape):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["features"] = np.empty(shape, np.float32)
        file.create_dataset("coords", data=np.empty((0, 2), np.int64)).attrs["patch_size_level0"] = 512
    (name, file), *_ = find_files([tmp_path]).items()
    assert len(file.read(name).features) == 0 and file.head(name).patches == 0


def test_clam_without_attributes_takes_the_commonest_step(tmp_path):
    _, format, patches = only(h5(tmp_path / "s.h5", features=ROWS[None], coords=CELLS * 448 + 1000))
    assert format == "clam"
    np.testing.assert_allclose(patches.coords, CELLS + 1000 / 448, rtol=1e-6)


def test_clam_attributes_win_over_the_commonest_step(tmp_path):
    h5(tmp_path / "s.h5", features=ROWS, coords=CELLS * 448)
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["coords"].attrs.update({"patch_size": 56, "custom_downsample": 4})
    np.testing.assert_allclose(only(tmp_path)[2].coords, CELLS * 2)


def test_clam_without_coordinates_is_legal(tmp_path):
    _, format, patches = only(h5(tmp_path / "s.h5", features=ROWS))
    assert format == "clam" and patches.coords is None


def test_stamp_coordinates_are_micrometres(tmp_path):
    h5(tmp_path / "s.h5", feats=ROWS.astype(np.float16), coords=CELLS * 256.0)
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file.attrs.update({"unit": "um", "tile_size_um": 256.0, "feat_type": "tile", "extractor": "virchow2"})
    _, format, patches = only(tmp_path)
    assert format == "stamp"
    np.testing.assert_array_equal(patches.coords, CELLS)


def test_stamp_slide_features_are_one_row(tmp_path):
    h5(tmp_path / "s.h5", feats=ROWS[0])
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file.attrs["feat_type"] = "slide"
    _, format, patches = only(tmp_path)
    assert format == "stamp" and patches.coords is None and patches.features.shape == (1, 6)


def test_stamp_without_an_edge_is_refused(tmp_path):
    h5(tmp_path / "s.h5", feats=ROWS, coords=CELLS * 256.0)
    refused(tmp_path / "s.h5", "tile_size_um")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("old", [False, True])
def test_torch_tensors_of_any_float(tmp_path, dtype, old):
    tensor = torch.from_numpy(ROWS).to(dtype)
    torch.save(tensor, tmp_path / "s.pt", _use_new_zipfile_serialization=not old)
    _, format, patches = only(tmp_path)
    assert format == "pt" and patches.coords is None
    np.testing.assert_array_equal(patches.features, tensor.float().numpy())


def test_torch_dictionary_with_coordinates(tmp_path):
    torch.save(
        {"features": torch.from_numpy(ROWS)[None], "coords": torch.from_numpy(CELLS * 256)}, tmp_path / "s.pt"
    )
    np.testing.assert_allclose(only(tmp_path)[2].coords, CELLS)


def test_slidechat_takes_the_first_512_columns(tmp_path):
    rows = np.random.default_rng(1).normal(size=(3, 515)).astype(np.float32)
    np.savetxt(
        tmp_path / "s.csv",
        rows,
        delimiter=",",
        header=",".join(map(str, range(515))),
        comments="",
        fmt="%.9g",
    )
    _, format, patches = only(tmp_path)
    assert format == "slidechat"
    np.testing.assert_array_equal(patches.features, rows[:, :512])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_titan_pickles_of_every_protocol(tmp_path, protocol):
    content = {"filenames": ["a", "b"], "embeddings": ROWS[:2]}
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    files = find_files([tmp_path / "t.pkl"])
    assert list(files) == ["a", "b"] and files["a"].format == "titan"
    np.testing.assert_array_equal(files["b"].read("b").features, ROWS[1:2])


def test_titan_pickles_with_fortran_order_and_numpy_names(tmp_path):
    content = {"filenames": np.array(["a", "b"]), "embeddings": np.asfortranarray(ROWS[:2])}
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(content))
    np.testing.assert_array_equal(find_files([tmp_path])["b"].read("b").features, ROWS[1:2])


def npz(path, **changes):
    arrays = {
        "features": ROWS.astype(np.float16),
        "offsets": np.array([0, 3, 3, 7]),
        "slide_id": np.array(["a", "empty", "b"]),
    }
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def test_packed_npz_holds_many_slides(tmp_path):
    files = find_files([npz(tmp_path / "x.npz", coords=CELLS)])
    assert list(files) == ["a", "empty", "b"]
    np.testing.assert_array_equal(files["b"].read("b").features, ROWS[3:].astype(np.float16))
    np.testing.assert_array_equal(files["b"].read("b").coords, CELLS[3:])
    assert len(files["empty"].read("empty").features) == 0


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"features": None}, "no array 'features'"),
        ({"offsets": np.array([0, 3, 7])}, "3 slide ids and offsets"),
        ({"offsets": np.array([0, 4, 3, 7])}, "never fall"),
        ({"offsets": np.array([0, 3, 3, 9])}, r"expected \(9, D\)"),
        ({"slide_id": np.array(["a", "b", "a"])}, "twice"),
        ({"coords": CELLS[:3]}, "coords have shape"),
        ({"features": np.array([[{}]], dtype=object)}, "cannot be read"),
    ],
)
def test_a_bad_npz_is_refused_in_one_line(tmp_path, changes, pattern):
    refused(npz(tmp_path / "x.npz", **changes), pattern)


@pytest.mark.parametrize("exact", [True, False])
def test_packed_files_are_checked_by_their_sum(tmp_path, exact):
    rows = ROWS.astype(np.float16).astype(np.float32) if exact else ROWS
    path = tmp_path / "s.h5"
    write_packed(path, Patches(rows, CELLS.astype(np.float32)), "20x")
    _, format, patches = only(tmp_path)
    assert format == "packed"
    np.testing.assert_array_equal(patches.features, rows)
    np.testing.assert_array_equal(patches.coords, CELLS)
    whole = bytearray(path.read_bytes())
    whole[whole.index(CELLS.astype(np.float32).tobytes()) + 9] ^= 4
    path.write_bytes(whole)
    with pytest.raises(CohortError, match="checksum differs"):
        only(tmp_path)


def test_the_same_features_have_the_same_digest_in_every_format(tmp_path, write_trident):
    """So that a repacked or copied cohort keeps its fingerprint."""
    rows = ROWS.astype(np.float16).astype(np.float32)
    write_trident(tmp_path / "trident", "s", features=rows)
    patches = only(tmp_path / "trident")[2]
    (tmp_path / "packed").mkdir()
    write_packed(tmp_path / "packed" / "s.h5", patches, "")
    npz(tmp_path / "x.npz", coords=patches.coords, slide_id=np.array(["s"]), offsets=np.array([0, 7]))
    h5(tmp_path / "clam.h5", features=rows[None], coords=np.rint(patches.coords * 64).astype(int))
    places = [tmp_path / "trident", tmp_path / "packed", tmp_path / "x.npz", tmp_path / "clam.h5"]
    digests = {file.head(name).digest for place in places for name, file in find_files([place]).items()}
    assert len(digests) == 1


def test_every_head_agrees_with_what_is_read(tmp_path, write_trident):
    write_trident(tmp_path / "trident", "s", batched=True, dtype="float16")
    h5(tmp_path / "clam.h5", features=ROWS, coords=CELLS * 3)
    torch.save(torch.from_numpy(ROWS), tmp_path / "t.pt")
    for place in (tmp_path / "trident", tmp_path / "clam.h5", tmp_path / "t.pt"):
        ((name, file),) = find_files([place]).items()
        head, patches = file.head(name), file.read(name)
        assert (head.patches, head.dim) == patches.features.shape
        np.testing.assert_array_equal(
            head.sample.features, patches.features[[0, len(patches.features) // 2, -1]]
        )
    assert find_files([tmp_path / "trident"])["s"].head("s").kind == "20x 512px overlap 0 conch_v15"


# what is wrong, or hostile


@pytest.mark.parametrize("left", [0, 100, 0.5, -1])
def test_a_truncated_h5_is_named(tmp_path, write_trident, left):
    write_trident(tmp_path, "s")
    path = tmp_path / "s.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left) if isinstance(left, float) else left])
    refused(path, "damaged HDF5 file")


def test_a_flipped_bit_under_a_checksum_is_named(tmp_path):
    path = tmp_path / "s.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=ROWS, fletcher32=True, chunks=(7, 6))
    whole = bytearray(path.read_bytes())
    whole[whole.index(ROWS.tobytes()) + 5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CohortError, match="damaged HDF5 file"):
        only(path)


def test_h5_that_claims_a_thousand_times_its_size_is_refused(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("features", shape=(2**30, 768), dtype="float32", chunks=(1, 768))
    refused(tmp_path / "s.h5", "claims 3,298,534,883,328 bytes")


def test_h5_links_to_other_files_are_refused(tmp_path):
    h5(tmp_path / "secret.hdf", features=ROWS)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "secret.hdf"), "features")
    refused(tmp_path / "s.h5", "is a link")


def test_h5_external_storage_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(168))
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset(
            "features", shape=(7, 6), dtype="f4", external=[(str(tmp_path / "secret"), 0, 168)]
        )
    refused(tmp_path / "s.h5", "lies in other files")


def test_h5_virtual_datasets_are_refused(tmp_path):
    h5(tmp_path / "secret.hdf", features=ROWS)
    layout = h5py.VirtualLayout(shape=(7, 6), dtype="f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf"), "features", shape=(7, 6))
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    refused(tmp_path / "s.h5", "lies in other files")


def test_h5_that_another_process_holds_open_is_read(tmp_path, write_trident):
    written = write_trident(tmp_path, "s")
    code = f"import h5py, sys; h5py.File({str(tmp_path / 's.h5')!r}, 'r+'); print('open', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:
        assert holder.stdout.readline() == b"open\n"
        np.testing.assert_array_equal(only(tmp_path)[2].features, written)
        holder.communicate()


def test_h5_without_features_says_what_it_has(tmp_path):
    refused(h5(tmp_path / "s.h5", other=ROWS), "no dataset 'features', it has other", format="trident")


@pytest.mark.parametrize(
    ("features", "pattern"),
    [
        (np.arange(12).reshape(3, 4), "int64, expected floating point"),
        (np.zeros((2, 3, 4), "f4"), r"shape \(2, 3, 4\)"),
    ],
)
def test_features_of_another_kind_are_refused(tmp_path, features, pattern):
    refused(h5(tmp_path / "s.h5", features=features), pattern)


def test_coordinates_of_another_number_are_refused(tmp_path):
    refused(h5(tmp_path / "s.h5", features=ROWS, coords=CELLS[:5]), r"7 rows of features and coordinates")


def test_torch_files_run_nothing(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"features": Evil()}, tmp_path / "s.pt")
    refused(tmp_path / "s.pt", "more than tensors")
    assert not marker.exists()


def test_torch_file_that_claims_a_thousand_times_its_size_is_refused(tmp_path):
    torch.save(torch.zeros(1).expand(10**7, 768), tmp_path / "s.pt")
    refused(tmp_path / "s.pt", "claims")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage"])
def test_damaged_torch_files_are_named(tmp_path, content):
    (tmp_path / "s.pt").write_bytes(content)
    refused(tmp_path / "s.pt", "damaged torch file|more than tensors")


def evil_pickles(marker):
    def reduced(function, *args):
        kind = type("Evil", (), {"__reduce__": lambda self: (function, args)})
        return pickle.dumps({"filenames": ["a"], "embeddings": kind()})

    yield "system", reduced(os.system, f"touch {marker}")
    yield "eval", reduced(eval, f"open({str(marker)!r}, 'w')")
    yield "bytearray", reduced(bytearray, 2**40)
    yield "nested", b"cnumpy._core.multiarray\n_reconstruct.__globals__\n."
    # protocol 4 looks dotted names up: an allow-list of modules would be walked out of here
    yield "dotted", b"\x80\x04\x8c\x05numpy\x8c\x1c_core._internal.ast.sys.exit\x93)R."
    yield "persistent", b"Pother\n."
    yield "array", b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1099511627776L\ntS'b'\ntR."
    yield "empty", b""
    yield "list", pickle.dumps([1, 2])
    yield "objects", pickle.dumps({"filenames": ["a"], "embeddings": np.array([[None]])})


def test_pickles_that_do_more_than_build_arrays_are_refused(tmp_path):
    marker = tmp_path / "ran"
    for name, content in evil_pickles(marker):
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(content)
        with pytest.raises(CohortError, match=path.name) as caught:
            file = TitanFile(path)
            for slide in file.slides():
                file.read(slide)
        assert "\n" not in str(caught.value)
        assert not marker.exists(), name


def test_a_zip_bomb_is_refused(tmp_path):
    zeros = io.BytesIO()
    np.savez_compressed(
        zeros,
        features=np.zeros((10**7, 8), np.float16),
        offsets=np.array([0, 10**7]),
        slide_id=np.array(["a"]),
    )
    assert len(zeros.getvalue()) * 1000 < 10**7 * 16
    (tmp_path / "x.npz").write_bytes(zeros.getvalue())
    refused(tmp_path / "x.npz", "claims")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_with_their_row(tmp_path, write_trident, value):
    rows = ROWS.copy()
    rows[4, 2] = rows[6, 0] = value
    write_trident(tmp_path, "s", features=rows)
    with pytest.raises(
        CohortError, match=r"s.h5: slide s has NaN or infinite features in row 4 \(2 of 7 rows\)"
    ):
        only(tmp_path)


def test_infinities_that_cancel_are_found(tmp_path, write_trident):
    rows = ROWS.copy()
    rows[1, 1], rows[2, 2] = np.inf, -np.inf
    write_trident(tmp_path, "s", features=rows)
    with pytest.raises(CohortError, match="row 1"):
        only(tmp_path)


def test_large_finite_features_are_no_error(tmp_path, write_trident):
    rows = np.full((40, 6), 3e38, np.float32)
    write_trident(tmp_path, "s", features=rows)
    np.testing.assert_array_equal(only(tmp_path)[2].features, rows)


# which file is whose


def test_a_folder_of_folders_says_what_is_in_it(tmp_path, write_trident):
    write_trident(tmp_path / "features_conch_v15", "s")
    with pytest.raises(CohortError, match=r"no feature files .* it has the folders features_conch_v15"):
        find_files([tmp_path])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CohortError, match=r"no features at .*nowhere"):
        find_files([tmp_path / "nowhere"])


def test_two_kinds_of_files_need_a_word(tmp_path, write_trident):
    written = write_trident(tmp_path, "s")
    torch.save(torch.from_numpy(ROWS), tmp_path / "s.pt")
    with pytest.raises(CohortError, match=r"holds .h5 and .pt files; say which with format"):
        find_files([tmp_path])
    np.testing.assert_array_equal(only(tmp_path, "trident")[2].features, written)
    with pytest.raises(CohortError, match="did you mean trident"):
        find_files([tmp_path], "tridnet")


def test_a_slide_in_two_places_is_an_error(tmp_path, write_trident):
    write_trident(tmp_path / "a", "s")
    write_trident(tmp_path / "b", "s")
    with pytest.raises(CohortError, match=r"slide s has features in .*a/s.h5 and in .*b/s.h5"):
        find_files([tmp_path / "a", tmp_path / "b"])


def test_hidden_files_and_locks_are_no_slides(tmp_path, write_trident):
    write_trident(tmp_path, "s")
    (tmp_path / ".s.h5").write_bytes(b"")
    (tmp_path / "s.h5.lock").write_bytes(b"")
    assert list(find_files([tmp_path])) == ["s"]


# what is remembered


def test_entries_are_remembered_until_the_file_changes(tmp_path, write_trident, monkeypatch, own_cache):
    write_trident(tmp_path / "f", "s")
    write_trident(tmp_path / "f", "t")
    files = find_files([tmp_path / "f"])
    first, problems = entries(files, ["s", "t"])
    assert not problems and first["s"].patches == 12

    looked = []
    head = type(files["s"]).head
    monkeypatch.setattr(type(files["s"]), "head", lambda self, name: looked.append(name) or head(self, name))
    assert entries(files, ["s", "t"])[0] == first and looked == []

    path = tmp_path / "f" / "s.h5"
    stat = path.stat()
    rows = write_trident(tmp_path / "f", "s", features=np.ones((12, 8), np.float32))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time, other content
    assert path.stat().st_size == stat.st_size and len(rows) == 12
    again, _ = entries(files, ["s", "t"])
    assert looked == ["s"] and again["s"].digest != first["s"].digest and again["t"] == first["t"]

    (place,) = (own_cache / "features").iterdir()
    place.write_text("{damaged")
    assert entries(files, ["s", "t"])[0] == again


def test_looking_into_new_files_is_told_and_an_interrupted_look_is_kept(tmp_path, write_trident):
    for name in "abcd":
        write_trident(tmp_path / "ab" if name in "ab" else tmp_path / "cd", name)
    files = find_files([tmp_path / "ab", tmp_path / "cd"])

    def interrupted(done, total):
        assert total == 4
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entries(files, files, interrupted)
    told = []
    known, _ = entries(files, files, lambda *counts: told.append(counts))
    assert told == [(1, 1)] and set(known) == set("abcd")
    assert entries(files, files, interrupted)[0] == known


def test_one_bad_file_does_not_hide_the_others(tmp_path, write_trident):
    write_trident(tmp_path, "a")
    (tmp_path / "b.h5").write_bytes(b"no")
    files = find_files([tmp_path])
    known, problems = entries(files, ["a", "b"])
    assert list(known) == ["a"] and "b.h5: damaged" in problems["b"]
