"""A Slurm of two virtual nodes on this machine, its daemons children of this process.

python -m tests.slurm.cluster        says what is missing; exit code 1 if anything is
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("n1", "n2")
PATIENCE = 60
"Seconds."
CONFIGURATION = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=0
KillWait=1
SlurmctldTimeout=30
SlurmdTimeout=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmctldPort={ports[0]}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
# cred_expire: how long a requeued job waits, and the cluster forgets a job that was killed, by default 120 s


@dataclass
class Cluster:
    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """With which Slurm's commands find it."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self, name: str, *command: str) -> None:
        """A daemon in the foreground, its output in a log."""
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name)

    def command(self, *words: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(words, env=self.environment, text=True, capture_output=True, timeout=PATIENCE)
        return done.stdout

    def queue(self, job: str) -> list[list[str]]:
        """State, node and number of restarts of each task of a job that is not at its end."""
        return [
            line.split("|")
            for line in self.command("squeue", "-h", "-r", "-j", job, "-o", "%T|%N").splitlines()
        ]

    def describe(self, job: str) -> str:
        """Of each task: state, restarts and much else; also for some minutes after its end."""
        return self.command("scontrol", "show", "job", job)

    def processes(self, job: str) -> dict[int, str]:
        """Python processes of a job and of its tasks: pid → the node that runs it."""
        raw = {
            line.split()[0] for line in self.command("squeue", "-h", "-r", "-j", job, "-o", "%A").splitlines()
        }
        found = {}
        for pid, environ, words in _all_processes():
            if (
                environ.get("SLURM_JOB_ID") in raw
                and "submitit.core._submit" in words
                and "srun" not in words[0]
            ):
                found[pid] = environ.get("SLURMD_NODENAME", "")
        return found

    def kill_node(self, name: str) -> None:
        """As if its plug was pulled: slurmd, the step daemons and all that they have started."""
        self.daemons.pop(name).kill()
        found = list(_all_processes())
        payload = {pid: env["SLURM_JOB_ID"] for pid, env, _ in found if env.get("SLURMD_NODENAME") == name}
        steps = tuple(f"slurmstepd: [{job}." for job in set(payload.values()))
        for pid in [*(pid for pid, _, words in found if words[0].startswith(steps)), *payload]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Every daemon, the last started first, by its pid."""
        self.command("scancel", "--user", "root")
        wait_for(lambda: not self.command("squeue", "-h"), "an empty queue", patience=20, strict=False)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster in a folder, and stop it."""
    ports = [_free_port() for _ in range(3)]
    made = Cluster(folder)
    for name in ("state", "spool", "log", "munge"):
        (folder / name).mkdir(parents=True, mode=0o755)
    text = CONFIGURATION.format(folder=folder, host=socket.gethostname().partition(".")[0], ports=ports)
    (folder / "slurm.conf").write_text(text)
    try:
        _start_munge(made)
        made.start("slurmctld", "slurmctld", "-D", "-c")
        for name in NODES:
            made.start_node(name)
        wait_for(
            lambda: made.command("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2, "two idle nodes"
        )
        yield made
    finally:
        made.stop()


def wait_for(
    condition: Callable[[], object], what: str, *, patience: float = PATIENCE, strict: bool = True
) -> None:
    """Until it is true; raises `TimeoutError`."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            if strict:
                raise TimeoutError(f"no {what} within {patience} s")
            return
        time.sleep(0.1)


def missing() -> list[str]:
    """What keeps a cluster from being started here."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return lacking + ["root"] * (os.geteuid() != 0)


def _start_munge(made: Cluster) -> None:
    folder = made.folder / "munge"
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    flags = [f"--{flag}={folder / name}" for flag, name in files.items()]
    made.start("munged", "munged", "--foreground", "--force", *flags)
    wait_for((folder / "socket").exists, "munge socket")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _all_processes() -> Iterator[tuple[int, dict[str, str], list[str]]]:
    """pid, environment and words of the command of each."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_text(errors="replace").split("\0")
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue
        yield int(folder.name), dict(pair.split("=", 1) for pair in environ if "=" in pair), words


if __name__ == "__main__":
    sys.exit(f"missing: {', '.join(missing())}" if missing() else 0)
