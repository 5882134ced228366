"""Images and uploads in a bucket of a real S3 server: written, read, linked to and removed; the server down in the middle of work; links to it
that were changed; and `kill -9` while images wait for it.

    scripts/objects-test.sh [PROGRAM] [--down-seconds 60] [--rounds 10]

builds the server, s3s-fs, and runs this. Needs only Python besides. Exits with 1 if a check failed.
"""

import argparse
import collections
import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

from endurance import MODEL, PATIENCE_SECONDS, Worker, check, faults
from ports import free_port

BUCKET = "pictures"
ACCESS_KEY, SECRET_KEY = "the-id-of-this-test", "the-secret-of-this-test"
REDIRECT_SECONDS = 30
RETENTION_SECONDS = 60
# The retention, the interval of the sweep, and the time to find out that the server is back.
REMOVAL_SECONDS = RETENTION_SECONDS + 60 + 30


class Server:
    """The S3 server, restarted on the same files."""

    def __init__(self, program, folder):
        self.program, self.folder, self.port, self.process = program, folder, free_port(), None
        os.makedirs(os.path.join(folder, BUCKET))
        self.log = open(os.path.join(folder, "..", "server.log"), "a")

    def start(self):
        command = [self.program, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY, self.folder]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        started = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert self.process.poll() is None, "the S3 server has ended"
            assert time.monotonic() - started < PATIENCE_SECONDS, "the S3 server does not start"
            time.sleep(0.02)

    def stop(self):
        """At once, as in a crash."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def read(self, name):
        """The bytes of an object, as they lie on the server's disk."""
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(self.folder, BUCKET, name), "rb") as file:
                return file.read()

    def ask(self, path, method="GET"):
        """An answer of the server, for a path with its query."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            answer.data = answer.read()
            return answer
        finally:
            connection.close()


class Storing(Worker):
    """A worker with a folder of the bucket."""

    def __init__(self, program, folder, server, name, **settings):
        os.mkdir(folder)
        self.server, self.name = server, name
        super().__init__(program, folder, {
            "FLUXSERVE_RESULTS_STORE": f"s3://{BUCKET}/{name}",
            "FLUXSERVE_RESULTS_ENDPOINT": f"http://127.0.0.1:{server.port}",
            "FLUXSERVE_RESULTS_ALLOW_HTTP": "true",
            "FLUXSERVE_RESULTS_REGION": "test-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            # No proxy of this machine is on the way.
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **settings,
        })
        self.own = self.key("objects")

    def submit(self, seed):
        body = {"model": MODEL, "prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "seed": seed}
        status, answer, _ = self.json("POST", "/v1/inference/image", self.own, body)
        return answer["job_id"] if status == 202 else None

    def upload(self, data):
        """The status and the answer for an image that is uploaded."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/v1/inference/uploads", data, {"x-api-key": self.own, "content-type": "image/png"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def uploads(self):
        """The files of uploads in the bucket, and on the worker's disk."""
        folders = os.path.join(self.server.folder, BUCKET, self.name, "uploads"), os.path.join(self.folder, "uploads")
        return tuple(sorted(file for _, _, files in os.walk(folder) for file in files) for folder in folders)

    def view(self, job):
        return self.json("GET", f"/v1/inference/jobs/{job}", self.own)[1]

    def ends(self, jobs):
        """How jobs ended."""
        ended, until = {}, time.monotonic() + PATIENCE_SECONDS
        while len(ended) < len(jobs) and time.monotonic() < until:
            for job in jobs:
                if job not in ended:
                    status = self.view(job)["status"]
                    if status in ("succeeded", "failed", "canceled"):
                        ended[job] = status
            time.sleep(0.05)
        return collections.Counter(ended.get(job, "pending") for job in jobs)

    def generate(self, count):
        jobs = [self.submit(seed) for seed in range(count)]
        assert all(jobs), "a job is refused"
        ends = self.ends(jobs)
        check(ends == {"succeeded": count}, f"{count} images are generated: {dict(ends)}")
        return jobs

    def result(self, job):
        return self.ask("GET", f"/v1/inference/jobs/{job}/result", self.own)

    def stored(self, job):
        return self.server.read(f"{self.name}/results/{job}.png")

    def waiting(self):
        """The images on the worker's disk."""
        return sorted(name for name in os.listdir(os.path.join(self.folder, "results")) if name.endswith(".png"))

    def degraded(self):
        status, answer, _ = self.json("GET", "/readyz")
        return status, answer.get("degraded", [])

    def until_moved(self):
        begun = time.monotonic()
        while self.waiting() and time.monotonic() - begun < PATIENCE_SECONDS:
            time.sleep(0.05)
        return time.monotonic() - begun

    def check_all(self, jobs, what):
        """Each image is in the bucket, once and whole, and readable."""
        bad = [job for job in jobs if not self.stored(job) or self.result(job).data != self.stored(job)]
        check(not bad and not self.waiting(), f"{len(jobs)} images are in the bucket, and only there, {what}; not: {bad[:3]}")


def storing(worker):
    print("images in the bucket", flush=True)
    jobs = worker.generate(5)
    worker.check_all(jobs, "when their jobs have succeeded")
    answer = worker.result(jobs[0])
    check((answer.status, answer.headers["content-type"]) == (200, "image/png"), "they are answered as from a folder")
    check(worker.degraded() == (200, []), "and the worker is ready")
    with open(os.path.join(worker.folder, "log")) as log:
        check(SECRET_KEY not in log.read(), "no secret is in the log")
    return jobs


def path_of(url):
    """The path of a URL, with its query."""
    return "/" + url.split("/", 3)[3]


def linking(worker, jobs):
    print("links that lead to the bucket", flush=True)
    link = path_of(worker.view(jobs[0])["result_url"])
    answer = worker.ask("GET", link)
    location = answer.headers["location"] or ""
    check(answer.status == 307 and location.startswith(f"http://127.0.0.1:{worker.server.port}/"), "a link leads there")
    there = path_of(location)
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(there).query))
    check(query.get("X-Amz-Expires") == str(REDIRECT_SECONDS), f"for {REDIRECT_SECONDS} s")
    found = worker.server.ask(there)
    check(found.status == 200 and found.data == worker.stored(jobs[0]), "to the image")
    check(found.headers["content-type"] == "image/png", "which says what it is")
    signature = query["X-Amz-Signature"]
    changed = {
        "another signature": there.replace(signature, ("0" if signature[0] != "0" else "1") + signature[1:]),
        "another image": there.replace(jobs[0], jobs[1]),
        "a longer life": there.replace(f"X-Amz-Expires={REDIRECT_SECONDS}", "X-Amz-Expires=3600"),
        "no signature": there.split("?")[0],
    }
    for what, path in changed.items():
        status = worker.server.ask(path).status
        check(path != there and status == 403, f"refused with {what} ({status})")
    check(worker.server.ask(there, "DELETE").status == 403, "and for anything but reading")
    check(worker.result(jobs[0]).status == 200, "a key is answered with the image, and is not led away")


