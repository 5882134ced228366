// Owns what a model takes: which of the playground's tabs it serves, why not the others, and the kinds of its control
// images. Must not touch the page.

export const MODES = [
  ["generate", "Generate"],
  ["edit", "Edit"],
  ["inpaint", "Inpaint"],
  ["control", "Control"],
];

// What becomes of the image, by the way its map is made.
export const MAP_TEXT = {
  none: "Sent as it is: it is a map already.",
  canny: "The map of edges is made on the server. It is not shown.",
  depth: "The map of depth is made on the server. It is not shown.",
};

const NONE = { min: 0, max: 0 };
const NO_CONTROL = "This model takes no control image.";
// The names of a union's first modes, by their numbers.
const CONTROL_MODES = ["canny", "tile", "depth", "blur", "pose", "gray", "low_quality"];

// How many images of a role a request has, as `{ min, max }`.
export const countOf = (card, role) => card.images?.[role] ?? NONE;

// Why the model cannot serve a tab, or null where it can.
export function obstaclesOf(card) {
  const takes = (role) => countOf(card, role).max > 0;
  const needs = (role) => countOf(card, role).min > 0;
  const other = needs("mask")
    ? "This model repaints parts of an image: use Inpaint."
    : needs("control")
      ? "This model follows a control image: use Control."
      : needs("reference") || needs("input")
        ? "This model changes an image: use Edit."
        : null;
  const isEdited = takes("reference") || takes("input") || takes("style");
  return {
    generate: other,
    edit: needs("mask") || needs("control") ? other : isEdited ? null : "This model takes no image to edit.",
    inpaint: takes("input") && takes("mask") ? null : "This model takes no mask.",
    control: takes("control") ? null : needs("mask") ? NO_CONTROL : `${NO_CONTROL} No ControlNet is loaded beside it.`,
  };
}

// The tab in which a job's parameters belong.
export function modeOf({ images = [], input_images: inputs = 0 }) {
  const has = (role) => images.some((image) => image.role === role);
  if (has("mask")) return "inpaint";
  if (has("control")) return "control";
  return images.length > 0 || inputs > 0 ? "edit" : "generate";
}

// The modes of a ControlNet that was trained on several kinds of maps; an empty list for any other.
export function controlModesOf(net) {
  return Array.from({ length: net?.modes ?? 0 }, (_, number) => CONTROL_MODES[number] ?? String(number));
}

// Where an image is in the form: a control image has a place of its own, others share that of their role.
const placeOf = ({ role, place = role }) => place;

// The names of the form's fields for the worker's errors: the API counts images, the form has places. `images` are those of
// the request, in its order.
export function errorsAtPlaces(errors, images) {
  return errors.map(({ field, reason }) => {
    if (field.startsWith("input_images_base64") && images.length > 0) return { field: placeOf(images[0]), reason };
    const [, index, option] = /^images\[(\d+)\](?:\.(\w+))?$/.exec(field) ?? [];
    const image = images[index];
    if (!image) return { field, reason };
    const place = placeOf(image);
    const alike = images.filter((other) => placeOf(other) === place);
    return {
      field: image.role === "control" && option && option !== "base64" ? `${place}.${option}` : place,
      reason: alike.length > 1 ? `image ${alike.indexOf(image) + 1}: ${reason}` : reason,
    };
  });
}
