#!/usr/bin/env python3
"""OpenAI's client for Python against the real program.

    scripts/openai-test.sh [PROGRAM]

installs what this needs, starts the program, and runs this.
"""

import base64
import io
import json
import os
import sys
import urllib.request

from image_files import BLUE, CIRCLE, GRAY, MASK, RGBA, black_png, pixels, png_size

# This file has the package's name. A script's own folder is searched first, so it is removed from the path.
sys.path.pop(0)

import openai  # noqa: E402

MODEL = "fluxserve/flux-shapes"
URL = os.environ["FLUXSERVE_TEST_URL"]
KEY = os.environ["FLUXSERVE_TEST_KEY"]
LIMITED_KEY = os.environ["FLUXSERVE_TEST_LIMITED_KEY"]
# A key that must not generate.
OTHER_KEY = os.environ["FLUXSERVE_TEST_OTHER_KEY"]
PROMPT = "a red circle on a blue background"
# What OpenAI documents as the defaults of both routes.
DEFAULTS = {
    "background": "auto", "n": 1, "output_compression": 100, "output_format": "png", "partial_images": 0, "quality": "auto",
    "response_format": "b64_json", "size": "auto", "stream": False, "user": "someone",
}


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

    client.images.edit(image=image, mask=mask, input_fidelity="low", **options, **DEFAULTS)
    # A mask of another size is stretched to that of the image.
    small = ("mask.png", black_png(64, 32, color=RGBA))
    answer = client.images.edit(image=image, mask=small, size="128x128", **options)
    assert png_size(base64.b64decode(answer.data[0].b64_json)) == (128, 128)

    if hasattr(client.images, "create_variation"):
        client = client.with_options(max_retries=0)
        vary = lambda: client.images.create_variation(image=io.BytesIO(CIRCLE), model=MODEL, n=1, size="256x256")  # noqa: E731
        error = refused(openai.BadRequestError, vary)
        assert (error.param, error.code) == ("model", "invalid_request"), error


def refused_edits(client):
    """What is wrong with the images, or with other fields of a form, is the client's own exception with the field's name."""
    image, mask = ("circle.png", CIRCLE), ("mask.png", MASK)

    def edit(**options):
        prompt = "a green circle on a blue background"
        return client.images.edit(**{"model": MODEL, "prompt": prompt, "image": image, **options})

    for param, options in [
        ("image", {"image": [image, image]}),
        ("image", {"image": [image] * 16}),
        ("image", {"image": ("empty.png", b"")}),
        ("image", {"image": ("notes.txt", b"not an image")}),
        ("image", {"image": ("image.gif", b"GIF89a" + bytes(20))}),
        ("image", {"image": ("cut.png", CIRCLE[:100])}),
        ("image", {"image": ("large.png", black_png(60_000, 60_000, 1, GRAY))}),
        ("image", {"image": ("wide.png", black_png(16_385, 1))}),
        ("mask", {"mask": ("empty.png", b"")}),
        ("mask", {"mask": ("notes.txt", b"not an image")}),
        ("mask", {"mask": ("cut.png", MASK[:50])}),
        ("mask", {"extra_body": {"mask": "white"}}),
        ("size", {"mask": mask, "size": "100x100"}),
        ("size", {"size": "large"}),
        ("n", {"n": 11}),
        ("n", {"n": 0}),
        ("n", {"n": "two"}),
        ("strength", {"extra_body": {"strength": "much"}}),
        ("seed", {"extra_body": {"seed": -1}}),
        ("quality", {"quality": "ultra"}),
        ("background", {"background": "transparent"}),
        ("output_compression", {"output_compression": 50}),
        ("output_format", {"output_format": "gif"}),
        ("input_fidelity", {"input_fidelity": "none"}),
        ("prompt", {"prompt": ""}),
        ("svg", {"extra_body": {"svg": "true"}}),
    ]:
        error = refused(openai.BadRequestError, lambda: edit(**options))
        assert (error.param, error.code) == (param, "invalid_request"), f"{options.keys()}: {error}"
        assert f"`{param}`" in error.message, error
    error = refused(openai.NotFoundError, lambda: edit(model="gpt-image-2"))
    assert error.code == "model_not_found", error
    too_large = ("large.png", CIRCLE + bytes(16 * 1024 * 1024))
    error = refused(openai.APIStatusError, lambda: edit(image=too_large))
    assert (error.status_code, error.param, error.code) == (413, "image", "body_too_large"), error


def refused_keys(client):
    """Keys that are wrong, or must not generate."""
    image = ("circle.png", CIRCLE)
    for key, kind, code, name in [
        (KEY[:-1] + "!", openai.AuthenticationError, "unauthorized", "authentication_error"),
        (OTHER_KEY, openai.PermissionDeniedError, "scope_forbidden", "permission_error"),
    ]:
        stranger = client.with_options(api_key=key)
        for call in (lambda: generate(stranger), lambda: stranger.images.edit(model=MODEL, prompt=PROMPT, image=image)):
            error = refused(kind, call)
            assert (error.code, error.type, error.param) == (code, name, None), error


def refused_texts(client):
    """What is wrong with a request without images."""
    for param, options in [
        ("size", {"size": "100x100"}),
        ("size", {"size": "512x512"}),
        ("size", {"size": 128}),
        ("n", {"n": 11}),
        ("n", {"n": "2"}),
        ("n", {"n": 1.5}),
        ("steps", {"extra_body": {"steps": "8"}}),
        ("guidance", {"extra_body": {"guidance": "high"}}),
        ("quality", {"quality": "ultra"}),
        ("style", {"style": "baroque"}),
        ("background", {"background": "transparent"}),
        ("moderation", {"moderation": "off"}),
        ("response_format", {"response_format": "png"}),
        ("output_compression", {"output_compression": 50}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": "x" * 5000}),
        ("prompt", {"prompt": None}),
        ("user", {"user": 7}),
        ("svg", {"extra_body": {"svg": True}}),
    ]:
        error = refused(openai.BadRequestError, lambda: generate(client, **options))
        assert (error.param, error.code) == (param, "invalid_request"), f"{options}: {error}"
        assert error.type == "invalid_request_error", error
    error = refused(openai.NotFoundError, lambda: generate(client, model="gpt-image-2"))
    assert (error.code, error.param) == ("model_not_found", None), error
    error = refused(openai.NotFoundError, lambda: client.models.retrieve("unknown/nothing"))
    assert error.code == "model_not_found", error


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

    generate(client, size="64x64", quality="hd", style="natural", moderation="low", output_compression=100)
    generate(client, style="vivid", moderation="auto", **DEFAULTS)
    edits(client)
    streams(client)

    models = list(client.models.list())
    assert [model.id for model in models] == [MODEL], models
    assert client.models.retrieve(MODEL) == models[0]

    # From here on every call must fail, without retries.
    client = client.with_options(max_retries=0)
    refused_keys(client)
    refused_texts(client)
    refused_edits(client)

    limited = client.with_options(api_key=LIMITED_KEY)
    raw = limited.images.with_raw_response.generate(model=MODEL, prompt=PROMPT, size="64x64")
    assert raw.headers["x-ratelimit-remaining-requests"] == "0", raw.headers
    error = refused(openai.RateLimitError, lambda: generate(limited, size="64x64"))
    assert (error.code, error.type) == ("rate_limited", "rate_limit_error"), error
    assert int(error.response.headers["retry-after"]) >= 1
    assert error.response.headers["x-ratelimit-limit-requests"] == "1"

    print(f"openai {openai.__version__} for Python generates, edits and streams images, lists models, and reports every refusal")


main()
