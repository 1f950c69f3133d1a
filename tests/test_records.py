"""What a results folder promises: whole files, first writer wins, shared work, keys that mean something."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from slimbench.errors import RecordError
from slimbench.runs import claims as claims_module
from slimbench.runs import store as store_module
from slimbench.runs.claims import Claims
from slimbench.runs.provenance import provenance, source_hash
from slimbench.runs.record import Cell, Identity, MetricValue, Record, TaskOutcome, Training
from slimbench.runs.store import Store, write_whole

CELL = Cell(
    encoder="slim-tiny",
    reducer="cropr",
    rate=0.9,
    trained_at=0.9,
    seed=0,
    cohort="digits",
    text="tfidf",
    recipe="tiny",
    tasks=("retrieval", "linear-probe"),
)
IDENTITY = Identity(cohort="c0ffee", code={"reducer": "aa", "task:retrieval": "bb"})


def record(cell: Cell = CELL, seconds: float = 1.0) -> Record:
    now = datetime.now(UTC)
    return Record(
        key=IDENTITY.key(cell),
        cell=cell,
        identity=IDENTITY,
        cohort_name="digits",
        status="ok",
        tasks={"retrieval": TaskOutcome(metrics=(MetricValue(name="R@10", value=0.5, n=7),))},
        provenance=provenance(),
        started=now,
        ended=now,
        seconds=seconds,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "out")
    made.prepare()
    return made


def test_a_record_comes_back_as_it_was_written(store):
    written = record()
    assert store.write_record(written) == written
    assert store.read(written.key) == written
    assert store.scan().records == {written.key: written}


def test_the_first_record_stands_and_a_second_one_is_kept_beside_it(store):
    first, second = record(seconds=1.0), record(seconds=2.0)
    store.write_record(first)
    assert store.write_record(second) == first
    assert store.read(first.key) == first
    (aside,) = store.out.glob("records/*.conflict-*.json")
    assert Record.model_validate_json(aside.read_bytes()) == second
    assert store.scan().records == {first.key: first}


def test_a_rerun_replaces_only_the_record_it_set_out_to_replace(store):
    first, second, third = (record(seconds=s) for s in (1.0, 2.0, 3.0))
    store.write_record(first)
    assert store.write_record(second, before=first) == second
    assert store.write_record(third, before=first) == second


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\x00\xff"])
def test_an_unreadable_record_is_named_and_makes_room(store, damage):
    good = record()
    path = store.path(good.key)
    path.write_bytes(damage)
    scan = store.scan()
    assert scan.records == {} and list(scan.corrupt) == [path] and scan.corrupt[path]
    assert store.write_record(good) == good
    assert store.read(good.key) == good


def test_a_record_under_another_cells_name_is_corrupt(store):
    store.write_record(record())
    os.rename(store.path(record().key), store.path("0" * 16))
    (why,) = store.scan().corrupt.values()
    assert record().key in why


def test_a_record_of_a_newer_slimbench_is_never_overwritten(store):
    store.write_record(record())
    path = store.path(record().key)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(RecordError, match="schema_version 2, this slimbench reads 1; update slimbench"):
        store.scan()


def test_an_undefined_number_is_none_with_a_note_and_never_nan():
    with pytest.raises(ValidationError, match="finite"):
        MetricValue(name="auroc", value=float("nan"), n=3)


def test_the_key_changes_with_everything_that_changes_a_number():
    key = IDENTITY.key(CELL)
    changes = {
        "rate": 0.8,
        "seed": 1,
        "precision": "bf16",
        "schedule": "input",
        "text": "hf",
        "recipe": "paper",
    }
    changes |= {"tasks": ("retrieval",), "reducer": "random", "encoder": "mean-pool", "trained_at": 0.5}
    keys = {IDENTITY.key(CELL.model_copy(update={name: value})) for name, value in changes.items()}
    keys.add(Identity(cohort="other", code=IDENTITY.code).key(CELL))
    keys.add(Identity(cohort=IDENTITY.cohort, code={"reducer": "cc"}).key(CELL))
    assert len(keys | {key}) == len(changes) + 3


def test_the_key_does_not_depend_on_paths_or_on_the_order_of_tasks():
    here = CELL.model_copy(update={"reducer": "mine.py:Mine:alpha=1", "cohort": "my.toml"})
    there = CELL.model_copy(
        update={"reducer": "/a/b c/mine.py:Mine:alpha=1", "cohort": "x/my.toml", "tasks": CELL.tasks[::-1]}
    )
    assert IDENTITY.key(here) == IDENTITY.key(there)
    assert IDENTITY.training_key(here) == IDENTITY.training_key(there)


def test_cells_that_differ_in_evaluation_only_share_their_training():
    at = CELL.model_copy(update={"trained_at": 0.5})
    same = [at.model_copy(update=change) for change in ({"rate": 0.7}, {"tasks": ("retrieval",)})]
    assert {IDENTITY.training_key(cell) for cell in same} == {IDENTITY.training_key(at)}
    assert IDENTITY.training_key(CELL) != IDENTITY.training_key(at)


def test_weights_made_by_other_code_are_trained_again(store):
    facts = Training(
        epochs=1, steps=1, parameters=1, first_loss=1, last_loss=1, seconds=1, source=source_hash()
    )
    assert store.trained("ab" * 8) is None
    weights = store.weights("ab" * 8)
    write_whole(weights.with_suffix(".json"), facts.model_dump_json().encode(), replace=True)
    assert store.trained("ab" * 8) is None  # the weights are gone
    write_whole(weights, b"weights", replace=True)
    assert store.trained("ab" * 8) == facts
    other = facts.model_copy(update={"source": "other"})
    write_whole(weights.with_suffix(".json"), other.model_dump_json().encode(), replace=True)
    assert store.trained("ab" * 8) is None


def test_predictions_come_back_and_a_task_cannot_choose_the_path(store):
    frame = pd.DataFrame({"slide": ["a", "b"], "label": ["x", "y"]})
    plain = store.write_predictions("k" * 16, "linear-probe", frame)
    assert plain == f"predictions/{'k' * 16}.linear-probe.parquet"
    hostile = store.write_predictions("k" * 16, "../../x/evil.py:Task:a=/etc", frame)
    assert re.fullmatch(r"predictions/k{16}\.[a-z0-9-]+\.parquet", hostile)
    assert hostile != store.write_predictions("k" * 16, "../../x/evil.py:Task:a=_etc", frame)
    assert pd.read_parquet(store.out / hostile).equals(frame)


def test_a_full_disk_is_one_line_with_the_path_and_the_bytes_and_leaves_nothing_behind(store, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(
        RecordError, match=r"records/x\.json cannot be written: No space left.*5 bytes"
    ) as caught:
        write_whole(store.out / "records" / "x.json", b"12345", replace=True)
    assert "\n" not in str(caught.value)
    assert list((store.out / "records").iterdir()) == []


def test_a_file_system_without_hard_links_still_keeps_the_first_record(store, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(store_module.os, "link", no_links)
    first, second = record(seconds=1.0), record(seconds=2.0)
    assert store.write_record(first) == first
    assert store.write_record(second) == first


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        Store(tmp_path / "file" / "out").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize(("options", "why"), [("ro", "Read-only file system"), ("size=16k", "No space left")])
def test_a_read_only_or_full_file_system_is_one_line(tmp_path, options, why):
    script = textwrap.dedent("""
        import sys
        from slimbench.errors import RecordError
        from slimbench.runs.store import Store, write_whole
        try:
            Store(sys.argv[1]).prepare()
            write_whole(Store(sys.argv[1]).path("k"), b"x" * 100_000, replace=False)
        except RecordError as error:
            print(error)
    """)
    mount = (
        f"mount -t tmpfs -o {options} none {tmp_path} && exec {sys.executable} -c '{script}' {tmp_path}/out"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False, capture_output=True, text=True)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert why in done.stdout and done.stdout.count("\n") == 1, done


def test_leftovers_of_dead_processes_are_cleared_and_those_of_living_ones_are_not(store):
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder = store.out / "records"
    names = {
        "left": f".a.json.{dead.pid}.0123abcd.tmp",
        "young": f".b.json.{dead.pid}.0123abcd.tmp",
        "mine": f".c.json.{os.getpid()}.0123abcd.tmp",
    }
    for name in names.values():
        (folder / name).write_text("")
    for name in ("left", "mine"):
        os.utime(folder / names[name], (time.time() - 3600, time.time() - 3600))
    store.prepare()
    assert {path.name for path in folder.iterdir()} == {names["young"], names["mine"]}


def test_a_kill_in_mid_write_never_leaves_a_part_of_a_record(store):
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from slimbench.runs.store import write_whole
        number = 0
        while True:
            write_whole(Path(sys.argv[1]) / f"{number % 3}.json", b"x" * 200_000 + b"end", replace=True)
            number += 1
            print(number, flush=True)
    """)
    folder = store.out / "records"
    seen = 0
    for round_ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(1 + 2 * round_):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for path in folder.glob("[0-9].json"):
            seen += 1
            assert path.read_bytes().endswith(b"end")
    assert seen >= 6


