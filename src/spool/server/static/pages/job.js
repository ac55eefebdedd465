// One job: what it is, what happened to it, and what can be done with it.

import { get, jobPath, post, Question } from "../api.js";
import { actionButton } from "../dialog.js";
import { block, fill, h, said } from "../dom.js";
import { ago, duration, json, moment, plural } from "../format.js";
import { live, onLive } from "../live.js";

const TERMINAL = ["done", "dead", "cancelled"];
const PAUSE = 700;

function facts(job) {
    const pairs = [
        ["Queue", h("a", { href: `/jobs?queue=${encodeURIComponent(job.queue)}` }, said(job.queue))], ["Priority", said(job.priority)],
        ["Id", h("span", { class: "mono" }, said(job.id)), "long"], job.key ? ["Key", h("a", { href: `/jobs?q=${encodeURIComponent(job.key)}` }, said(job.key))] : null,
        ["Created", ago(job.created)],
        job.due ? ["Due", ago(job.due)] : null, job.started ? ["Started", ago(job.started)] : null, job.finished ? ["Ended", ago(job.finished)] : null,
        job.started && job.finished ? ["Took", duration((job.finished - job.started) / 1000)] : null,
        ["Attempts", String(job.attempts)], ["Failures", String(job.failures)],
        job.crashes ? ["Crashes", String(job.crashes)] : null, job.losses ? ["Leases lost", String(job.losses)] : null,
        job.generation ? ["Replayed", plural(job.generation, "time")] : null,
        job.worker ? ["Worker", h("a", { href: "/workers" }, said(job.named)), "long"] : null,
    ];
    return h("dl", { class: "facts card" }, pairs.filter(Boolean).map(([name, value, kind]) => h("div", { class: kind }, h("dt", {}, name), h("dd", {}, value))));
}

function timeline(job) {
    const steps = [h("li", {}, h("strong", {}, "Enqueued"), " ", ago(job.created))];
    for (const [number, outcome, started, ended, worker, type, message, traceback] of job.history) {
        const took = started && ended ? `, after ${duration((ended - started) / 1000)}` : "";
        steps.push(h("li", { class: outcome }, h("div", {}, h("strong", {}, `Attempt ${number} `), h("span", { class: `badge ${outcome}` }, said(outcome)), " ", ago(ended), took),
            worker ? h("div", { class: "soft" }, "on ", said(worker)) : null,
            type ? h("p", {}, h("strong", {}, said(type)), ": ", said(message, 1000)) : null,
            traceback && traceback !== job.traceback ? h("details", {}, h("summary", {}, "Traceback"), block(traceback, `${job.id}-${number}.txt`, `Traceback of attempt ${number}`)) : null));
    }
    const last = job.history.at(-1);
    if (job.state === "running") steps.push(h("li", { class: "running" }, h("strong", {}, `Attempt ${job.attempts} `), h("span", { class: "badge running" }, "running"), " since ", ago(job.started)));
    else if (job.state === "scheduled") steps.push(h("li", {}, h("strong", {}, "To run "), ago(job.due)));
    else if (TERMINAL.includes(job.state) && last?.[1] !== job.state && !(job.state === "dead" && last)) {
        steps.push(h("li", { class: job.state }, h("strong", {}, `Attempt ${job.attempts} `), h("span", { class: `badge ${job.state}` }, job.state), " ", ago(job.finished)));
    }
    return h("section", { class: "card stack" }, h("h2", {}, "Timeline"), h("ol", { class: "timeline" }, steps));
}

function progress(job) {
    if (!job.progress) return null;
    const { done, total, message, at } = job.progress;
    const bar = total ? h("progress", { max: total, value: done, "aria-label": "Progress" }) : null;
    return h("section", { class: "card stack" }, h("h2", {}, "Progress"), bar, h("p", {}, total ? `${done} of ${total}` : String(done), message ? ": " : "", message ? said(message) : "", " ", h("span", { class: "soft" }, ago(at))));
}

function log(job) {
    if (!job.log?.length) return null;
    const lines = job.log.map(({ at, attempt, level, logger, message }) => h("li", {},
        h("time", { title: moment(at), class: "soft" }, new Date(at).toLocaleTimeString("en-GB")),
        h("span", { class: /^(ERROR|CRITICAL)$/.test(level) ? "bad" : level === "WARNING" ? "warn" : "soft", title: `attempt ${attempt}` }, said(level)),
        h("span", { class: "text" }, said(logger), " ", said(message, 2000))));
    const dropped = job.log_dropped ? h("p", { class: "soft" }, `${plural(job.log_dropped, "earlier line is", "earlier lines are")} not kept.`) : null;
    return h("section", { class: "card stack" }, h("h2", {}, "Log"), dropped, h("ol", { class: "log", tabindex: "0", "aria-label": "Log lines" }, lines));
}

