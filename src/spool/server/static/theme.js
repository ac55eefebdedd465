"use strict";
// Before anything is drawn, so that nobody who chose dark is dazzled. Nothing chosen: as the system has it.
try {
    const chosen = localStorage.getItem("spool-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
    // A browser may keep its storage to itself.
}
