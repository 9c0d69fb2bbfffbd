// Figures as people read them. Null stands for what is not known yet.

export const DASH = "–";

export function whole(value) {
  return value == null ? DASH : Math.round(value).toLocaleString("en-US");
}

export function short(value, digits = 3) {
  if (value == null) return DASH;
  const size = Math.abs(value);
  if (size >= 1e9) return trim(value / 1e9, digits) + " G";
  if (size >= 1e6) return trim(value / 1e6, digits) + " M";
  if (size >= 1e4) return trim(value / 1e3, digits) + " k";
  if (size > 0 && size < 1e-3) return value.toExponential(1);
  return trim(value, digits);
}

export function percent(value, digits = 0) {
  return value == null ? DASH : (100 * value).toFixed(digits) + " %";
}

export function ratio(value) {
  return value == null ? DASH : value.toFixed(2);
}

export function bytes(value) {
  if (value == null) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return trim(value, 3) + " " + units[unit];
}

export function ago(seconds) {
  if (seconds < 90) return Math.max(0, Math.round(seconds)) + " s";
  if (seconds < 5400) return Math.round(seconds / 60) + " min";
  return Math.round(seconds / 3600) + " h";
}

function trim(value, digits) {
  if (value === 0) return "0";
  const shown = Number(value.toPrecision(digits));
  return Math.abs(shown) >= 1000 ? shown.toLocaleString("en-US") : String(shown);
}
