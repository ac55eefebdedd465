// Overview: is it healthy, how fast, how long, what waits, what happened last.

import { jobPath, me } from "../api.js";
import { chart } from "../charts.js";
import { Course, RANGES } from "../course.js";
import { showFailure } from "../dialog.js";
import { choice, fill, h, keyed, offer, put, said, select, thead } from "../dom.js";
import { ago, brief, compact, duration, ENDS, perSecond, rate } from "../format.js";
import { live, onLive } from "../live.js";
import { healthCard } from "./health.js";

const PRIORITIES = ["critical", "high", "normal", "low", "background"];
const PERCENTS = ["p50", "p95", "p99"];
const MOST = 12;
const total = (list) => list.reduce((sum, each) => sum + each, 0);

/** A series without the step under way, and of seconds the two before: they are not all there yet, and look like a fall. */
const whole = (course, series) => series.map((value, index) => (course.times.length - index > (course.step === 1000 ? 3 : 1) ? value : null));

/** Percentiles in seconds, never 0: the axis goes by powers of ten. */
const percents = (what) => PERCENTS.map((name, index) => ({
    label: name, colour: `percent-${index + 1}`, read: (course) => whole(course, course[what][name]).map((value) => (value === null ? null : Math.max(value, 1e-6))),
}));

function charts() {
    const perSecond = (course, name) => whole(course, course.counts[name]).map((value) => (value === null ? null : value * 1000 / course.step));
    return [
        chart({
            title: "Throughput", unit: "jobs/s", least: 4, format: rate, lines: [
                { label: "enqueued", colour: "plot-5", read: (course) => perSecond(course, "enqueued") },
                { label: "done", colour: "plot-1", read: (course) => perSecond(course, "done") },
                { label: "retried", colour: "plot-2", read: (course) => perSecond(course, "retried") },
                { label: "dead", colour: "plot-3", read: (course) => perSecond(course, "dead") },
            ],
        }),
        chart({
            title: "Ready by priority", unit: "jobs", format: compact, stacked: true, whole: true,
            lines: PRIORITIES.map((name, index) => ({ label: name, colour: `depth-${index + 1}`, read: (course) => course.depth[name] })),
        }),
        chart({ title: "Run time", format: duration, powers: true, lines: percents("run") }),
        chart({ title: "Wait until started", format: duration, powers: true, lines: percents("wait") }),
        chart({
            title: "Other jobs by state", unit: "jobs", format: compact, whole: true, lines: [
                { label: "running", colour: "plot-1", read: (course) => course.states.running },
                { label: "scheduled", colour: "plot-5", read: (course) => course.states.scheduled },
                { label: "dead", colour: "plot-3", read: (course) => course.states.dead },
            ],
        }),
        chart({ title: "Workers", unit: "processes", format: compact, whole: true, lines: [{ label: "live", colour: "plot-4", read: (course) => course.states.workers }] }),
    ];
}

/** The figures: key, name, and where there is more about it, of all queues or of one. */
const FIGURES = [
    ["rate", "Throughput"], ["p95", "Run p95"], ["wait", "Wait p95"],
    ["ready", "Ready", (queue) => `/jobs?state=ready${queue}`], ["running", "Running", (queue) => `/jobs?state=running${queue}`], ["scheduled", "Scheduled", (queue) => `/jobs?state=scheduled${queue}`],
    ["failed", "Failed attempts"], ["dead", "Dead", (queue) => `/dead${queue.replace("&", "?")}`], ["workers", "Workers", () => "/workers"],
];

function figures() {
    const made = {};
    const element = h("dl", { class: "figures nine" });
    for (const [key, name, to] of FIGURES) {
        const [value, note] = [h("dd", { data: { figure: key } }, "–"), h("dd", { class: "note" })];
        const link = to ? h("a", { href: to("") }, name) : null;
        made[key] = { value, note, link, to };
        element.append(h("div", {}, h("dt", {}, link ?? name), value, note));
    }
    function set(key, text, note = "", kind = "") {
        put(made[key].value, text);
        put(made[key].note, note);
        made[key].value.className = kind;
    }
    /** Let the links lead to the jobs of a queue, or of all. */
    function aim(queue) {
        for (const { link, to } of Object.values(made)) link?.setAttribute("href", to(queue ? `&queue=${encodeURIComponent(queue)}` : ""));
    }
    return { element, set, aim };
}

