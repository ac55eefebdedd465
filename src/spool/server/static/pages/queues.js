// Queues: what waits in each, by priority and state; pause, resume, purge.

import { post } from "../api.js";
import { actionButton } from "../dialog.js";
import { choice, fill, h, keyed, put, said, thead } from "../dom.js";
import { ago, compact, perSecond, plural, rate } from "../format.js";
import { live, onLive } from "../live.js";

const PRIORITIES = ["critical", "high", "normal", "low", "background"];
const SPEEDS = [["in/s", ["enqueued"]], ["done/s", ["done"]], ["failed/s", ["retried", "dead"]]];
const SPANS = [["ten_seconds", "10 s"], ["minute", "1 min"]];
const path = (name, verb) => `/api/v1/queues/${encodeURIComponent(name)}/${verb}`;
const total = (list) => list.reduce((sum, each) => sum + each, 0);

function buttons(name) {
    const title = (verb) => [`${verb} queue `, said(name), "?"];
    const pause = actionButton("Pause", { title: title("Pause"), text: "No more of its jobs are handed out. What runs goes on." }, async () => {
        await post(path(name, "pause"));
        return ["Queue ", said(name), " is paused."];
    }, { name });
    const resume = actionButton("Resume", { title: title("Resume"), text: "Its jobs are handed out again." }, async () => {
        await post(path(name, "resume"));
        return ["Queue ", said(name), " hands out jobs again."];
    }, { name });
    const also = () => h("label", {}, h("input", { type: "checkbox", name: "dead" }), "its dead letters, too");
    const purge = actionButton("Purge", () => ({
        title: title("Purge"), fields: [also()],
        text: "All its jobs that have not started are deleted, for good. What runs goes on.",
    }), async (values) => {
        const { changed } = await post(path(name, "purge"), { dead: values.dead === "on" });
        return [`${plural(changed, "job")} of `, said(name), changed === 1 ? " was deleted." : " were deleted."];
    }, { danger: true, name });
    return { pause, resume, purge };
}

let span = "ten_seconds";

function row([name]) {
    const priorities = PRIORITIES.map((each) => h("td", { class: "number", data: { label: each } }));
    const states = ["scheduled", "parked", "running", "dead"].map((each) => h("td", { class: "number", data: { label: each, state: each } }));
    const [oldest, workers] = ["oldest", "workers"].map((each) => h("td", { class: "number", data: { label: each } }));
    const speeds = SPEEDS.map(([each]) => h("td", { class: "number", data: { label: each } }));
    const badge = h("span", {});
    const { pause, resume, purge } = buttons(name);
    const link = h("a", { href: `/jobs?queue=${encodeURIComponent(name)}` }, said(name));
    const element = h("tr", { data: { queue: name } }, h("th", { scope: "row" }, link, " ", badge), priorities, oldest, states, workers, speeds,
        h("td", { class: "narrow wide" }, h("div", { class: "row" }, pause, resume, purge)));
    let since = null;

    function number(cell, value, kind = "") {
        put(cell, compact(value));
        cell.className = `number ${value ? kind : "zero"}`;
    }
    function update([, queue]) {
        queue.ready.forEach((value, index) => number(priorities[index], value));
        number(states[0], queue.scheduled);
        number(states[1], queue.parked + queue.suspect, "warn");
        number(states[2], queue.running);
        number(states[3], queue.dead, "bad");
        number(workers, queue.workers, "");
        workers.classList.toggle("bad", !queue.workers && total(queue.ready) > 0);
        SPEEDS.forEach(([, names], index) => {
            const value = perSecond(queue.rates, names, span);
            put(speeds[index], rate(value));
            speeds[index].className = `number ${value ? (index === 2 ? "warn" : "") : "zero"}`;
        });
        put(badge, queue.paused ? "paused" : "");
        badge.className = queue.paused ? "badge paused" : "";
        // The one takes the other's place, also for who has just pressed it with a key.
        const [on, off] = queue.paused ? [resume, pause] : [pause, resume];
        on.classList.remove("hidden");
        if (document.activeElement === off) on.focus();
        off.classList.add("hidden");
        if (since !== queue.oldest) {
            since = queue.oldest;
            fill(oldest, since ? ago(since) : "–");
        }
    }
    return { element, update };
}

export function open(root) {
    const body = h("tbody");
    const table = h("table", { class: "cards dense" }, h("caption", { class: "aside-text" }, "Queues, with their ready jobs by priority, since when the oldest of those is ready, and their other jobs by state"),
        thead("Queue", ...PRIORITIES.map((each) => [each, "number"]), ["Oldest", "number"], ["Scheduled", "number"], ["Parked", "number"],
            ["Running", "number"], ["Dead", "number"], ["Workers", "number"], ["In/s", "number"], ["Done/s", "number"], ["Failed/s", "number"], "(Actions)"), body);
    const none = h("p", { class: "empty" }, "There are no queues yet: the first job makes one.");
    const over = choice("Rates over", SPANS, span, (value) => {
        span = value;
        if (live.state) show(live);
    });

    function show({ state }) {
        const queues = Object.entries(state.queues).sort(([a], [b]) => a.localeCompare(b));
        none.classList.toggle("hidden", queues.length > 0);
        table.classList.toggle("hidden", queues.length === 0);
        keyed(body, queues, ([name]) => name, row);
    }
    fill(root, h("div", { class: "head" }, h("h1", {}, "Queues"), h("div", { class: "row" }, h("span", { class: "soft" }, "Rates over"), over)), h("section", { class: "card" }, h("div", { class: "scroll" }, table), none));
    return onLive(show);
}
