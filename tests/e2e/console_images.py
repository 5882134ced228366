"""The playground's tabs in a browser, with the demo model: images are edited, and repainted under a mask."""

import base64
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path

from playwright.sync_api import expect

INPUT_IMAGE = Path(__file__).parent.parent / "reference/cases/b_96x64.0.png"
# Levels of 255 by which an image differs on average: where it was repainted at least, elsewhere at most.
REPAINTED_MIN, KEPT_MAX = 20, 8
# Pixels around a mask that may change with it: what the autoencoder sees from there.
BORDER = 16
DIFFERENCES = """
async ([before, after, mask, border]) => {
  const read = async (file) => {
    const image = new Image();
    image.src = `data:image/png;base64,${file}`;
    await image.decode();
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return { width, height, data: context.getImageData(0, 0, width, height).data };
  };
  const [first, second, map] = [await read(before), await read(after), await read(mask)];
  const { width, height } = first;
  const isWhite = (x, y) => map.data[4 * (y * width + x)] > 127;
  const isNear = (x, y) => {
    for (let nearY = Math.max(0, y - border); nearY <= Math.min(height - 1, y + border); nearY += 1)
      for (let nearX = Math.max(0, x - border); nearX <= Math.min(width - 1, x + border); nearX += 1)
        if (isWhite(nearX, nearY)) return true;
    return false;
  };
  const sums = { inside: [0, 0], outside: [0, 0] };
  for (let y = 0; y < height; y += 1)
    for (let x = 0; x < width; x += 1) {
      const sum = isWhite(x, y) ? sums.inside : isNear(x, y) ? null : sums.outside;
      if (!sum) continue;
      for (let channel = 0; channel < 3; channel += 1) {
        const at = 4 * (y * width + x) + channel;
        sum[0] += Math.abs(first.data[at] - second.data[at]);
        sum[1] += 1;
      }
    }
  return [sums.inside[0] / sums.inside[1], sums.outside[0] / sums.outside[1]];
}
"""


def step(words):
    print(f"  {words}", flush=True)


def size_of(png):
    return struct.unpack(">II", png[16:24])


def tab(page, name):
    return page.get_by_role("tab", name=name, exact=True)


def choose(page, role, *files):
    """Chooses files in the place of a role that is shown."""
    page.locator(f"[data-field={role}] .drop-input").set_input_files(list(files))
    expect(page.locator(f"[data-field={role}] .drop-image")).to_have_count(len(files))


def generate(visitor):
    """Generates an image. Returns the body that was sent, and the image's file."""
    page = visitor.page
    with page.expect_response(lambda answer: answer.url.endswith("/v1/playground/image")) as answered:
        page.get_by_role("button", name="Generate", exact=True).click()
    answer = answered.value
    assert answer.status == 202, answer.text()
    result = f"/v1/jobs/{answer.json()['job_id']}/result"
    page.locator(f'.stage a[download][href="{result}"]').wait_for()
    page.get_by_test_id("result").wait_for()
    origin = page.evaluate("() => location.origin")
    return answer.request.post_data_json, visitor.context.request.get(origin + result).body()


def tabs(visitor):
    page = visitor.page
    step("a tab that the model cannot serve says why, to the eye and to a screen reader")
    visitor.go("playground")
    reason = "takes no control image"
    expect(tab(page, "Control")).to_have_attribute("aria-disabled", "true")
    expect(tab(page, "Control")).to_have_accessible_description(re.compile(reason))
    tab(page, "Generate").press("End")
    expect(tab(page, "Control")).to_be_focused()
    expect(page.locator(".tab-reason")).to_contain_text(reason)
    expect(tab(page, "Generate")).to_have_attribute("aria-selected", "true")
    visitor.look("playground-tab-disabled")
    tab(page, "Control").press("Home")
    tab(page, "Generate").press("ArrowRight")
    expect(tab(page, "Edit")).to_have_attribute("aria-selected", "true")


