// Jobs: a list by queue, state, error and time, and a search by id, task or key.

import { get, jobPath, Question } from "../api.js";
import { showFailure } from "../dialog.js";
import { field, fill, h, keyed, offer, put, said, select, thead } from "../dom.js";
import { ago, duration } from "../format.js";
import { live, onLive } from "../live.js";

const STATES = ["scheduled", "ready", "parked", "suspect", "running", "done", "dead", "cancelled"];
const SINCE = [["", "any time"], ["300", "last 5 min"], ["3600", "last hour"], ["86400", "last day"], ["604800", "last week"]];
const PAGE = 50;
const PAUSE = 500;
/** Fingers do not point before they touch. */
const POINTER = matchMedia("(hover: hover)");

function row(job) {
    const state = h("span", {});
    const [when, attempts, took, error] = [h("td"), h("td", { class: "number", data: { label: "attempts" } }), h("td", { class: "number", data: { label: "took" } }), h("td", { class: "wide clip" })];
    const element = h("tr", { data: { job: job.id } },
        h("th", { scope: "row" }, h("a", { href: jobPath(job.queue, job.id) }, said(job.task || "(unknown task)")), job.key ? h("div", { class: "soft" }, "key ", said(job.key)) : null),
        h("td", { class: "name" }, said(job.queue)), h("td", { class: "mono" }, said(job.id)), h("td", {}, state), h("td", { class: "narrow" }, said(job.priority)), when, attempts, took, error);
    let before = "";

    function update(now) {
        const text = JSON.stringify([now.state, now.finished, now.started, now.due, now.attempts, now.error]);
        if (text === before) return;
        before = text;
        put(state, now.state);
        state.className = `badge ${now.state}`;
        fill(when, ago(now.finished ?? (now.state === "scheduled" ? now.due : null) ?? now.started ?? now.created));
        put(attempts, now.attempts);
        put(took, now.finished && now.started ? duration((now.finished - now.started) / 1000) : "–");
        fill(error, now.error ? said(now.error, 160) : "");
        error.title = (now.error ?? "").slice(0, 1000);
    }
    return { element, update };
}

export function open(root) {
    const query = new URLSearchParams(location.search);
    const search = h("input", { type: "search", name: "q", size: "32", placeholder: "id, task or key", spellcheck: "false", autocomplete: "off" });
    search.value = query.get("q") ?? query.get("task") ?? "";
    const queue = select([["", "all queues"]], "");
    const state = select([["", "any state"], ...STATES.map((each) => [each, each])], query.get("state") ?? "");
    const error = h("input", { type: "search", placeholder: "contains…" });
    error.value = query.get("error") ?? "";
    const since = select(SINCE, SINCE.some(([value]) => value === query.get("since")) ? query.get("since") : "");
    const follow = h("input", { type: "checkbox", checked: true });
    const held = h("span", { class: "soft" });
    const body = h("tbody", { on: { mouseleave: () => refresh() } });
    const table = h("table", { class: "cards" }, h("caption", { class: "aside-text" }, "Jobs"), thead("Task", "Queue", "Id", "State", "Priority", "When", ["Attempts", "number"], ["Took", "number"], "Error"), body);
    const [none, failure] = [h("p", { class: "empty hidden" }, "No job is like that."), h("div", {})];
    const more = h("button", { type: "button", class: "hidden", on: { click: () => load(true) } }, "More");
    const filters = h("form", { class: "card filters", role: "search", "aria-label": "Jobs" }, field("Search", search), field("Queue", queue), field("State", state), field("Error", error), field("When", since), h("button", { class: "primary" }, "Search"), h("label", {}, follow, "keep current"));
    let [items, cursor, wanted, timer, names, seen, pages, stale] = [[], "", query.get("queue") ?? "", 0, "", "", 1, false];
    const asked = new Question();

    function params() {
        const from = since.value ? Date.now() - 1000 * Number(since.value) : "";
        return { queue: wanted, state: state.value, search: search.value.trim(), error: error.value, since: from };
    }

    async function load(further = false) {
        const signal = asked.begin();
        clearTimeout(timer);
        [timer, stale] = [0, false];
        try {
            let found = await get("/api/v1/jobs", { ...params(), cursor: further ? cursor : "", limit: PAGE }, { signal });
            let all = found.items;
            // A page may be short, or empty, before the last.
            for (let tries = 0; found.cursor && all.length < PAGE && tries < 20; tries += 1) {
                found = await get("/api/v1/jobs", { ...params(), cursor: found.cursor, limit: PAGE }, { signal });
                all = [...all, ...found.items];
            }
            pages = further ? pages + 1 : 1;
            items = further ? [...items, ...all] : all;
            cursor = found.cursor;
            show();
        } catch (problem) {
            showFailure(failure, problem);
        } finally {
            asked.end(signal);
        }
        refresh();
    }

    /** Ask again if something moved; not while an answer is on its way, or somebody is about to click on a row. */
    function refresh() {
        const pointed = POINTER.matches && body.matches(":hover");
        put(held, stale && pointed && follow.checked ? "The list waits while you point at it" : "");
        if (stale && follow.checked && pages === 1 && !timer && !asked.busy && !pointed && !document.hidden) timer = setTimeout(() => load(), PAUSE);
    }

    function show() {
        fill(failure);
        keyed(body, [...new Map(items.map((job) => [`${job.queue}/${job.id}`, job])).values()], (job) => `${job.queue}/${job.id}`, row);
        table.classList.toggle("hidden", items.length === 0);
        none.classList.toggle("hidden", items.length > 0);
        more.classList.toggle("hidden", !cursor);
    }

    function chosen(event) {
        event?.preventDefault();
        wanted = queue.value;
        const kept = { q: search.value.trim(), queue: wanted, state: state.value, error: error.value, since: since.value };
        const text = new URLSearchParams(Object.entries(kept).filter(([, value]) => value)).toString();
        history.replaceState(null, "", text ? `/jobs?${text}` : "/jobs");
        load();
    }

    offer(queue, [], wanted, "all queues");
    filters.addEventListener("submit", chosen);
    for (const each of [queue, state, since]) each.addEventListener("change", () => chosen());
    fill(root, h("div", { class: "head" }, h("h1", {}, "Jobs"), held), filters, failure, h("section", { class: "card stack" }, h("div", { class: "scroll" }, table), none, h("div", { class: "row" }, more)));
    const end = onLive((now) => {
        const found = JSON.stringify(Object.keys(now.state.queues).sort());
        if (found !== names) {
            names = found;
            offer(queue, Object.keys(now.state.queues).sort(), wanted, "all queues");
        }
        // What has moved shows in the counts; a list that was prolonged by hand stays as it is.
        const counts = JSON.stringify([now.session, Object.entries(live.state.queues).filter(([name]) => !wanted || name === wanted).map(([, each]) => [each.totals, each.running])]);
        if (counts !== seen && seen) stale = true;
        seen = counts;
        refresh();
    });
    load();
    return () => {
        end();
        asked.close();
        clearTimeout(timer);
    };
}
