#!/usr/bin/env python3
"""Images that hurt: huge, tiny, deep, turned, cut short, or small on the wire and large in memory.

    python3 tests/e2e/heavy_images.py target/release/fluxserve

Starts the program, and sends them through each door that takes images. Checks every status, code and field, and that the memory of
the process never grew by more than the limits allow. Needs Linux (/proc) and only Python's standard library.
"""

import argparse
import base64
import http.client
import json
import os
import re
import sys
import tempfile
import threading
import time

from endurance import MODEL, Worker, check, faults
from image_files import (BLUE, CIRCLE, GRAY, MASK, RED, RGBA, black_png, black_webp, chunk, exif, gif, gray_jpeg, packed_zeros,
                         pixels, png, png_size)

MIB = 1024 * 1024
FILE_BYTES_MAX = 16 * MIB
PIXELS_MAX, SIDE_MAX = 32_000_000, 16_384
# A square within the limit, to a few thousand pixels.
SIDE = 5656
DECODINGS_MAX = 2
# The largest image is four channels of 16 bits. The decoder takes no more for anything else in the file.
IMAGE_BYTES_MAX = 8 * PIXELS_MAX
# While it is turned, it is in memory twice, beside the request's other image in RGB.
DECODING_BYTES_MAX = 2 * IMAGE_BYTES_MAX + 3 * PIXELS_MAX
# What steps, threads and the allocator take beside that, and what they may keep in the end.
SLACK_BYTES, KEPT_BYTES_MAX = 48 * MIB, 96 * MIB
# A body and what is read from it: base64 in JSON is a body, a text and a file.
COPIES = 4
AT_ONCE = 8
SETTLE_SECONDS_MAX = 30
BOUNDARY = "a-boundary"
GREEN_PROMPT = "a green circle on a blue background"


class Memory:
    """The most memory that the process had since this was made."""

    def __init__(self, worker):
        self.status, self.peak = f"/proc/{worker.process.pid}/status", f"/proc/{worker.process.pid}/clear_refs"
        self.before = self.read("VmRSS")
        with open(self.peak, "w") as peak:
            peak.write("5")

    def read(self, name):
        with open(self.status) as status:
            return int(re.search(name + r":\s+(\d+)", status.read())[1]) * 1024

    def check(self, what, bytes_max):
        grew = self.read("VmHWM") - self.before
        check(grew <= bytes_max, f"{what}: {grew / MIB:.0f} MiB of {bytes_max / MIB:.0f}")


class Door:
    """A route that takes an image, in one of the ways to send it."""

    def __init__(self, worker, key):
        self.worker, self.key = worker, key

    def post(self, path, body, kind):
        """The status and the answer of a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.worker.port, timeout=300)
        try:
            connection.request("POST", path, body, {"x-api-key": self.key, "content-type": kind, "prefer": "wait=60"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def form(self, image, mask=None, **fields):
        """OpenAI's edits, as a form. `image` may be several."""
        fields = {"model": MODEL, "prompt": GREEN_PROMPT, "size": "64x64", "steps": "1", **fields}
        body = b""
        for name, text in fields.items():
            body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        images = image if isinstance(image, list) else [image]
        for name, content in [("image[]", image) for image in images] + [("mask", mask)] * (mask is not None):
            head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'
            body += head.encode() + content + b"\r\n"
        body += f"--{BOUNDARY}--\r\n".encode()
        return self.post("/v1/images/edits", body, f"multipart/form-data; boundary={BOUNDARY}")

    def json(self, image):
        """OpenAI's edits, as JSON."""
        url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        body = {"model": MODEL, "prompt": GREEN_PROMPT, "size": "64x64", "steps": 1, "images": [{"image_url": url}]}
        return self.post("/v1/images/edits", json.dumps(body), "application/json")

    def own(self, image):
        """The worker's own route."""
        body = {"model": MODEL, "prompt": GREEN_PROMPT, "width": 64, "height": 64, "steps": 1}
        body["input_images_base64"] = [base64.b64encode(image).decode()]
        return self.post("/v1/inference/image", json.dumps(body), "application/json")

    def upload(self, image):
        return self.post("/v1/inference/uploads", image, "image/png")


def refusals():
    """Files that are refused, each with a part of the reason, and whether their head already says so."""
    large = f"must have at most {PIXELS_MAX} pixels"
    wide = f"must be at most {SIDE_MAX} pixels wide and high"
    damaged = "it is damaged or cut short"
    yield "an empty file", b"", "is not a PNG, JPEG or WebP file", True
    yield "a text", b"not an image" * 1000, "is not a PNG, JPEG or WebP file", True
    yield "a GIF of 60000x60000", gif(60_000, 60_000), "is not a PNG, JPEG or WebP file", True
    yield "a PNG of 60000x60000", black_png(60_000, 60_000, 1, GRAY), large, True
    yield "a JPEG of 65500x65500", gray_jpeg(65_500, 65_500)[:100_000], large, True
    yield "a WebP canvas of 16777216x200", black_webp(64, 64, (1 << 24, 200)), large, True
    yield "a WebP of 16383x16383", black_webp(16_383, 16_383), large, True
    yield "a PNG of 16385x1", black_png(SIDE_MAX + 1, 1), wide, True
    yield "a PNG of 1x16385", black_png(1, SIDE_MAX + 1), wide, True
    yield "a PNG cut short", black_png(640, 640)[:200], damaged, False
    yield "a JPEG cut short in its head", gray_jpeg(640, 640)[:120], damaged, True
    yield "a WebP cut short", black_webp(640, 640)[:24], damaged, True
    yield "a PNG without its pixels", black_png(640, 640).replace(b"IDAT", b"iDAT"), damaged, True


