// Owns the icons: strokes on a grid of 24, in the color of the surrounding text.

import { svg } from "./dom.js";

const PATHS = {
  overview: ["M4 13h6V4H4zM14 20h6v-9h-6zM14 4v3h6V4zM4 17v3h6v-3z"],
  playground: ["M4 5h16v14H4z", "M4 16l5-5 4 4 3-3 4 4", "M15 9.5h.01"],
  jobs: ["M9 6h11M9 12h11M9 18h11", "M4.5 6h.01M4.5 12h.01M4.5 18h.01"],
  keys: ["M8 20a4 4 0 1 0 0-8 4 4 0 0 0 0 8z", "M10.9 13.1L20 4M17 7l2.5 2.5M13.5 10.5l2 2"],
  kubernetes: ["M12 3l8 4.5v9L12 21l-8-4.5v-9z", "M12 12l8-4.5M12 12v9M12 12L4 7.5"],
  models: ["M12 3l9 5-9 5-9-5z", "M3 12.5l9 5 9-5", "M3 16.8l9 5 9-5"],
  loras: ["M4 7h8M16 7h4M4 12h2M10 12h10M4 17h10M18 17h2", "M14 5v4M8 10v4M16 15v4"],
  projects: ["M4 7V5h5l2 2h9v12H4z", "M4 10.5h16"],
  usage: ["M4 20h16", "M6.5 20v-6h3v6M11 20V6h3v14M15.5 20v-9h3v9"],
  upload: ["M12 16V5M7.5 9.5L12 5l4.5 4.5", "M5 20h14"],
  audit: ["M12 7v5l3.5 2", "M3.5 12a8.5 8.5 0 1 0 2.8-6.3L3.5 8", "M3.5 4v4h4"],
  reference: ["M12 6.5C10 5 7 4.5 4 5v13c3-.5 6 0 8 1.5 2-1.5 5-2 8-1.5V5c-3-.5-6 0-8 1.5z", "M12 6.5v13"],
  sun: [
    "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8z",
    "M12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  ],
  moon: ["M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z"],
  menu: ["M4 7h16M4 12h16M4 17h16"],
  close: ["M6 6l12 12M18 6L6 18"],
  signOut: ["M10 4H5v16h5", "M15 8l4 4-4 4M19 12H9.5"],
  copy: ["M9 9h11v11H9z", "M5 15H4V4h11v1"],
  check: ["M5 12.5l4.5 4.5L19 7.5"],
  dice: ["M4.5 4.5h15v15h-15z", "M8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01"],
  refresh: ["M20 12a8 8 0 1 1-2.6-5.9L20 8.5", "M20 4v4.5h-4.5"],
  plus: ["M12 5v14M5 12h14"],
  download: ["M12 4v11M7.5 11l4.5 4.5 4.5-4.5", "M5 20h14"],
  back: ["M19 12H5M11 6l-6 6 6 6"],
  warning: ["M12 4l9 16H3z", "M12 10v4.5M12 17.2h.01"],
  information: ["M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17z", "M12 11v5M12 8h.01"],
  edit: ["M5 19l1-4L16.5 4.5l3 3L9 18z", "M14.5 6.5l3 3"],
  rotate: ["M4 10a8 8 0 0 1 14-3.5L20 9", "M20 4v5h-5", "M20 14a8 8 0 0 1-14 3.5L4 15", "M4 20v-5h5"],
  revoke: ["M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17z", "M6 6l12 12"],
  code: ["M8.5 7L3.5 12l5 5M15.5 7l5 5-5 5"],
  trash: ["M4.5 7h15M10 7V4h4v3", "M6.5 7l.8 13h9.4l.8-13M10.2 11v5M13.8 11v5"],
  chevron: ["M9 6l6 6-6 6"],
  stop: ["M7 7h10v10H7z"],
  brush: ["M19.5 4.5L11 14.5 9 12.5z", "M8 13.5c-2.4.2-2.8 2-2.9 3.6-.1 1-.8 1.9-2.1 2.1 3 1.4 7.3.8 7.5-3.2z"],
  eraser: ["M14 5l5.5 5.5L11 19H7.5L4 15.5z", "M9.5 9.5l5.5 5.5", "M11 19h9"],
  undo: ["M9 6.5L4.5 11 9 15.5", "M4.5 11H14a4.5 4.5 0 0 1 0 9h-3"],
  redo: ["M15 6.5l4.5 4.5-4.5 4.5", "M19.5 11H10a4.5 4.5 0 0 0 0 9h3"],
  invert: ["M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17z", "M12 3.5v17M12 7.5h5.5M12 12h8.5M12 16.5h5.5"],
  fill: ["M4.5 4.5h15v15h-15z", "M4.5 12L12 4.5M4.5 19.5l15-15M12 19.5l7.5-7.5"],
  expand: ["M9 4H4v5M15 4h5v5M9 20H4v-5M15 20h5v-5"],
  sparkle: ["M12 4l1.9 5.1L19 11l-5.1 1.9L12 18l-1.9-5.1L5 11l5.1-1.9z", "M19 16.5v4M17 18.5h4"],
};

// A decorative icon: the element around it has the accessible name.
export function icon(name) {
  const paths = PATHS[name].map((path) => svg("path", { d: path }));
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" }, paths);
}

// The product's logo.
export function mark() {
  const wave = (y, height, opacity) =>
    svg("path", { d: `M7 ${y}c3.6 0 5.4-${height} 9-${height}s5.4 ${height} 9 ${height}`, "stroke-opacity": opacity });
  return svg(
    "svg",
    { class: "mark", viewBox: "0 0 32 32", "aria-hidden": "true", focusable: "false" },
    svg("rect", { width: 32, height: 32, rx: 8, class: "mark-ground" }),
    svg("g", { class: "mark-waves" }, wave(11.5, 2, 0.55), wave(17.5, 3, 0.78), wave(23.5, 4, 1)),
  );
}
