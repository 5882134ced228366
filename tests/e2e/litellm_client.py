#!/usr/bin/env python3
"""LiteLLM against the real program, which it takes for OpenAI at another address.

    scripts/openai-test.sh [PROGRAM]

installs what this needs, starts the program, and runs this.
"""

import base64
import importlib.metadata
import io
import os
import sys
import urllib.request

from image_files import BLUE, CIRCLE, MASK, pixels, png_size

# A file in this folder has the name of a package that it imports. A script's own folder is searched first, so it is removed.
sys.path.pop(0)
# It must not fetch its list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

MODEL = "openai/fluxserve/flux-shapes"
URL = os.environ["FLUXSERVE_TEST_URL"]
KEY = os.environ["FLUXSERVE_TEST_KEY"]
LIMITED_KEY = os.environ["FLUXSERVE_TEST_LIMITED_KEY"]
OTHER_KEY = os.environ["FLUXSERVE_TEST_OTHER_KEY"]
PROMPT = "a red circle on a blue background"

litellm.suppress_debug_info = True


def generate(**options):
    address = {"api_base": URL, "api_key": KEY, "max_retries": 0}
    return litellm.image_generation(**{"model": MODEL, "prompt": PROMPT, **address, **options})


def edit(**options):
    address = {"api_base": URL, "api_key": KEY, "max_retries": 0}
    defaults = {"image": [CIRCLE], "prompt": "a green circle on a blue background"}
    return litellm.image_edit(**{"model": MODEL, **defaults, **address, **options})


def embedded(answer):
    """The files of an answer."""
    return [base64.b64decode(image.b64_json) for image in answer.data]


def linked(answer):
    """The files that an answer links to."""
    files = []
    for image in answer.data:
        with urllib.request.urlopen(image.url, timeout=60) as file:
            files.append(file.read())
    return files


def generates():
    answer = generate(size="64x96", n=2, quality="hd", user="someone", extra_body={"seed": 7, "steps": 4})
    assert [png_size(image) for image in embedded(answer)] == [(64, 96)] * 2
    assert answer.created > 1_600_000_000
    usual = {"background": "auto", "moderation": "auto", "output_compression": 100, "output_format": "png"}
    (image,) = embedded(generate(size="auto", quality="auto", n=1, **usual))
    assert png_size(image) == (128, 128)
    # It refuses these itself, unless they are in the additional body.
    (image,) = linked(generate(size="64x64", extra_body={"response_format": "url", "style": "vivid"}))
    assert png_size(image) == (64, 64)
    # The same seed is the same image.
    first, again = (embedded(generate(size="64x64", seed=5, steps=4)) for _ in range(2))
    assert first == again


def edits():
    (image,) = embedded(edit(image=io.BytesIO(CIRCLE), size="128x128"))
    assert png_size(image) == (128, 128)
    fields = {"quality": "auto", "background": "auto", "input_fidelity": "high", "user": "someone"}
    (image,) = linked(edit(mask=io.BytesIO(MASK), n=1, size="128x128", response_format="url", **fields))
    rows = pixels(image)
    for x, y in [(4, 4), (123, 4), (4, 123), (123, 123), (64, 8)]:
        assert all(abs(found - kept) < 40 for found, kept in zip(rows[y][x], BLUE)), f"{x}, {y} is {rows[y][x]}"
    assert len(embedded(edit(n=2, extra_body={"seed": 3, "strength": 0.8}))) == 2


def refused(kind, words, call):
    """Checks the error of a call that must fail: its type, and words of its message."""
    try:
        answer = call()
    except Exception as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert words in str(error), error
        return
    raise AssertionError(f"no {kind.__name__}: {answer}")


def refusals():
    for words, options in [
        ("`size`", {"size": "100x100"}),
        ("`n`", {"n": 11}),
        ("`quality`", {"quality": "ultra"}),
        ("`background`", {"background": "transparent"}),
        ("`steps`", {"steps": "8"}),
        ("`svg`", {"extra_body": {"svg": True}}),
    ]:
        refused(litellm.BadRequestError, words, lambda: generate(**options))
    for words, options in [
        ("`image` must be at most 1", {"image": [CIRCLE, CIRCLE]}),
        ("`image` is not", {"image": [b""]}),
        ("`image` is not", {"image": [b"not an image"]}),
        ("`image` cannot be read", {"image": [CIRCLE[:100]]}),
        ("`mask` is not", {"mask": b"not an image"}),
        ("`mask` cannot be read", {"mask": MASK[:50]}),
        ("`size`", {"size": "100x100"}),
        ("`n`", {"n": 11}),
        ("`background`", {"background": "transparent"}),
    ]:
        refused(litellm.BadRequestError, words, lambda: edit(**options))
    for call in (generate, edit):
        refused(litellm.NotFoundError, "no such model", lambda: call(model="openai/gpt-image-2"))
        refused(litellm.AuthenticationError, "API key", lambda: call(api_key=KEY[:-1] + "!"))
        # It has an exception for 403, and does not raise it for OpenAI's API.
        refused(litellm.APIError, "scope", lambda: call(api_key=OTHER_KEY))
    generate(size="64x64", api_key=LIMITED_KEY)
    for call in (generate, edit):
        refused(litellm.RateLimitError, "per minute", lambda: call(api_key=LIMITED_KEY))


def main():
    generates()
    edits()
    refusals()
    version = importlib.metadata.version("litellm")
    print(f"LiteLLM {version} generates and edits images, and reports every refusal")


main()
