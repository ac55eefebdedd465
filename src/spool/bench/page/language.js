"use strict";
// uPlot asks for number formats of the browser's language, which in the locale POSIX is one that no format is known for.
try {
    new Intl.NumberFormat(navigator.language);
} catch {
    Object.defineProperty(navigator, "language", { value: "en" });
}
