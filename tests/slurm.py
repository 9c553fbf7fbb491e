"""A Slurm cluster of one node on this machine, for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture()
def slurm(tmp_path, monkeypatch) -> Iterator[Path]:
    """A cluster of one node on this machine: a real slurmctld and slurmd with their state in a temporary folder."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"Slurm cannot be started here: {missing or 'needs root'} (apt-get install slurmctld slurmd munge)")
    # Sockets have short path limits, so the state is not put below pytest's long folders.
    home = Path("/tmp") / f"lengthen-slurm-{os.getpid()}"
    for name in ("state", "spool", "munge"):
        (home / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().split(".")[0]
    control, node = free_ports(2)
    key, daemons = home / "munge/key", []
    key.write_bytes(os.urandom(128))
    for path, mode in ((key, 0o600), (home / "munge", 0o755)):
        path.chmod(mode)
    munge_socket = home / "munge/socket"
    (home / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={munge_socket}
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={control}
SlurmdPort={node}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
    monkeypatch.setenv("SLURM_CONF", str(home / "slurm.conf"))
    commands = (
        ["munged", "-F", "-f", f"--key-file={key}", f"--socket={munge_socket}", f"--pid-file={home}/munge/pid",
         f"--log-file={home}/munge/log", f"--seed-file={home}/munge/seed"],
        ["slurmctld", "-D", "-c", "-f", str(home / "slurm.conf")],
        ["slurmd", "-D", "-f", str(home / "slurm.conf"), "-N", host],
    )  # fmt: skip
    try:
        for command in commands:
            log = open(home / f"{command[0]}.out", "wb")  # noqa: SIM115
            daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(1)
        for _ in range(60):
            state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout.strip()
            if state == "idle":
                break
            time.sleep(0.5)
        else:
            logs = "\n".join(file.read_text(errors="replace")[-800:] for file in sorted(home.glob("*.log")))
            pytest.skip(f"the Slurm node does not come up here (state '{state}'):\n{logs}")
        yield home
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(home, ignore_errors=True)
