// Whether all is well, in a plain sentence; and if it is not, which queue and which error.

import { fill, h, keyed, put, said } from "../dom.js";
import { compact, ENDS, perSecond, plural, rate } from "../format.js";

const WORDS = { ok: "All is well.", warning: "Take a look", bad: "Something is wrong" };
const MOST = 6;

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

/** A trouble: its queue, what it is with the error set off, and where to go. The link stays while the numbers change. */
function row(trouble) {
    const text = h("span", {});
    const link = remedy(trouble);
    const element = h("li", { class: trouble.status }, h("strong", {}, said(trouble.queue)), text, link ? h("a", { href: link[0] }, link[1]) : null);
    let before = "";
    function update(now) {
        if (now.message === before) return;
        before = now.message;
        const at = now.error ? now.message.indexOf(`${now.error.error_type}: `) : -1;
        fill(text, said(at < 0 ? now.message : now.message.slice(0, at)), at < 0 ? null : h("strong", {}, said(now.message.slice(at))));
    }
    return { element, update };
}

/** The queues that a sentence names, the worst first. */
function named(troubles) {
    const names = [...new Set(troubles.map((each) => each.queue).filter(Boolean))];
    const parts = names.slice(0, names.length === 3 ? 3 : 2).map((name) => h("strong", {}, said(name)));
    if (names.length > parts.length) parts.push(plural(names.length - parts.length, "other queue"));
    return parts.flatMap((part, index) => [index === 0 ? " in " : index === parts.length - 1 ? " and " : ", ", part]);
}

function well(state) {
    const queues = Object.values(state.queues);
    const workers = Object.keys(state.workers).length;
    if (!queues.length && !workers) return "Nothing has been enqueued yet, and no worker runs: start one with spool worker MODULE:APP.";
    const speed = queues.reduce((sum, queue) => sum + perSecond(queue.rates, ENDS), 0);
    const running = queues.reduce((sum, queue) => sum + queue.running, 0);
    const waiting = queues.reduce((sum, queue) => sum + queue.ready.reduce((a, b) => a + b, 0), 0);
    return `${plural(queues.length, "queue")}, ${plural(workers, "worker process", "worker processes")}, ${rate(speed)} jobs/s, ${compact(running)} running, ${compact(waiting)} waiting.`;
}

/** The card at the top of the overview. */
export function healthCard() {
    // Screen readers are told the sentence when it becomes another one; numbers, which always move, are not in it.
    const sentence = h("p", { class: "sentence", role: "status" });
    const detail = h("p", {});
    const list = h("ul", {});
    const more = h("p", { class: "soft" });
    const element = h("section", { class: "card health", "aria-label": "Health" }, sentence, detail, list, more);
    let before = null;

    function write(kind, word, content, { note = "", troubles = [] } = {}) {
        const now = JSON.stringify([kind, word, troubles.map((each) => each.queue)]);
        if (now !== before) {
            before = now;
            element.className = `card health ${kind}`;
            element.dataset.status = kind;
            fill(sentence, h("span", { class: "word" }, word), content);
        }
        put(detail, note);
        keyed(list, troubles.slice(0, MOST), (each) => `${each.kind} ${each.status} ${each.queue}`, row);
        put(more, troubles.length > MOST ? `and ${troubles.length - MOST} more` : "");
        for (const each of [detail, list, more]) each.classList.toggle("hidden", !each.hasChildNodes());
    }

    function update({ state, link }) {
        if (link !== "up") write("warning", "Not connected.", " The server does not answer; trying again.", { note: "What is below is as it was last." });
        else if (!state.store.up) write("bad", "The store cannot be reached.", "", { note: state.store.trouble });
        else if (!state.summary) write("", "Looking…", "");
        else if (state.summary.troubles.length === 0) write("ok", WORDS.ok, "", { note: well(state) });
        else {
            const { status, troubles } = state.summary;
            const worst = troubles.filter((each) => each.status === status);
            write(status, WORDS[status], [...named(worst), "."], { troubles });
        }
    }
    return { element, update };
}
