// Owns the card with a key's webhook: its URL, events and secret, and what was delivered.

import { webhooks } from "./api.js";
import { element, replace } from "./dom.js";
import { exactMoment } from "./format.js";
import { pagedList } from "./paged-list.js";
import { toastDone, toastProblem } from "./toast.js";
import { editWebhook, makeSecret } from "./webhook-dialogs.js";
import {
  button,
  card,
  facts,
  iconButton,
  notice,
  paragraph,
  problemView,
  skeleton,
  statusBadge,
  table,
  tableRow,
  time,
} from "./widgets.js";

const PER_PAGE = 10;
const COLUMNS = [
  { label: "Event" },
  { label: "State" },
  { label: "Attempts", class: "numeric" },
  { label: "Happened" },
  { label: "Last attempt" },
  { label: "Resend", hidden: true },
];

export function webhookCard(key, signal) {
  const status = element("div", null, skeleton(3));
  const log = deliveryLog(key, signal);
  const tools = element("div", { class: "toolbar" });
  const isEditable = key.state !== "revoked";

  const show = (webhook) => {
    const again = () => load();
    replace(
      tools,
      isEditable && button("Edit", { symbol: "edit", onClick: () => editWebhook(key, webhook, again) }),
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

function deliveryLog(key, signal) {
  const frame = table("Deliveries of this key, newest first", COLUMNS, []);
  const place = frame.querySelector("tbody");
  const list = pagedList({
    load: (cursor) => webhooks.deliveries(key.id, { cursor, limit: PER_PAGE }, signal),
    place,
    frame,
    render: (delivery) => deliveryRow(key, delivery, () => list.reload()),
    empty: () => element("p", { class: "hint" }, "Nothing was sent in the last seven days."),
  });
  return list;
}

function deliveryRow(key, delivery, again) {
  const resend = async () => {
    try {
      await webhooks.resend(key.id, delivery.delivery_id);
      toastDone("It is sent again.");
      await again();
    } catch (error) {
      toastProblem(error);
    }
  };
  const note = delivery.last_error && element("span", { class: "note" }, delivery.last_error);
  const next = delivery.next_attempt_at && [
    element("span", { class: "note" }, "next ", time(delivery.next_attempt_at)),
  ];
  return tableRow(COLUMNS, [
    [element("code", null, delivery.event), delivery.job_id && element("span", { class: "note" }, delivery.job_id)],
    [statusBadge(delivery.state), note],
    delivery.attempts,
    time(delivery.happened_at),
    [delivery.last_attempt_at ? time(delivery.last_attempt_at) : "None yet", next],
    iconButton("Resend", "refresh", resend),
  ]);
}