/** The latest of a series that is a number. */
function latest(series) {
    for (let index = series.length - 1; index >= Math.max(0, series.length - 15); index -= 1) {
        if (series[index] !== null && series[index] !== undefined) return series[index];
    }
    return null;
}

function showFigures(shown, queues, workers) {
    const sum = (name) => total(queues.map((queue) => queue[name]));
    const slots = total(workers.map((worker) => worker.row.concurrency));
    const oldest = live.state.summary?.oldest;
    const [ready, running, dead] = [total(queues.map((queue) => total(queue.ready))), sum("running"), sum("dead")];
    shown.set("rate", `${rate(total(queues.map((queue) => perSecond(queue.rates, ENDS))))}/s`, "last 10 s");
    shown.set("ready", compact(ready), ready && oldest ? `oldest ${brief(oldest)}` : "");
    shown.set("running", compact(running), slots ? `of ${compact(slots)} slots` : "");
    shown.set("scheduled", compact(sum("scheduled")), sum("parked") ? `${compact(sum("parked"))} parked` : "");
    shown.set("dead", compact(dead), shown.died ?? "", dead ? "bad" : "");
    shown.set("workers", compact(workers.length), workers.length ? `${compact(slots)} slots` : "", workers.length ? "" : "warn");
}

function showCourseFigures(shown, course, range) {
    const failed = total(course.outcomes.retried) + total(course.outcomes.died);
    const ended = total(Object.values(course.outcomes).map(total));
    const died = total(course.counts.dead);
    shown.set("failed", compact(failed), ended ? `${rate(100 * failed / ended)} % in ${range}` : `in ${range}`, failed ? "warn" : "");
    const now = (what, name) => duration(latest(whole(course, course[what][name])));
    shown.set("p95", now("run", "p95"), `p50 ${now("run", "p50")}`);
    shown.set("wait", now("wait", "p95"), `p50 ${now("wait", "p50")}`);
    shown.died = died ? `+${compact(died)} in ${range}` : "";
}

function queueTable() {
    const body = h("tbody");
    const table = h("table", {}, h("caption", { class: "aside-text" }, "Queues"), thead("Queue", ["Ready", "number"], ["Running", "number"], ["Dead", "number"], ["Jobs/s", "number"]), body);

    function make([name]) {
        const cells = ["ready", "running", "dead", "rate"].map(() => h("td", { class: "number" }));
        const badge = h("span", {});
        const element = h("tr", { data: { queue: name } }, h("th", { scope: "row" }, h("a", { href: `/jobs?queue=${encodeURIComponent(name)}` }, said(name)), " ", badge), cells);
        function update([, queue]) {
            [total(queue.ready), queue.running, queue.dead].forEach((value, index) => {
                put(cells[index], compact(value));
                cells[index].className = `number ${value ? (index === 2 ? "bad" : "") : "zero"}`;
            });
            put(cells[3], rate(perSecond(queue.rates, ENDS)));
            put(badge, queue.paused ? "paused" : "");
            badge.className = queue.paused ? "badge paused" : "";
        }
        return { element, update };
    }
    const others = h("p", { class: "soft" });
    const none = h("p", { class: "empty hidden" }, "There are no queues yet: the first job makes one.");
    const element = h("section", { class: "card stack", "aria-labelledby": "queues-title" }, h("div", { class: "head" }, h("h2", { id: "queues-title" }, "Queues"), h("a", { href: "/queues" }, "All queues")), h("div", { class: "scroll" }, table), others, none);
    function update(queues) {
        keyed(body, queues.slice(0, MOST), ([name]) => name, make);
        put(others, queues.length > MOST ? `and ${compact(queues.length - MOST)} more` : "");
        table.classList.toggle("hidden", queues.length === 0);
        none.classList.toggle("hidden", queues.length > 0);
    }
    return { element, update };
}

const troubled = (queue) => Number(queue.dead > 0 || queue.paused || (queue.workers === 0 && total(queue.ready) > 0));

