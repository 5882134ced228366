"""Large LoRAs under work: kills while one arrives or is read, and how long images wait while one is loaded. With the real program.

    python3 tests/e2e/adapters.py PROGRAM [--parts kills] [--kills 4] [--mebibytes 300] [--seed N]
    python3 tests/e2e/adapters.py PROGRAM --parts gap [--model ID=DIR] [--device cpu] [--rounds 3]

The second asks for times, so only on a machine that does nothing else. Needs only Python. Exits with 1 if a check failed.
"""

import argparse
import contextlib
import datetime
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from endurance import MODEL, PASSWORD, PATIENCE_SECONDS, Worker, check, faults
from lora_files import DEMO_MODEL, rank_of, write_lora

# The name of the thread that reads a LoRA for the engine, which lives as long as that takes.
READER = "adapter"
LOOK_SECONDS = 0.001
# Longest a job waits until the engine begins to read its LoRA.
BEGINS_WITHIN_SECONDS = 5
# On two cores, reading takes one of them for a while, so that a step takes twice as long; and others may take what is left.
GAP_STEPS_MAX = 4
ENDS = ("succeeded", "failed", "canceled")


def sign_in(worker):
    answer = worker.ask("POST", "/v1/session", body={"password": PASSWORD})
    return {"cookie": answer.headers["set-cookie"].split(";")[0]}


