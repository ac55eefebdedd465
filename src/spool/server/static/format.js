// Numbers, durations and times, as people read them.

import { h } from "./dom.js";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const clock = {
    /** By how much (ms) the store's clock is ahead of the browser's. */
    ahead: 0,
    now: () => Date.now() + clock.ahead,
};

export const count = (value) => whole.format(value);
/** A number of things: "1 job", "3,000 jobs". */
export const plural = (value, one, many = `${one}s`) => `${whole.format(value)} ${value === 1 ? one : many}`;
export const compact = (value) => (value < 10_000 ? whole.format(value) : short.format(value));
export const rate = (value) => (value === null ? "–" : value >= 100 ? whole.format(value) : one.format(value));

/** How jobs end, as rates name it. */
export const ENDS = ["done", "dead", "cancelled"];

/** What `rates` (of a queue or a worker) have of these names in a second, together; null where nobody counts. */
export function perSecond(rates, names, span = "ten_seconds") {
    return rates ? names.reduce((sum, name) => sum + (rates[span]?.[name] ?? 0), 0) : null;
}

/** Seconds, with the unit that suits them. */
export function duration(seconds) {
    if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
    if (seconds <= 0) return "0 ms";
    if (seconds < 0.9995e-3) return `${three.format(seconds * 1e6)} µs`;
    if (seconds < 0.9995) return `${three.format(seconds * 1e3)} ms`;
    if (seconds < 59.95) return `${three.format(seconds)} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
    if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
    return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

/** Seconds as one number and its unit, where there is little room. */
export function brief(seconds) {
    const [value, unit] = seconds < 100 ? [seconds, "s"] : seconds < 6000 ? [seconds / 60, "min"] : seconds < 172_800 ? [seconds / 3600, "h"] : [seconds / 86_400, "d"];
    return `${Math.floor(value)} ${unit}`;
}

export function bytes(value) {
    if (value < 1e6) return `${whole.format(value / 1e3)} kB`;
    return value < 1e9 ? `${whole.format(value / 1e6)} MB` : `${three.format(value / 1e9)} GB`;
}

/** A moment (ms since the epoch) against the store's clock: "12 s ago", "in 3 min". */
export function relative(at) {
    const seconds = (clock.now() - at) / 1000;
    const size = Math.abs(seconds);
    if (size < 2) return "now";
    const [value, unit] = size < 60 ? [size, "s"] : size < 3600 ? [size / 60, "min"] : size < 86_400 ? [size / 3600, "h"] : [size / 86_400, "d"];
    return seconds > 0 ? `${Math.floor(value)} ${unit} ago` : `in ${Math.floor(value)} ${unit}`;
}

export function moment(at) {
    const date = new Date(at);
    if (Number.isNaN(date.getTime())) return String(at);
    return `${absolute.format(date)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** A moment as an element: relative, kept so, with the absolute time on hover. */
export function ago(at) {
    if (!at) return "–";
    const date = new Date(at);
    const valid = !Number.isNaN(date.getTime());
    return h("time", { datetime: valid ? date.toISOString() : null, title: moment(at), data: { at: String(at) } }, relative(at));
}

/** Keep the relative times of a page true. */
export function keepTimes() {
    setInterval(() => {
        for (const each of document.querySelectorAll("time[data-at]")) {
            const text = relative(Number(each.dataset.at));
            if (each.textContent !== text) each.textContent = text;
        }
    }, 1000);
}

/** A value as JSON, with large integers as they are. */
export function json(value) {
    return write(value, "");
}

/** Plain values of a long list, as many in a line as go into it. */
function packed(parts) {
    const lines = [];
    for (const each of parts) {
        if (lines.length && lines.at(-1).length + each.length < 80) lines.push(`${lines.pop()}, ${each}`);
        else lines.push(each);
    }
    return lines;
}

function write(value, indent) {
    if (typeof value === "bigint") return String(value);
    if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
    const inner = `${indent}  `;
    if (Array.isArray(value)) {
        if (value.length === 0) return "[]";
        const parts = value.map((each) => write(each, inner));
        const flat = `[${parts.join(", ")}]`;
        if (flat.length < 80 && !flat.includes("\n")) return flat;
        return `[\n${inner}${(value.some((each) => each !== null && typeof each === "object") ? parts : packed(parts)).join(`,\n${inner}`)}\n${indent}]`;
    }
    const pairs = Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${write(each, inner)}`);
    return pairs.length ? `{\n${inner}${pairs.join(`,\n${inner}`)}\n${indent}}` : "{}";
}
