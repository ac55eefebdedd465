// Dead letters: grouped by task and error; put back at a rate, or deleted; and the replays that are under way.

import { get, jobPath, me, post, Question } from "../api.js";
import { actionButton, showFailure } from "../dialog.js";
import { field, fill, h, keyed, offer, put, said, select, thead } from "../dom.js";
import { ago, compact, count, plural } from "../format.js";
import { onLive } from "../live.js";

const PAUSE = 700;

const VARIES = /<(?:email|id|hex|token|n)>/;

/** The error of a group as a text to look for: the longest part of its pattern in which nothing varies. */
function literal(group) {
    const parts = `${group.error_type}: ${group.message}`.split(VARIES);
    return parts.reduce((longest, part) => (part.length > longest.length ? part : longest), "");
}

/** Which jobs are meant: of a group, or of a queue, or all. */
function criteria(group, queue) {
    const chosen = { ...(queue ? { queue: [queue] } : {}) };
    if (group) {
        if (group.task) chosen.task = group.task;
        if (group.error_type) chosen.error = literal(group);
    }
    return Object.keys(chosen).length ? chosen : { everything: true };
}

function meant(group, queue) {
    const where = queue ? [" in queue ", h("strong", {}, said(queue))] : [" in all queues"];
    if (!group) return ["All dead jobs", where, "."];
    const error = group.error_type ? [" whose error contains “", h("strong", {}, said(literal(group))), "”"] : [];
    return ["All dead jobs of ", h("strong", {}, said(group.task)), error, where, "."];
}

function told(replay) {
    if (replay.state === "done") return `${plural(replay.replayed, "job was", "jobs were")} put back.`;
    if (replay.state === "running") return `Replaying: ${count(replay.replayed)} of ${count(replay.found)} so far. It goes on; see below.`;
    return `The replay ${replay.state}: ${plural(replay.replayed, "job was", "jobs were")} put back. ${replay.error}`;
}

function buttons(group, queue, again, name) {
    const all = group ? "" : " all";
    const pace = () => field("Jobs per second (empty: as fast as it goes)", h("input", { type: "number", name: "rate", min: "0.1", max: "1000000", step: "any", inputmode: "decimal" }));
    const replay = actionButton(`Replay${all}`, () => ({ title: "Replay dead jobs?", text: h("p", {}, meant(group, queue()), " They are put back, with all their retries."), fields: [pace()] }), async (values) => {
        const found = await post("/api/v1/dead/replay", { ...criteria(group, queue()), rate: Number(values.rate) || null, wait: 1 });
        again();
        return told(found);
    }, { name });
    const remove = actionButton(`Delete${all}`, () => ({ title: "Delete dead jobs?", text: h("p", {}, meant(group, queue()), " They are forgotten, for good.") }), async () => {
        const { changed } = await post("/api/v1/dead/delete", criteria(group, queue()));
        again();
        return `${plural(changed, "dead job was", "dead jobs were")} deleted.`;
    }, { danger: true, name });
    return [replay, remove];
}

function groupRow(queue, again) {
    return (group) => {
        const number = h("td", { class: "number", data: { label: "jobs" } });
        const [first, last] = [h("td", { data: { label: "first" } }), h("td", { data: { label: "last" } })];
        const [at, id] = group.sample.split("/");
        const list = new URLSearchParams({ q: group.task, state: "dead", ...(group.error_type ? { error: literal(group) } : {}) });
        const element = h("tr", { data: { group: group.task } }, number,
            h("th", { scope: "row" }, h("a", { href: `/jobs?${list}` }, said(group.task || "(unknown task)"))),
            h("td", { class: "wide" }, h("strong", {}, said(group.error_type)), group.error_type ? ": " : "", said(group.message)),
            first, last, h("td", {}, h("a", { href: jobPath(at, id) }, "latest")),
            h("td", { class: "narrow wide" }, h("div", { class: "row" }, buttons(group, queue, again, `${group.task} ${group.error_type}`))));
        let before = "";
        function update(now) {
            put(number, compact(now.count));
            const text = `${now.first} ${now.last}`;
            if (text === before) return;
            before = text;
            fill(first, ago(now.first));
            fill(last, ago(now.last));
        }
        return { element, update };
    };
}

