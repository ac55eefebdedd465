// Queues: what waits in each, by priority and state; pause, resume, purge.

import { get, post } from "../api.js";
import { actionButton } from "../dialog.js";
import { fill, h, keyed, put, said, thead } from "../dom.js";
import { ago, compact, plural, rate } from "../format.js";
import { onLive } from "../live.js";

const PRIORITIES = ["critical", "high", "normal", "low", "background"];
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

function row([name]) {
    const priorities = PRIORITIES.map((each) => h("td", { class: "number", data: { label: each } }));
    const states = ["scheduled", "parked", "running", "dead"].map((each) => h("td", { class: "number", data: { label: each, state: each } }));
    const [oldest, speed, workers] = ["oldest", "jobs/s", "workers"].map((each) => h("td", { class: "number", data: { label: each } }));
    const badge = h("span", {});
    const { pause, resume, purge } = buttons(name);
    const link = h("a", { href: `/jobs?queue=${encodeURIComponent(name)}` }, said(name));
    const element = h("tr", { data: { queue: name } }, h("th", { scope: "row" }, link, " ", badge), priorities, oldest, states, workers, speed,
        h("td", { class: "narrow wide" }, h("div", { class: "row" }, pause, resume, purge)));
    let created = null;

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
        put(speed, rate(queue.rate));
        put(badge, queue.paused ? "paused" : "");
        badge.className = queue.paused ? "badge paused" : "";
        // The one takes the other's place, also for who has just pressed it with a key.
        const [on, off] = queue.paused ? [resume, pause] : [pause, resume];
        on.classList.remove("hidden");
        if (document.activeElement === off) on.focus();
        off.classList.add("hidden");
        if (created !== queue.oldest) {
            created = queue.oldest;
            fill(oldest, created ? ago(created) : "–");
        }
    }
    return { element, update };
}

export function open(root) {
    const body = h("tbody");
    const table = h("table", { class: "cards" }, h("caption", { class: "aside-text" }, "Queues, with their ready jobs by priority and their other jobs by state"),
        thead("Queue", ...PRIORITIES.map((each) => [each, "number"]), ["Oldest ready", "number"], ["Scheduled", "number"], ["Parked", "number"],
            ["Running", "number"], ["Dead", "number"], ["Workers", "number"], ["Jobs/s", "number"], "(Actions)"), body);
    const none = h("p", { class: "empty" }, "There are no queues yet: the first job makes one.");
    const oldest = new Map();
    const control = new AbortController();

    async function look() {
        try {
            const { items } = await get("/api/v1/queues", {}, { signal: control.signal });
            for (const each of items) oldest.set(each.queue, each.oldest);
        } catch {
            // The stream says whether the server is there.
        }
        if (!control.signal.aborted) timer = setTimeout(look, 5000);
    }
    let timer = 0;

    fill(root, h("div", { class: "head" }, h("h1", {}, "Queues")), h("section", { class: "card" }, h("div", { class: "scroll" }, table), none));
    const end = onLive(({ state }) => {
        const queues = Object.entries(state.queues).sort(([a], [b]) => a.localeCompare(b));
        none.classList.toggle("hidden", queues.length > 0);
        table.classList.toggle("hidden", queues.length === 0);
        const told = queues.map(([name, each]) => [name, { ...each, oldest: total(each.ready) ? oldest.get(name) : undefined }]);
        keyed(body, told, ([name]) => name, row);
    });
    look();
    return () => {
        end();
        control.abort();
        clearTimeout(timer);
    };
}
