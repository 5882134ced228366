"""The playground's tabs for a model that takes images of all roles, for console.py: several references, styles and control
images, each with its own settings, and a mask that is painted with keys alone. The browser is told of such a model, the worker
has none: what was asked for is in the request."""

import base64

from playwright.sync_api import expect

from console_images import INPUT_IMAGE, choose, covered, tab

MODELS, IMAGE = "**/v1/inference/models", "**/v1/playground/image"
# What a model with everything beside it takes, in the words of the list of models.
EVERYTHING = {
    "images": {role: {"min": 0, "max": most} for role, most in
               {"input": 1, "mask": 1, "control": 4, "reference": 4, "style": 8}.items()},
    "controlnets": [{"name": "plain", "modes": None}, {"name": "union", "modes": 9}],
    "preprocess": ["canny", "depth"],
}
REFUSAL = {
    "title": "Invalid request", "status": 400, "code": "invalid_request", "detail": "a refusal of this test",
    "errors": [{"field": "images[1].scale", "reason": "refused by this test"}],
}
COMMANDS = """
async (body) => {
  const { generateCommand } = await import("/admin/assets/curl.js");
  const { generateScript } = await import("/admin/assets/python.js");
  return [generateCommand({ body }), generateScript({ body })];
}
"""
PASTE = """
([name, content]) => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
  data.items.add(new File([bytes], name, { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
}
"""
# More than there are between a tab's first control and its last.
TABS_MAX = 40


def every_tab(visitor):
    page = visitor.page

    def tell(route):
        answer = route.fetch()
        listed = answer.json()
        for model in listed["models"]:
            model.update(EVERYTHING)
        route.fulfill(response=answer, json=listed)

    page.route(MODELS, tell)
    visitor.go("playground")
    page.get_by_label("Prompt", exact=True).fill("a red circle")
    references(visitor)
    mask_by_keys(visitor)
    control_images(visitor)
    control_settings(visitor)
    names_of_files(page)
    page.unroute(MODELS)


def file_called(name):
    return {"name": name, "mimeType": "image/png", "buffer": INPUT_IMAGE.read_bytes()}


def asked_for(page):
    """Asks for an image, which the worker refuses. Returns the images that were sent, without their pixels."""
    with page.expect_response(lambda answer: answer.url.endswith("/v1/playground/image")) as answered:
        page.get_by_role("button", name="Generate", exact=True).click()
    assert answered.value.status == 400, answered.value.text()
    sent = answered.value.request.post_data_json["images"]
    for image in sent:
        assert base64.b64decode(image.pop("base64")) == INPUT_IMAGE.read_bytes(), "another image was sent"
    expect(page.locator(".form-alert:not(:empty), .field-error:not(:empty)").first).to_be_visible()
    return sent


def references(visitor):
    """Several references and styles: the focus stays at their place, and each can be told from the others."""
    page = visitor.page
    tab(page, "Edit").click()
    place = page.locator("[data-field=reference]")
    files, images = place.locator(".drop-input"), place.locator(".drop-image")
    choose(page, "reference", file_called("first.png"))
    files.set_input_files([file_called("second.png")])
    expect(images).to_have_count(2)
    expect(place).to_contain_text("Add another image (2 of at most 4)")
    files.focus()
    files.set_input_files([file_called("second.png"), file_called("fourth.png")])
    expect(images).to_have_count(4)
    expect(place).to_contain_text("No more than 4 images")
    expect(place.get_by_role("button", name="Remove fourth.png")).to_be_focused()
    page.keyboard.press("Enter")
    expect(files).to_be_focused()
    place.get_by_role("button", name="Remove second.png (2)", exact=True).press("Enter")
    expect(images).to_have_count(2)
    choose(page, "style", file_called("warm.png"), file_called("cold.png"))
    page.get_by_label("Scale of cold.png").fill("0.5")
    visitor.look("playground-references")
    assert asked_for(page) == [
        {"role": "reference"}, {"role": "reference"}, {"role": "style", "scale": 1}, {"role": "style", "scale": 0.5}]


def tab_to(page, wanted):
    for _ in range(TABS_MAX):
        page.keyboard.press("Tab")
        if wanted.evaluate("node => node === document.activeElement"):
            return
    raise AssertionError(f"Tab does not come to {wanted}")


def draw(page, arrow, times):
    """Holds the space bar and moves."""
    page.keyboard.down("Space")
    for _ in range(times):
        page.keyboard.press(arrow)
    page.keyboard.up("Space")


