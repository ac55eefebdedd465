// Charts over time, by uPlot: colours of the style sheet, a legend in HTML that says the value at the cursor.

import { fill, h, put } from "./dom.js";
import { compact } from "./format.js";

const SYNC = uPlot.sync("time");
const clockTime = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const clockSeconds = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const WHOLE = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat();

/** The axes' text is a little smaller than that of the page, also on a monitor on the wall. */
function axisOf() {
    const page = getComputedStyle(document.body);
    const size = Math.round(parseFloat(page.fontSize) * 0.79);
    return { size, axis: { stroke: colour("soft"), font: `${size}px ${page.fontFamily}`, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } } };
}

/** A canvas takes no variable, and no light-dark(): let an element have the colour, and read what came of it. */
function colour(name) {
    const probe = h("span", { class: "hidden" });
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
}

/** Of an axis by powers of ten, only these are labelled. */
const tens = (_u, splits) => splits.map((each) => (Number.isInteger(Math.round(Math.log10(each) * 1e6) / 1e6) ? each : null));

/** A step or two in which nobody looked is no gap that anybody should see. */
function gaps(u, _series, _from, _to, found) {
    const steps = u.data[0];
    const width = steps.length > 1 ? Math.abs(u.valToPos(steps[1], "x", true) - u.valToPos(steps[0], "x", true)) : 0;
    return found.filter(([from, to]) => to - from > 3.5 * width);
}

function faint(rgb, alpha) {
    const parts = rgb.match(/[\d.]+/g) ?? [0, 0, 0];
    return `rgba(${parts[0]}, ${parts[1]}, ${parts[2]}, ${alpha})`;
}

/** From a tenth of the lowest power of ten to the next power above: so that one slow job doesn't hide all others. */
function decades(low, high) {
    if (!(low > 0) || !(high > 0)) return [1e-3, 1];
    const from = 10 ** Math.floor(Math.log10(low));
    return [from, Math.max(from * 10, 10 ** Math.ceil(Math.log10(high)))];
}

/**
 * A chart. `lines`: `{ label, colour, read(course) }`, `colour` a variable of the style sheet; `format(value)` for axis
 * and legend; `unit` beside the title; `stacked`: each line upon those before; `powers`: of seconds, by powers of ten.
 * Returns `{ element, show(course), wait(), close() }`.
 */
