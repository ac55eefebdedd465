// The server's API. What goes wrong becomes a `Problem`; who is not logged in (any more) comes to the login page.

/** Milliseconds that an answer may take to come. */
const LONGEST = 30_000;

export class Problem extends Error {
    constructor(status, detail) {
        super(detail);
        this.status = status;
    }
}

/** Who looks: `{ name, scopes, queues, read_only }`; filled by `whoAmI`. */
export const me = { name: "", scopes: [], queues: null, read_only: false };

/** Why an action is not to be had, or "" if it is. */
export function forbidden() {
    if (me.read_only) return "This server is read-only";
    return me.scopes.includes("operate") ? "" : "This needs a token with the scope operate";
}

export async function whoAmI() {
    Object.assign(me, await get("/api/v1/me"));
}

export function toLogin() {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}

/** Get data. `params`: values, lists of values, or "" for what is not asked for. `exact`: keep large integers. */
export async function get(path, params = {}, { signal, exact } = {}) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(params)) {
        for (const each of Array.isArray(value) ? value : [value]) {
            if (each !== "" && each !== null && each !== undefined) query.append(name, each);
        }
    }
    const text = query.toString();
    const found = read(await ask(text ? `${path}?${text}` : path, { signal: AbortSignal.any([AbortSignal.timeout(LONGEST), ...(signal ? [signal] : [])]) }), exact);
    signal?.throwIfAborted();
    return found;
}

/** What is asked for again and again: of answers that overtake each other only that to the latest question counts. */
export class Question {
    busy = false;
    #control = null;

    /** Call off what is under way; returns the signal for what begins. */
    begin() {
        this.close();
        this.#control = new AbortController();
        this.busy = true;
        return this.#control.signal;
    }

    /** What began with this signal is over. */
    end(signal) {
        if (signal === this.#control?.signal) this.busy = false;
    }

    close() {
        this.#control?.abort();
        this.busy = false;
    }
}

export async function post(path, body = {}) {
    return read(await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}

/** Ask, and read all of the answer: it may break off on its way. */
async function ask(url, options) {
    try {
        const answer = await fetch(url, { credentials: "same-origin", cache: "no-store", ...options });
        return { answer, text: await answer.text() };
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new Problem(0, error.name === "TimeoutError" ? `The server did not answer within ${LONGEST / 1000} s` : "The server cannot be reached");
    }
}

function read({ answer, text }, exact) {
    if (answer.status === 401) toLogin();
    let data = null;
    try {
        data = text ? JSON.parse(text, exact ? keepLarge : undefined) : null;
    } catch {
        throw new Problem(answer.status, "The server's answer cannot be read");
    }
    if (!answer.ok) throw new Problem(answer.status, data?.detail || data?.title || `The server answered ${answer.status}`);
    return data;
}

/** A number that JavaScript would round is kept as a BigInt, where the browser tells what was written. */
function keepLarge(_key, value, context) {
    const written = context?.source;
    if (typeof value !== "number" || written === undefined || Number.isSafeInteger(value)) return value;
    return /^-?\d+$/.test(written) ? BigInt(written) : value;
}

export const jobPath = (queue, id) => `/jobs/${encodeURIComponent(queue)}/${encodeURIComponent(id)}`;
