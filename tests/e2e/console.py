#!/usr/bin/env python3
"""The console in a real browser, against the real program, and its keys with real requests.

    scripts/console-test.sh [PROGRAM]

installs what this needs and runs it. Each step is something a user would do. axe checks every page and window for
accessibility; --screenshots DIR saves an image of each.
"""

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from axe_playwright_python.base import AXE_FILE_PATH
from console_usage import usage_and_projects
from console_webhooks import webhook_of_a_key
from playwright.sync_api import expect, sync_playwright

from console_forms import every_tab
from console_images import editing, inpainting, step, tabs

PASSWORD = "the password of this test"
MODEL = "fluxserve/flux-shapes"
START_SECONDS_MAX = 120
PATIENCE_MILLISECONDS = 20_000
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
PAGES = ["", "playground", "jobs", "keys", "projects", "usage", "kubernetes", "models", "loras", "audit", "reference"]
# The size of the demo model's layers.
WIDTH = 160
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


class Worker:
    """The program with a data folder of its own."""

    def __init__(self, program, folder):
        environment = dict(os.environ, FLUXSERVE_ADMIN_PASSWORD=PASSWORD)
        # A key that exists before the console is opened.
        made = subprocess.run(
            [program, "--data-dir", folder / "data", "keys", "create", "--name", "demo", "--scope", "inference"],
            check=True, capture_output=True, text=True)
        self.key = made.stdout.strip()
        self.log = open(folder / "log", "w")
        self.process = subprocess.Popen(
            [program, "serve", "--listen", "127.0.0.1:0", "--data-dir", folder / "data"],
            stdout=subprocess.PIPE, stderr=self.log, env=environment, text=True)
        self.url = None
        for line in self.process.stdout:
            found = re.search(r"The console is at (http://\S+)/admin", line)
            if found:
                self.url = found.group(1)
            if "curl" in line:
                break
        assert self.url, "the worker did not print its console's address"

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.log.close()

    def ask(self, key, method="GET", path="/v1/inference/jobs", body=None):
        """Sends a request with a key and returns its status."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"x-api-key": key, "content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as refusal:
            return refusal.code


class Visitor:
    """A browser window and the faults found in it."""

    def __init__(self, browser, worker, size, scheme, screenshots):
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.context.add_init_script(
            "window.violations = [];"
            "document.addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective + ' ' + e.blockedURI))")
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MILLISECONDS)
        self.name, self.screenshots, self.faults = f"{size}-{scheme}", screenshots, []
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("console", self.record)
        self.page.goto(worker.url + "/admin")
        self.debugger = self.context.new_cdp_session(self.page)

    def record(self, message):
        # Refused requests are part of the test.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.faults.append(f"console: {message.text}")

    def go(self, route):
        self.page.evaluate("route => { location.hash = '#/' + route }", route)
        self.page.wait_for_load_state("networkidle") if route != "" else self.page.wait_for_timeout(500)

    def look(self, name):
        """axe, sideways scrolling, and a screenshot."""
        self.page.wait_for_timeout(300)
        if not self.page.evaluate("() => 'axe' in window"):
            # Injected by the debugger: the policy allows no other scripts.
            self.debugger.send("Runtime.evaluate", {"expression": Path(AXE_FILE_PATH).read_text()})
        found = self.page.evaluate(
            "async rules => (await axe.run(document, { runOnly: rules })).violations.map("
            "v => `${v.impact} ${v.id}: ${v.nodes.map(n => n.html.slice(0, 120)).join(' | ')}`)", RULES)
        self.faults += [f"{name}: {each}" for each in found if each.split()[0] in ("serious", "critical")]
        if self.page.evaluate("() => document.documentElement.scrollWidth > innerWidth"):
            self.faults.append(f"{name}: scrolls sideways")
        if self.screenshots:
            self.page.screenshot(path=self.screenshots / f"{self.name}-{name}.png")

    def sign_in(self, password=PASSWORD):
        self.page.get_by_label("Administrator password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()

    def close(self):
        self.faults += [f"policy: {each}" for each in self.page.evaluate("() => violations")]
        self.context.close()
        return [f"{self.name}: {fault}" for fault in self.faults]


def key_row(page, name):
    return page.get_by_test_id("key-row").filter(has_text=name)


def priority_shown(page):
    """The priority on a key's page."""
    return page.locator("dl.facts > div").filter(has_text="Priority").locator("dd")


def taken_value(page):
    """Returns the value that is shown once, and closes its window."""
    value = page.get_by_test_id("key-value").inner_text()
    assert re.fullmatch(r"rgpu_[0-9A-Za-z]{46}", value), "that is no key"
    page.get_by_test_id("key-stored").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    return value