def refused(door, worker):
    """Each is refused through each door, by the name of its field there, and before it takes memory."""
    for name, file, reason, is_in_head in refusals():
        memory = Memory(worker)
        answers = [
            ("image", "image", door.form(file)),
            ("mask", "mask", door.form(CIRCLE, file)),
            ("json", "images[0]", door.json(file)),
            ("own", "input_images_base64[0]", door.own(file)),
        ]
        # Of an upload only the head is read.
        answers += [("upload", "file", door.upload(file))] if is_in_head else []
        for way, field, (status, answer) in answers:
            error = answer.get("error", answer)
            param = error.get("param") or error.get("errors", [{}])[0].get("field")
            message = error.get("message") or error.get("detail", "") + str(error.get("errors", ""))
            seen = (status, error.get("code"), param)
            is_so = seen == (400, "invalid_request", field) and reason in message
            if not is_so:
                check(is_so, f"{name}, {way}: {seen} {message}")
        memory.check(f"{name} is refused at every door", COPIES * len(file) + SLACK_BYTES)


def transparent(side, bits=8, more=b""):
    return black_png(side, side, bits, RGBA, more)


def profile():
    """A color profile of 200 MB in 200 KB."""
    return chunk(b"iCCP", b"profile\0\0" + packed_zeros(200_000_000))


def drawings():
    """What is drawn: an image, a mask or none, and whether it is large in memory."""
    # More than the decoder may take.
    much = packed_zeros(300_000_000)
    turned = chunk(b"eXIf", exif(6))
    yield "one pixel", black_png(1, 1), None, False
    yield "one pixel with a mask of one", black_png(1, 1), black_png(1, 1, color=RGBA), False
    yield "16384x1", black_png(SIDE_MAX, 1), None, False
    yield "1x16384", black_png(1, SIDE_MAX), None, False
    yield "a mask of 16384x1953", CIRCLE, black_png(SIDE_MAX, 1953, 1, GRAY), True
    yield "16 bits with a mask of 8", transparent(64, 16), MASK, False
    yield "16 bits, 32 million pixels", transparent(SIDE, 16), None, True
    yield "the same, turned, and its own mask", transparent(SIDE, 16, turned), None, True
    yield "the same with a color profile of 200 MB", transparent(SIDE, 16, profile()), None, True
    yield "a color profile of 200 MB", black_png(64, 64, more=profile()), None, True
    yield "a comment of 300 MB", black_png(64, 64, more=chunk(b"zTXt", b"a\0\0" + much)), None, False
    yield "a text of 300 MB", black_png(64, 64, more=chunk(b"iTXt", b"a\0\1\0\0\0" + much)), None, False
    yield "300 MB of pixels behind 64x64", black_png(64, 64).replace(b"IEND", b"IDAT", 1)[:-8] + longer(much), None, False
    yield "a JPEG of 32 million pixels", gray_jpeg(SIDE, SIDE), None, True
    yield "a progressive CMYK JPEG, turned", gray_jpeg(SIDE, SIDE, 4, True, 6), None, True
    # As everywhere, it is gray from there on.
    yield "a JPEG cut short in its pixels", gray_jpeg(640, 640)[:-400], None, False
    yield "a WebP of 32 million pixels", black_webp(SIDE, SIDE), None, True
    yield "an animation", black_webp(SIDE, SIDE, (SIDE, SIDE)), None, True
    yield "a file of 16 MiB and a mask of 16 MiB", padded(CIRCLE), padded(MASK), False


def longer(data):
    """The end of a PNG file with more pixels than its head says."""
    return chunk(b"IDAT", data) + chunk(b"IEND", b"")


def padded(file):
    """The file with as much behind its end as it may have."""
    return file + bytes(FILE_BYTES_MAX - len(file))


def drawn(door, worker):
    for name, image, mask, is_large in drawings():
        memory = Memory(worker)
        status, answer = door.form(image, mask)
        check(status == 200, f"{name} is drawn: {status} {answer.get('error')}")
        sent = len(image) + len(mask or b"")
        memory.check(name, COPIES * sent + SLACK_BYTES + DECODING_BYTES_MAX * is_large)


def of_answer(answer):
    return base64.b64decode(answer["data"][0]["b64_json"])


def is_near(found, wanted):
    return all(abs(one - other) < 60 for one, other in zip(found, wanted))


