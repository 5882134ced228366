// Owns the card with the operator's receiver of alerts: where they go, and what was delivered.

import { alerts } from "./api.js";
import { deliveryLog } from "./delivery-log.js";
import { element, replace } from "./dom.js";
import { toastDone, toastProblem } from "./toast.js";
import { button, card, paragraph } from "./widgets.js";

export function alertsCard(signal) {
  const where = element("div");
  const tools = element("div", { class: "toolbar" });
  const log = deliveryLog({
    caption: "Deliveries of alerts, newest first",
    load: async (query) => {
      const page = await alerts.deliveries(query, signal);
      showReceiver(page.receiver);
      return page;
    },
    resend: (id) => alerts.resend(id),
    about: subjectOf,
  });
  const sendTest = async () => {
    try {
      await alerts.test();
      toastDone("A test is on its way. The list shows what becomes of it.");
      await log.reload();
    } catch (error) {
      toastProblem(error);
    }
  };
  const showReceiver = (host) => {
    replace(tools, host && button("Send a test", { onClick: sendTest }));
    replace(where, whereTo(host));
  };
  log.reload();
  return card(
    null,
    element("div", { class: "card-head" }, element("h2", { class: "card-title" }, "Alerts"), tools),
    element("div", { class: "stack-small" }, where, log.root),
  );
}

function whereTo(host) {
  if (host) {
    return paragraph("When 80 % of a budget is used, and when all is, a message goes to ", element("code", null, host), ".");
  }
  return paragraph(
    "When 80 % of a budget is used, and when all is, the audit log says so. With ",
    element("code", null, "webhooks.alerts_url"),
    " in the configuration a message goes to a receiver of yours as well.",
  );
}

// As `project 018f… in 2026-11`; null for a test.
function subjectOf({ subject }) {
  if (!subject) return null;
  const [kind, id, month] = subject.split("/");
  return `${kind} ${id} in ${month}`;
}
