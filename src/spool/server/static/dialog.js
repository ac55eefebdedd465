// Asking once before something is done, and saying what was done.

import { forbidden } from "./api.js";
import { fill, h } from "./dom.js";

const STAYS = 10_000;

/** Say something in the corner, and to screen readers. */
export function toast(content, kind = "good") {
    const made = h("div", { class: `toast ${kind}` }, h("div", {}, content));
    const close = h("button", { type: "button", class: "plain", "aria-label": "Dismiss", on: { click: () => made.remove() } }, "✕");
    made.append(close);
    const place = document.getElementById("toasts");
    place.append(made);
    while (place.childElementCount > 4) place.firstElementChild.remove();
    setTimeout(() => made.remove(), kind === "bad" ? 3 * STAYS : STAYS);
}

/**
 * Ask in a dialog. `fields` are elements with a name each. Returns their values, or null if the answer was no.
 */
export function ask({ title, text, action, danger = false, fields = [] }) {
    return new Promise((resolve) => {
        const no = h("button", { type: "button", on: { click: () => box.close() } }, "Cancel");
        const yes = h("button", { class: danger ? "primary danger" : "primary", value: "yes" }, action);
        const form = h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), h("div", { class: "stack" }, text), fields, h("div", { class: "buttons" }, no, yes));
        const box = h("dialog", { "aria-labelledby": "dialog-title" }, form);
        let values = null;
        form.addEventListener("submit", () => { values = Object.fromEntries(new FormData(form)); });
        box.addEventListener("close", () => {
            box.remove();
            resolve(values);
        });
        document.body.append(box);
        box.showModal();
        (fields.length ? form.querySelector("input, select") : danger ? no : yes)?.focus();
    });
}

/**
 * A button that asks once, acts, and says what it did. `question`: as for `ask`, or a function that returns it;
 * `run(values)` does it and returns what to say.
 */
export function actionButton(label, question, run, { danger = false, name = "" } = {}) {
    const why = forbidden();
    const button = h("button", {
        type: "button", class: danger ? "danger" : null, disabled: Boolean(why), title: why || null,
        "aria-label": name ? `${label} ${name}` : null, on: { click: act },
    }, label);

    async function act() {
        if (button.hasAttribute("aria-busy")) return;
        const asked = typeof question === "function" ? question() : question;
        const values = await ask({ action: label, danger, ...asked });
        if (values === null) return;
        // Not disabled: that would lose the focus, and who uses a keyboard the place.
        button.setAttribute("aria-busy", "true");
        try {
            toast(await run(values));
        } catch (error) {
            toast(`${label}: ${error.message}`, "bad");
        }
        button.removeAttribute("aria-busy");
    }
    return button;
}

/** Show in a place that something could not be had. */
export function showFailure(place, error) {
    if (error.name === "AbortError") return;
    fill(place, h("p", { class: "bad", role: "alert" }, error.message));
}