def masks(door):
    """What a mask selects: everything or nothing, by its transparency or by its colors; with another size it is stretched."""
    white = png(lambda x, y: (255, 255, 255, 255))
    for name, mask, is_redrawn in [
        ("a mask that is transparent everywhere", transparent(128), True),
        ("a small one", transparent(16), True),
        ("a white mask", white, True),
        ("a black mask", black_png(128, 128), False),
        ("a black one of another shape", black_png(300, 20), False),
        ("a black mask that is opaque everywhere", png(lambda x, y: (0, 0, 0, 255)), False),
    ]:
        status, answer = door.form(CIRCLE, mask, size="128x128", steps="8", seed="3")
        middle, corner = (pixels(of_answer(answer))[at][at] for at in (64, 4)) if status == 200 else (None, None)
        is_so = middle and is_near(corner, BLUE) and is_near(middle, RED) != is_redrawn
        check(is_so, f"{name} repaints {'all' if is_redrawn else 'nothing'}: {status}, {middle} on {corner}")


def turned(door):
    """A camera's image gets the proportions that a person sees."""
    for orientation in range(1, 9):
        status, answer = door.form(gray_jpeg(128, 64, orientation=orientation), size="auto")
        size = png_size(of_answer(answer)) if status == 200 else None
        check(size == ((64, 128) if orientation > 4 else (128, 64)), f"orientation {orientation}: {status} {size}")


def too_many(door, worker):
    """More images or bytes than a request may have are refused before any is decoded."""
    memory = Memory(worker)
    status, answer = door.form([CIRCLE] * 20)
    error = answer["error"]
    check((status, error["param"]) == (400, "image"), f"20 images: {status} {error['message']}")
    status, answer = door.form([transparent(SIDE, 16)] * 4)
    check((status, answer["error"]["param"]) == (400, "image"), f"4 large images: {status}")
    memory.check("too many images", SLACK_BYTES + COPIES * MIB)
    memory = Memory(worker)
    for name, field, image, mask in [
        ("an image", "image", padded(CIRCLE) + b"\0", None),
        ("a mask", "mask", CIRCLE, padded(MASK) + b"\0"),
    ]:
        status, answer = door.form(image, mask)
        error = answer["error"]
        seen = (status, error["code"], error["param"])
        check(seen == (413, "body_too_large", field), f"{name} of 16 MiB and a byte: {seen}")
    memory.check("files that are too large", SLACK_BYTES + COPIES * FILE_BYTES_MAX)


def at_once(doors, ask):
    """The statuses of as many requests at the same time, from each key in turn."""
    statuses = []
    run = lambda door: statuses.append(ask(door)[0])
    threads = [threading.Thread(target=run, args=[doors[number % len(doors)]]) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def many(doors, worker):
    """The heaviest image, as many times at once: a few are decoded at a time, and all are drawn. Of uploads one head is read at a
    time; more than may arrive together are to come again."""
    memory, image = Memory(worker), transparent(SIDE, 16, chunk(b"eXIf", exif(6)))
    statuses = at_once(doors, lambda door: door.form(image))
    check(statuses == [200] * AT_ONCE, f"{AT_ONCE} at once are drawn: {statuses}")
    bytes_max = DECODINGS_MAX * DECODING_BYTES_MAX + AT_ONCE * COPIES * len(image) + SLACK_BYTES
    memory.check(f"{AT_ONCE} at once", bytes_max)
    memory, image = Memory(worker), black_png(64, 64, more=profile())
    statuses = at_once(doors, lambda door: door.upload(image))
    check(201 in statuses and set(statuses) <= {201, 429}, f"{AT_ONCE} uploads at once: {statuses}")
    memory.check(f"{AT_ONCE} uploads at once", IMAGE_BYTES_MAX + AT_ONCE * COPIES * len(image) + SLACK_BYTES)


def settles(start):
    """Whether the memory comes back to what it was after the first image."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while (now := start.read("VmRSS")) > start.before + KEPT_BYTES_MAX and time.monotonic() < deadline:
        time.sleep(0.5)
    check(now <= start.before + KEPT_BYTES_MAX, f"in the end {now / MIB:.0f} MiB, at first {start.before / MIB:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(options.program, folder)
        keys = [worker.key(name) for name in ("one", "another")]
        worker.start()
        try:
            doors = [Door(worker, key) for key in keys]
            check(doors[0].form(CIRCLE)[0] == 200, "an edit is drawn")
            start = Memory(worker)
            refused(doors[0], worker)
            drawn(doors[0], worker)
            masks(doors[0])
            turned(doors[0])
            too_many(doors[0], worker)
            many(doors, worker)
            settles(start)
            check(worker.process.poll() is None, "the process is still there")
            check(worker.stop() == 0, "exits with 0 when stopped")
        finally:
            worker.process.kill()
            worker.process.wait()
        with open(os.path.join(folder, "log"), errors="replace") as log:
            check("panicked" not in log.read(), "nothing panicked")
    print(f"{len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
