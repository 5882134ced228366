"""The console's card of a key's webhook, for console.py: a secret is made, a URL is refused and another saved, a test is sent, fails, and
is sent again."""

import re

from playwright.sync_api import expect


def webhook_of_a_key(visitor, key_name, step):
    page = visitor.page
    step("a key gets a webhook secret, which is shown once")
    visitor.go("keys")
    page.get_by_role("link", name=key_name, exact=True).click()
    page.get_by_role("heading", level=1, name=key_name).wait_for()
    expect(page.get_by_text("Never: nothing can be sent yet")).to_be_visible()
    page.get_by_role("button", name="Make secret").click()
    page.get_by_test_id("webhook-secret-dialog").get_by_role("button", name="Make secret").click()
    secret = page.get_by_test_id("webhook-secret").inner_text()
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]+=*", secret), "a Standard Webhooks secret"
    visitor.look("webhook-secret")
    page.get_by_role("button", name="I have stored it").click()
    expect(page.get_by_role("button", name="New secret")).to_be_visible()
    assert secret not in page.content()

    step("a receiver in a private network is refused, another is saved")
    page.get_by_role("button", name="Edit webhook").click()
    dialog = page.get_by_test_id("edit-webhook-dialog")
    dialog.get_by_label("URL").fill("https://10.0.0.7/images")
    dialog.get_by_label("Started").check()
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.locator("[data-field=url] .field-error")).not_to_be_empty()
    visitor.look("webhook-refused")
    dialog.get_by_label("URL").fill("https://hooks.invalid/images")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_test_id("toast-good").filter(has_text="Saved the webhook")).to_be_visible()

    step("a test is sent, and the log says why it fails; it can be sent again")
    page.get_by_role("button", name="Send a test").click()
    row = page.get_by_role("row").filter(has_text="webhook.test")
    expect(row).to_have_count(1)
    for _ in range(50):
        if "resolved" in row.inner_text():
            break
        page.wait_for_timeout(200)
        page.reload()
        row.wait_for()
    expect(row).to_contain_text("cannot be resolved")
    row.get_by_role("button", name="Resend").click()
    expect(page.get_by_test_id("toast-good").filter(has_text="It is sent again")).to_be_visible()
    visitor.look("webhook-log")
