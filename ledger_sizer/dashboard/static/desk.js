// The dashboard's script. It refreshes the page on events, counts down, and stores the theme. Pages work without it.
"use strict";

(() => {
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];

  function storedTheme() {
    try {
      return themes.includes(localStorage.theme) ? localStorage.theme : "system";
    } catch {
      return "system"; // storage may be forbidden
    }
  }

  // Before the first paint, so that no page flashes in the wrong colours.
  root.dataset.theme = storedTheme();

  document.addEventListener("DOMContentLoaded", () => {
    setUpThemeButton();
    if (document.getElementById("feed")) startLiveUpdates();
  });

  function setUpThemeButton() {
    const button = document.getElementById("theme");
    const show = () => { button.textContent = `Theme: ${root.dataset.theme}`; };
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      root.dataset.theme = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
      try {
        localStorage.theme = root.dataset.theme;
      } catch { /* the theme then lasts until the page is left */ }
      show();
    });
  }

  // What tells a node from its neighbours: its id, or the row it stands for. Empty for all others.
  const keyOf = (node) => node.id || node.dataset?.key || "";

  // Changes a node into `next`, whose nodes it may take. What is the same in both stays the same node, so that focus,
  // selection, scrolled tables and a press under way survive (docs/decisions/0027-dashboard-updates.md).
  function change(node, next) {
    if (node.isEqualNode(next)) return;
    if (node.nodeType !== Node.ELEMENT_NODE) { node.data = next.data; return; }
    for (const { name } of [...node.attributes]) {
      const opened = name === "open" && node.nodeName === "DETAILS"; // by the reader
      if (!next.hasAttribute(name) && !opened) node.removeAttribute(name);
    }
    for (const { name, value } of next.attributes) {
      if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    }
    changeChildren(node, [...next.childNodes]);
  }

  // Matches nodes with a key by it, and the others by their place.
  function changeChildren(parent, wanted) {
    const wantedKeys = new Set(wanted.map(keyOf));
    for (const child of [...parent.children]) if (!wantedKeys.has(keyOf(child))) child.remove();
    const byKey = new Map([...parent.children].filter(keyOf).map((child) => [keyOf(child), child]));
    let at = parent.firstChild;
    for (const next of wanted) {
      const key = keyOf(next);
      const same = key ? byKey.get(key) : at && !keyOf(at) && at.nodeName === next.nodeName ? at : undefined;
      byKey.delete(key);
      if (same === undefined) { parent.insertBefore(next, at); continue; }
      // A node that is moved loses the focus and the press: where it has them, those before it move out of its way.
      const held = key && same.matches(":active, :focus-within");
      while (at !== same && (!keyOf(at) || held)) {
        const before = at;
        at = at.nextSibling;
        if (keyOf(before)) parent.append(before); else before.remove();
      }
      if (at === same) at = at.nextSibling; else parent.insertBefore(same, at);
      change(same, next);
    }
    while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
  }

  function startLiveUpdates() {
    const REFRESH_MS_MIN = 250;
    const REFRESH_MS_MAX = 30_000;
    const ANNOUNCE_MS_MIN = 10_000;
    const PRESS_MS_MAX = 1000;
    let refreshedAt = performance.now();
    let refreshTimer = null;
    let refreshing = false;
    let refreshAgain = false;
    let announcedAt = -ANNOUNCE_MS_MIN;
    let lastSpoken = spokenSummary();

    function showFeed(state, words) {
      document.getElementById("feed").dataset.state = state;
      document.getElementById("feed-words").textContent = words;
    }

    // Refreshes soon, but not more often than a person can read.
    function scheduleRefresh() {
      if (document.hidden) { refreshAgain = true; return; }
      if (refreshing) { refreshAgain = true; return; }
      if (refreshTimer === null) {
        refreshTimer = setTimeout(refresh, Math.max(0, refreshedAt + REFRESH_MS_MIN - performance.now()));
      }
    }

    async function refresh() {
      clearTimeout(refreshTimer);
      refreshTimer = null;
      refreshing = true;
      refreshAgain = false;
      try {
        const response = await fetch(location.pathname + location.search, { credentials: "same-origin", cache: "no-store" });
        if (response.redirected) { location.reload(); return; } // signed out
        if (!response.ok) throw new Error(`the service answered ${response.status}`);
        const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
        await pressEnds();
        refreshedAt = performance.now();
        update(fresh);
        showFeed(source.readyState === EventSource.OPEN ? "live" : "lost", source.readyState === EventSource.OPEN ? "live" : "reconnecting, as of");
      } catch {
        showFeed("lost", "no answer, as of");
      } finally {
        refreshing = false;
        if (refreshAgain) scheduleRefresh();
      }
    }

    // Waits while a button or finger is down, at most PRESS_MS_MAX: what is pressed must not move to another place.
    async function pressEnds() {
      const end = performance.now() + PRESS_MS_MAX;
      while (root.matches(":active") && performance.now() < end) await new Promise((done) => setTimeout(done, 20));
    }

    function update(fresh) {
      const focused = document.activeElement;
      const home = focused && focused.closest("[data-live]");
      for (const section of document.querySelectorAll("[data-live]")) {
        const next = fresh.getElementById(section.id);
        if (next === null) { location.reload(); return; } // the page has other sections now
        if (!hasSelection(section)) change(section, next);
      }
      if (fresh.querySelectorAll("[data-live]").length !== document.querySelectorAll("[data-live]").length) location.reload();
      change(document.getElementById("read-at"), fresh.getElementById("read-at"));
      document.title = fresh.title;
      if (home && !document.contains(focused)) home.querySelector("[tabindex]")?.focus({ preventScroll: true });
      updateCountdowns();
      announce();
    }

    // A section with selected text is not changed: somebody may be copying figures.
    function hasSelection(section) {
      const selection = getSelection();
      return selection.type === "Range" && section.contains(selection.anchorNode);
    }

    function spokenSummary() {
      const name = document.getElementById("sum-title");
      if (name === null) return { status: "", words: "" };
      const sum = document.getElementById("sum");
      const figure = [...sum.querySelectorAll("dl div")].slice(0, 3).map((one) => `${one.children[0].textContent} ${one.children[1].textContent}`);
      const status = sum.querySelector(".status").textContent;
      const last = document.querySelector("#decisions .words");
      return { status, words: `${name.textContent} ${status}. ${figure.join(", ")}. ${last ? `Last decision: ${last.textContent}.` : ""}` };
    }

    // Tells screen readers what is new: a new status at once, anything else at most every ten seconds.
    function announce() {
      const now = spokenSummary();
      const urgent = now.status !== lastSpoken.status;
      if (now.words === lastSpoken.words || (!urgent && performance.now() - announcedAt < ANNOUNCE_MS_MIN)) return;
      document.getElementById("announcement").textContent = now.words;
      announcedAt = performance.now();
      lastSpoken = now;
    }

    function updateCountdowns() {
      const elapsed = (performance.now() - refreshedAt) / 1000;
      for (const cell of document.querySelectorAll("[data-left]")) {
        const left = Math.max(Number(cell.dataset.left) - elapsed, 0);
        const words = duration(left);
        if (cell.textContent !== words) cell.textContent = words;
        cell.classList.toggle("soon", left < 10);
      }
      if (!document.hidden && performance.now() - refreshedAt > REFRESH_MS_MAX) scheduleRefresh();
    }

    // As `formatting.duration` on the server.
    function duration(seconds) {
      const whole = Math.floor(seconds);
      const two = (value) => String(value).padStart(2, "0");
      if (whole < 60) return `${whole} s`;
      if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
      if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
      return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
    }

    const source = new EventSource("/v1/events");
    source.addEventListener("open", () => { showFeed("live", "live"); scheduleRefresh(); });
    source.addEventListener("decision", scheduleRefresh);
    source.addEventListener("reconciliation", scheduleRefresh);
    source.addEventListener("error", () => { showFeed("lost", "reconnecting, as of"); setTimeout(scheduleRefresh, 1000); });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) scheduleRefresh(); });
    setInterval(updateCountdowns, 250);
    addEventListener("pagehide", () => source.close());
  }
})();