def editing(visitor):
    page = visitor.page
    step("an image is edited: the result has its size, and is compared with it")
    tab(page, "Edit").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_text("Choose an image", exact=True)).to_be_visible()
    choose(page, "input", INPUT_IMAGE)
    expect(page.get_by_label("Width", exact=True)).to_have_value("")
    page.get_by_label("Strength", exact=True).fill("0.5")
    visitor.look("playground-edit")
    generate(visitor)
    expect(page.locator(".facts")).to_contain_text("Strength0.5")
    expect(page.locator(".facts")).to_contain_text("64 × 96 px")
    line = page.get_by_role("slider", name="Line between before and after")
    line.press("Home")
    expect(line).to_have_attribute("aria-valuenow", "0")
    line.press("PageUp")
    expect(line).to_have_attribute("aria-valuenow", "10")
    visitor.look("playground-compare")
    page.get_by_role("button", name="Result", exact=True).click()
    expect(page.get_by_test_id("compare")).to_have_count(0)
    expect(page.get_by_role("link", name="Open the image in full size")).to_be_visible()
    expect(page.get_by_test_id("playground-curl")).to_contain_text(f"base64 < {INPUT_IMAGE.name}")
    expect(page.get_by_test_id("playground-python")).to_contain_text(f'"base64": read("{INPUT_IMAGE.name}")')
    step("a file that is no image is reported at its place")
    page.locator("[data-field=input] .drop-input").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": b"none"})
    expect(page.get_by_text("Is not a PNG, JPEG or WebP file")).to_be_visible()
    page.get_by_role("button", name=f"Remove {INPUT_IMAGE.name}").click()
    expect(page.locator(".drop-image")).to_have_count(0)


def covered(page):
    """The percentage of the image that the mask covers, as the page says it."""
    text = page.get_by_test_id("mask-status").inner_text()
    found = re.search(r"About (\d+) %", text)
    assert found, text
    return int(found.group(1))


def paint(page):
    """Paints a line across the middle, with a mouse."""
    canvas = page.locator("#mask")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    left, right = (box["x"] + share * box["width"] for share in (0.4, 0.6))
    middle = box["y"] + box["height"] / 2
    page.mouse.move(left, middle)
    page.mouse.down()
    page.mouse.move(right, middle, steps=6)
    page.mouse.up()


def painting(page):
    status = page.get_by_test_id("mask-status")
    expect(status).to_have_text("Nothing is painted yet.")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_text("Paint the part to repaint")).to_be_visible()
    page.get_by_label("Brush size", exact=True).fill("40")
    paint(page)
    by_mouse = covered(page)
    page.keyboard.press("Control+z")
    expect(status).to_have_text("Nothing is painted yet.")
    page.keyboard.press("Control+Shift+Z")
    assert abs(covered(page) - by_mouse) <= 1, "the line is not painted again"
    canvas = page.locator("#mask")
    for _ in range(6):
        canvas.press("ArrowUp")
    page.keyboard.down("Space")
    for _ in range(8):
        canvas.press("ArrowLeft")
    page.keyboard.up("Space")
    assert covered(page) > by_mouse, "the keys painted nothing"
    for name, total in [("Invert the mask", 100 - covered(page)), ("Undo", covered(page))]:
        page.get_by_role("button", name=name, exact=True).click()
        assert abs(covered(page) - total) <= 1, f"{name}: {covered(page)} %, not {total} %"


def inpainting(visitor, key):
    page = visitor.page
    step("a circle is painted over, with mouse and keys, and becomes another one; the rest stays")
    tab(page, "Generate").click()
    page.get_by_role("button", name="Default, 128 × 128").click()
    page.get_by_label("Steps", exact=True).fill("20")
    page.get_by_label("Prompt", exact=True).fill("a red circle in the centre on a blue background")
    _, before = generate(visitor)
    tab(page, "Inpaint").click()
    page.get_by_role("button", name="Edit this image").click()
    page.locator("#mask").wait_for()
    painting(page)
    page.get_by_label("Strength", exact=True).fill("1")
    visitor.look("playground-inpaint")
    page.get_by_label("Prompt", exact=True).fill("a green circle in the centre on a blue background")
    body, after = generate(visitor)
    assert [image["role"] for image in body["images"]] == ["input", "mask"], body
    image, mask = (base64.b64decode(image["base64"]) for image in body["images"])
    assert image == before, "another image was sent"
    assert size_of(mask) == size_of(before), size_of(mask)
    files = [base64.b64encode(file).decode() for file in (before, after, mask)]
    inside, outside = page.evaluate(DIFFERENCES, [*files, BORDER])
    assert inside > REPAINTED_MIN and outside < KEPT_MAX, (inside, outside)
    expect(page.get_by_test_id("compare")).to_be_visible()
    visitor.look("playground-inpainted")
    step("the commands that are offered for it generate the same image")
    again(page, key, after, {"flux-7.png": before, "mask.png": mask})


def again(page, key, expected, files):
    curl = page.get_by_test_id("playground-curl").text_content()
    script = page.get_by_test_id("playground-python").text_content()
    for command in (["bash", "-c", curl], ["python3", "-c", script]):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            subprocess.run(command, cwd=folder, env=dict(os.environ, FLUXSERVE_KEY=key), check=True, timeout=120)
            assert (Path(folder) / "image.png").read_bytes() == expected, f"{command[0]} made another image"