def life_of_a_key(visitor, worker):
    page = visitor.page
    step("a wrong password is refused, the right one accepted")
    visitor.look("sign-in")
    visitor.sign_in("not the password")
    expect(page.get_by_text("Wrong password")).to_be_visible()
    visitor.sign_in()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()

    step("a key is created and works")
    visitor.go("keys")
    page.get_by_role("button", name="Create API key").first.click()
    page.get_by_label("Name", exact=True).fill("web shop")
    page.get_by_label("Inference", exact=True).check()
    expect(page.get_by_label("Priority", exact=True)).to_have_value("normal")
    page.get_by_label("Priority", exact=True).select_option("High: four times the share of a normal key")
    visitor.look("create-key")
    page.get_by_role("button", name="Create key").click()
    page.get_by_test_id("key-value").wait_for()
    visitor.look("key-value")
    first = taken_value(page)
    expect(key_row(page, "web shop")).to_contain_text(first[:13])
    assert worker.ask(first) == 200
    body = {"model": MODEL, "prompt": "a red circle on a blue background", "steps": 4}
    assert worker.ask(first, "POST", "/v1/inference/image", body) == 202

    step("its page shows its priority, which is edited there")
    key_row(page, "web shop").get_by_role("link", name="web shop").click()
    page.get_by_role("heading", level=1, name="web shop").wait_for()
    expect(priority_shown(page)).to_have_text("Highfour times the share of a normal key")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_label("Priority", exact=True)).to_have_value("high")
    page.get_by_label("Priority", exact=True).select_option("Low: yields to other keys")
    page.get_by_role("button", name="Save").click()
    expect(priority_shown(page)).to_have_text("Lowyields to other keys")
    visitor.go("keys")

    step("it is rotated with overlap: both values work")
    page.get_by_role("button", name="Rotate web shop").click()
    page.get_by_label("1 hour").check()
    visitor.look("rotate-key")
    page.get_by_role("button", name="Rotate key").click()
    second = taken_value(page)
    assert second != first and worker.ask(first) == 200 and worker.ask(second) == 200

    step("an overlap ends")
    key_id = key_row(page, "web shop").get_attribute("data-key-id")
    headers = {"origin": worker.url, "content-type": "application/json"}
    answer = visitor.context.request.post(
        f"{worker.url}/v1/api-keys/{key_id}/rotate", data='{"grace_seconds": 2}', headers=headers)
    third = answer.json()["key"]
    assert worker.ask(second) == 200 and worker.ask(third) == 200
    time.sleep(2.5)
    assert worker.ask(second) == 401 and worker.ask(third) == 200
    assert worker.ask(first) == 401, "an old value works only until the next rotation"

    step("its scope is edited: it generates no more images")
    page.reload()
    page.get_by_role("button", name="Edit web shop").click()
    page.get_by_label("Kubernetes exec", exact=True).check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_test_id("toast-good")).to_contain_text("web shop")
    assert worker.ask(third) == 403

    step("it is revoked")
    page.get_by_role("button", name="Revoke web shop").click()
    expect(page.get_by_role("button", name="Revoke key")).to_be_disabled()
    page.get_by_label("Type web shop to confirm").fill("web shop")
    page.get_by_role("button", name="Revoke key").click()
    expect(key_row(page, "web shop")).to_contain_text("Revoked")
    assert worker.ask(third) == 401

    step("the audit log shows every change")
    listed = visitor.context.request.get(f"{worker.url}/v1/audit?limit=100").json()["data"]
    actions = [entry["action"] for entry in listed if entry["key_id"] == key_id]
    assert [word.rsplit(".", 1)[-1].rsplit("_", 1)[-1] for word in reversed(actions)] == [
        "created", "edited", "rotated", "rotated", "edited", "revoked"], actions
    visitor.go("audit")
    expect(page.get_by_text(third[:13]).first).to_be_visible()
    return third


def playground(visitor):
    page = visitor.page
    step("the playground generates an image, with previews")
    visitor.go("playground")
    page.get_by_label("Prompt", exact=True).fill("a red circle on a blue background")
    page.get_by_role("textbox", name="Seed").fill("7")
    page.get_by_label("Steps", exact=True).fill("60")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("[data-testid=preview]:not([hidden])").wait_for()
    visitor.look("playground-running")
    page.get_by_test_id("result").wait_for()
    expect(page.get_by_test_id("seed")).to_have_text("7")
    visitor.look("playground-done")
    step("the list shows the job with its image")
    visitor.go("jobs")
    page.get_by_test_id("job-row").first.get_by_role("button").first.click()
    page.locator(".job-image img").wait_for()
    visitor.look("job")
    page.keyboard.press("Escape")


def lora_file(numbers=WIDTH):
    """A LoRA of the demo model. With fewer numbers it is cut short."""
    module = "transformer.transformer_blocks.0.attn.to_q"
    half = 4 * WIDTH
    header = {
        "__metadata__": {"modelspec.trigger_phrase": "pen, ink", "modelspec.license": "CC0-1.0"},
        f"{module}.lora_A.weight": {"dtype": "F32", "shape": [1, WIDTH], "data_offsets": [0, half]},
        f"{module}.lora_B.weight": {"dtype": "F32", "shape": [WIDTH, 1], "data_offsets": [half, 2 * half]},
    }
    header = json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + struct.pack(f"<{2 * numbers}f", *[0.01] * (2 * numbers))