function describe(event) {
    const queue = h("strong", {}, said(event.queue));
    switch (event.kind) {
        case "dead": return [h("span", { class: "badge dead" }, "dead"), " ", h("a", { href: jobPath(event.queue, event.job) }, said(event.task || event.job)), " in ", queue, ": ", said(event.text)];
        case "paused": return [h("span", { class: "badge paused" }, "paused"), " Queue ", queue];
        case "resumed": return [h("span", { class: "badge good" }, "resumed"), " Queue ", queue];
        case "worker_came": return [h("span", { class: "badge good" }, "worker"), " came: ", said(event.text)];
        case "worker_went": return [h("span", { class: "badge warn" }, "worker"), " went: ", said(event.text)];
        default: return [h("span", { class: `badge ${event.kind}` }, said(event.kind)), ` ${compact(event.count)} in `, queue];
    }
}

/** A server that was started anew counts from the beginning again, so a number alone does not tell events apart. */
const keyOf = (event) => `${event.id} ${event.at} ${event.kind} ${event.queue ?? ""} ${event.job ?? event.worker ?? ""}`;

function eventList() {
    const list = h("ol", { class: "events", tabindex: "0", "aria-label": "Last events" });
    const none = h("p", { class: "empty" }, "Nothing has happened since you came.");
    const element = h("section", { class: "card stack" }, h("h2", {}, "Last events"), none, list);
    function update(events) {
        none.classList.toggle("hidden", events.length > 0);
        list.classList.toggle("hidden", events.length === 0);
        keyed(list, events, keyOf, (event) => ({ element: h("li", { data: { kind: event.kind } }, ago(event.at), h("div", {}, describe(event))), update() {} }));
    }
    return { element, update };
}

export function open(root) {
    const query = new URLSearchParams(location.search);
    let range = Number(query.get("range")) || 300;
    if (!RANGES.some(([seconds]) => seconds === range)) range = 300;
    let queue = query.get("queue") ?? (me.queues?.length ? me.queues[0] : "");
    const [health, shown, list, happened, drawn] = [healthCard(), figures(), queueTable(), eventList(), charts()];
    const failure = h("div", {});
    const picker = select([], "", { on: { change: () => follow(range, picker.value) } });
    const ranges = choice("Time range", RANGES, range, (value) => follow(value, queue));
    let names = "";
    let course = null;

    function show(found) {
        fill(failure);
        for (const each of drawn) each.show(found);
        showCourseFigures(shown, found, RANGES.find(([seconds]) => seconds === range)[1]);
    }

    function follow(seconds, name) {
        [range, queue] = [seconds, name];
        const search = new URLSearchParams({ ...(range === 300 ? {} : { range }), ...(queue ? { queue } : {}) }).toString();
        history.replaceState(null, "", search ? `/?${search}` : "/");
        course?.close();
        shown.aim(queue);
        for (const each of drawn) each.wait();
        const streamed = me.queues ? me.queues.length === 1 : !queue;
        course = new Course(range, queue, streamed, show, (error) => showFailure(failure, error));
        if (live.state) update(live);
    }

    function update(now) {
        health.update(now);
        if (now.link !== "up") return;
        const queues = Object.entries(now.state.queues).sort(([a], [b]) => a.localeCompare(b));
        const mine = queues.filter(([name]) => !queue || name === queue).map(([, each]) => each);
        const workers = Object.values(now.state.workers).filter((each) => !queue || each.row.queues.includes(queue));
        showFigures(shown, mine, workers);
        // By name, so that rows stay where they are; those that need somebody first.
        list.update(queues.toSorted(([, a], [, b]) => troubled(b) - troubled(a)));
        happened.update(now.events);
        const found = JSON.stringify(queues.map(([name]) => name));
        if (found !== names) {
            names = found;
            offer(picker, queues.map(([name]) => name), queue, me.queues ? "" : "All queues");
        }
        course?.take();
    }

    fill(root,
        h("div", { class: "head" }, h("h1", {}, "Overview"), h("div", { class: "row" }, picker, ranges)),
        health.element, shown.element, failure,
        h("div", { class: "charts" }, drawn.map((each) => each.element)),
        h("div", { class: "split" }, list.element, happened.element));
    picker.setAttribute("aria-label", "Queue");
    follow(range, queue);
    const end = onLive(update);
    return () => {
        end();
        course.close();
        for (const each of drawn) each.close();
    };
}