def uploading(worker, jobs):
    print("uploads in the bucket", flush=True)
    image = worker.result(jobs[0]).data
    status, answer = worker.upload(image)
    upload = answer.get("upload_id")
    check(status == 201 and worker.uploads() == ([upload], []), f"an upload is in the bucket, and only there ({status})")
    body = {"model": MODEL, "prompt": "a red circle", "steps": 4, "seed": 1, "images": [{"role": "input", "upload_id": upload}]}
    body |= {"width": 64, "height": 64}
    status, answer, _ = worker.json("POST", "/v1/inference/image", worker.own, body)
    check(status == 202 and worker.ends([answer["job_id"]]) == {"succeeded": 1}, f"a request uses it ({status})")
    worker.server.stop()
    refused, answer = worker.upload(image)
    check((refused, answer["code"]) == (503, "storage_unavailable"), "without the server an upload is refused")
    status, answer, _ = worker.json("POST", "/v1/inference/image", worker.own, body)
    check((status, answer["code"]) == (503, "storage_unavailable"), "and so is its use")
    worker.server.start()
    status = worker.ask("DELETE", f"/v1/inference/uploads/{upload}", worker.own).status
    check(status == 204 and worker.uploads() == ([], []), f"it is removed from the bucket ({status})")


def outage(worker, seconds):
    print(f"the server is down for {seconds} s in the middle of work", flush=True)
    stop, jobs, refused = threading.Event(), [], []

    def load():
        while not stop.is_set():
            job = worker.submit(len(jobs))
            (jobs if job else refused).append(job)
            time.sleep(0.1)

    loading = threading.Thread(target=load)
    loading.start()
    time.sleep(2)
    worker.server.stop()
    begun, said, reads = time.monotonic(), [], []
    while time.monotonic() - begun < seconds:
        said.append(worker.degraded())
        names = worker.waiting()
        if names:
            answer = worker.result(names[0].removesuffix(".png"))
            reads.append(answer.status)
        time.sleep(0.2)
    answers, waited = worker.metric("fluxserve_object_store_answers"), worker.metric("fluxserve_results_waiting_pictures")
    worker.server.start()
    time.sleep(2)
    stop.set()
    loading.join()
    ends = worker.ends(jobs)
    check(ends == {"succeeded": len(jobs)}, f"all jobs succeed: {dict(ends)}, {len(refused)} refused")
    check({status for status, _ in said} == {200}, "the worker stays ready: images can wait")
    check(any("the bucket does not accept images" in note for _, notes in said for note in notes), "and says what is wrong")
    check(reads and set(reads) == {200}, "images that wait are answered")
    check((answers, waited > 0) == (0, True), f"the metrics say so: {waited:.0f} wait")
    took = worker.until_moved()
    check(took < PATIENCE_SECONDS, f"all have moved {took:.1f} s after the last job ended")
    worker.check_all(jobs, "after the outage")
    check(worker.degraded() == (200, []), "and the worker is well again")


