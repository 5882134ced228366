"""The console's pages of projects and usage, for console.py: a project is made, a key belongs to it and generates, and what
that cost is shown and downloaded."""

import csv
import io
import re

from playwright.sync_api import expect


def shared_key(visitor):
    """Makes a project and a key of it; returns the key's value."""
    page = visitor.page
    visitor.go("projects")
    visitor.look("no-projects")
    page.get_by_role("button", name="Create project", exact=True).click()
    dialog = page.get_by_test_id("create-project")
    dialog.get_by_role("button", name="Create project").click()
    expect(dialog.get_by_text("Enter a name")).to_be_visible()
    dialog.get_by_label("Name", exact=True).fill("web team")
    dialog.get_by_label("Concurrent jobs").fill("4")
    dialog.get_by_label("Budget", exact=True).select_option("megapixel_steps")
    dialog.get_by_label("Amount of the budget").fill("1")
    visitor.look("create-project")
    dialog.get_by_role("button", name="Create project").click()
    expect(page.get_by_test_id("toast-good").filter(has_text="Created web team")).to_be_visible()
    visitor.go("keys")
    page.get_by_role("button", name="Create API key").first.click()
    page.get_by_label("Name", exact=True).fill("of the team")
    page.get_by_label("Project", exact=True).select_option("web team")
    page.get_by_role("button", name="Create key").click()
    value = page.get_by_test_id("key-value").inner_text()
    page.get_by_test_id("key-stored").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    return value


def usage_and_projects(visitor, worker, model, step):
    page = visitor.page
    step("a project is made, and a key that belongs to it")
    key = shared_key(visitor)
    body = {"model": model, "prompt": "a red circle on a blue background", "steps": 4, "width": 256, "height": 256}
    step("its budget is used up, and a request refused")
    statuses = [worker.ask(key, "POST", "/v1/inference/image", body) for _ in range(3)]
    assert statuses == [202, 429, 429], statuses
    visitor.go("projects")
    card = page.get_by_test_id("project-card")
    expect(card).to_contain_text("1 key")
    expect(card.get_by_test_id("budget")).to_contain_text("of 1 megapixel-steps")
    card.get_by_role("link", name="web team").click()
    page.get_by_role("heading", level=1, name="web team").wait_for()
    visitor.look("project")

    step("the page of usage shows it by project, and the download has the same")
    visitor.go("usage")
    page.get_by_role("button", name="Project", exact=True).click()
    row = page.get_by_test_id("usage-row").filter(has_text="web team")
    for _ in range(50):
        if row.count() and "0.52" in row.inner_text():
            break
        page.wait_for_timeout(200)
        visitor.go("keys")
        visitor.go("usage")
        page.get_by_role("button", name="Project", exact=True).click()
    expect(row).to_contain_text("0.52")
    expect(page.get_by_text("webhooks.alerts_url")).to_be_visible()
    visitor.look("usage-by-project")
    link = page.get_by_test_id("download-csv")
    answer = visitor.context.request.get(worker.url + link.get_attribute("href"))
    name = answer.headers["content-disposition"]
    assert re.fullmatch(r'attachment; filename="usage-[\d-]+-to-[\d-]+-by-project\.csv"', name), name
    rows = {each["name"]: each for each in csv.DictReader(io.StringIO(answer.text()))}
    assert rows["web team"]["jobs"] == "1" and rows["web team"]["megapixel_steps"] == "0.524288", rows

    step("it cannot be deleted while a key belongs to it")
    visitor.go("projects")
    page.get_by_test_id("project-card").get_by_role("link", name="web team").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_test_id("delete-project").get_by_role("button", name="Delete project").click()
    expect(page.get_by_text("Keys belong to the project: 1")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
