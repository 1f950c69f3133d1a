"""Cells as a Slurm job array, on a real single-node Slurm where its daemons are installed."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from slimbench.errors import UsageError
from slimbench.runs.executors import slurm
from slimbench.runs.executors.slurm import SlurmExecutor
from slimbench.runs.record import Cell, Identity, Record
from slimbench.runs.store import Store
from slimbench.runs.work import Job, Watcher, Work, plan

FAKE = """
import os, signal, time
from datetime import UTC, datetime
from slimbench.runs.record import Identity, Record

def run(cell, out, report):
    started = datetime.now(UTC)
    with (out / "runs.txt").open("a") as file:
        file.write(f"{cell.seed}\\n")
    if cell.recipe == "raise":
        raise ValueError("boom")
    if cell.recipe == "lost":
        server = open(f"/proc/{os.getppid()}/stat").read()  # the cell's parent is the server that forked it
        os.kill(int(server.rpartition(")")[2].split()[1]), signal.SIGKILL)
    if cell.recipe in ("lost", "slow"):
        time.sleep(8)
    identity = Identity(cohort="fake", code={})
    return Record(key=identity.key(cell), cell=cell, identity=identity, cohort_name="fake", status="ok",
                  started=started, ended=datetime.now(UTC), seconds=0.0)
"""

CONFIGURATION = """
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MaxArraySize=3
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=0
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=ci Nodes={host} Default=YES MaxTime=60 State=UP
"""


def job(mode: str, seed: int, rate: float = 0.5) -> Job:
    cell = Cell(
        encoder="e",
        reducer="r",
        rate=rate,
        trained_at=rate,
        seed=seed,
        cohort="c",
        text="t",
        recipe=mode,
        tasks=(),
    )
    return Job(cell, Identity(cohort="fake", code={}), "fake")


def test_the_script_is_plain_bash_that_runs_each_cell_by_its_index(tmp_path):
    executor = SlurmExecutor(["--partition=gpu", "--time=2:00:00"], jobs=4, timeout=60.0)
    lines = executor.script(tmp_path / "a folder", 12).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --array=0-11%4", "#SBATCH --partition=gpu", "#SBATCH --time=2:00:00"} <= set(lines)
    assert lines[-1].startswith(f"exec {sys.executable} -m slimbench run-cell '")
    assert lines[-1].endswith('--timeout 60.0 --index "$SLURM_ARRAY_TASK_ID"')
    subprocess.run(["bash", "-n"], input="\n".join(lines), check=True, text=True)


@pytest.mark.parametrize("option", ["partition", "--a\nrm -rf", "--a\r", ""])
def test_what_is_no_option_of_sbatch_never_reaches_the_script(option):
    with pytest.raises(UsageError, match="no option of sbatch"):
        SlurmExecutor([option])


def test_where_there_is_no_slurm_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="there is no sbatch on this machine"):
        SlurmExecutor().run(Work(Store(tmp_path), []), Watcher())


def test_a_controller_that_does_not_answer_is_not_an_empty_queue(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho down >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm._queue() is None
    squeue.write_text("#!/bin/sh\necho '12 0 RUNNING'; echo '12 1 PENDING'; echo '13 N/A RUNNING'\n")
    assert slurm._queue() == {("12", 0): "RUNNING", ("12", 1): "PENDING"}


@pytest.fixture(scope="module")
def cluster():
    """A Slurm of one node, up while these tests run."""
    needed = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
    missing = [name for name in needed if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"a Slurm of its own needs root and {', '.join(missing or needed)}")
    # Not in pytest's own folder: munge wants a socket that all can reach, and pytest's is for its user alone.
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)
    for name in ("state", "spool", "log", "munge"):
        (folder / name).mkdir()
    (folder / "munge").chmod(0o711)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=_free_ports(2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        munge = folder / "munge"
        files = [
            f"--{key}={munge / key.partition('-')[0]}"
            for key in ("key-file", "socket", "pid-file", "log-file", "seed-file")
        ]
        files[1] = f"--socket={munge / 'sock'}"
        try:
            subprocess.run(["munged", *files], check=True)
            subprocess.run(["slurmctld"], check=True)
            subprocess.run(["slurmd"], check=True)
            _until(
                lambda: (
                    "idle"
                    in subprocess.run(
                        ["sinfo", "-h", "-o", "%t"], check=False, capture_output=True, text=True
                    ).stdout
                )
            )
            yield folder
        finally:
            subprocess.run(["scancel", "--me"], check=False)
            time.sleep(0.5)
            for path in (folder / "slurmd.pid", folder / "slurmctld.pid", munge / "pid"):
                _stop(path)
            shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _until(true, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def _stop(path: Path) -> None:
    if not path.exists():
        return
    pid = int(path.read_text())
    for number in (15, 9):
        try:
            os.kill(pid, number)
            _until(
                lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text(),
                5.0,
            )
        except ProcessLookupError:
            return
        except AssertionError:
            continue
        return


@pytest.fixture
def store(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "POLL", 0.5)
    (tmp_path / "slurm_cells.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Store(tmp_path / "out")
    made.prepare()
    return made


def run(store: Store, *jobs: Job, rerun: str = "missing", watch: Watcher | None = None) -> dict[int, Record]:
    """{seed: record} after the array went through."""
    todo, done, _ = plan(jobs, store, rerun)
    work = Work(store, todo)
    SlurmExecutor(run="slurm_cells:run").run(work, watch or Watcher())
    return {record.cell.seed: record for record in (done | work.finished).values()}


@pytest.mark.slow
def test_an_array_runs_every_cell_once_and_a_failing_cell_fails_alone(store):
    jobs = [job("raise" if seed == 2 else "fine", seed) for seed in range(5)]
    records = run(store, *jobs)
    assert [records[seed].status for seed in range(5)] == ["ok", "ok", "failed", "ok", "ok"]
    assert records[2].failure.message == "boom"
    assert sorted((store.out / "runs.txt").read_text().split()) == ["0", "1", "2", "3", "4"]
    assert len(list(store.out.glob("slurm/*/job"))) == 2  # MaxArraySize is 3 here
    assert run(store, *jobs) == records and len((store.out / "runs.txt").read_text().split()) == 5
    assert run(store, *jobs, rerun="failed")[2].status == "failed"
    assert len((store.out / "runs.txt").read_text().split()) == 6


@pytest.mark.slow
def test_a_task_that_slurm_ends_without_a_record_is_recorded_as_killed(store):
    records = run(store, job("fine", 0), job("lost", 1))
    assert records[0].status == "ok"
    failure = records[1].failure
    assert failure.kind == "killed" and "left the queue without a record" in failure.message
    assert store.read(records[1].key) == records[1]


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_its_array_alone_and_the_next_one_does_not_submit_it_again(store):
    class Leave(Watcher):
        def started(self, job: Job) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store, job("slow", 0), watch=Leave())
    seen: list[int] = []

    class Look(Watcher):
        def finished(self, job: Job, record: Record) -> None:
            seen.append(job.cell.seed)

    assert run(store, job("slow", 0), watch=Look())[0].status == "ok" and seen == [0]
    assert (store.out / "runs.txt").read_text().split() == ["0"]
    assert len(list(store.out.glob("slurm/*/job"))) == 1


@pytest.mark.slow
def test_two_sweeps_submit_and_each_cell_still_runs_once(store):
    jobs = [job("fine", seed) for seed in range(2)]
    threads = [threading.Thread(target=run, args=(store, *jobs)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted((store.out / "runs.txt").read_text().split()) == ["0", "1"]
