// Owns paged lists: the first page, "Load more", loading, the empty state, errors.

import { append, element, replace } from "./dom.js";
import { button, problemView, skeleton, whileBusy } from "./widgets.js";

// `load(cursor)` returns a page `{ data, next_cursor }`; `render` turns one item into an element of `place`. If `place`
// is already inside another element, such as a table, that element is `frame`.
export function pagedList({ load, place, frame = place, render, empty, label = "Load more" }) {
  const status = element("div");
  const root = element("div", { class: "stack" }, status);
  // Drops answers to outdated requests, as after a change of the filter.
  let round = 0;

  const showFirst = (page) => {
    root.classList.remove("is-stale");
    replace(place, page.data.map(render));
    replace(root, page.data.length > 0 ? frame : empty(), status);
    offerNext(page);
  };
  const showNext = (page) => {
    append(place, page.data.map(render));
    // The pressed button is gone; keyboard focus moves to the next one.
    offerNext(page)?.focus({ preventScroll: true });
  };
  const offerNext = (page) => {
    replace(status);
    if (!page.next_cursor) return null;
    const more = button(label, { onClick: () => whileBusy(more, () => fetchPage(page.next_cursor)) });
    replace(status, element("div", { class: "load-more" }, more));
    return more;
  };

  const fetchPage = async (cursor) => {
    const mine = round;
    try {
      const page = await load(cursor);
      if (mine !== round) return;
      if (cursor) showNext(page);
      else showFirst(page);
    } catch (error) {
      if (mine !== round || error.name === "AbortError" || error.status === 401) return;
      root.classList.remove("is-stale");
      if (!cursor) replace(root, status);
      replace(
        status,
        problemView(error, () => fetchPage(cursor)),
      );
    }
  };

  // The shown items stay, grayed out, until the new answer is there.
  const reload = () => {
    round += 1;
    if (root.contains(frame)) root.classList.add("is-stale");
    else replace(status, skeleton(6));
    return fetchPage();
  };

  return { root, reload };
}
