// Owns the check of image files in the browser, before they are sent.

import { bytes, count } from "./format.js";

// The worker's limits.
const FILE_BYTES_MAX = 16 * 1024 * 1024;
const SIDE_PIXELS_MAX = 16_384;
const PIXELS_MAX = 32_000_000;
const LIMITS_TEXT = `the most is ${count(PIXELS_MAX)} in total and ${count(SIDE_PIXELS_MAX)} per side`;
// The part before the base64 in a data URL.
const ADDRESS_HEAD = /^data:[^,]*,/;

export const IMAGE_KINDS = "image/png,image/jpeg,image/webp";
export const FILE_HINT = `PNG, JPEG or WebP, at most ${bytes(FILE_BYTES_MAX)}.`;

// Checks a file, and returns it with its size in pixels and an object URL, which the caller revokes. The error's message
// says what is wrong.
export async function readImage(file) {
  if (file.size > FILE_BYTES_MAX) throw new Error(`Has ${bytes(file.size)}; the most is ${bytes(FILE_BYTES_MAX)}`);
  if (!isKnownKind(await head(file))) throw new Error("Is not a PNG, JPEG or WebP file");
  const address = URL.createObjectURL(file);
  const image = new Image();
  image.src = address;
  try {
    await image.decode();
    const { naturalWidth: width, naturalHeight: height } = image;
    const isTooLarge = Math.max(width, height) > SIDE_PIXELS_MAX || width * height > PIXELS_MAX;
    if (isTooLarge) throw new Error(`Is ${count(width)} × ${count(height)} pixels; ${LIMITS_TEXT}`);
    return { file, address, width, height };
  } catch (error) {
    URL.revokeObjectURL(address);
    // The browser's own words differ, and say nothing more.
    throw error instanceof DOMException ? new Error("Cannot be read as an image: the file may be damaged") : error;
  }
}

async function head(file) {
  try {
    return new Uint8Array(await file.slice(0, 12).arrayBuffer());
  } catch {
    throw unreadable();
  }
}

// By its first bytes, as the worker decides: a name may be wrong, and a pasted image has none.
function isKnownKind(start) {
  const begins = (at, text) => [...text].every((sign, index) => start[at + index] === sign.charCodeAt(0));
  const isPng = begins(0, "\x89PNG");
  const isJpeg = begins(0, "\xff\xd8\xff");
  return isPng || isJpeg || (begins(0, "RIFF") && begins(8, "WEBP"));
}

const unreadable = () => new Error("The file can no longer be read: choose it again");

// A file's content as base64.
export function base64Of(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.replace(ADDRESS_HEAD, "")));
    reader.addEventListener("error", () => reject(unreadable()));
    reader.readAsDataURL(file);
  });
}
