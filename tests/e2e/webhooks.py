#!/usr/bin/env python3
"""Webhooks of the real program: kills during work, and receivers that are slow, down, fail, or close in the middle.

    scripts/webhooks-test.sh [PROGRAM] [--jobs 200] [--kills 10] [--down-seconds 60] [--seed N]

Every job's end is delivered at least once, with a valid signature, after its start, and to the receiver of its own key alone. Needs the
package `standardwebhooks` from PyPI, which verifies the signatures. Exits with 1 if a check failed.
"""

import argparse
import collections
import http.client
import http.server
import json
import random
import sys
import tempfile
import threading
import time

from endurance import PASSWORD, Worker, check, faults, image
from standardwebhooks.webhooks import Webhook

PATIENCE_SECONDS = 900
EVENTS = ["job.started", "job.succeeded", "job.failed", "job.canceled"]
ENDS = EVENTS[1:]


class Receiver:
    """A receiver for several keys, by path. It misbehaves as often as `trouble` says, and is down as long as `is_down`."""

    def __init__(self, seed):
        self.numbers, self.lock = random.Random(seed), threading.Lock()
        self.secrets, self.got, self.trouble = {}, collections.defaultdict(list), collections.Counter()
        # How often each message was not taken. Waits triple, so that after a third time they would take longer than this test.
        self.refused = collections.Counter()
        self.is_down = False
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                receiver.receive(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, name):
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def receive(self, request):
        body = request.rfile.read(int(request.headers["content-length"]))
        name = request.path.strip("/")
        if self.is_down:
            self.trouble["down"] += 1
            self.refused[request.headers["webhook-id"]] += 1
            request.close_connection = True
            return
        try:
            message = Webhook(self.secrets[name]).verify(body, {key.lower(): value for key, value in request.headers.items()})
        except Exception as error:
            check(False, f"a message that does not verify: {error}")
            return
        with self.lock:
            kind = self.numbers.choices(["good", "error", "broken", "slow"], [80, 8, 6, 6])[0]
            identifier = request.headers["webhook-id"]
            if kind in ("error", "broken") and self.refused[identifier] >= 2:
                kind = "good"
            self.refused[identifier] += kind in ("error", "broken")
            self.trouble[kind] += 1
            self.got[name].append((message, kind in ("good", "slow")))
        if kind == "error":
            request.send_error(500)
            return
        if kind == "slow":
            time.sleep(self.numbers.uniform(0.5, 3))
        try:
            request.send_response(200)
            request.send_header("content-length", "100" if kind == "broken" else "0")
            request.end_headers()
        except OSError:
            # The worker was killed.
            pass
        request.close_connection = True


class Administrator:
    """A signed-in administrator of a worker, whose session survives its restarts."""

    def __init__(self, worker):
        self.worker = worker
        answer = worker.ask("POST", "/v1/session", body={"password": PASSWORD})
        self.headers = {"cookie": answer.headers["set-cookie"].split(";")[0]}

    def ask(self, method, path, body=None):
        status, answer, _ = self.worker.json(method, path, body=body, headers=self.headers)
        assert status in (200, 202), answer
        return answer

    def set_up(self, key, url):
        """Gives a key a webhook, and returns its secret."""
        listed = self.ask("GET", "/v1/api-keys?limit=100")["data"]
        path = f"/v1/api-keys/{next(view['id'] for view in listed if key.startswith(view['prefix']))}/webhook"
        secret = self.ask("POST", f"{path}/secret", {})["secret"]
        self.ask("PATCH", path, {"url": url, "events": EVENTS})
        return secret


def submit_all(worker, keys, wanted, accepted, numbers):
    """Submits each until it is acknowledged; one whose answer is lost is retried with the same Idempotency-Key."""
    for number, body in enumerate(wanted):
        name = list(keys)[number % len(keys)]
        while True:
            try:
                headers = {"idempotency-key": f"hooked-{number}"}
                status, answer, _ = worker.json("POST", "/v1/inference/image", keys[name], body, headers)
                if status == 202:
                    accepted[answer["job_id"]] = name
                    break
            except (OSError, http.client.HTTPException, ValueError):
                pass
            time.sleep(0.05)
        time.sleep(numbers.random() * 0.1)


def taken(receiver, kinds):
    """The jobs whose event of one of these kinds was received and acknowledged, with their key."""
    with receiver.lock:
        return {
            (message["data"]["job_id"], name)
            for name, messages in receiver.got.items()
            for message, is_acknowledged in messages
            if message["type"] in kinds and is_acknowledged
        }


def check_order(receiver):
    wrong = 0
    for messages in receiver.got.values():
        ended = set()
        for message, _ in messages:
            job = message["data"]["job_id"]
            if message["type"] in ENDS:
                ended.add(job)
            else:
                wrong += job in ended
    check(wrong == 0, f"{wrong} starts arrived after the end of their job")


def states_of(worker, keys):
    """How many deliveries are in each state."""
    states = collections.Counter()
    for key in keys.values():
        cursor = ""
        while cursor is not None:
            _, page, _ = worker.json("GET", f"/v1/inference/deliveries?limit=100{cursor and '&cursor=' + cursor}", key)
            states.update(delivery["state"] for delivery in page["data"])
            cursor = page["next_cursor"]
    return states


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--down-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    print(f"{options.jobs} jobs, kill -9 at {options.kills} moments, down for {options.down_seconds} s, seed {options.seed}")
    numbers = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        receiver = Receiver(options.seed)
        environment = {"FLUXSERVE_WEBHOOKS_ALLOW_HTTP": "true", "FLUXSERVE_WEBHOOKS_ALLOWED_HOSTS": "127.0.0.1"}
        worker = Worker(options.program, folder, environment)
        keys = {name: worker.key(name) for name in ("first", "second")}
        worker.start()
        administrator = Administrator(worker)
        for name, key in keys.items():
            receiver.secrets[name] = administrator.set_up(key, receiver.url(name))
        wanted, accepted = [image(numbers, number) for number in range(options.jobs)], {}
        submitting = threading.Thread(target=submit_all, args=(worker, keys, wanted, accepted, random.Random(1)))
        submitting.start()
        for at in range(options.kills):
            time.sleep(numbers.uniform(0.3, 2.5))
            worker.kill()
            if at == options.kills // 2:
                receiver.is_down = True
                threading.Timer(options.down_seconds, lambda: setattr(receiver, "is_down", False)).start()
            worker.start()
        submitting.join(PATIENCE_SECONDS)
        check(len(accepted) == options.jobs, f"{len(accepted)} of {options.jobs} acknowledged")
        wanted_ends, started = set(accepted.items()), time.monotonic()
        while taken(receiver, ENDS) != wanted_ends and time.monotonic() - started < PATIENCE_SECONDS:
            time.sleep(0.5)
        ends = taken(receiver, ENDS)
        check(ends >= wanted_ends, f"the ends of {len(ends & wanted_ends)} of {options.jobs} jobs were delivered")
        check(ends <= wanted_ends, "no receiver was told of another key's job")
        check(taken(receiver, EVENTS[:1]) == wanted_ends, "so were their starts")
        check_order(receiver)
        states = states_of(worker, keys)
        # One whose outcome a kill has lost is sent again.
        while states["pending"] > 0 and time.monotonic() - started < PATIENCE_SECONDS:
            time.sleep(0.5)
            states = states_of(worker, keys)
        check(+states == {"delivered": 2 * options.jobs}, f"the log has each event once: {dict(states)}")
        check(worker.stop() == 0, "exits with 0 when stopped")
        print(f"  the receiver was {dict(receiver.trouble)}")
    sys.exit(bool(faults))


main()
