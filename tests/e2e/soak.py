"""Mixed traffic for a long time: memory, descriptors and threads stay constant, and no row is without its file.

    python3 tests/e2e/soak.py PROGRAM [--minutes 20] [--seed N]

Images that clients wait for, poll, watch, cancel or abandon, and requests with invalid keys. Needs only Python. Exits with
1 if a check failed.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from endurance import MODEL, Worker, check, faults

CLIENTS = 10
KEYS = 5
RETENTION_SECONDS = 60
# How much a process may grow before it counts as a leak.
RESIDENT_MEBIBYTES_SLACK = 32
SLACK = 8
# Longer than any leftovers last: idle connections, idle threads, unread answers.
CALM_SECONDS = 45


class Client:
    """Sends one request after another, and counts the answers."""

    def __init__(self, worker, key, gone, numbers):
        self.worker, self.key, self.gone, self.numbers = worker, key, gone, numbers
        self.answers = collections.Counter()

    def body(self, **more):
        side = lambda: self.numbers.choice([64, 96, 128, 256])
        sizes = {"width": side(), "height": side(), "steps": self.numbers.randint(1, 20)}
        return {"model": MODEL, "prompt": "two green squares", "seed": self.numbers.randrange(1000), **sizes, **more}

    def submit(self, body, headers=None):
        answer = self.worker.ask("POST", "/v1/inference/image", self.key, body, headers, timeout=120)
        view = json.loads(answer.data) if answer.status == 202 else {}
        return answer.status, view.get("job_id")

    def wait(self):
        return self.submit(self.body(), {"prefer": "wait=30"})[0]

    def formats(self):
        body = self.body(output_format=self.numbers.choice(["webp", "jpeg", "png"]))
        return self.submit(body, {"prefer": "wait=30", "accept": f"image/{body['output_format']}"})[0]

    def cancel(self):
        status, job = self.submit(self.body(steps=30))
        if job and self.numbers.random() < 0.5:
            # A job that has ended is not canceled.
            status = self.worker.ask("DELETE", f"/v1/inference/jobs/{job}", self.key).status
            return 202 if status in (200, 409) else status
        return status

    def watch(self):
        status, job = self.submit(self.body())
        if job:
            self.leave(f"GET /v1/inference/jobs/{job}/events?preview=true HTTP/1.1\r\n", reads=True)
        return status

    def hang_up(self):
        text = json.dumps(self.body())
        rest = f"content-type: application/json\r\nprefer: wait=30\r\ncontent-length: {len(text)}\r\n\r\n{text}"
        self.leave("POST /v1/inference/image HTTP/1.1\r\n", rest)
        return 202

    def leave(self, line, rest="\r\n", reads=False):
        with socket.create_connection(("127.0.0.1", self.worker.port), timeout=30) as connection:
            connection.sendall(f"{line}host: localhost\r\nx-api-key: {self.key}\r\n{rest}".encode())
            if reads:
                connection.recv(self.numbers.choice([1, 3000]))
            else:
                time.sleep(self.numbers.uniform(0, 0.3))

    def list(self):
        return self.worker.ask("GET", "/v1/inference/jobs?limit=50", self.key).status

    def wrong_key(self):
        status = self.worker.ask("GET", "/v1/inference/jobs", self.numbers.choice(["rgpu_nope", self.gone])).status
        return 200 if status in (401, 429) else status

    def run(self, stop):
        weights = {self.wait: 35, self.formats: 15, self.cancel: 15, self.watch: 15, self.list: 10, self.hang_up: 5, self.wrong_key: 5}
        while not stop.is_set():
            (act,) = self.numbers.choices(list(weights), weights.values())
            try:
                status = act()
            except Exception as error:
                status = repr(error)[:80]
            self.answers[act.__name__, status] += 1


def sizes(worker):
    process = f"/proc/{worker.process.pid}"
    with open(f"{process}/status") as status:
        threads = int(re.search(r"Threads:\s+(\d+)", status.read()).group(1))
    return worker.resident_mebibytes(), open_files(f"{process}/fd"), threads


def open_files(folder):
    """Without those of the database: its pool grows up to a bound and stays."""
    names = []
    for number in os.listdir(folder):
        # It may have been closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(os.path.join(folder, number)))
    return sum("fluxserve.db" not in name for name in names)


def rows_and_files(folder):
    path = os.path.join(folder, "fluxserve.db")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        rows = {row[0] for row in database.execute("SELECT id FROM jobs WHERE status = 'succeeded' AND result_bytes > 0")}
        starts = database.execute("SELECT count(*) FROM job_images").fetchone()[0]
    files = {name.split(".")[0] for name in os.listdir(os.path.join(folder, "results"))}
    return rows, files, starts


def soak(program, folder, minutes, numbers):
    worker = Worker(program, folder, {"FLUXSERVE_RESULTS_RETENTION_SECONDS": str(RETENTION_SECONDS)})
    keys = [worker.key(f"key {number}") for number in range(KEYS)]
    gone = worker.key("gone")
    command = [worker.program, "--data-dir", folder, "keys", "revoke", gone[: len("rgpu_") + 8]]
    subprocess.run(command, check=True, capture_output=True)
    worker.start()
    at_start, stop = sizes(worker), threading.Event()
    clients = [Client(worker, keys[place % KEYS], gone, random.Random(numbers.random())) for place in range(CLIENTS)]
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    seen, begun = [], time.monotonic()
    while time.monotonic() - begun < 60 * minutes:
        time.sleep(min(10, 6 * minutes))
        seen.append(sizes(worker))
        print("  {:5.0f} s  {:4.0f} MiB  {:3} descriptors  {:3} threads".format(time.monotonic() - begun, *seen[-1]), flush=True)
    stop.set()
    for thread in threads:
        thread.join()
    answers = sum((client.answers for client in clients), collections.Counter())
    print(f"  {sum(answers.values())} requests: {dict(answers)}")
    bad = {answer: count for answer, count in answers.items() if answer[1] not in (200, 202, 429)}
    check(not bad, f"no answer but good ones and refusals {bad or ''}")
    # The first third is warm-up. Memory has peaks of a moment, when several large images are decoded together; a leak raises
    # what lies between them, too.
    third = len(seen) // 3
    kinds = (("MiB", 0, RESIDENT_MEBIBYTES_SLACK, statistics.median), ("descriptors", 1, SLACK, max), ("threads", 2, SLACK, max))
    for name, place, slack, usual in kinds:
        early, late = (usual(each[place] for each in part) for part in (seen[: third + 1], seen[-third - 1 :]))
        check(late <= early + slack, f"{name} do not grow under load: {early:.0f} early, {late:.0f} late")
    time.sleep(CALM_SECONDS)
    # The sweep of a minute removes several files at once, each in a thread that stays for some seconds. What has leaked stays longer.
    begun = time.monotonic()
    while (now := sizes(worker))[2] > at_start[2] + SLACK and time.monotonic() - begun < CALM_SECONDS:
        time.sleep(1)
    memory, descriptors, running = now
    print(f"  at rest {memory:.0f} MiB, {descriptors} descriptors, {running} threads; {at_start} at the start")
    check(descriptors <= at_start[1] + SLACK, "descriptors are given back")
    check(running <= at_start[2] + SLACK, "threads end")
    check(worker.stop() == 0, "ends with 0 when told to stop")
    rows, files, starts = rows_and_files(folder)
    check(rows == files, f"each image has its row and its file: {len(rows)} rows, {len(files)} files")
    check(starts == 0, "no input image is left over")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="another one each time, and printed")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        soak(options.program, folder, options.minutes, random.Random(options.seed))
    print(f"{len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