def test_a_claim_is_held_once_and_can_be_given_back(store):
    mine, other = Claims(store.out / "claims"), Claims(store.out / "claims")
    assert mine.take("k") and not other.take("k") and not mine.take("k")
    assert other.holder("k") == f"process {os.getpid()} on {mine.me.host}"
    mine.release("k")
    assert other.holder("k") is None and other.take("k")


def test_a_claim_of_a_dead_process_is_taken_over_at_once(store):
    folder = store.out / "claims"
    script = "import sys; from slimbench.runs.claims import Claims; from pathlib import Path; "
    script += "print(Claims(Path(sys.argv[1])).take('k'))"
    done = subprocess.run([sys.executable, "-c", script, folder], check=False, capture_output=True, text=True)
    assert done.stdout == "True\n" and (folder / "k.json").exists()
    assert Claims(folder).holder("k") is None and Claims(folder).take("k")


def test_a_claim_from_another_machine_is_taken_over_when_nobody_touched_it(store):
    theirs, ours = Claims(store.out / "claims"), Claims(store.out / "claims")
    theirs.me = claims_module.Owner("elsewhere", "boot", "space", 1, "0", "token")
    assert theirs.take("k")
    assert not ours.take("k") and ours.holder("k") == "process 1 on elsewhere"
    os.utime(store.out / "claims" / "k.json", (time.time() - 3600, time.time() - 3600))
    assert ours.take("k")
    theirs.release("k")  # it woke up: what is no longer its own stays
    assert ours.holder("k") is not None


