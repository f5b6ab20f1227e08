// Numbers to text. Unknown is a dash with a word for screen readers; it is never 0.

export const DASH = "–";

export function count(value, digits = 0) {
  return value === null ? DASH : value.toLocaleString("en", { maximumFractionDigits: digits });
}

// A number with three significant digits, whole above 100.
export function figure(value) {
  if (value === null) return DASH;
  return Math.abs(value) >= 100 ? count(Math.round(value)) : String(Number(value.toPrecision(3)));
}

// Rounded towards less room: 6.9 more sequences are 6 that fit. -0.2 is one too many.
export function room(value) {
  if (value === null) return DASH;
  const whole = Math.floor(value);
  return whole > 0 ? `+${count(whole)}` : whole < 0 ? `−${count(-whole)}` : "0";
}

// A multiple that is survived, rounded towards less: 1.96 is not yet 2.
export function multiple(value) {
  return value === null ? DASH : `${Math.floor(value * 10 + 1e-9) / 10}×`;
}

export function percent(value, digits = 0) {
  return value === null ? DASH : `${(value * 100).toFixed(digits)}\u00a0%`;
}

export function gib(bytes) {
  return bytes === null ? DASH : `${Number((bytes / 2 ** 30).toPrecision(3))} GiB`;
}

export function span(seconds) {
  if (seconds === null) return DASH;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString("en-GB");
}

export function minute(unixSeconds) {
  return clock(unixSeconds).slice(0, 5);
}