def mask_by_keys(visitor):
    page = visitor.page
    tab(page, "Generate").focus()
    for key in ("Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    expect(tab(page, "Inpaint")).to_have_attribute("aria-selected", "true")
    choose(page, "input", INPUT_IMAGE)
    page.locator("[data-field=input] .drop-input").focus()
    tab_to(page, page.locator("#mask"))
    size = page.get_by_label("Brush size", exact=True)
    for key, percent in [("[", "9"), ("]", "12"), ("]", "15"), ("]", "18"), ("]", "21")]:
        page.keyboard.press(key)
        expect(size).to_have_value(percent)
    draw(page, "ArrowRight", 10)
    painted = covered(page)
    page.keyboard.press("e")
    draw(page, "ArrowLeft", 3)
    assert 0 < covered(page) < painted, "the eraser took nothing, or all"
    page.keyboard.press("Control+z")
    assert abs(covered(page) - painted) <= 1, "what was erased is not there again"
    visitor.look("playground-mask")
    expect(page.locator("#mask")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Enlarge")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_test_id("mask-dialog").wait_for()
    assert abs(covered(page) - painted) <= 1, "the mask was lost on the way into the window"
    visitor.look("playground-mask-window")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Enlarge")).to_be_focused()


def control_image(page, number):
    return page.get_by_role("group", name=f"Control image {number}", exact=True)


def control_images(visitor):
    """Places are added and removed with keys: the focus goes into a new one, and back to where one is added."""
    page = visitor.page
    tab(page, "Control").click()
    entries, count = page.get_by_test_id("control-entry"), page.get_by_test_id("control-count")
    add = page.get_by_role("button", name="Add a control image", exact=True)
    expect(entries).to_have_count(1)
    expect(page.get_by_role("button", name="Remove control image 1")).to_have_count(0)
    for number in (2, 3, 4):
        add.focus()
        page.keyboard.press("Enter")
        expect(control_image(page, number).locator(".drop-input")).to_be_focused()
        expect(count).to_have_text(f"{number} of at most 4 control images")
    expect(add).to_be_hidden()
    page.get_by_role("button", name="Remove control image 4").focus()
    page.keyboard.press("Enter")
    expect(add).to_be_focused()
    for number, name in [(1, "edges.png"), (3, "pose.png")]:
        control_image(page, number).locator(".drop-input").set_input_files([file_called(name)])
        expect(control_image(page, number).locator(".drop-image")).to_contain_text(name)
    control_image(page, 3).get_by_label("ControlNet", exact=True).select_option("plain")
    for name, value in [("Scale", "0.5"), ("Start", "0.2"), ("End", "0.8")]:
        control_image(page, 3).get_by_label(name, exact=True).fill(value)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(control_image(page, 2)).to_contain_text("Choose an image, or remove this control image")
    page.get_by_role("button", name="Remove control image 2").press("Enter")
    expect(entries).to_have_count(2)
    expect(control_image(page, 2).locator(".drop-image")).to_contain_text("pose.png")
    expect(control_image(page, 2).get_by_label("Scale", exact=True)).to_have_value("0.5")
    page.evaluate(PASTE, ["pasted.png", base64.b64encode(INPUT_IMAGE.read_bytes()).decode()])
    expect(control_image(page, 3).locator(".drop-image")).to_contain_text("pasted.png")
    page.get_by_role("button", name="Remove control image 3").press("Enter")
    expect(entries).to_have_count(2)


def control_settings(visitor):
    """Each control image is sent with its own settings, and an error is shown at the one that it means."""
    page = visitor.page
    first, second = (control_image(page, number) for number in (1, 2))
    expect(first.get_by_test_id("map-text")).to_contain_text("Sent as it is")
    first.get_by_label("Preprocess", exact=True).select_option("canny")
    expect(first.get_by_test_id("map-text")).to_contain_text("made on the server")
    expect(second.get_by_test_id("map-text")).to_contain_text("Sent as it is")
    expect(first.get_by_label("Kind of map", exact=True)).to_be_hidden()
    first.get_by_label("ControlNet", exact=True).select_option("union")
    first.get_by_label("Kind of map", exact=True).select_option("depth")
    visitor.look("playground-control")
    sent = asked_for(page)
    assert sent == [
        {"role": "control", "controlnet": "union", "mode": "depth", "preprocess": "canny", "scale": 1, "start": 0, "end": 1},
        {"role": "control", "controlnet": "plain", "scale": 0.5, "start": 0.2, "end": 0.8}], sent
    curl, script = page.evaluate(COMMANDS, {"model": "a", "prompt": "b", "images": [
        {**image, "file": name} for image, name in zip(sent, ("edges.png", "pose.png"))]})
    for words in ["base64 < edges.png", '"mode":"depth"', "base64 < pose.png", '"controlnet":"plain"']:
        assert words in curl, curl
    compile(script, "the script that is offered", "exec")
    assert script.count('"role": "control"') == 2 and 'read("pose.png")' in script, script
    visitor.look("playground-refused")
    page.route(IMAGE, lambda route: route.fulfill(status=400, json=REFUSAL))
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(second).to_contain_text("Refused by this test")
    expect(second.get_by_label("Scale", exact=True)).to_be_focused()
    page.unroute(IMAGE)


def names_of_files(page):
    """The commands read files whose names need quotes, are missing, or are the same."""
    images = [{"role": "control", "file": "my photo.png"}, {"role": "style", "scale": 0.5}]
    curl, script = page.evaluate(COMMANDS, {"model": "a", "prompt": "it's", "images": images})
    for words in ["base64 < 'my photo.png'", "base64 < style.png", "it'\\''s"]:
        assert words in curl, curl
    compile(script, "the script that is offered", "exec")
    assert 'read("my photo.png")' in script and '"scale": 0.5, "base64": read("style.png")' in script, script
    same = [{"role": "control", "file": "control-2.png"}] * 3
    curl, _ = page.evaluate(COMMANDS, {"model": "a", "prompt": "b", "images": same})
    for name in ["control-2.png", "control-3.png", "control-4.png"]:
        assert curl.count(f"base64 < {name}") == 1, curl