def loras(visitor):
    page = visitor.page
    step("a broken LoRA is refused at its field, a good one added")
    visitor.go("loras")
    visitor.look("no-loras")
    page.get_by_role("button", name="Add LoRA", exact=True).click()
    dialog = page.get_by_test_id("add-lora")
    kind = "application/octet-stream"
    broken = {"name": "broken.safetensors", "mimeType": kind, "buffer": lora_file(numbers=WIDTH // 2)}
    dialog.get_by_label("File", exact=True).set_input_files(broken)
    dialog.get_by_role("button", name="Add LoRA").click()
    expect(dialog.get_by_text("not a complete safetensors file")).to_be_visible()
    visitor.look("add-lora")
    dialog.get_by_label("File", exact=True).set_input_files(
        {"name": "pen.safetensors", "mimeType": kind, "buffer": lora_file()})
    dialog.get_by_role("button", name="Add LoRA").click()
    expect(page.get_by_test_id("toast-good")).to_contain_text("Added pen")
    card = page.get_by_test_id("lora-card")
    for words in ["pen, ink", "CC0-1.0", "FLUX.1", "Transformer: 1 of"]:
        expect(card).to_contain_text(words)
    visitor.look("lora")
    step("the playground offers it, with its strength")
    visitor.go("playground")
    page.locator("summary").filter(has_text="LoRAs").click()
    page.get_by_label("Add a LoRA").select_option("pen")
    use = page.get_by_test_id("lora-use")
    expect(use).to_contain_text("Trigger words: pen, ink")
    use.get_by_label("pen", exact=True).fill("0.5")
    expect(use.locator("output")).to_have_text("0.5")
    visitor.look("playground-lora")
    use.get_by_role("button", name="Remove pen").click()
    expect(use).to_have_count(0)
    step("it is removed")
    visitor.go("loras")
    card.get_by_role("button", name="Remove pen").click()
    page.get_by_role("button", name="Remove LoRA").click()
    expect(page.get_by_role("heading", name="LoRAs")).to_be_visible()
    expect(page.get_by_text("No LoRAs yet")).to_be_visible()


def one_key(visitor):
    page = visitor.page
    visitor.go("keys")
    key_row(page, "demo").get_by_role("link", name="demo").click()
    page.get_by_role("heading", level=1, name="demo").wait_for()
    visitor.look("key")
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_label("Priority", exact=True).scroll_into_view_if_needed()
    visitor.look("edit-key")
    page.get_by_role("button", name="Cancel").click()


def no_cluster(visitor):
    page = visitor.page
    step("without a cluster, the Kubernetes page shows how to connect one")
    visitor.go("kubernetes")
    page.get_by_role("heading", name="Connect a cluster").wait_for()
    for words in ["manifest | kubectl apply -f -", "connect --kubeconfig ~/.kube/config", "check"]:
        expect(page.get_by_text(f"fluxserve kubernetes {words}", exact=True)).to_be_visible()
    page.get_by_text("Other ways to connect").click()
    visitor.look("kubernetes-set-up")
    page.get_by_role("button", name="Check again").click()
    expect(page.get_by_text("No cluster yet, checked at")).to_be_visible()
    step("a key for kubectl then has access to all namespaces")
    visitor.go("keys")
    page.get_by_role("button", name="Create API key").first.click()
    page.get_by_label("Kubernetes exec", exact=True).check()
    expect(page.get_by_text("This worker has no cluster yet")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()


def throttled(visitor):
    page = visitor.page
    step("password guessing is throttled")
    for guess in range(8):
        visitor.sign_in(f"guess number {guess}")
        page.wait_for_timeout(400)
    expect(page.get_by_text("Too many attempts")).to_be_visible()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--screenshots", type=Path)
    options = parser.parse_args()
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    faults = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        worker = Worker(options.program.resolve(), Path(folder))
        browser = playwright.chromium.launch(executable_path=options.browser, args=["--no-sandbox"])
        try:
            print("the life of a key, on a desktop", flush=True)
            visitor = Visitor(browser, worker, "desktop", "light", options.screenshots)
            life_of_a_key(visitor, worker)
            playground(visitor)
            tabs(visitor)
            editing(visitor)
            inpainting(visitor, worker.key)
            loras(visitor)
            usage_and_projects(visitor, worker, MODEL, step)
            webhook_of_a_key(visitor, "demo", step)
            no_cluster(visitor)
            faults += visitor.close()
            for size, scheme in [("desktop", "light"), ("desktop", "dark"), ("phone", "light"), ("phone", "dark")]:
                print(f"every page, {size}, {scheme}", flush=True)
                visitor = Visitor(browser, worker, size, scheme, options.screenshots)
                visitor.sign_in()
                expect(visitor.page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
                for route in PAGES:
                    visitor.go(route)
                    visitor.look(route or "overview")
                one_key(visitor)
                every_tab(visitor)
                faults += visitor.close()
            print("without a session", flush=True)
            visitor = Visitor(browser, worker, "desktop", "light", None)
            throttled(visitor)
            faults += visitor.close()
        finally:
            browser.close()
            worker.stop()
    for fault in faults:
        print(f"fault: {fault}")
    print(f"{len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
