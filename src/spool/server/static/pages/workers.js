// Workers: their slots, memory and jobs; quiet and stop.

import { get, jobPath, post, Question } from "../api.js";
import { actionButton, showFailure } from "../dialog.js";
import { fill, h, keyed, put, said, thead } from "../dom.js";
import { ago, bytes, clock, duration, perSecond, rate } from "../format.js";
import { onLive } from "../live.js";

/** Milliseconds after which the list of a worker's jobs is old. */
const LIST = 2000;
const path = (id, verb = "") => `/api/v1/workers/${encodeURIComponent(id)}${verb}`;

function jobList(jobs) {
    if (!jobs.length) return h("p", { class: "soft" }, "It runs nothing now.");
    return h("table", { class: "cards" }, h("caption", { class: "aside-text" }, "Jobs that it runs"), thead("Task", "Queue", "Id", "Since", ["Attempt", "number"]), h("tbody", {}, jobs.map((job) => h("tr", {},
        h("th", { scope: "row" }, h("a", { href: jobPath(job.queue, job.id) }, said(job.task))), h("td", {}, said(job.queue)), h("td", { class: "mono" }, said(job.id)), h("td", { data: { label: "since" } }, ago(job.started)), h("td", { class: "number", data: { label: "attempt" } }, String(job.attempts))))));
}

const speeds = (rates, names) => ["ten_seconds", "minute"].map((span) => rate(perSecond(rates, names, span))).join(" · ");

function card(worker) {
    const { row } = worker;
    const id = row.incarnation;
    const { name } = row;
    const state = h("span", {});
    const slots = h("span", {});
    const bar = h("progress", { "aria-label": "Slots in use" });
    const memory = h("dd", {});
    const uptime = h("dd", {});
    const [done, failed] = ["done", "failed"].map((each) => h("dd", { data: { rate: each } }));
    const place = h("div", { class: "scroll" });
    const unfold = h("details", {}, h("summary", {}, "Jobs"), place);
    const quiet = actionButton("Quiet", { title: ["Quiet worker ", said(name), "?"], text: "It claims no more jobs; those that run go on." }, async () => {
        await post(path(id, "/quiet"));
        return ["Worker ", said(name), " will claim no more jobs."];
    }, { name });
    const stop = actionButton("Stop", { title: ["Stop worker ", said(name), "?"], text: "It lets its jobs end, hands back what does not end in time, and goes. No other is started in its place." }, async () => {
        await post(path(id, "/stop"));
        return ["Worker ", said(name), " was told to stop."];
    }, { danger: true, name });
    const element = h("section", { class: "card stack", data: { worker: id }, "aria-label": `Worker ${name}` },
        h("div", { class: "head" }, h("div", { class: "row" }, h("h2", {}, said(row.name), row.name.endsWith(`:${row.pid}`) ? null : h("span", { class: "soft" }, ` process ${row.pid}`)), state), h("div", { class: "row" }, quiet, stop)),
        h("div", {}, h("div", { class: "head" }, h("span", {}, "Slots"), slots), bar),
        h("dl", { class: "facts" },
            h("div", {}, h("dt", {}, "Host"), h("dd", {}, said(row.host))), h("div", {}, h("dt", {}, "Memory"), memory), h("div", {}, h("dt", {}, "Up for"), uptime),
            h("div", { class: "long" }, h("dt", {}, "Done/s, 10 s · 1 min"), done), h("div", { class: "long" }, h("dt", {}, "Failed/s, 10 s · 1 min"), failed),
            h("div", { class: "long" }, h("dt", {}, "Version"), h("dd", {}, said(row.version), " on ", said(row.python))), h("div", { class: "all" }, h("dt", {}, "Queues"), h("dd", {}, said(row.queues.join(", "))))),
        unfold);
    const asked = new Question();
    let [running, loaded] = [-1, 0];

    async function load() {
        const signal = asked.begin();
        loaded = Date.now();
        try {
            fill(place, jobList((await get(path(id), { limit: 100 }, { signal })).jobs));
        } catch (error) {
            showFailure(place, error);
        } finally {
            asked.end(signal);
        }
    }
    unfold.addEventListener("toggle", () => { if (unfold.open) load(); });

    function update(now) {
        const all = now.row.concurrency + now.row.pool_size;
        const word = now.ordered && now.state === "running" ? `told to ${now.ordered === "quiet" ? "be quiet" : "stop"}` : now.state;
        put(state, word);
        state.className = `badge ${now.state === "running" && !now.ordered ? "good" : "warn"}`;
        // Who may not know of all its queues is not told how many jobs it runs.
        const told = now.row.running !== undefined;
        put(slots, `${told ? now.row.running : "–"} of ${all}`);
        bar.classList.toggle("hidden", !told);
        bar.max = Math.max(1, all);
        bar.value = now.row.running ?? 0;
        put(memory, now.row.memory ? bytes(now.row.memory) : "–");
        put(uptime, duration(Math.round(Math.max(0, clock.now() - now.row.started) / 1000)));
        put(done, speeds(now.row.rates, ["done"]));
        put(failed, speeds(now.row.rates, ["retried", "died"]));
        quiet.classList.toggle("hidden", Boolean(now.ordered) || now.state !== "running");
        stop.classList.toggle("hidden", now.ordered === "stop" || now.state === "stopping");
        put(unfold.firstChild, told ? `Jobs (${now.row.running})` : "Jobs");
        // A worker that is always full runs other jobs all the time.
        if (unfold.open && !asked.busy && (now.row.running !== running || Date.now() - loaded > LIST)) load();
        running = now.row.running;
    }
    return { element, update };
}

export function open(root) {
    const list = h("div", { class: "charts" });
    const none = h("p", { class: "card empty" }, "No worker has reported lately. Start one: ", h("code", {}, "spool worker MODULE:APP"));
    fill(root, h("div", { class: "head" }, h("h1", {}, "Workers")), none, list);
    return onLive(({ state }) => {
        const workers = Object.values(state.workers).sort((a, b) => a.row.host.localeCompare(b.row.host) || a.row.started - b.row.started);
        none.classList.toggle("hidden", workers.length > 0);
        keyed(list, workers, (each) => each.row.incarnation, card);
    });
}
