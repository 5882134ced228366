// Owns the formats of numbers, times and names.

const numberFormat = new Intl.NumberFormat("en-US");
const momentFormat = new Intl.DateTimeFormat("en-US", { dateStyle: "medium", timeStyle: "medium" });
const shortDayFormat = new Intl.DateTimeFormat("en-US", { month: "short", day: "numeric", timeZone: "UTC" });
const clockFormat = new Intl.DateTimeFormat("en-US", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const relativeFormat = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

const MINUTE = 60;
const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

export const count = (value) => numberFormat.format(value);
export const exactMoment = (iso) => momentFormat.format(new Date(iso));
export const utcDay = (date) => shortDayFormat.format(new Date(`${date}T00:00:00Z`));
export const clock = (iso) => clockFormat.format(new Date(iso));

// `1 key`, `3 keys`.
export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

// Seconds from now until a moment; negative once it has passed.
export const secondsUntil = (iso) => (Date.parse(iso) - Date.now()) / 1000;

// As `3 hours ago` or `in 2 days`.
export function relative(iso) {
  const seconds = secondsUntil(iso);
  const size = Math.abs(seconds);
  if (size < 10) return "just now";
  const [unit, length] =
    size < MINUTE
      ? ["second", 1]
      : size < HOUR
        ? ["minute", MINUTE]
        : size < DAY
          ? ["hour", HOUR]
          : size < 60 * DAY
            ? ["day", DAY]
            : size < 730 * DAY
              ? ["month", 30.44 * DAY]
              : ["year", 365.25 * DAY];
  return relativeFormat.format(Math.trunc(seconds / length), unit);
}

// As `4.2 s`, `3 min 5 s` or `2 h 10 min`.
export function duration(seconds) {
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < MINUTE) return `${whole} s`;
  if (whole < HOUR) return parts(whole, MINUTE, "min", "s");
  if (whole < DAY) return parts(Math.round(whole / MINUTE), 60, "h", "min");
  return parts(Math.round(whole / HOUR), 24, "d", "h");
}

function parts(value, size, large, small) {
  const rest = value % size;
  return rest ? `${Math.floor(value / size)} ${large} ${rest} ${small}` : `${Math.floor(value / size)} ${large}`;
}

// How long a job took or has been running, in seconds.
export function jobSeconds(job) {
  if (!job.started_at) return null;
  const end = job.finished_at ? Date.parse(job.finished_at) : Date.now();
  return Math.max(0, (end - Date.parse(job.started_at)) / 1000);
}

// As `412 MiB`.
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${size < 10 && unit > 0 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

// With at most two decimals.
export function decimal(value) {
  return new Intl.NumberFormat("en-US", { maximumFractionDigits: value < 100 ? 2 : 0 }).format(value);
}

// As `12.4k`, for axes.
export function compact(value) {
  return new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 }).format(value);
}

// `not_ready` as `Not ready`.
export function words(identifier) {
  const text = identifier.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// Cuts a text to at most so many characters.
export function cut(text, charactersMax) {
  const characters = Array.from(text);
  return characters.length > charactersMax
    ? `${characters
        .slice(0, charactersMax - 1)
        .join("")
        .trimEnd()}…`
    : text;
}

// Makes a sentence of a reason or detail from the worker: `the job is running`.
export function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?:]$/.test(begun) ? begun : `${begun}.`;
}