def killed(worker, rounds, numbers):
    print(f"kill -9 while images wait, {rounds} times while they move", flush=True)
    worker.server.stop()
    jobs = worker.generate(10)
    check(len(worker.waiting()) == len(jobs), "they wait")
    worker.kill()
    worker.start()
    check(all(worker.result(job).status == 200 for job in jobs), "after a restart without the server they are there")
    for _ in range(rounds):
        worker.server.start()
        time.sleep(numbers.uniform(0, 3))
        worker.kill()
        worker.server.stop()
        worker.start()
        more = worker.generate(5)
        jobs += more
    worker.server.start()
    worker.until_moved()
    worker.check_all(jobs, "after the kills")


def removing(worker, jobs, begun):
    print(f"retention of {RETENTION_SECONDS} s", flush=True)
    until = time.monotonic() + REMOVAL_SECONDS

    def forgotten():
        return all(worker.ask("GET", f"/v1/inference/jobs/{job}", worker.own).status == 404 for job in jobs)

    while not forgotten() and time.monotonic() < until:
        time.sleep(0.5)
    left = [job for job in jobs if worker.stored(job)]
    check(forgotten(), f"jobs are forgotten after {time.monotonic() - begun:.0f} s at most")
    check(not left, f"and their images are no longer in the bucket: {left}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--server", required=True, help="the program s3s-fs")
    parser.add_argument("--down-seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="another one each time, and printed")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    numbers = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(os.path.realpath(options.server), os.path.join(folder, "server"))
        workers = []
        try:
            server.start()
            short = Storing(options.program, os.path.join(folder, "short"), server, "short",
                            FLUXSERVE_RESULTS_RETENTION_SECONDS=str(RETENTION_SECONDS))
            worker = Storing(options.program, os.path.join(folder, "data"), server, "worker-1",
                             FLUXSERVE_RESULTS_LINKS="redirect", FLUXSERVE_RESULTS_REDIRECT_SECONDS=str(REDIRECT_SECONDS))
            for started in (short, worker):
                started.start()
                workers.append(started)
            removed, begun = short.generate(2), time.monotonic()
            check(all(short.stored(job) for job in removed), "two images that are to be removed are in the bucket")
            stored = storing(worker)
            linking(worker, stored)
            uploading(worker, stored)
            outage(worker, options.down_seconds)
            killed(worker, options.rounds, numbers)
            removing(short, removed, begun)
            for started in workers:
                check(started.stop() == 0, "ends with 0 when told to stop")
        finally:
            for started in workers:
                if started.process.poll() is None:
                    started.kill()
            server.stop()
    print(f"{len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