export function chart({ title, unit = "", lines, format, stacked = false, whole = false, powers = false, least = 1 }) {
    const place = h("div", { class: "plot", role: "img", "aria-label": title });
    const values = lines.map(() => h("b", {}, "–"));
    const legend = h("ul", { class: "legend" }, lines.map((line, index) => h("li", {}, h("span", { class: `key ${line.colour}` }), line.label, " ", values[index])));
    const heading = h("h2", {}, title, unit ? h("span", { class: "unit" }, ` ${unit}`) : null);
    const element = h("figure", { class: "chart card" }, h("figcaption", {}, heading, legend), place);
    let made = null;
    let columns = null;

    function options() {
        const { axis, size } = axisOf();
        return {
            width: Math.max(50, place.clientWidth),
            height: place.clientHeight || 190,
            legend: { show: false },
            padding: [8, 12, 0, 0],
            cursor: { sync: { key: SYNC.key }, drag: { x: false, y: false }, points: { size: 5 } },
            scales: { x: { time: true }, y: powers ? { distr: 3, range: (_u, low, high) => decades(low, high) } : { range: (_u, _low, high) => [0, Math.max(least, (high ?? 0) * 1.08)] } },
            axes: [
                { ...axis, size: 2.2 * size, space: 4 * size, values: (_u, splits, _i, _space, step) => splits.map((at) => (step < 60 ? clockSeconds : clockTime).format(at * 1000)) },
                { ...axis, size: 5 * size, space: 30, ...(whole ? { incrs: WHOLE } : {}), ...(powers ? { filter: tens, grid: { ...axis.grid, filter: tens } } : {}), values: (_u, splits) => splits.map((each) => (each === null ? "" : powers && each >= 1 ? `${compact(each)} s` : format(each))) },
            ],
            series: [{}, ...lines.map(series)],
            bands: stacked ? lines.slice(1).map((_, index) => ({ series: [index + 2, index + 1], fill: faint(colour(lines[index + 1].colour), 0.7) })) : [],
            hooks: { setCursor: [say] },
        };
    }

    function series(line, index) {
        const stroke = colour(line.colour);
        const fillFirst = stacked && index === 0 ? faint(stroke, 0.7) : undefined;
        return { stroke, width: stacked ? 1 : 1.5, fill: fillFirst, points: { show: false }, spanGaps: false, gaps };
    }

    function say() {
        const at = made?.cursor.idx ?? null;
        const length = columns?.[0]?.length ?? 0;
        columns?.slice(1).forEach((column, index) => {
            // Without a cursor the last step that is over: the one under way is not all there yet.
            let step = at ?? length - 2;
            if (at === null) while (step > length - 12 && step > 0 && column[step] === null) step -= 1;
            const value = column[step];
            put(values[index], value === null || value === undefined ? "–" : format(value));
        });
        if (at === null) place.setAttribute("aria-label", `${title}: ${lines.map((line, index) => `${line.label} ${values[index].textContent}`).join(", ")}`);
    }

    function stack(found) {
        if (!stacked) return found;
        let below = null;
        return found.map((column) => {
            below = column.map((value, step) => (value === null && !below ? null : (below?.[step] ?? 0) + (value ?? 0)));
            return below;
        });
    }

    function show(course) {
        columns = [course.times.map((at) => at / 1000), ...lines.map((line) => line.read(course))];
        const data = [columns[0], ...stack(columns.slice(1))];
        if (made) made.setData(data);
        else made = new uPlot(options(), data, place);
        place.dataset.points = String(columns[0].length);
        element.classList.remove("waiting");
        say();
    }

    function redraw() {
        if (!made) return;
        const data = made.data;
        made.destroy();
        made = new uPlot(options(), data, place);
    }

    const sized = new ResizeObserver(() => {
        if (made && (made.width !== place.clientWidth || made.height !== place.clientHeight)) made.setSize({ width: Math.max(50, place.clientWidth), height: place.clientHeight });
    });
    sized.observe(place);
    addEventListener("themechange", redraw);

    function end() {
        sized.disconnect();
        removeEventListener("themechange", redraw);
        made?.destroy();
        made = null;
        fill(place);
    }
    /** What is shown is no longer what is asked for. */
    const wait = () => element.classList.add("waiting");
    return { element, show, wait, close: end };
}

/** A chart of plain numbers: `x`, and `lines` of `{ label, values }`. `draw()` once it is in the page. */
export function lineChart({ title, x, lines, format, unit = " s" }) {
    const place = h("div", { class: "plot", role: "img", "aria-label": `${title}: ${lines.map((line) => line.label).join(", ")}` });
    const legend = h("ul", { class: "legend" }, lines.map((line, index) => h("li", {}, h("span", { class: `key plot-${index + 1}` }), line.label)));
    const [name, scale] = title.split(", ");
    const heading = h("h2", {}, name, scale ? h("span", { class: "unit" }, ` ${scale}`) : null);
    const element = h("figure", { class: "chart card" }, h("figcaption", {}, heading, legend), place);
    const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
    let made = null;

    function draw() {
        made?.destroy();
        const { axis, size } = axisOf();
        made = new uPlot({
            width: Math.max(50, place.clientWidth), height: place.clientHeight || 190, legend: { show: false }, padding: [8, 20, 0, 0],
            cursor: { drag: { x: false, y: false } },
            scales: { x: { time: false }, y: { range: (_u, _low, high) => [0, (high ?? 0) * 1.08 || 1] } },
            axes: [{ ...axis, size: 2.2 * size, values: (_u, splits) => splits.map((each) => `${short.format(each)}${unit}`) }, { ...axis, size: 5.2 * size, values: (_u, splits) => splits.map((each) => format(each)) }],
            series: [{}, ...lines.map((_, index) => ({ stroke: colour(`plot-${index + 1}`), width: 1.5, points: { show: false } }))],
        }, [x, ...lines.map((line) => line.values)], place);
        place.dataset.points = String(x.length);
    }

    const sized = new ResizeObserver(() => { if (made && made.width !== place.clientWidth) made.setSize({ width: Math.max(50, place.clientWidth), height: place.clientHeight }); });
    sized.observe(place);
    addEventListener("themechange", draw);
    function close() {
        sized.disconnect();
        removeEventListener("themechange", draw);
        made?.destroy();
        made = null;
    }
    return { element, draw, close };
}
