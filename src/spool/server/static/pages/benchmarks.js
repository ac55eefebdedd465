// Benchmarks: a result from a file, read and drawn here; a second one is compared with it.

import { post } from "../api.js";
import { lineChart } from "../charts.js";
import { toast } from "../dialog.js";
import { field, fill, h, said, thead } from "../dom.js";
import { compact, count, duration, moment, rate } from "../format.js";

const LARGEST = 8_000_000;
const ms = (value) => (value === null || value === undefined ? "–" : duration(value / 1000));
const percent = (value) => (value === null || value === undefined ? "–" : `${value > 0 ? "+" : ""}${(100 * value).toFixed(1)} %`);

async function readResult(file) {
    if (file.size > LARGEST) throw new Error(`${file.name} is larger than a result may be`);
    let found = null;
    try {
        found = JSON.parse(await file.text());
    } catch {
        throw new Error(`${file.name} is not JSON`);
    }
    if (found?.kind !== "spool-bench" || typeof found.result !== "object") throw new Error(`${file.name} is no result of spool bench`);
    return { name: file.name, result: found };
}

const started = ({ result }) => (Number.isNaN(Date.parse(result.started)) ? result.started : moment(Date.parse(result.started)));

function figures({ result }) {
    const one = result.result;
    const wrong = [["lost", one.lost], ["dead", one.dead], ["unfinished", one.unfinished], ["duplicated", one.duplicated]].filter(([, value]) => value);
    const pairs = [
        ["Throughput", one.per_s === null ? "–" : `${rate(one.per_s)}/s`], ["Drain", one.drain_per_s ? `${rate(one.drain_per_s)}/s` : "–"], ["Enqueue", one.enqueue_per_s ? `${rate(one.enqueue_per_s)}/s` : "–"],
        ["Jobs done", count(one.done)], ["Start p50", ms(one.latency_ms?.start?.p50)], ["Start p99", ms(one.latency_ms?.start?.p99)], ["Done p99", ms(one.latency_ms?.done?.p99)],
        ["Memory", one.memory_mb?.pss ? `${rate(one.memory_mb.pss)} MB` : "–"],
    ];
    return [
        h("dl", { class: "figures" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
        wrong.length ? h("p", { class: "bad" }, "Not all went well: ", wrong.map(([name, value]) => `${count(value)} ${name}`).join(", ")) : null,
    ];
}

function drawn({ result }) {
    const found = [];
    const { series, spread } = result;
    if (series) {
        const x = [0, ...series.done.map((_, index) => (index + 1) * series.step_s)];
        const perSecond = [null, ...series.done.map((value) => value / series.step_s)];
        const level = (values) => x.map((_, index) => values[index] ?? null);
        found.push(lineChart({ title: "Throughput, jobs/s", x, lines: [{ label: "done", values: perSecond }], format: rate }));
        found.push(lineChart({ title: "Queue depth", x, lines: [{ label: "waiting", values: level(series.waiting) }, { label: "running", values: level(series.running) }], format: compact }));
        if (series.memory_s.length > 1) found.push(lineChart({ title: "Memory, MB", x: series.memory_s, lines: [{ label: "memory", values: series.memory_mb }], format: rate }));
    }
    if (spread?.start?.shares?.length > 1) {
        const shares = spread.start.shares.map((share) => 100 * share);
        const other = spread.done.shares.length === shares.length ? [{ label: "until done", values: spread.done.ms.map((value) => value / 1000) }] : [];
        found.push(lineChart({ title: "Latency by percent of jobs", x: shares, lines: [{ label: "until started", values: spread.start.ms.map((value) => value / 1000) }, ...other], format: duration, unit: " %" }));
    }
    return found;
}

function setUp({ result }) {
    const parts = [["Configuration", result.config], ["Machine", result.machine], ["Versions", result.versions], ["Broker", result.broker]];
    return h("details", { class: "card" }, h("summary", {}, "How it was measured"), h("dl", { class: "facts" }, parts.flatMap(([, part]) => Object.entries(part ?? {}).map(([name, value]) => h("div", {}, h("dt", {}, said(name)), h("dd", {}, said(typeof value === "object" ? JSON.stringify(value) : value)))))));
}

function comparison(found, before, after) {
    const rows = found.changes.map((each) => h("tr", {}, h("th", { scope: "row" }, said(each.metric)),
        h("td", { class: "number", data: { label: "before" } }, each.before === null ? "–" : `${rate(each.before)} ${each.unit}`),
        h("td", { class: "number", data: { label: "after" } }, each.after === null ? "–" : `${rate(each.after)} ${each.unit}`),
        h("td", { class: "number", data: { label: "change" } }, percent(each.change)),
        h("td", { class: "number", data: { label: "interval" } }, each.low === null ? "–" : `${percent(each.low)} to ${percent(each.high)}`),
        h("td", {}, h("span", { class: `badge ${each.verdict}` }, said(each.verdict)))));
    return h("section", { class: "card stack", id: "comparison" }, h("h2", {}, "Comparison"), h("p", { class: "soft" }, "From ", said(before.name), " to ", said(after.name), `; intervals with ${Math.round(100 * found.confidence)} % confidence. A verdict needs repetitions of both: `, h("code", {}, "--repeat"), "."),
        h("div", { class: "scroll" }, h("table", { class: "cards" }, h("caption", { class: "aside-text" }, "Changes"), thead("Metric", ["Before", "number"], ["After", "number"], ["Change", "number"], ["Interval", "number"], "Verdict"), h("tbody", {}, rows))),
        found.differences.length ? h("details", {}, h("summary", {}, `${found.differences.length} differences of configuration and machine`), h("ul", {}, found.differences.map((each) => h("li", {}, said(each))))) : null);
}

export function open(root) {
    const input = h("input", { type: "file", accept: ".json,application/json", multiple: true });
    const place = h("div", { class: "stack" });
    const drop = h("section", { class: "drop card" }, field("One result, or two to compare (the first is before)", input), h("p", { class: "soft" }, "What ", h("code", {}, "spool bench quick --json"), " writes. Files may be dropped here. They are read in this page; only a comparison sends them to the server, which keeps nothing."));
    let [charts, turn] = [[], 0];

    function clear() {
        for (const each of charts) each.close();
        charts = [];
    }

    async function show(files) {
        // What was begun before is over: its answers, that may still come, are about files that are no longer shown.
        turn += 1;
        const mine = turn;
        try {
            const results = await Promise.all([...files].slice(0, 2).map(readResult));
            if (!results.length || mine !== turn) return;
            clear();
            const parts = results.map((each) => {
                const made = drawn(each);
                charts.push(...made);
                return h("section", { class: "stack" }, h("h2", {}, said(each.name), " ", h("span", { class: "soft" }, said(started(each)))), figures(each), h("div", { class: "charts" }, made.map((one) => one.element)), setUp(each));
            });
            fill(place, parts);
            for (const each of charts) each.draw();
            if (results.length === 2) {
                const found = await post("/api/v1/benchmarks/compare", { before: results[0].result, after: results[1].result });
                if (mine === turn) place.prepend(comparison(found, ...results));
            }
        } catch (error) {
            if (mine !== turn) return;
            if (!(error instanceof TypeError)) {
                toast(error.message, "bad");
                return;
            }
            clear();
            fill(place);
            toast("This result lacks something that a result of spool bench has", "bad");
        }
    }

    input.addEventListener("change", () => show(input.files));
    for (const name of ["dragenter", "dragover"]) {
        drop.addEventListener(name, (event) => {
            event.preventDefault();
            drop.classList.add("over");
        });
    }
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
        event.preventDefault();
        drop.classList.remove("over");
        show(event.dataTransfer.files);
    });
    fill(root, h("div", { class: "head" }, h("h1", {}, "Benchmarks")), drop, place);
    return () => {
        turn += 1;
        clear();
    };
}
