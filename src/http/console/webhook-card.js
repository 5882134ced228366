// Owns the card with a key's webhook: its URL, events and secret, and what was delivered.

import { webhooks } from "./api.js";
import { deliveryLog } from "./delivery-log.js";
import { element, replace } from "./dom.js";
import { exactMoment } from "./format.js";
import { toastDone, toastProblem } from "./toast.js";
import { editWebhook, makeSecret } from "./webhook-dialogs.js";
import { button, card, facts, notice, paragraph, problemView, skeleton, time } from "./widgets.js";

export function webhookCard(key, signal) {
  const status = element("div", null, skeleton(3));
  const log = deliveryLog({
    caption: "Deliveries of this key, newest first",
    load: (query) => webhooks.deliveries(key.id, query, signal),
    resend: (id) => webhooks.resend(key.id, id),
    about: ({ job_id: job, subject }) => job || (subject && "this key's budget"),
  });
  const tools = element("div", { class: "toolbar" });
  const isEditable = key.state !== "revoked";

  const show = (webhook) => {
    const again = () => load();
    replace(
      tools,
      isEditable && button("Edit webhook", { symbol: "edit", onClick: () => editWebhook(key, webhook, again) }),
      isEditable &&
        button(webhook.secret_made_at ? "New secret" : "Make secret", {
          symbol: "rotate",
          onClick: () => makeSecret(key, webhook, again),
        }),
      isEditable && webhook.url && button("Send a test", { onClick: () => sendTest(key, log) }),
    );
    replace(status, goneNotice(webhook), webhookFacts(webhook));
  };
  const load = async () => {
    try {
      show(await webhooks.show(key.id, signal));
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 401) replace(status, problemView(error, load));
    }
  };
  load();
  log.reload();
  return card(
    null,
    element("div", { class: "card-head" }, element("h2", { class: "card-title" }, "Webhook"), tools),
    status,
    element("h3", { class: "card-subtitle" }, "Deliveries"),
    log.root,
  );
}

function goneNotice(webhook) {
  if (!webhook.gone_at) return null;
  return notice(
    "warn",
    paragraph(
      "The receiver answered 410 at ",
      exactMoment(webhook.gone_at),
      ": it wants nothing any more. Save the URL again to try it again.",
    ),
  );
}

function webhookFacts(webhook) {
  const moment = (iso) => [time(iso), element("span", { class: "note" }, exactMoment(iso))];
  return facts([
    ["URL", webhook.url ? element("code", null, webhook.url) : "None: only where requests name one"],
    ["Events", webhook.events.length > 0 ? webhook.events.join(", ") : "None"],
    ["Secret made", webhook.secret_made_at ? moment(webhook.secret_made_at) : "Never: nothing can be sent yet"],
    ["Secret before signs until", webhook.previous_secret_until && moment(webhook.previous_secret_until)],
  ]);
}

async function sendTest(key, log) {
  try {
    await webhooks.test(key.id);
    toastDone("A test is on its way. The list shows what becomes of it.");
    await log.reload();
  } catch (error) {
    toastProblem(error);
  }
}