function values(job) {
    const [args, kwargs] = job.arguments ?? [null, null];
    const shown = [];
    if (job.encrypted) shown.push(h("p", { class: "soft" }, "What reads [encrypted] is for those who have the key, which this server has not."));
    if (args) {
        const named = Object.keys(kwargs ?? {}).length;
        const value = !named ? args : args.length ? { positional: args, named: kwargs } : kwargs;
        shown.push(h("section", { class: "card stack" }, h("h2", {}, "Arguments"), block(json(value), `${job.id}-arguments.json`, "Arguments")));
    }
    if (job.state === "done") shown.push(h("section", { class: "card stack" }, h("h2", {}, "Result"), block(json(job.result), `${job.id}-result.json`, "Result")));
    if (job.error) shown.push(h("section", { class: "card stack" }, h("h2", {}, job.state === "cancelled" ? "Reason" : job.state === "dead" ? "Error" : "Last error"), h("p", { class: job.state === "cancelled" ? null : "bad" }, said(job.error, 2000)),
        job.traceback ? block(job.traceback, `${job.id}-traceback.txt`, "Traceback") : null));
    return shown;
}

function buttons(job, again) {
    const path = `/api/v1${jobPath(job.queue, job.id)}`;
    const name = said(job.task || job.id);
    const done = async (verb, text, body) => {
        const { changed } = await post(`${path}/${verb}`, body);
        again();
        return changed ? text : "Nothing changed: the job had moved on.";
    };
    const cancel = () => actionButton("Cancel job", () => ({
        title: ["Cancel ", name, "?"], danger: true,
        text: job.state === "running" ? "It runs: it is asked to stop, and its worker says when it did." : "It will not run.",
    }), () => done("cancel", job.state === "running" ? "The job was asked to stop." : "The job is cancelled.", { reason: "cancelled on the dashboard" }), { danger: true });
    const retry = () => actionButton("Retry", () => ({ title: ["Retry ", name, "?"], text: "It is put back into its queue, with all its retries." }), () => done("retry", "The job is ready again."));
    const remove = () => actionButton("Delete", () => ({ title: ["Delete ", name, "?"], text: "All that is known of it is forgotten, for good." }), () => done("delete", "The job is forgotten."), { danger: true });
    if (job.state === "running") return [cancel()];
    if (job.state === "dead") return [retry(), remove()];
    return TERMINAL.includes(job.state) ? [remove()] : [cancel(), remove()];
}

export function open(root, { queue, id }) {
    const asked = new Question();
    const path = `/api/v1${jobPath(decodeURIComponent(queue), decodeURIComponent(id))}`;
    let [timer, before, over, quiet, acted] = [0, "", false, false, false];

    async function load() {
        const signal = asked.begin();
        clearTimeout(timer);
        timer = 0;
        try {
            const job = await get(path, {}, { signal, exact: true });
            // A dead job may be put back, by whomever.
            quiet = job.state === "dead";
            over = TERMINAL.includes(job.state) && !quiet;
            fill(failure);
            job.named = live.state?.workers[job.worker]?.row.name ?? job.worker;
            const now = json(job);
            if (now !== before) show(job);
            before = now;
        } catch (error) {
            if (error.name === "AbortError") return;
            over = error.status === 404;
            if (!over) fill(failure, h("p", { class: "bad", role: "alert" }, error.message));
            else if (before) root.querySelector("[data-part=buttons]")?.replaceChildren();
            if (over && before) fill(failure, h("p", { role: "alert" }, acted ? "The job is forgotten." : "The job is no longer kept. What is below is as it was last."));
            else if (over) fill(root, h("h1", {}, "There is no such job"), h("p", { role: "alert" }, said(error.message)), h("p", {}, h("a", { href: "/jobs" }, "All jobs")));
        } finally {
            asked.end(signal);
        }
    }

    const failure = h("div", {});
    const slots = {};

    /** Draw a part anew if what it shows has changed; otherwise focus, selection and what is unfolded stay. */
    function slot(name, data, draw) {
        const made = slots[name] ??= { element: h("div", { class: "stack" }), data: null };
        const now = json(data);
        if (made.data !== now) {
            made.data = now;
            fill(made.element, draw());
        }
        made.element.classList.toggle("hidden", !made.element.hasChildNodes());
        return made.element;
    }

    function show(job) {
        document.title = `${job.task || job.id} · Spool`;
        const { arguments: args, result, error, traceback, state, history, log: lines, attempts } = job;
        const head = slot("head", [job.task, state], () => h("div", { class: "head" },
            h("div", { class: "row" }, h("h1", {}, said(job.task || "(unknown task)")), h("span", { class: `badge ${state}`, data: { state } }, state)),
            h("div", { class: "row", data: { part: "buttons" } }, buttons(job, () => { acted = true; load(); }))));
        const about = slot("facts", { ...job, arguments: null, result: null, history: null, log: null, progress: null }, () => facts(job));
        const far = slot("progress", job.progress ?? null, () => progress(job) ?? []);
        const given = slot("values", [args, result, error, traceback, state, job.encrypted], () => values(job));
        const logged = slot("log", lines ?? null, () => log(job) ?? []);
        const past = slot("timeline", [history, state, attempts], () => timeline(job));
        if (!head.isConnected) fill(root, head, failure, about, far, h("div", { class: "split" }, h("div", { class: "stack" }, given, logged), past));
    }

    load();
    const end = onLive(({ link }) => {
        if (link === "up" && !over && !quiet && !timer && !asked.busy) timer = setTimeout(load, PAUSE);
    });
    // A job that nobody else is busy with changes no count of the stream.
    const ticking = setInterval(() => { if (!over && !timer && !asked.busy) load(); }, 2000);
    return () => {
        end();
        asked.close();
        clearTimeout(timer);
        clearInterval(ticking);
    };
}
