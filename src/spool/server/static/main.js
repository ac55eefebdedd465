// The frame: navigation, connection, theme; and which page is shown at which address.

import { me, whoAmI } from "./api.js";
import { choice, fill, h, put } from "./dom.js";
import { showFailure, toast } from "./dialog.js";
import { compact, keepTimes } from "./format.js";
import { connect, onLive } from "./live.js";
import * as benchmarks from "./pages/benchmarks.js";
import * as dead from "./pages/dead.js";
import * as job from "./pages/job.js";
import * as jobs from "./pages/jobs.js";
import * as overview from "./pages/overview.js";
import * as queues from "./pages/queues.js";
import * as workers from "./pages/workers.js";

/** A page is one entry here, and its address one in the server's `pages.ADDRESSES`. */
const PAGES = [
    { path: /^\/$/, at: "/", name: "Overview", page: overview, count: ({ summary }) => [summary?.troubles.length ?? 0, summary?.status === "bad" ? "bad" : "warn"] },
    { path: /^\/queues$/, at: "/queues", name: "Queues", page: queues, count: (state) => [Object.keys(state.queues).length] },
    { path: /^\/jobs$/, at: "/jobs", name: "Jobs", page: jobs },
    { path: /^\/jobs\/(?<queue>[^/]+)\/(?<id>[^/]+)$/, under: "/jobs", name: "Job", page: job },
    { path: /^\/dead$/, at: "/dead", name: "Dead letters", page: dead, count: (state) => [sum(state, "dead"), "bad"] },
    { path: /^\/workers$/, at: "/workers", name: "Workers", page: workers, count: (state) => [Object.keys(state.workers).length] },
    { path: /^\/benchmarks$/, at: "/benchmarks", name: "Benchmarks", page: benchmarks },
];

/** Milliseconds until it is asked again who looks. */
const AGAIN = 2000;
const sum = (state, name) => Object.values(state.queues).reduce((total, queue) => total + queue[name], 0);
const main = document.getElementById("main");
let close = () => {};

function show({ focus = true } = {}) {
    const entry = PAGES.find((each) => each.path.test(location.pathname));
    close();
    close = () => {};
    // A question that was left open is about what is no longer shown.
    for (const each of document.querySelectorAll("dialog[open]")) each.close();
    for (const link of document.querySelectorAll("#nav a")) {
        if (link.getAttribute("href") === (entry?.at ?? entry?.under)) {
            link.setAttribute("aria-current", "page");
            link.parentElement.parentElement.parentElement.scrollLeft = link.offsetLeft - 40;
        } else link.removeAttribute("aria-current");
    }
    document.title = `${entry ? entry.name : "Not found"} · Spool`;
    const root = h("div", { class: "stack" });
    fill(main, root);
    if (focus) {
        main.focus({ preventScroll: true });
        scrollTo(0, 0);
    }
    try {
        close = entry ? entry.page.open(root, entry.path.exec(location.pathname).groups ?? {}) ?? close : close;
        if (!entry) fill(root, h("h1", {}, "There is nothing at this address"));
    } catch (error) {
        console.error(error);
        showFailure(root, error);
    }
}

/** Links within the dashboard change the page without loading it anew. */
function follow(event) {
    const link = event.target.closest("a[href^='/']");
    if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const url = new URL(link.href);
    if (!PAGES.some((each) => each.path.test(url.pathname))) return;
    event.preventDefault();
    if (url.href === location.href) history.replaceState(null, "", url);
    else history.pushState(null, "", url);
    show();
}

function navigation() {
    const items = PAGES.filter((each) => each.at).map((each) => {
        const count = h("span", { class: "count" });
        const link = h("a", { href: each.at }, each.name, count);
        if (each.count) {
            onLive(({ state }) => {
                const [value, kind] = each.count(state);
                put(count, value ? compact(value) : "");
                count.className = `count ${value && kind ? kind : ""}`;
            });
        }
        return h("li", {}, link);
    });
    fill(document.getElementById("nav"), h("ul", {}, items));
}

function foot() {
    const dot = h("span", { class: "dot" });
    const word = h("span", {}, "Connecting…");
    const linked = h("div", { class: "link-state", role: "status", id: "link" }, dot, word);
    onLive((now) => {
        const up = now.link === "up";
        dot.className = `dot ${up ? "good" : "warn"}`;
        put(word, up ? "Live" : "Reconnecting…");
        linked.dataset.link = now.link;
    });
    const themes = [["", "Auto"], ["light", "Light"], ["dark", "Dark"]];
    const theme = choice("Theme", themes, document.documentElement.dataset.theme ?? "", (value) => {
        if (value) document.documentElement.dataset.theme = value;
        else delete document.documentElement.dataset.theme;
        try {
            localStorage.setItem("spool-theme", value);
        } catch {
            // Then it is for this page alone.
        }
        dispatchEvent(new Event("themechange"));
    });
    const who = h("div", { class: "soft" });
    const out = h("button", { type: "button", class: "plain", on: { click: logOut } }, "Log out");
    fill(document.getElementById("foot"), linked, theme, who, out);
    return () => {
        put(who, [me.name === "nobody" ? "" : me.name, me.read_only ? "read-only" : ""].filter(Boolean).join(", "));
        who.classList.toggle("hidden", !who.textContent);
        out.classList.toggle("hidden", me.name === "nobody");
    };
}

async function logOut() {
    const answer = await fetch("/logout", { method: "POST", redirect: "manual" }).catch(() => null);
    // Who sees the login page takes the session for ended: it has to be.
    if (answer?.ok || answer?.type === "opaqueredirect") location.assign("/login");
    else toast("You are still logged in: the server did not take it.", "bad");
}

function tellUpgrade() {
    let told = false;
    onLive(({ state, version }) => {
        if (told || state.version === version) return;
        told = true;
        toast([`The server is now version ${state.version}. `, h("button", { type: "button", on: { click: () => location.reload() } }, "Reload")]);
    });
}

/** Whether it is known who looks; without that there is no page. */
async function known() {
    try {
        await whoAmI();
        return true;
    } catch (error) {
        showFailure(main, error);
        return false;
    }
}

async function start() {
    navigation();
    const showWho = foot();
    keepTimes();
    document.addEventListener("click", follow);
    // To go to the content (#main) is no other page.
    addEventListener("popstate", () => { if (!location.hash) show({ focus: false }); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("themechange")));
    connect();
    while (!(await known())) await new Promise((resolve) => setTimeout(resolve, AGAIN));
    showWho();
    show({ focus: false });
    tellUpgrade();
}

start();