def test_claims_are_kept_alive_by_touching(store, monkeypatch):
    monkeypatch.setattr(claims_module, "TOUCH_EVERY", 0.0)
    mine = Claims(store.out / "claims")
    mine.take("k")
    os.utime(store.out / "claims" / "k.json", (0, 0))
    mine.touch()
    assert time.time() - (store.out / "claims" / "k.json").stat().st_mtime < 60


def test_a_damaged_claim_holds_for_a_while_and_not_for_ever(store):
    path = store.out / "claims" / "k.json"
    path.write_text("{")
    assert not Claims(store.out / "claims").take("k")
    os.utime(path, (0, 0))
    assert Claims(store.out / "claims").take("k")


def test_processes_that_race_for_claims_never_share_one_even_when_taking_over(store):
    folder = store.out / "claims"
    dead = claims_module.Owner.me()
    gone = subprocess.Popen(["true"])
    gone.wait()
    for number in range(300):
        owner = vars(dead) | {"pid": gone.pid, "born": "1", "token": "dead"}
        (folder / f"{number}.json").write_text(json.dumps(owner))
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from slimbench.runs.claims import Claims
        claims = Claims(Path(sys.argv[1]))
        print(sys.stdin.readline() and [n for n in range(300) if claims.take(str(n))])
        sys.stdout.flush()
        sys.stdin.readline()
    """)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", script, folder], **pipes) for _ in range(4)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    taken = [number for racer in racers for number in json.loads(racer.stdout.readline())]
    for racer in racers:
        racer.communicate("\n")
    assert sorted(taken) == list(range(300))


def test_provenance_says_where_a_number_came_from():
    found = json.loads(json.dumps(provenance()))
    assert re.fullmatch("[0-9a-f]{16}", found["source"]) and found["source"] == source_hash()
    assert found["versions"]["torch"] and found["python"] == sys.version.split()[0]
    assert found["machine"]["cores"] >= 1 and found["machine"]["cpu"] and found["machine"]["memory_gib"] > 0
    assert found["command"].startswith(Path(sys.argv[0]).name)


def test_kept_sets_come_back_as_they_were_written(store: Store) -> None:
    left = {
        "TCGA-1.svs": np.array([255, 1, 255], np.uint8),
        "empty": np.empty(0, np.uint8),
        "é 2": np.array([0], np.uint8),
    }
    store.write_kept_sets("k", left)
    found = store.kept_sets("k")
    assert list(found) == list(left)
    assert all(np.array_equal(found[slide], left[slide]) for slide in left)
    assert store.kept_sets("nobody") == {}


def deflated(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def test_damaged_kept_sets_are_one_line(store: Store) -> None:
    store.write_kept_sets("k", {"a": np.arange(200, dtype=np.uint8)})
    path = store.out / "kept" / "k.npz"
    whole = path.read_bytes()
    header = b'\x93NUMPY\x01\x00\x10\x00{"descr": """  \n'
    for damaged in (
        whole[:40],
        b"",  # EOFError
        whole.replace(b"left.npy", b"gone.npy"),
        bytes([*whole[:60], *(255 - byte for byte in whole[60:90]), *whole[90:]]),  # zlib.error
        deflated(slides=header, patches=header, left=header),  # tokenize.TokenError
    ):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match=r"k\.npz holds no kept sets") as told:
            store.kept_sets("k")
        assert "\n" not in str(told.value)


def test_kept_sets_of_a_large_slide_are_small(store: Store) -> None:
    left = np.random.default_rng(0).choice([1, 2, 3, 4, 5, 255], 17_182).astype(np.uint8)
    store.write_kept_sets("k", {"slide": left})
    assert (store.out / "kept" / "k.npz").stat().st_size < 9_000