function replayRow(again) {
    return (replay) => {
        const state = h("span", {});
        const bar = h("progress", { "aria-label": "Replayed" });
        const text = h("span", {});
        const stop = actionButton("Stop", { title: "Stop the replay?", text: "What it has put back stays so." }, async () => {
            const found = await post(`/api/v1/dead/replays/${encodeURIComponent(replay.id)}/stop`);
            again();
            return told(found);
        });
        const element = h("tr", { data: { replay: replay.id } }, h("td", {}, state), h("td", { class: "wide" }, bar, " ", text), h("td", { data: { label: "rate" } }, replay.rate ? `${replay.rate}/s` : "–"),
            h("td", {}, said(replay.who)), h("td", {}, ago(replay.started)), h("td", { class: "narrow" }, stop));
        function update(now) {
            put(state, now.state);
            state.className = `badge ${now.state === "failed" ? "bad" : now.state}`;
            bar.max = Math.max(1, now.found);
            bar.value = now.replayed;
            put(text, `${count(now.replayed)} of ${count(now.found)}${now.error ? ` (${now.error})` : ""}`);
            stop.classList.toggle("hidden", now.state !== "running");
        }
        return { element, update };
    };
}

export function open(root) {
    const wanted = new URLSearchParams(location.search).get("queue") ?? "";
    const queue = select([["", "All queues"]], "", { "aria-label": "Queue", on: { change: () => choose() } });
    const body = h("tbody");
    const table = h("table", { class: "cards" }, h("caption", { class: "aside-text" }, "Dead jobs by task and error"), thead(["Jobs", "number"], "Task", "Error", "First", "Last", "Sample", "(Actions)"), body);
    const replays = h("tbody");
    const past = h("section", { class: "card stack hidden" }, h("h2", {}, "Replays of the last day"), h("div", { class: "scroll" }, h("table", { class: "cards" }, thead("State", "Replayed", "Rate", "By", "Started", "(Actions)"), replays)));
    const [none, failure, others] = [h("p", { class: "empty hidden" }, "No dead letters. Nothing has failed for good."), h("div", {}), h("p", { class: "soft" })];
    const asked = new Question();
    let [timer, seen, names, chosen, stale] = [0, "", "", wanted, false];
    const all = h("div", { class: "row" }, buttons(null, () => chosen, () => load(), ""));

    async function load() {
        const signal = asked.begin();
        clearTimeout(timer);
        [timer, stale] = [0, false];
        let soon = false;
        try {
            const found = await get("/api/v1/dead/groups", { queue: chosen, limit: 50 }, { signal });
            fill(failure);
            keyed(body, found.top, (group) => JSON.stringify([group.task, group.error_type, group.message]), groupRow(() => chosen, load));
            put(others, found.others ? `${plural(found.others, "more job", "more jobs")} with rarer errors` : "");
            none.classList.toggle("hidden", found.total > 0);
            table.classList.toggle("hidden", found.total === 0);
            all.classList.toggle("hidden", found.total === 0);
            if (!me.queues) {
                const { items } = await get("/api/v1/dead/replays", {}, { signal });
                keyed(replays, items.slice(0, 20), (each) => each.id, replayRow(load));
                past.classList.toggle("hidden", items.length === 0);
                soon = items.some((each) => each.state === "running");
            }
        } catch (error) {
            showFailure(failure, error);
        } finally {
            asked.end(signal);
        }
        if (soon && !timer && !signal.aborted) timer = setTimeout(load, 1000);
        refresh();
    }

    /** Ask again if something moved, but not while an answer is on its way. */
    function refresh() {
        if (stale && !timer && !asked.busy) timer = setTimeout(load, PAUSE);
    }

    function choose() {
        chosen = queue.value;
        history.replaceState(null, "", chosen ? `/dead?${new URLSearchParams({ queue: chosen })}` : "/dead");
        load();
    }

    fill(root, h("div", { class: "head" }, h("h1", {}, "Dead letters"), h("div", { class: "row" }, queue, all)), failure,
        h("section", { class: "card stack" }, h("div", { class: "scroll" }, table), none, others), past);
    const end = onLive(({ state, session }) => {
        const found = JSON.stringify(Object.keys(state.queues).sort());
        if (found !== names) {
            names = found;
            offer(queue, Object.keys(state.queues).sort(), chosen, "All queues");
        }
        const counts = JSON.stringify([session, Object.values(state.queues).map((each) => [each.dead, each.totals.dead])]);
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
