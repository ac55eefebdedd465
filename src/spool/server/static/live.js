// The live stream: a WebSocket, or server-sent events where that does not come through. Comes back by itself.

import { get, toLogin } from "./api.js";
import { clock } from "./format.js";

const SILENT = 15_000;
const KEPT = 50;
const OVER = 4401;

/**
 * `state` as the server described it, null until it did; `events`, the latest first; `link`: "up" or "down"; `session`
 * another number whenever something may have been missed: what was asked for before then is to be asked for again.
 */
export const live = { state: null, events: [], link: "down", version: "", session: 0 };
const listeners = new Set();
let seq = -1;
let socket = null;
let source = null;
let failures = 0;
let refused = 0;
let heard = 0;

/** Be told of each change; returns what ends that. */
export function onLive(listener) {
    listeners.add(listener);
    if (live.state) listener(live);
    return () => listeners.delete(listener);
}

/** Apply a JSON merge patch (RFC 7396). */
export function merge(target, patch) {
    if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
    const made = target !== null && typeof target === "object" && !Array.isArray(target) ? target : {};
    for (const [key, value] of Object.entries(patch)) {
        if (value === null) delete made[key];
        else {
            const merged = merge(Object.hasOwn(made, key) ? made[key] : undefined, value);
            // Not by assignment: a queue may be called __proto__.
            Object.defineProperty(made, key, { value: merged, writable: true, enumerable: true, configurable: true });
        }
    }
    return made;
}

function tell() {
    for (const each of [...listeners]) each(live);
}

function take(text) {
    heard = Date.now();
    const message = JSON.parse(text);
    clock.ahead = message.now ? message.now - Date.now() : clock.ahead;
    if (message.type === "snapshot") {
        live.state = message.state;
        live.session += 1;
        live.events = message.events.toReversed();
        live.version ||= message.state.version;
    } else if (message.type === "delta") {
        if (message.seq !== seq + 1) {
            resync();
            return;
        }
        live.state = merge(live.state, message.patch);
        if (message.events) live.events = [...message.events.toReversed(), ...live.events].slice(0, KEPT);
    }
    seq = message.seq;
    failures = refused = 0;
    live.link = "up";
    // Nobody looks at a tab in the background; it draws when it comes to the front.
    if (message.type !== "beat" && !document.hidden) tell();
}

function resync() {
    if (socket?.readyState === WebSocket.OPEN) socket.send('{"type":"resync"}');
    else drop();
}

/** Begin to listen. */
export function connect() {
    heard = Date.now();
    if (refused >= 3 && refused % 2 === 1) listen();
    else open();
}

function open() {
    const made = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/api/v1/live`);
    socket = made;
    let opened = false;
    made.onopen = () => { opened = true; };
    made.onmessage = (event) => take(event.data);
    made.onclose = (event) => {
        if (socket !== made) return;
        socket = null;
        if (event.code === OVER) toLogin();
        else lost(!opened);
    };
}

function listen() {
    const made = new EventSource("/api/v1/live/events");
    source = made;
    made.onmessage = (event) => take(event.data);
    made.addEventListener("over", toLogin);
    made.onerror = () => {
        if (source !== made) return;
        made.close();
        source = null;
        lost(true);
    };
}

function drop() {
    const [before, other] = [socket, source];
    socket = source = null;
    before?.close();
    other?.close();
    lost(false);
}

async function lost(wasRefused) {
    if (live.link !== "down") {
        live.link = "down";
        tell();
    }
    failures += 1;
    const wait = Math.min(4000, 250 * 2 ** Math.min(failures, 5)) * (0.75 + Math.random() / 2);
    await new Promise((resolve) => setTimeout(resolve, wait));
    if (wasRefused) {
        // A browser does not tell why a WebSocket was refused. Logged out shows here; a proxy that lets none through
        // answers this and refuses that.
        try {
            await get("/api/v1/me");
            refused += 1;
        } catch {
            // No server there: try again.
        }
    }
    connect();
}

document.addEventListener("visibilitychange", () => { if (!document.hidden && live.state) tell(); });
setInterval(() => {
    if ((socket || source) && Date.now() - heard > SILENT) drop();
}, 2000);
