// Elements, and text that others wrote. Text becomes a text node and nothing else: whatever it holds is only seen.

/** Characters that hide, reorder, control or pile up: shown by name, since what cannot be seen can deceive. */
const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164\ufeff\ufff9-\ufffb\u{e0000}-\u{e0fff}]+|(?<=\p{M}{4})\p{M}+/gu;
const LINE = 300;
const BLOCK = 20_000;

/** Make an element. `props`: attributes, `on` for listeners, `data` for data attributes. Children: nodes or text. */
export function h(tag, props = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
        if (value === undefined || value === null || value === false) continue;
        if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
        else if (name === "data") Object.assign(made.dataset, value);
        else if (name === "href" && !/^(\/(?![/\\])|#|blob:)/.test(value)) throw new Error(`not an address of ours: ${value}`);
        else made.setAttribute(name, value === true ? "" : String(value));
    }
    made.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
    return made;
}

/** Set an element's text, if it is another one. */
export function put(element, text) {
    const wanted = String(text);
    if (element.textContent !== wanted) element.textContent = wanted;
}

/** Put other children into an element. */
export function fill(element, ...children) {
    element.replaceChildren(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
}

function named(characters) {
    if (/^\p{M}/u.test(characters)) return [`${[...characters].length} more marks`];
    return [...characters].map((each) => {
        const code = each.codePointAt(0);
        if (code < 0x20) return String.fromCodePoint(0x2400 + code);
        return code === 0x7f ? "\u2421" : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    });
}

function nodes(text) {
    const found = [];
    let from = 0;
    for (const match of text.matchAll(ODD)) {
        if (match.index > from) found.push(text.slice(from, match.index));
        found.push(h("span", { class: "odd", title: "characters that cannot be seen" }, named(match[0]).join(" ")));
        from = match.index + match[0].length;
    }
    if (from < text.length) found.push(text.slice(from));
    return found;
}

/** Text of somebody else's within a line; a long one is cut. */
export function said(text, most = LINE) {
    const whole = String(text ?? "");
    const cut = whole.length > most;
    const shown = (cut ? whole.slice(0, most).replace(/[\ud800-\udbff]$/u, "") : whole).replace(/[\n\t]+/g, " ");
    return h("bdi", {}, nodes(shown), cut ? "…" : null);
}

/** Text of somebody else's as a block; of a long one the beginning, and a way to get the whole. */
export function block(text, name, label) {
    const whole = String(text ?? "");
    const cut = whole.length > BLOCK;
    const shown = h("pre", { class: "value", tabindex: "0", role: "region", "aria-label": label, dir: "auto" }, nodes(cut ? whole.slice(0, BLOCK) : whole));
    if (!cut) return shown;
    const more = h("p", { class: "row soft" },
        `${BLOCK.toLocaleString("en")} of ${whole.length.toLocaleString("en")} characters. `,
        h("button", { type: "button", on: { click: () => download(whole, name) } }, "Download all of it"));
    return h("div", { class: "stack" }, shown, more);
}

/** Hand a text to the browser as a file, of a type that nothing opens by itself. */
export function download(text, name) {
    const url = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" }));
    h("a", { href: url, download: name.replace(/[^A-Za-z0-9_.-]+/g, "_") }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * Let the children of `parent` be those of `items`, in order, and keep the elements of those that were there, so that
 * focus and selection stay. `make(item)` returns `{ element, update(item) }`.
 */
export function keyed(parent, items, keyOf, make) {
    const before = parent.keyed ?? new Map();
    const kept = new Map();
    for (const item of items) {
        const key = keyOf(item);
        const part = before.get(key) ?? make(item);
        part.update(item);
        kept.set(key, part);
    }
    const focused = parent.contains(document.activeElement) ? document.activeElement : null;
    // Those that are gone go first: else all that follow one would have to move, and what moves loses the focus.
    for (const [key, part] of before) if (!kept.has(key)) part.element.remove();
    let place = parent.firstElementChild;
    for (const { element } of kept.values()) {
        if (element === place) place = place.nextElementSibling;
        else parent.insertBefore(element, place);
    }
    if (focused && focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
    parent.keyed = kept;
}

/** A table's head, with the class of each column. */
export function thead(...columns) {
    const cells = columns.map((column) => {
        const [name, kind] = Array.isArray(column) ? column : [column, ""];
        return h("th", { scope: "col", class: kind || null }, name.startsWith("(") ? h("span", { class: "aside-text" }, name.slice(1, -1)) : name);
    });
    return h("thead", {}, h("tr", {}, cells));
}

/** Buttons of which one is chosen. */
export function choice(label, options, chosen, choose) {
    const buttons = options.map(([value, name]) => h("button", {
        type: "button", "aria-pressed": String(value === chosen), on: {
            click: (event) => {
                for (const each of buttons) each.setAttribute("aria-pressed", String(each === event.currentTarget));
                choose(value);
            },
        },
    }, name));
    return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/** An input with its label above it. */
export function field(label, input) {
    input.id ||= `field-${(field.count = (field.count ?? 0) + 1)}`;
    return h("div", { class: "field" }, h("label", { for: input.id }, label), input);
}

/** Let a select offer these queues, after `all` if it is given; and the one that is chosen, even if it has gone. */
export function offer(made, names, chosen, all) {
    const offered = chosen && !names.includes(chosen) ? [chosen, ...names] : names;
    fill(made, all ? h("option", { value: "" }, all) : null, offered.map((name) => h("option", { value: name }, name)));
    made.value = chosen;
}

/** A select of plain values: `[value, name]`. */
export function select(options, chosen, props = {}) {
    const made = h("select", props, options.map(([value, name]) => h("option", { value }, name)));
    made.value = chosen;
    return made;
}
