// Owns the windows for a key's webhook: its URL and events, and its secret. Each calls `onDone` at the end.

import { webhooks } from "./api.js";
import { openDialog } from "./dialog.js";
import { element } from "./dom.js";
import { DAY } from "./format.js";
import { field, radios } from "./form.js";
import { formDialog } from "./form-dialog.js";
import { toastDone } from "./toast.js";
import { button, copyButton, notice, paragraph } from "./widgets.js";

const EVENTS = [
  ["job.started", "Started"],
  ["job.succeeded", "Succeeded"],
  ["job.failed", "Failed"],
  ["job.canceled", "Canceled"],
];

export function editWebhook(key, webhook, onDone) {
  const url = element("input", {
    type: "url",
    id: "webhook-url",
    autocomplete: "off",
    spellcheck: "false",
    autofocus: true,
    value: webhook.url,
  });
  const boxes = EVENTS.map(([value, label]) => {
    const id = `webhook-event-${value.replace(".", "-")}`;
    const box = element("input", { type: "checkbox", id, value, checked: webhook.events.includes(value) });
    return [box, element("div", { class: "choice" }, box, element("label", { for: id }, label))];
  });
  const events = element(
    "fieldset",
    { class: "field", data: { field: "events" } },
    element("legend", null, "Events"),
    boxes.map(([, choice]) => choice),
    element("p", { class: "field-error" }),
  );
  formDialog({
    title: `Webhook of ${key.name}`,
    content: [
      field("url", "URL", url, {
        optional: true,
        hint: "Receives the events of this key's jobs, unless a request names another URL. It needs https, and a secret of this key.",
      }),
      events,
    ],
    label: "Save",
    read: () => ({
      body: {
        url: url.value.trim() || null,
        events: boxes.map(([box]) => box).filter((box) => box.checked).map((box) => box.value),
      },
      errors: [],
    }),
    send: async (body) => {
      await webhooks.edit(key.id, body);
      toastDone("Saved the webhook. It applies to the next request.");
      return onDone;
    },
    testid: "edit-webhook-dialog",
  });
}

const GRACES = [
  { value: "0", label: "None", hint: "The old secret signs nothing from now on, as needed after a leak." },
  { value: "3600", label: "1 hour" },
  { value: String(DAY), label: "24 hours" },
  { value: String(7 * DAY), label: "7 days", hint: "The maximum." },
];

export function makeSecret(key, webhook, onDone) {
  const grace = radios("grace_seconds", "How long the old secret signs as well", GRACES, String(DAY));
  const isFirst = !webhook.secret_made_at;
  formDialog({
    title: isFirst ? `Webhook secret of ${key.name}` : `New webhook secret of ${key.name}`,
    content: [
      paragraph("The receiver verifies with it that a message is from this worker, and unchanged."),
      !isFirst && paragraph("During the overlap messages have two signatures, so that the receiver can switch."),
      !isFirst && grace,
    ],
    label: "Make secret",
    send: async () => {
      const seconds = isFirst ? 0 : Number(grace.querySelector("input:checked").value);
      const made = await webhooks.makeSecret(key.id, seconds);
      await showSecret(made.secret);
      return onDone;
    },
    testid: "webhook-secret-dialog",
  });
}

// Shows a secret once. The promise resolves when the user confirms that it is stored.
function showSecret(secret) {
  return new Promise((resolve) => {
    const close = openDialog({
      title: "Webhook secret",
      deliberate: true,
      wide: true,
      testid: "webhook-secret-value-dialog",
      body: [
        notice("warn", paragraph("Store this secret at the receiver now. It cannot be shown again.")),
        element(
          "div",
          { class: "key-value" },
          element("code", { data: { testid: "webhook-secret" } }, secret),
          copyButton(secret, "Copy secret", { autofocus: true }),
        ),
      ],
      actions: [button("I have stored it", { kind: "primary", onClick: () => close() })],
      onClose: resolve,
    });
  });
}
