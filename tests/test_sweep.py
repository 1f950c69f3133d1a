"""What a sweep promises: it finishes what can be finished, whatever happens to a cell, to it, or beside it."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

import slimbench
from slimbench import api
from slimbench.errors import PluginError, RecordError, UsageError
from slimbench.runs.executors import local
from slimbench.runs.executors.child import Child
from slimbench.runs.executors.local import LocalExecutor
from slimbench.runs.provenance import source_hash
from slimbench.runs.record import Cell, Identity, Record
from slimbench.runs.store import Store
from slimbench.runs.work import Job, Watcher, Work, plan

FAKE = '''
"""Cells that take no time; what goes wrong with them stands in their `recipe`."""
import errno, os, signal, subprocess, sys, time
from datetime import UTC, datetime
from slimbench.errors import CohortError
from slimbench.runs.cell import Progress, identify
from slimbench.runs.provenance import provenance
from slimbench.runs.record import Identity, Record

def run(cell, out, report):
    started, mode = datetime.now(UTC), cell.recipe
    with (out / "runs.txt").open("a") as file:
        file.write(f"{cell.seed} {mode}\\n")
    report(Progress("train", 3, 10, "loss 1.0"))
    if mode == "raise":
        raise ValueError("boom")
    if mode == "cohort":
        raise CohortError("slide 7 has no features")
    if mode == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "memory":
        bytearray(1 << 50)
    if mode == "torch-memory":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    if mode == "_exit":
        os._exit(0)
    if mode == "sys.exit":
        sys.exit(3)
    if mode == "full":
        raise OSError(errno.ENOSPC, "No space left on device", str(out / "models" / "x"))
    if mode == "hang":
        print("I hang", flush=True)
        grandchild = subprocess.Popen(["sleep", "360"])
        (out / f"grandchild-{cell.seed}").write_text(f"{os.getpid()} {grandchild.pid}")
        time.sleep(360)
    if mode == "slow":
        time.sleep(0.5)
    if mode == "threads":
        print(os.environ["OMP_NUM_THREADS"], os.getpgrp() == os.getpid(), flush=True)
    identity = Identity(cohort="fake", code={})
    return Record(key=identity.key(cell), cell=cell, identity=identity, cohort_name="fake", status="ok",
                  provenance=provenance(), started=started, ended=datetime.now(UTC), seconds=0.0)

class Cohort:
    name, captions, fingerprint = "tiny", "report", "tiny"
    from slimbench.cohorts.cohort import Defaults
    defaults = Defaults(encoder="slim-tiny", text="tfidf", recipe="tiny", tasks=("linear-probe",))

def run_asked(cell, out, report):
    record = run(cell, out, report)
    identity = identify(cell, Cohort())
    return record.model_copy(update={"identity": identity, "key": identity.key(cell)})
'''

SCRIPT = """
import sys
sys.path.insert(0, {modules!r})
from slimbench.runs.executors.child import Child
from slimbench.runs.executors.local import LocalExecutor
from slimbench.runs.record import Cell, Identity
from slimbench.runs.store import Store
from slimbench.runs.work import Job, Watcher, Work, plan

class Say(Watcher):
    def started(self, job):
        print("started", job.cell.seed, flush=True)

Child.preload(())
store = Store({out!r})
store.prepare()
cells = [Cell(encoder="e", reducer="r", rate=0.5, trained_at=0.5, seed=seed, cohort="c", text="t", recipe=mode,
              tasks=()) for seed, mode in enumerate({modes!r})]
