"""A disk that is full for a while under a running worker: what it acknowledges is true, and it recovers by itself.

    python3 tests/e2e/full_disk.py PROGRAM [--rounds 2] [--full-seconds 8] [--seed N]

Needs only Python and a file system of its own, which it mounts in memory: as root, or as any user where user namespaces are
allowed. Elsewhere it reports that it was skipped. Exits with 1 if a check failed.
"""

import argparse
import collections
import contextlib
import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

from endurance import MODEL, PASSWORD, PATIENCE_SECONDS, Worker, check, faults

DISK_MEBIBYTES = 6
KEYS = 10
# The time for the worker to recover.
HEALING_SECONDS = 5
# The age of a reused check of `/readyz`, plus the duration of a check.
READINESS_SECONDS = 2
CANNOT_MOUNT = 77


@contextlib.contextmanager
def small_disk():
    folder = tempfile.mkdtemp()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEBIBYTES}m,mode=700", "tmpfs", folder]
    done = subprocess.run(mounting, capture_output=True, text=True)
    if done.returncode:
        os.rmdir(folder)
        print(f"cannot mount a file system: {done.stderr.strip()}")
        sys.exit(CANNOT_MOUNT)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)
        os.rmdir(folder)


class Full:
    """A disk without a free byte, even if something on it is removed, until it is released."""

    def __init__(self, disk):
        self.path, self.stop = os.path.join(disk, "filler"), threading.Event()
        self.thread = threading.Thread(target=self.fill)

    def fill(self):
        with open(self.path, "ab", buffering=0) as filler:
            while not self.stop.is_set():
                try:
                    filler.write(bytes(4096))
                except OSError as error:
                    assert error.errno == errno.ENOSPC, error
                    time.sleep(0.005)

    def __enter__(self):
        self.thread.start()
        time.sleep(0.1)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        os.remove(self.path)


