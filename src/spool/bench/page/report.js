"use strict";
// Draws the plots whose data the page holds, in the colours of its style sheet, as wide as there is room.

const plots = JSON.parse(document.getElementById("plots").textContent);
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const exact = new Intl.NumberFormat("en", { maximumSignificantDigits: 6 });
const HEIGHT = 240;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isPowerOf10 = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9;
// A tail's x is one over the share that is beyond: 1 is no share at all, 10 is 90 %, 1000 is 99.9 %.
const percent = (x) => `${+(100 * (1 - 1 / x)).toPrecision(Math.max(2, Math.ceil(Math.log10(x)) + 1))} %`;

function xScale(plot) {
    if (plot.x_scale === "linear") return { time: false };
    return { time: false, distr: 3, range: (_, low, high) => [low, high > low ? high : low * 10] };
}

function yScale(plot) {
    if (plot.y_scale === "log") return { distr: 3 };
    return { range: (_, __, high) => [0, high > 0 ? high * 1.05 : 1] };
}

function tailTicks(u) {
    const wide = u.width > 440;
    const ticks = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((each) => each <= u.scales.x.max * 1.001);
    if (wide) return [1, 2, ...ticks.slice(1)];
    return ticks.filter((_, index) => ticks.length < 6 || index % 2 === 0);
}

function axis(plot, side, label) {
    const [text, line] = [colour("--soft"), colour("--line")];
    const made = {
        label, stroke: text, labelSize: 20, labelFont: "12px system-ui, sans-serif", font: "12px system-ui, sans-serif",
        grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 },
        values: (_, splits) => splits.map((each) => (each === null ? "" : short.format(each))),
    };
    if (side === "x") made.size = 34;
    else made.size = 52;
    const scale = side === "x" ? plot.x_scale : plot.y_scale;
    if (scale !== "linear") {
        made.filter = (_, splits) => {
            const few = splits.filter((each) => each && isPowerOf10(each)).length < 2;
            return splits.map((each) => (each && (few || isPowerOf10(each)) ? each : null));
        };
        made.grid.filter = made.ticks.filter = made.filter;
    }
    if (scale === "tail") {
        made.splits = tailTicks;
        made.filter = made.grid.filter = made.ticks.filter = (_, splits) => splits;
        made.values = (_, splits) => splits.map(percent);
    }
    if (plot.x_ticks.length && side === "x") {
        made.splits = () => plot.x_ticks;
        made.filter = made.grid.filter = made.ticks.filter = (_, splits) => splits;
    }
    return made;
}

function line(plot, made, index) {
    const stroke = colour(`--plot-${index + 1}`);
    const shown = {
        label: made.label, stroke, width: 1.5, spanGaps: made.style === "points",
        value: (_, value) => (value === null ? "–" : exact.format(value)),
        points: { show: made.style === "points", size: 7, fill: stroke },
    };
    if (made.style === "steps") {
        shown.paths = uPlot.paths.stepped({ align: -1 });
        shown.fill = `${stroke}22`;
    }
    if (made.style === "law") shown.dash = [6, 4];
    return shown;
}

function draw(plot) {
    const place = document.getElementById(plot.id);
    const x = {
        label: plot.x_label,
        value: (_, value) => (value === null ? "–" : plot.x_scale === "tail" ? percent(value) : exact.format(value)),
    };
    const options = {
        width: place.clientWidth, height: HEIGHT,
        scales: { x: xScale(plot), y: yScale(plot) },
        axes: [axis(plot, "x", plot.x_label), axis(plot, "y", plot.y_label)],
        series: [x, ...plot.lines.map((each, index) => line(plot, each, index))],
        padding: [10, 16, 0, 0],
    };
    const made = new uPlot(options, [plot.x, ...plot.lines.map((each) => each.values)], place);
    place.dataset.points = plot.lines.map((each) => each.values.filter((value) => value !== null).length).join(" ");
    return made;
}

let drawn = [];

function drawAll() {
    for (const each of drawn) each.destroy();
    drawn = plots.map(draw);
}

drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("resize", () => {
    drawn.forEach((each, index) => {
        each.setSize({ width: document.getElementById(plots[index].id).clientWidth, height: HEIGHT });
    });
});