todo, done, corrupt = plan([Job(c, Identity(cohort="fake", code={{}}), "fake") for c in cells], store, "missing")
try:
    LocalExecutor(jobs=2, run="fake_cells:run").run(Work(store, todo), Say())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """A folder with the module of fake cells, importable here and in every child."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "fake_cells.py").write_text(FAKE)
    sys.path.insert(0, str(folder))
    Child.preload(("torch", "pydantic", "pandas", "threadpoolctl"))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "out")
    made.prepare()
    return made


def job(mode: str, seed: int = 0) -> Job:
    cell = Cell(
        encoder="e",
        reducer="r",
        rate=0.5,
        trained_at=0.5,
        seed=seed,
        cohort="c",
        text="t",
        recipe=mode,
        tasks=(),
    )
    return Job(cell, Identity(cohort="fake", code={}), "fake")


def run(store: Store, *jobs: Job, rerun: str = "missing", **options) -> dict[str, Record]:
    """{mode: record} after one executor went over the jobs."""
    todo, done, _ = plan(jobs, store, rerun)
    work = Work(store, todo)
    LocalExecutor(run="fake_cells:run", **{"jobs": 2} | options).run(work, Watcher())
    return {record.cell.recipe: record for record in (done | work.finished).values()}


def ran(store: Store) -> Counter[str]:
    """How often each cell was run."""
    path = store.out / "runs.txt"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def script(modules: Path, out: Path, modes: list[str]) -> subprocess.Popen[str]:
    text = SCRIPT.format(modules=str(modules), out=str(out), modes=modes)
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether a process ends, or is a zombie, within some seconds."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("mode", "kind", "type_", "message"),
    [
        ("raise", "error", "ValueError", "boom"),
        ("cohort", "error", "CohortError", "slide 7 has no features"),
        ("sigkill", "killed", "SIGKILL", r"killed by SIGKILL in phase train \(3 of 10\)"),
        ("segv", "error", "SIGSEGV", "crashed with SIGSEGV"),
        ("memory", "oom", "MemoryError", "MemoryError"),
        ("torch-memory", "oom", "RuntimeError", "can't allocate memory"),
        ("_exit", "error", "ProcessExit", "exit code 0 and no result"),
        ("sys.exit", "error", "SystemExit", r"sys.exit\(3\)"),
    ],
)
def test_a_cell_that_dies_is_a_failed_record_and_the_others_go_on(store, mode, kind, type_, message):
    records = run(store, job(mode), job("fine", 1))
    assert records["fine"].status == "ok"
    failed = records[mode]
    assert (failed.status, failed.failure.kind, failed.failure.type) == ("failed", kind, type_)
    assert re.search(message, failed.failure.message)
    assert store.read(failed.key) == failed
    if type_ in ("ValueError", "MemoryError"):
        assert "fake_cells.py" in failed.failure.traceback


def test_a_hanging_cell_and_what_it_started_are_ended_and_its_output_is_kept(store):
    began = time.monotonic()
    records = run(store, job("hang"), job("fine", 1), timeout=8.0)
    assert time.monotonic() - began < 8 + local.GRACE + 10
    failure = records["hang"].failure
    assert failure.kind == "timeout" and "--timeout" in failure.message
    assert "I hang" in failure.traceback and "fake_cells.py" in failure.traceback
    for pid in (store.out / "grandchild-0").read_text().split():
        assert gone(int(pid))
    assert records["fine"].status == "ok"


def test_a_process_can_be_ended_before_it_has_begun(tmp_path):
    began = time.monotonic()
    for _ in range(5):
        Child(time.sleep, 60, log=tmp_path / "log", threads=1, gpu=None).close()
    assert time.monotonic() - began < 20


def test_the_same_sweep_again_runs_nothing(store):
    jobs = [job("fine", seed) for seed in range(3)]
    first = run(store, *jobs)
    again = run(store, *jobs)
    assert again == first and set(ran(store).values()) == {1}


def test_a_corrupt_record_is_run_again(store):
    run(store, job("fine"))
    store.path(job("fine").key).write_text("{")
    assert run(store, job("fine"))["fine"].status == "ok" and ran(store)["0 fine"] == 2


@pytest.mark.parametrize(
    ("rerun", "expected"),
    [("missing", [1, 1, 1, 1]), ("failed", [1, 2, 1, 1]), ("stale", [1, 1, 2, 1]), ("all", [2, 2, 2, 1])],
)
def test_rerun_runs_what_its_word_says(store, rerun, expected):
    jobs = [job("fine", 0), job("raise", 1), job("stale", 2), job("new", 3)]
    run(store, *jobs[:3])
    for number, source in enumerate((source_hash(), source_hash(), "other code")):
        old = store.read(jobs[number].key)
        provenance = old.provenance | {"source": source}
        store.write_record(old.model_copy(update={"provenance": provenance}), before=old)
    run(store, *jobs, rerun=rerun)
    counts = ran(store)
    assert [counts[f"{j.cell.seed} {j.cell.recipe}"] for j in jobs] == expected
    assert store.read(jobs[2].key).provenance["source"] != "other code" or rerun in ("missing", "failed")


def test_an_unknown_rerun_is_refused(store):
    with pytest.raises(UsageError, match="missing, failed, stale, all"):
        plan([job("fine")], store, "some")


def test_a_full_disk_in_a_cell_stops_the_sweep_and_marks_nothing_as_failed(store):
    with pytest.raises(RecordError, match=r"models/x.*free space there"):
        run(store, job("fine", 0), job("full", 1), job("fine", 2), jobs=1)
    assert [record.status for record in store.scan().records.values()] == ["ok"]
    assert list((store.out / "claims").glob("*.json")) == []


def test_a_folder_that_fills_up_stops_the_sweep_and_keeps_what_was_done(store, monkeypatch):
    run(store, job("fine", 0))

    def full(self, record, before=None):
        raise RecordError(f"{self.path(record.key)} cannot be written: No space left on device")

    monkeypatch.setattr(Store, "write_record", full)
    with pytest.raises(RecordError, match="No space left"):
        run(store, job("fine", 1))
    assert list(store.scan().records) == [job("fine", 0).key]
    assert list((store.out / "claims").glob("*.json")) == []


def test_two_sweeps_on_one_folder_share_the_work(store, modules):
    modes = ["slow"] * 8
    sweeps = [script(modules, store.out, modes) for _ in range(2)]
    started = [sweep.communicate(timeout=60)[0].count("started") for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0]
    assert set(ran(store).values()) == {1} and sum(started) == 8 and min(started) >= 1
    assert len(store.scan().records) == 8 and not list(store.out.glob("records/*conflict*"))


def test_a_sweep_waits_for_cells_that_another_one_is_running(store, modules):
    other = script(modules, store.out, ["slow"])
    assert other.stdout.readline() == "started 0\n"
    seen = []

    class Look(Watcher):
        def elsewhere(self, owners):
            seen.append(dict(owners))

    todo, _, _ = plan([job("slow", 0)], store, "missing")
    work = Work(store, todo)
    LocalExecutor(jobs=1, run="fake_cells:run").run(work, Look())
    other.communicate(timeout=30)
    assert work.finished and ran(store) == {"0 slow": 1}
    assert seen and f"process {other.pid}" in seen[0][job("slow", 0).key]


def test_ctrl_c_loses_no_finished_cell_and_marks_none_as_failed(store, modules):
    sweep = script(modules, store.out, ["fine", "hang", "fine", "hang", "fine"])
    for _ in range(4):
        sweep.stdout.readline()
    while not (store.out / "grandchild-3").exists():
        time.sleep(0.02)
    os.killpg(sweep.pid, signal.SIGINT)
    sweep.communicate(timeout=15)
    assert sweep.returncode == 130
    records = store.scan().records.values()
    assert sorted(record.cell.seed for record in records) == [0, 2]
    assert {record.status for record in records} == {"ok"}
    assert list((store.out / "claims").glob("*.json")) == []
    for seed in (1, 3):
        for pid in (store.out / f"grandchild-{seed}").read_text().split():
            assert gone(int(pid))


def test_a_sweep_that_is_killed_leaves_no_process_and_the_next_one_finishes_it(store, modules):
    sweep = script(modules, store.out, ["fine", "hang", "fine"])
    for _ in range(3):
        sweep.stdout.readline()
    while not (store.out / "grandchild-1").exists() or len(store.scan().records) < 2:
        time.sleep(0.02)
    sweep.kill()
    sweep.communicate()
    for pid in (store.out / "grandchild-1").read_text().split():
        assert gone(int(pid))
    records = run(store, job("fine", 0), job("hang", 1), job("fine", 2), timeout=1.0)
    assert records["hang"].failure.kind == "timeout"
    assert ran(store) == {"0 fine": 1, "1 hang": 2, "2 fine": 1}


def test_cells_that_share_their_training_do_not_train_at_the_same_time(store):
    one = job("slow")
    jobs = [Job(one.cell.model_copy(update={"rate": rate}), one.identity, "fake") for rate in (0.5, 0.6, 0.7)]
    assert len({j.training_key for j in jobs}) == 1
    together = []

    class Count(Watcher):
        def started(self, job):
            together.append(1)

        def finished(self, job, record):
            together.append(-1)

    LocalExecutor(jobs=3, run="fake_cells:run").run(Work(store, jobs), Count())
    assert together == [1, -1] * 3


def test_a_cell_runs_with_its_share_of_the_cores_in_its_own_process_group(store):
    run(store, job("threads"), jobs=1)
    log = (store.out / "logs" / f"{job('threads').key}.log").read_text()
    assert log.split() == [str(local.cores()), "True"]


def test_a_quiet_cell_leaves_no_log(store):
    run(store, job("fine"))
    assert list((store.out / "logs").iterdir()) == []


@pytest.mark.parametrize(
    ("visible", "expected"), [("0,2", ["0", "2"]), ("", []), ("-1", []), ("GPU-a", ["GPU-a"])]
)
def test_gpus_are_those_that_the_environment_allows(monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.gpus() == expected
    assert LocalExecutor().jobs == (
        len(expected) or max(1, local.cores() // (1 if local.cores() < 16 else 4))
    )


@pytest.mark.parametrize(("options", "message"), [({"jobs": 0}, "--jobs 0"), ({"timeout": 0}, "--timeout 0")])
def test_an_executor_refuses_what_cannot_run(options, message):
    with pytest.raises(UsageError, match=message):
        LocalExecutor(**options)


@pytest.fixture
def tiny(monkeypatch):
    """slimbench.sweep on a cohort of nothing, with cells that take no time."""
    import fake_cells

    monkeypatch.setattr(api, "open_cohort", lambda name, opening: fake_cells.Cohort())
    return lambda *words, **options: slimbench.sweep(
        *words, jobs=2, run_cell="fake_cells:run_asked", **options
    )


def test_a_sweep_runs_the_grid_and_both_baselines_and_hands_back_every_record(tiny, tmp_path):
    records = tiny(["cropr"], "0.5,0.9", out=tmp_path / "out")
    rows = [(record.cell.encoder, record.cell.reducer, record.cell.rate) for record in records]
    assert rows == [
        ("mean-pool", "none", 0.0),
        ("slim-tiny", "none", 0.0),
        ("slim-tiny", "cropr", 0.5),
        ("slim-tiny", "cropr", 0.9),
    ]
    assert tiny(["cropr"], "0.5,0.9", out=tmp_path / "out") == records
    more = tiny(["cropr"], "0.5,0.9", seeds="0-1", baselines=False, out=tmp_path / "out")
    assert len(more) == 4 and len(ran(Store(tmp_path / "out"))) == 2  # seeds 0 and 1, each cell once
    assert sum(ran(Store(tmp_path / "out")).values()) == 4 + 2


def test_a_dry_run_checks_and_tells_but_touches_nothing(tiny, tmp_path):
    seen = []

    class Look(Watcher):
        def planned(self, jobs, done, corrupt):
            seen.extend(jobs)

    assert tiny("random", 0.5, out=tmp_path / "out", dry_run=True, watch=Look()) == []
    assert len(seen) == 3 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("raise RuntimeError('no weights')", PluginError, "bad.py.*RuntimeError: no weights"),
        ("raise SystemExit(0)", PluginError, "bad.py.*SystemExit"),
        ("import os; os._exit(0)", PluginError, "bad.py:Bad ended the process that imported it"),
        ("Other = 1", PluginError, "bad.py.*Bad"),
    ],
)
def test_a_plugin_that_dies_at_import_is_named_before_anything_runs(tiny, tmp_path, body, error, message):
    (tmp_path / "bad.py").write_text(body)
    with pytest.raises(error, match=message):
        tiny(["random", f"{tmp_path}/bad.py:Bad"], 0.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reducer", "message"),
    [
        ("random:colour=red", "random takes no argument 'colour'"),
        ("cropr:dim=3", "cropr takes no argument 'dim'"),
    ],
)
def test_arguments_of_plugins_are_checked_before_anything_runs(tiny, tmp_path, reducer, message):
    with pytest.raises(UsageError, match=message):
        tiny(reducer, 0.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_script_without_a_main_guard_can_sweep_and_never_imports_torch(modules, tmp_path):
    script = tmp_path / "study.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(modules)!r})
        print("once")
        import fake_cells
        import slimbench
        from slimbench import api
        api.open_cohort = lambda name, opening: fake_cells.Cohort()
        records = slimbench.sweep("random", 0.5, out={str(tmp_path / "out")!r}, run_cell="fake_cells:run_asked")
        print(len(records), {{record.status for record in records}}, "torch" in sys.modules)
        """)
    )
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["once", "3 {'ok'} False"], done
