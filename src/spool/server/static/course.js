// The course of things: what the server keeps of the last minutes or hours, prolonged by the live stream.

import { get } from "./api.js";
import { live } from "./live.js";

export const RANGES = [[300, "5 min"], [900, "15 min"], [3600, "1 h"], [21_600, "6 h"], [86_400, "24 h"]];
const SECOND = 1000;

/** Put the last steps of a course into another: those that are there anew, those that are not at the end. */
export function prolong(course, tail) {
    const last = course.times.at(-1);
    const first = course.times[0];
    if (tail.times[0] > last + course.step) return false;
    const length = course.times.length;
    tail.times.forEach((at, index) => {
        if (at < first) return;
        const place = (at - first) / course.step;
        walk(course, tail, (mine, theirs) => { mine[place] = theirs[index]; });
        course.times[place] = at;
    });
    const extra = course.times.length - length;
    if (extra > 0) {
        walk(course, tail, (mine) => mine.splice(0, extra));
        course.times.splice(0, extra);
    }
    return true;
}

function walk(mine, theirs, change) {
    for (const [key, value] of Object.entries(theirs)) {
        if (key === "times" || !Object.hasOwn(mine, key)) continue;
        if (Array.isArray(value)) change(mine[key], value);
        else walk(mine[key], value, change);
    }
}

/**
 * Follow a course. `show(course)` is called with each state of it, `fail(error)` if it cannot be had. Steps of a second
 * come with the stream, where that is of the same queue; longer ones are asked for when a step may be over.
 */
export class Course {
    constructor(range, queue, streamed, show, fail) {
        this.range = range;
        this.queue = queue;
        this.streamed = streamed;
        this.show = show;
        this.fail = fail;
        this.course = null;
        this.control = new AbortController();
        this.timer = 0;
        this.load();
    }

    async load() {
        clearTimeout(this.timer);
        let wait = 5000;
        try {
            const course = await get("/api/v1/metrics/history", { range: this.range, queue: this.queue }, { signal: this.control.signal });
            if (this.control.signal.aborted) return;
            this.course = course;
            this.show(course);
            if (course.step === SECOND && this.streamed) wait = 0;
            else wait = Math.max(wait, course.step / 4);
        } catch (error) {
            if (this.control.signal.aborted) return;
            this.fail(error);
        }
        if (wait) this.timer = setTimeout(() => this.load(), wait);
    }

    /** Take what the stream has; returns whether there was anything to take. */
    take() {
        const tail = live.state?.tail;
        if (!tail || !this.course || this.course.step !== SECOND || !this.streamed) return false;
        if (prolong(this.course, tail)) this.show(this.course);
        else {
            this.course = null;
            this.load();
        }
        return true;
    }

    close() {
        this.control.abort();
        clearTimeout(this.timer);
    }
}