def add(worker, path, name):
    """Adds a file on the command line, and returns its id."""
    command = [worker.program, "--data-dir", worker.folder, "loras", "add", path, "--name", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def kept(worker):
    """The files in the folder of LoRAs."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(os.path.join(worker.folder, "loras")))
    return []


def listed(worker, cookie=None):
    """The files that should be there, by what the worker lists."""
    _, answer, _ = worker.json("GET", "/v1/loras", headers=cookie or sign_in(worker))
    return sorted(f"{lora['id']}.safetensors" for lora in answer["data"])


def is_reading(worker):
    """Whether the engine reads a LoRA."""
    tasks = f"/proc/{worker.process.pid}/task"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(tasks):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"{tasks}/{task}/comm") as name:
                if name.read().strip() == READER:
                    return True
    return False


def submit(worker, key, body):
    status, answer, _ = worker.json("POST", "/v1/inference/image", key, body)
    assert status == 202, answer
    return answer["job_id"]


def image(seed, loras=(), steps=6, side=64):
    body = {"model": MODEL, "prompt": "a red circle", "width": side, "height": side, "steps": steps, "seed": seed}
    return {**body, "loras": [{"id": lora} for lora in loras]} if loras else body


class Upload:
    """A file on its way to the worker, from a thread of its own."""

    def __init__(self, worker, path):
        self.worker, self.path = worker, path
        self.size = os.path.getsize(path)
        self.status = None
        self.sent = 0
        self.connection = socket.create_connection(("127.0.0.1", worker.port), timeout=PATIENCE_SECONDS)
        head = f"POST /v1/loras?name=large HTTP/1.1\r\nhost: localhost\r\ncookie: {sign_in(worker)['cookie']}\r\n"
        self.head = f"{head}content-type: application/octet-stream\r\ncontent-length: {self.size}\r\n\r\n".encode()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        with contextlib.suppress(OSError), self.connection, open(self.path, "rb") as file:
            self.connection.sendall(self.head)
            while data := file.read(1 << 20):
                self.connection.sendall(data)
                self.sent += len(data)
            line = self.connection.makefile("rb").readline().split()
            self.status = int(line[1]) if len(line) > 1 else None

    def wait_for(self, share):
        until = time.monotonic() + PATIENCE_SECONDS
        while self.sent < share * self.size and self.thread.is_alive():
            assert time.monotonic() < until, "the file does not arrive"
            time.sleep(LOOK_SECONDS)


def kills_of_uploads(worker, path, kills, numbers):
    """Kills while a file arrives, and while it is inspected."""
    cut, inspected, half_there = 0, 0, []
    for number in range(kills):
        upload = Upload(worker, path)
        if number % 2 == 0:
            upload.wait_for(numbers.uniform(0.05, 0.95))
        else:
            upload.wait_for(1)
            time.sleep(numbers.uniform(0, 0.3))
        cut += upload.sent < upload.size
        inspected += upload.sent == upload.size and upload.status is None
        worker.kill()
        upload.thread.join()
        worker.start()
        there, known = kept(worker), listed(worker)
        if there != known or upload.status in (200, 201) and not known:
            half_there.append((upload.status, there, known))
        cookie = sign_in(worker)
        for name in known:
            status = worker.ask("DELETE", f"/v1/loras/{name.split('.')[0]}", headers=cookie).status
            assert status == 204, status
    print(f"  {kills} kills: {cut} while the file arrived, {inspected} before its answer")
    check(cut > 0, "at least one kill cut a file off")
    check(not half_there, f"a LoRA is there, with its file, or is not {half_there[:2] or ''}")


def kill_while_reading(worker, duration, numbers):
    """Kills while the engine reads a LoRA. Returns whether it still did: on a busy machine it may have read it before."""
    until = time.monotonic() + BEGINS_WITHIN_SECONDS
    while not is_reading(worker) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    # It may be read faster than the first time, from the page cache.
    time.sleep(numbers.uniform(0, 0.3 * duration))
    was_reading = is_reading(worker)
    worker.kill()
    return was_reading


def reading_seconds(worker, key, lora):
    """How long the engine reads a LoRA, by a job that uses it."""
    job, begun, seen = submit(worker, key, image(0, [lora], 1)), None, 0.0
    while worker.json("GET", f"/v1/inference/jobs/{job}", key)[1]["status"] not in ENDS:
        for _ in range(20):
            now = time.monotonic()
            if is_reading(worker):
                begun = begun or now
                seen = now - begun
            time.sleep(LOOK_SECONDS)
    return seen


def ends_of(worker, key, jobs):
    ends, until = {}, time.monotonic() + PATIENCE_SECONDS
    while len(ends) < len(jobs) and time.monotonic() < until:
        for job in jobs:
            view = worker.json("GET", f"/v1/inference/jobs/{job}", key)[1]
            if job not in ends and view.get("status") in ENDS:
                ends[job] = view
        time.sleep(0.1)
    return ends


def kills_of_reading(worker, path, small_path, kills, numbers):
    """Kills while jobs wait for a LoRA that is read for them, and others run."""
    key = worker.key("kills")
    large, small = add(worker, path, "large"), add(worker, small_path, "small")
    duration = reading_seconds(worker, key, large)
    print(f"  a file of {os.path.getsize(path) >> 20} MiB is read in {duration:.2f} s")
    bodies, jobs, removals, folders, cookie = [], [], [], [], sign_in(worker)
    for number in range(kills):
        if number % 2 == 0:
            # A job that ran in three kills would fail: it might be their cause. And nothing is in a new process's memory.
            ends_of(worker, key, jobs)
            worker.kill()
            worker.start()
        for loras, steps in (([], 40), ([large], 3), ([small], 6), ([small, large], 3)):
            bodies.append(image(len(bodies), loras, steps))
            jobs.append(submit(worker, key, bodies[-1]))
        # The first one at once: it comes in time on every machine.
        was_reading = kill_while_reading(worker, duration if number else 0, numbers)
        worker.start()
        if was_reading:
            # Now it is read anew, and cannot be removed.
            removals.append(worker.ask("DELETE", f"/v1/loras/{large}", headers=cookie).status)
        folders.append(kept(worker) == listed(worker, cookie) == sorted(f"{lora}.safetensors" for lora in (large, small)))
    print(f"  {kills} kills, {len(removals)} of them while it was read")
    check(removals and set(removals) == {409}, f"at least one, and the LoRA stays for those that wait: {removals}")
    check(all(folders), "both LoRAs are there after each, and nothing else")
    ends = ends_of(worker, key, jobs)
    good = [job for job in jobs if ends.get(job, {}).get("status") == "succeeded"]
    others = [view.get("error", view) for view in ends.values() if view.get("status") != "succeeded"]
    check(len(good) == len(jobs), f"{len(good)} of {len(jobs)} jobs are generated, not so: {others[:3]}")
    waits = {"prefer": "wait=60", "accept": "image/png"}
    same = 0
    for job, body in zip(jobs, bodies):
        if job in good:
            result = worker.ask("GET", f"/v1/inference/jobs/{job}/result", key).data
            same += result == worker.ask("POST", "/v1/inference/image", key, body, waits).data and result[:4] == b"\x89PNG"
    check(same == len(good), f"{same} of them are the same files as without kills")
    plain = worker.ask("POST", "/v1/inference/image", key, image(1), waits).data
    changed = worker.ask("POST", "/v1/inference/image", key, image(1, [large]), waits).data
    check(plain != changed, "the LoRA changes images")
    statuses = [worker.ask("DELETE", f"/v1/loras/{lora}", headers=sign_in(worker)).status for lora in (large, small)]
    check(statuses == [204, 204] and kept(worker) == [], "both can be removed at the end")


def kills(program, folder, options):
    numbers = random.Random(options.seed)
    print(f"kill -9 while LoRAs arrive and are read, seed {options.seed}", flush=True)
    path, small_path = (os.path.join(folder, f"{name}.safetensors") for name in ("large", "small"))
    write_lora(path, DEMO_MODEL, rank_of(DEMO_MODEL, options.mebibytes << 20), options.seed)
    write_lora(small_path, DEMO_MODEL, 4, options.seed + 1)
    data = os.path.join(folder, "data")
    os.mkdir(data)
    worker = Worker(program, data)
    worker.start()
    kills_of_uploads(worker, path, options.kills, numbers)
    kills_of_reading(worker, path, small_path, options.kills, numbers)
    check(worker.stop() == 0, "exits with 0 when stopped")


class Steps(threading.Thread):
    """When the steps of a job ended, by its events. Wall-clock times, as those of jobs."""

    def __init__(self, worker, key, job):
        super().__init__()
        self.worker, self.key, self.job = worker, key, job
        self.ends = []
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.worker.port, timeout=PATIENCE_SECONDS)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", f"/v1/inference/jobs/{self.job}/events", headers={"x-api-key": self.key})
            for line in connection.getresponse():
                if line.replace(b" ", b"").startswith(b"event:step"):
                    self.ends.append(time.time())

    def wait_for(self, moment):
        """Until a step has ended after it."""
        while self.is_alive() and not (self.ends and self.ends[-1] > moment):
            time.sleep(LOOK_SECONDS)

    def gaps(self, first, last):
        """Seconds between neighboring steps of which the later one ended after `first`, without what comes after `last`."""
        pairs = zip(self.ends, self.ends[1:])
        return [min(end, last) - start for start, end in pairs if end > first and start < last]


def loading_gaps(worker, key, lora, body, options):
    """The gaps between the steps of images that run, before a job asks for a LoRA and until that job starts."""
    jobs = [submit(worker, key, {**body, "seed": seed}) for seed in range(options.images)]
    steps = Steps(worker, key, jobs[0])
    while len(steps.ends) < options.steps // 4:
        assert steps.is_alive(), "the job ended before its steps were seen"
        time.sleep(LOOK_SECONDS)
    begun = time.time()
    other = submit(worker, key, {**body, "steps": 1, "loras": [{"id": lora}]})
    while True:
        view = worker.json("GET", f"/v1/inference/jobs/{other}", key)[1]
        if view["started_at"] or view["status"] in ENDS or not steps.is_alive():
            break
        time.sleep(10 * LOOK_SECONDS)
    check(view["started_at"] and steps.is_alive(), f"the others ran until it was loaded; if not, take more --steps {view['error'] or ''}")
    # Its own steps are slow, and none of loading.
    started = datetime.datetime.fromisoformat(view["started_at"]).timestamp() if view["started_at"] else time.time()
    steps.wait_for(started)
    for job in jobs + [other]:
        worker.ask("DELETE", f"/v1/inference/jobs/{job}", key)
    steps.join()
    return started - begun, steps.gaps(steps.ends[0], begun), steps.gaps(begun, started)


def gap(program, folder, options):
    print(f"the longest time between two steps while a LoRA of {options.mebibytes} MiB is loaded", flush=True)
    model, _, checkpoint = (options.model or MODEL).partition("=")
    rank = rank_of(checkpoint or DEMO_MODEL, options.mebibytes << 20)
    path = os.path.join(folder, "large.safetensors")
    size = write_lora(path, checkpoint or DEMO_MODEL, rank, options.seed)
    data = os.path.join(folder, "data")
    os.mkdir(data)
    environment = {"FLUXSERVE_MODELS": options.model} if options.model else {}
    worker = Worker(program, data, environment, options.device)
    lora = add(worker, path, "large")
    os.remove(path)
    key = worker.key("gap")
    print(f"  {model} on {options.device}: rank {rank}, {size >> 20} MiB")
    rounds = []
    for number in range(options.rounds):
        # A new process, which has nothing in memory.
        worker.start()
        body = {**image(number, steps=options.steps, side=options.side), "model": model}
        seconds, before, meanwhile = loading_gaps(worker, key, lora, body, options)
        check(worker.stop() == 0, "exits with 0 when stopped")
        usual, most = statistics.median(before), max(meanwhile)
        rounds.append((most, usual, max(before)))
        in_ms = [f"{1000 * value:.1f}" for value in (usual, max(before), statistics.median(meanwhile), most)]
        print(f"  round {number + 1}: loaded in {seconds:.2f} s, {len(meanwhile)} steps meanwhile; between two steps, median and most: "
              f"{in_ms[0]} and {in_ms[1]} ms before, {in_ms[2]} and {in_ms[3]} ms while it was loaded", flush=True)
    most, usual, _ = max(rounds)
    print(f"  longest gap {1000 * most:.1f} ms, {most / usual:.2f} times a step")
    check(all(most <= GAP_STEPS_MAX * usual for most, usual, _ in rounds), f"at most {GAP_STEPS_MAX}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--parts", nargs="+", choices=("kills", "gap"), default=["kills"])
    parser.add_argument("--kills", type=int, default=4, help="of each kind")
    parser.add_argument("--mebibytes", type=int, default=300, help="the size of the LoRA's file")
    parser.add_argument("--model", metavar="ID=DIR", help="instead of the demo model, for the gap")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=2, help="that run while the LoRA is loaded")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="another one each time, and printed")
    options = parser.parse_args()
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            {"kills": kills, "gap": gap}[part](options.program, folder, options)
    print(f"{len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
