// Whether all is well, in a plain sentence; and if it is not, which queue and which error.

import { fill, h, said } from "../dom.js";
import { compact, ENDS, perSecond, rate } from "../format.js";

const WORDS = { ok: "All is well.", warning: "Take a look.", bad: "Something is wrong." };
const plural = (value, one, many = `${one}s`) => `${compact(value)} ${value === 1 ? one : many}`;

/** Where one can do something about a trouble. */
function remedy(trouble) {
    const queue = encodeURIComponent(trouble.queue);
    switch (trouble.kind) {
        case "failing": return [`/dead?queue=${queue}`, "See its dead letters"];
        case "no_workers": return ["/workers", "See the workers"];
        case "parked": return [`/jobs?queue=${queue}&state=parked`, "See these jobs"];
        case "behind": case "paused": return ["/queues", "See the queues"];
        case "crashing": case "lost": return ["/workers", "See the workers"];
        default: return null;
    }
}

function line(trouble) {
    const link = remedy(trouble);
    const text = trouble.queue ? ["Queue ", h("strong", {}, said(trouble.queue)), ": ", said(trouble.message)] : [said(trouble.message)];
    return [...text, ". ", link ? h("a", { href: link[0] }, link[1]) : null];
}

function well(state) {
    const queues = Object.values(state.queues);
    const workers = Object.keys(state.workers).length;
    const speed = queues.reduce((sum, queue) => sum + perSecond(queue.rates, ENDS), 0);
    const running = queues.reduce((sum, queue) => sum + queue.running, 0);
    const waiting = queues.reduce((sum, queue) => sum + queue.ready.reduce((a, b) => a + b, 0), 0);
    return `${plural(queues.length, "queue")}, ${plural(workers, "worker process", "worker processes")}, ${rate(speed)} jobs/s, ${compact(running)} running, ${compact(waiting)} waiting.`;
}

/** The card at the top of the overview. */
export function healthCard() {
    const sentence = h("p", { class: "sentence" });
    const more = h("div", {});
    const element = h("section", { class: "card health", "aria-label": "Health", "aria-live": "polite" }, sentence, more);
    let before = "";

    function write(kind, word, content, rest = []) {
        element.className = `card health ${kind}`;
        element.dataset.status = kind;
        fill(sentence, h("span", { class: "word" }, word), " ", content);
        fill(more, rest.length ? h("ul", {}, rest.map((each) => h("li", {}, line(each)))) : null);
    }

    function update({ state, link }) {
        if (link !== "up") {
            before = "";
            write("warning", "Not connected.", "The server does not answer; trying again. What is below is as it was last.");
        } else if (!state.store.up) {
            before = "";
            write("bad", "The store cannot be reached.", said(state.store.trouble));
        } else if (!state.summary) {
            write("", "Looking…", "");
        } else if (state.summary.troubles.length === 0) {
            before = "";
            write("ok", WORDS.ok, well(state));
        } else {
            // A screen reader is told once, not twice a second.
            const now = JSON.stringify(state.summary.troubles);
            if (now === before) return;
            before = now;
            const [first, ...rest] = state.summary.troubles;
            write(state.summary.status, WORDS[state.summary.status], line(first), rest.slice(0, 6));
            if (rest.length > 6) more.append(h("p", { class: "soft" }, `and ${rest.length - 6} more`));
        }
    }
    return { element, update };
}
