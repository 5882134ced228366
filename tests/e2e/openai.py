#!/usr/bin/env python3
"""OpenAI's client for Python against the real program.

    scripts/openai-test.sh [PROGRAM]

installs what this needs, starts the program, and runs this.
"""

import base64
import io
import json
import os
import struct
import urllib.request
import zlib

# This file has the package's name. A script's own folder is searched first, so it is removed from the path.
import sys

sys.path.pop(0)

import openai  # noqa: E402

MODEL = "fluxserve/flux-shapes"
URL = os.environ["FLUXSERVE_TEST_URL"]
KEY = os.environ["FLUXSERVE_TEST_KEY"]
LIMITED_KEY = os.environ["FLUXSERVE_TEST_LIMITED_KEY"]
PROMPT = "a red circle on a blue background"


def png_size(image):
    """Width and height in the head of a PNG."""
    assert image[:8] == b"\x89PNG\r\n\x1a\n", image[:16]
    return struct.unpack(">II", image[16:24])


def png(color_of, side=128):
    """A PNG file with the color, red to alpha, of each pixel."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"".join(bytes(color_of(x, y)) for x in range(side)) for y in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")


def pixels(image):
    """The pixels of a PNG file of this worker (8 bits, RGB), row by row."""
    width, height = png_size(image)
    assert image[24:26] == b"\x08\x02", image[24:26]
    data, at = b"", 8
    while at < len(image):
        (length,) = struct.unpack(">I", image[at : at + 4])
        if image[at + 4 : at + 8] == b"IDAT":
            data += image[at + 8 : at + 8 + length]
        at += 12 + length
    data, rows, before = zlib.decompress(data), [], bytearray(3 * width)
    for start in range(0, height * (3 * width + 1), 3 * width + 1):
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + 3 * width])
        for index, byte in enumerate(row):
            left = row[index - 3] if index >= 3 else 0
            up, corner = before[index], before[index - 3] if index >= 3 else 0
            guess = left + up - corner
            nearest = min((left, up, corner), key=lambda value: abs(guess - value))
            row[index] = (byte + (0, left, up, (left + up) // 2, nearest)[kind]) & 255
        rows.append([tuple(row[index : index + 3]) for index in range(0, 3 * width, 3)])
        before = row
    return rows


def in_circle(x, y):
    """Whether a pixel is in the circle of `CIRCLE`."""
    return (x - 64) ** 2 + (y - 64) ** 2 < 36**2


RED, GREEN, BLUE = (220, 40, 40), (40, 160, 60), (40, 80, 210)
CIRCLE = png(lambda x, y: (*(RED if in_circle(x, y) else BLUE), 255))
# Transparent, and so replaced: the circle and a little around it.
MASK = png(lambda x, y: (0, 0, 0, 0 if (x - 64) ** 2 + (y - 64) ** 2 < 42**2 else 255))


def edits(client):
    """What is masked becomes what the prompt says, and the rest stays."""
    prompt = "a green circle on a blue background"
    options = {"model": MODEL, "prompt": prompt, "extra_body": {"seed": 3}}
    image, mask = ("circle.png", CIRCLE), ("mask.png", MASK)
    answer = client.images.edit(image=image, mask=mask, size="128x128", quality="high", **options)
    rows = pixels(base64.b64decode(answer.data[0].b64_json))
    red, green, blue = rows[64][64]
    assert green > red and green > blue, f"the middle of the circle is {rows[64][64]}"
    for x, y in [(4, 4), (123, 4), (4, 123), (123, 123), (64, 8)]:
        assert all(abs(found - kept) < 40 for found, kept in zip(rows[y][x], BLUE)), f"{x}, {y} is {rows[y][x]}"

    more = {"seed": 3, "strength": 0.8, "loras": json.dumps([])}
    options["extra_body"] = more
    answer = client.images.edit(image=[image], n=2, response_format="url", **options)
    assert [image.seed for image in answer.data] == [3, 4]
    with urllib.request.urlopen(answer.data[0].url, timeout=60) as edited:
        assert png_size(edited.read()) == (128, 128)

    client = client.with_options(max_retries=0)
    error = refused(openai.BadRequestError, lambda: client.images.edit(image=[image, image], **options))
    assert (error.param, error.code) == ("image", "invalid_request"), error
    broken = ("mask.png", MASK[:50])
    error = refused(openai.BadRequestError, lambda: client.images.edit(image=image, mask=broken, **options))
    assert (error.param, error.code) == ("mask", "invalid_request"), error
    stranger = client.with_options(api_key=KEY[:-1] + "!")
    error = refused(openai.AuthenticationError, lambda: stranger.images.edit(image=image, **options))
    assert error.code == "unauthorized", error
    if hasattr(client.images, "create_variation"):
        vary = lambda: client.images.create_variation(image=io.BytesIO(CIRCLE), model=MODEL, n=1, size="256x256")  # noqa: E731
        error = refused(openai.BadRequestError, vary)
        assert (error.param, error.code) == ("model", "invalid_request"), error


def streams(client):
    """Events of an image that forms: as many partial images as asked for, and then what the answer without a stream has."""
    options = {"model": MODEL, "extra_body": {"seed": 3, "steps": 8}}
    image = ("circle.png", CIRCLE)
    calls = {
        "image_generation": lambda **more: client.images.generate(prompt=PROMPT, size="128x128", **options, **more),
        "image_edit": lambda **more: client.images.edit(image=image, prompt="a green circle", **options, **more),
    }
    for kind, call in calls.items():
        whole = call().data[0].b64_json
        for count in (0, 1, 3):
            events = list(call(stream=True, partial_images=count))
            expected = [f"{kind}.partial_image"] * count + [f"{kind}.completed"]
            assert [event.type for event in events] == expected, [event.type for event in events]
            *partial, completed = events
            assert [event.partial_image_index for event in partial] == list(range(count))
            for event in events:
                assert png_size(base64.b64decode(event.b64_json)) == (128, 128)
                assert (event.size, event.output_format) == ("128x128", "png"), event.size
                assert event.created_at > 1_600_000_000
            usage = completed.usage
            assert usage.total_tokens == usage.input_tokens + usage.output_tokens and usage.output_tokens == 64, usage
            assert pixels(base64.b64decode(completed.b64_json)) == pixels(base64.b64decode(whole)), "another image"
            for before, event in zip(partial, partial[1:] + [completed]):
                assert event.b64_json != before.b64_json, "it does not form"
        with call(stream=True, partial_images=3) as stream:
            assert next(iter(stream)).type == f"{kind}.partial_image"
        error = refused(openai.BadRequestError, lambda: call(stream=True, n=2))
        assert (error.param, error.code) == ("n", "invalid_request"), error


def refused(kind, call):
    """The error of a call that must fail."""
    try:
        answer = call()
    except openai.APIStatusError as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert error.request_id, "an error without a request id"
        return error
    raise AssertionError(f"no {kind.__name__}: {answer}")


def generate(client, **options):
    return client.images.generate(**{"model": MODEL, "prompt": PROMPT, **options})


def main():
    client = openai.OpenAI(base_url=URL, api_key=KEY)

    raw = client.images.with_raw_response.generate(model=MODEL, prompt=PROMPT, size="64x64")
    assert "x-ratelimit-limit-requests" not in raw.headers, "this key has no limit"

    answer = generate(client, size="128x128")
    assert png_size(base64.b64decode(answer.data[0].b64_json)) == (128, 128)
    assert (answer.size, answer.output_format) == ("128x128", "png"), answer.size

    answer = generate(client, n=2, size="64x96", response_format="url", extra_body={"seed": 7, "steps": 4})
    assert [image.seed for image in answer.data] == [7, 8]
    for image in answer.data:
        with urllib.request.urlopen(image.url, timeout=60) as image:
            assert png_size(image.read()) == (64, 96)

    generate(client, size="64x64", quality="hd", style="vivid", moderation="low", output_compression=100)
    edits(client)
    streams(client)

    models = list(client.models.list())
    assert [model.id for model in models] == [MODEL], models
    assert client.models.retrieve(MODEL) == models[0]

    # From here on every call must fail, without retries.
    client = client.with_options(max_retries=0)
    error = refused(openai.AuthenticationError, lambda: generate(client.with_options(api_key=KEY[:-1] + "!")))
    assert (error.code, error.type) == ("unauthorized", "authentication_error"), error
    error = refused(openai.BadRequestError, lambda: generate(client, size="100x100"))
    assert (error.param, error.code) == ("size", "invalid_request"), error
    error = refused(openai.BadRequestError, lambda: generate(client, quality="ultra"))
    assert (error.param, error.code) == ("quality", "invalid_request"), error
    error = refused(openai.NotFoundError, lambda: generate(client, model="gpt-image-2"))
    assert error.code == "model_not_found", error
    error = refused(openai.NotFoundError, lambda: client.models.retrieve("unknown/nothing"))
    assert error.code == "model_not_found", error

    limited = client.with_options(api_key=LIMITED_KEY)
    raw = limited.images.with_raw_response.generate(model=MODEL, prompt=PROMPT, size="64x64")
    assert raw.headers["x-ratelimit-remaining-requests"] == "0", raw.headers
    error = refused(openai.RateLimitError, lambda: generate(limited, size="64x64"))
    assert (error.code, error.type) == ("rate_limited", "rate_limit_error"), error
    assert int(error.response.headers["retry-after"]) >= 1
    assert error.response.headers["x-ratelimit-limit-requests"] == "1"

    print(f"openai {openai.__version__} for Python generates, edits and streams images, lists models, and reports every refusal")


main()