def submit(worker, key, seed):
    body = {"model": MODEL, "prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "seed": seed}
    status, answer, headers = worker.json("POST", "/v1/inference/image", key, body)
    if status != 202:
        return None, (status, answer.get("code")), headers
    return answer["job_id"], status, headers


def ready(worker):
    return worker.ask("GET", "/readyz").status


def until_well(worker, works):
    """The time until the worker reports that it is ready, and is."""
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE_SECONDS:
        if works() and ready(worker) == 200:
            break
        time.sleep(0.05)
    return time.monotonic() - begun


def written(folder):
    """The jobs in the database as a process would find it after a crash."""
    with contextlib.closing(sqlite3.connect(os.path.join(folder, "fluxserve.db"))) as database:
        return {row[0] for row in database.execute("SELECT id FROM jobs")}


def jobs(program, disk, seconds, numbers):
    print(f"jobs, while the disk is full for {seconds} s", flush=True)
    worker = Worker(program, os.path.join(disk, "data"))
    os.mkdir(worker.folder)
    key = worker.key("jobs")
    worker.start()
    acknowledged, answers, said, bare = [], collections.Counter(), [], 0

    def one():
        job, answer, headers = submit(worker, key, numbers.randrange(1 << 32))
        if job:
            acknowledged.append(job)
        answers[answer] += 1
        nonlocal bare
        bare += answer != 202 and headers.get("retry-after") is None
        return job

    one()
    check(ready(worker) == 200, "ready before")
    with Full(disk):
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            one()
            asked = time.monotonic()
            status = ready(worker)
            if asked - begun > READINESS_SECONDS:
                said.append(status)
            time.sleep(numbers.uniform(0, 0.2))
    print(f"  while it was full: {dict(answers)}")
    check(said and set(said) == {503}, f"it says that it is not ready: {dict(collections.Counter(said))}")
    check(bare == 0, "every refusal says when to come back")
    took = until_well(worker, one)
    check(took < HEALING_SECONDS, f"well again {took:.1f} s after there was space")
    answers.clear()
    for _ in range(20):
        one()
    check(set(answers) == {202}, f"and stays so: {dict(answers)}")
    views = [worker.json("GET", f"/v1/inference/jobs/{job}", key)[0] for job in acknowledged for _ in range(3)]
    check(set(views) == {200}, "each acknowledged job is found")
    worker.kill()
    lost = set(acknowledged) - written(worker.folder)
    check(not lost, f"{len(lost)} of {len(acknowledged)} acknowledged jobs lost in a crash")
    worker.start()
    ends, until = {}, time.monotonic() + PATIENCE_SECONDS
    while len(ends) < len(acknowledged) and time.monotonic() < until:
        for job in acknowledged:
            _, view, _ = worker.json("GET", f"/v1/inference/jobs/{job}", key)
            if view.get("status") in ("succeeded", "failed", "canceled"):
                ends[job] = (view["status"], (view.get("error") or {}).get("code"))
        time.sleep(0.1)
    check(len(ends) == len(acknowledged), f"all of them end: {dict(collections.Counter(ends.values()))}")
    check(worker.stop() == 0, "ends with 0 when told to stop")


def sign_in(worker):
    answer = worker.ask("POST", "/v1/session", body={"password": PASSWORD})
    return {"cookie": answer.headers["set-cookie"].split(";")[0]} if answer.status == 201 else None


def revocations(program, disk, seconds, numbers):
    print(f"revocations, during and after {seconds} s of a full disk under load", flush=True)
    worker = Worker(program, os.path.join(disk, "data"))
    os.mkdir(worker.folder)
    key, keys = worker.key("load"), [worker.key(f"key {number}") for number in range(KEYS)]
    worker.start()
    cookie = sign_in(worker)
    _, listed, _ = worker.json("GET", "/v1/api-keys?limit=100", headers=cookie)
    ids = {own: view["id"] for view in listed["data"] for own in keys if own.startswith(view["prefix"])}
    revoked, answers = [], collections.Counter()

    def revoke(own):
        status = worker.ask("DELETE", f"/v1/api-keys/{ids[own]}", headers=cookie).status
        answers[status] += 1
        if status in (200, 204) and own not in revoked:
            revoked.append(own)
        return own in revoked

    stop = threading.Event()

    def load():
        while not stop.is_set():
            submit(worker, key, 1)

    with Full(disk):
        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            revoke(numbers.choice([own for own in keys if own not in revoked]))
        stop.set()
        for thread in threads:
            thread.join()
    print(f"  while it was full: {dict(answers)}")
    first = next(own for own in keys if own not in revoked)
    took = until_well(worker, lambda: revoke(first))
    check(took < HEALING_SECONDS, f"keys can be revoked {took:.1f} s after there was space")
    for own in keys:
        if own not in revoked:
            revoke(own)
    check(len(revoked) == KEYS, f"{len(revoked)} of {KEYS} keys are revoked")

    def refused():
        tries = [worker.ask("GET", "/v1/inference/jobs?limit=1", own).status for own in revoked for _ in range(5)]
        return collections.Counter(tries) == {401: 5 * len(revoked)}

    check(refused(), "and at once work no more, whichever connection looks")
    worker.kill()
    worker.start()
    check(refused(), "nor after a crash")
    _, log, _ = worker.json("GET", "/v1/audit?limit=100", headers=sign_in(worker))
    told = sum(entry["action"] == "key_revoked" for entry in log["data"])
    check(told == len(revoked), f"the log has {told} revocations of {len(revoked)}")
    check(worker.stop() == 0, "ends with 0 when told to stop")


def run(options):
    numbers = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with small_disk() as disk:
        for _ in range(options.rounds):
            for part in (jobs, revocations):
                part(options.program, disk, options.full_seconds, numbers)
                shutil.rmtree(os.path.join(disk, "data"))
    print(f"{len(faults)} faults")
    sys.exit(1 if faults else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--full-seconds", type=float, default=8)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="another one each time, and printed")
    parser.add_argument("--mounts", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mounts:
        run(options)
    # A private mount that ends with this program.
    again = [sys.executable, *sys.argv, "--seed", str(options.seed), "--mounts"]
    for unshare in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        if shutil.which("unshare") and subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
            status = subprocess.run([*unshare, *again]).returncode
            break
    else:
        status = subprocess.run(again).returncode
    if status == CANNOT_MOUNT:
        print("skipped: the full disk was not tested")
        status = 0
    sys.exit(status)


if __name__ == "__main__":
    main()
