// Owns the log of what was delivered to a receiver: of a key, or the operator's.

import { element } from "./dom.js";
import { pagedList } from "./paged-list.js";
import { toastDone, toastProblem } from "./toast.js";
import { iconButton, statusBadge, table, tableRow, time } from "./widgets.js";

const PER_PAGE = 10;
const COLUMNS = [
  { label: "Event" },
  { label: "State" },
  { label: "Attempts", class: "numeric" },
  { label: "Happened" },
  { label: "Last attempt" },
  { label: "Resend", hidden: true },
];

// `load(query)` returns a page of deliveries, `resend(id)` sends one again. `about(delivery)` is shown below its event.
export function deliveryLog({ caption, load, resend, about }) {
  const frame = table(caption, COLUMNS, []);
  const list = pagedList({
    load: (cursor) => load({ cursor, limit: PER_PAGE }),
    place: frame.querySelector("tbody"),
    frame,
    render: (delivery) => deliveryRow(delivery, about(delivery), () => sendAgain(delivery)),
    empty: () => element("p", { class: "hint" }, "Nothing was sent in the last seven days."),
  });
  const sendAgain = async (delivery) => {
    try {
      await resend(delivery.delivery_id);
      toastDone("It is sent again.");
      await list.reload();
    } catch (error) {
      toastProblem(error);
    }
  };
  return list;
}

function deliveryRow(delivery, about, resend) {
  const note = delivery.last_error && element("div", { class: "note" }, delivery.last_error);
  const next = delivery.next_attempt_at && [
    element("div", { class: "note" }, "next ", time(delivery.next_attempt_at)),
  ];
  return tableRow(COLUMNS, [
    [element("code", null, delivery.event), about && element("div", { class: "note" }, about)],
    [statusBadge(delivery.state), note],
    delivery.attempts,
    time(delivery.happened_at),
    [delivery.last_attempt_at ? time(delivery.last_attempt_at) : "None yet", next],
    iconButton("Resend", "refresh", resend),
  ]);
}
