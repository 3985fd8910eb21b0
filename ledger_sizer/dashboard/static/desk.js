// The dashboard's script. The page is whole without it; this keeps it live, counts down, and remembers the theme.
"use strict";

(() => {
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];

  function stored() {
    try {
      return themes.includes(localStorage.theme) ? localStorage.theme : "system";
    } catch {
      return "system"; // storage may be forbidden
    }
  }

  // Before the first paint, so that no page flashes in the wrong colours.
  root.dataset.theme = stored();

  document.addEventListener("DOMContentLoaded", () => {
    themeButton();
    if (document.getElementById("feed")) live();
  });

  function themeButton() {
    const button = document.getElementById("theme");
    const show = () => { button.textContent = `Theme: ${root.dataset.theme}`; };
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      root.dataset.theme = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
      try {
        localStorage.theme = root.dataset.theme;
      } catch { /* it then lasts as long as the page */ }
      show();
    });
  }

  function live() {
    const REFRESH_MS_MIN = 250;
    const REFRESH_MS_MAX = 30_000;
    const ANNOUNCE_MS_MIN = 10_000;
    let shownAt = performance.now();
    let waiting = null;
    let refreshing = false;
    let again = false;
    let announcedAt = -ANNOUNCE_MS_MIN;
    let spoken = heard();

    function feed(state, words) {
      document.getElementById("feed").dataset.state = state;
      document.getElementById("feed-words").textContent = words;
    }

    // Something was decided: look again, but not more often than a person can read.
    function changed() {
      if (document.hidden) { again = true; return; }
      if (refreshing) { again = true; return; }
      if (waiting === null) {
        waiting = setTimeout(refresh, Math.max(0, shownAt + REFRESH_MS_MIN - performance.now()));
      }
    }

    async function refresh() {
      clearTimeout(waiting);
      waiting = null;
      refreshing = true;
      again = false;
      try {
        const answer = await fetch(location.pathname + location.search, { credentials: "same-origin", cache: "no-store" });
        if (answer.redirected) { location.reload(); return; } // signed out
        if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
        show(new DOMParser().parseFromString(await answer.text(), "text/html"));
        shownAt = performance.now();
        feed(source.readyState === EventSource.OPEN ? "live" : "lost", source.readyState === EventSource.OPEN ? "live" : "reconnecting, as of");
      } catch {
        feed("lost", "no answer, as of");
      } finally {
        refreshing = false;
        if (again) changed();
      }
    }

    function show(fresh) {
      const focused = document.activeElement;
      const held = focused && focused.closest("[data-live]") ? focusOf(focused) : null;
      for (const section of document.querySelectorAll("[data-live]")) {
        const next = fresh.getElementById(section.id);
        if (next === null) { location.reload(); return; } // the page has other parts now
        if (next.innerHTML !== section.innerHTML && !selecting(section)) section.replaceChildren(...next.childNodes);
      }
      if (fresh.querySelectorAll("[data-live]").length !== document.querySelectorAll("[data-live]").length) location.reload();
      document.getElementById("read-at").replaceWith(fresh.getElementById("read-at"));
      document.title = fresh.title;
      if (held && !document.contains(focused)) held()?.focus({ preventScroll: true });
      announce();
    }

    // A person who marks figures to copy them must not lose them.
    function selecting(section) {
      const selection = getSelection();
      return selection.type === "Range" && section.contains(selection.anchorNode);
    }

    // How to find again what had the keyboard: its id, its address, or its section's scrollable table.
    function focusOf(element) {
      const section = element.closest("[data-live]").id;
      const address = element.getAttribute("href");
      const label = element.getAttribute("aria-label");
      return () => {
        const home = document.getElementById(section);
        if (element.id) return document.getElementById(element.id);
        const all = [...home.querySelectorAll("a, [tabindex]")];
        return all.find((one) => address ? one.getAttribute("href") === address : one.getAttribute("aria-label") === label) || home.querySelector("[tabindex]");
      };
    }

    function heard() {
      const name = document.getElementById("sum-title");
      if (name === null) return { status: "", words: "" };
      const sum = document.getElementById("sum");
      const figure = [...sum.querySelectorAll("dl div")].slice(0, 3).map((one) => `${one.children[0].textContent} ${one.children[1].textContent}`);
      const status = sum.querySelector(".status").textContent;
      const last = document.querySelector("#decisions .words");
      return { status, words: `${name.textContent} ${status}. ${figure.join(", ")}. ${last ? `Last decision: ${last.textContent}.` : ""}` };
    }

    // For a screen reader: what is new, at most every ten seconds; a halt at once.
    function announce() {
      const now = heard();
      const urgent = now.status !== spoken.status;
      if (now.words === spoken.words || (!urgent && performance.now() - announcedAt < ANNOUNCE_MS_MIN)) return;
      document.getElementById("announcement").textContent = now.words;
      announcedAt = performance.now();
      spoken = now;
    }

    function countDown() {
      const gone = (performance.now() - shownAt) / 1000;
      for (const cell of document.querySelectorAll("[data-left]")) {
        const left = Math.max(Number(cell.dataset.left) - gone, 0);
        const words = duration(left);
        if (cell.textContent !== words) cell.textContent = words;
        cell.classList.toggle("soon", left < 10);
      }
      if (!document.hidden && performance.now() - shownAt > REFRESH_MS_MAX) changed();
    }

    // As `figures.duration` on the server.
    function duration(seconds) {
      const whole = Math.floor(seconds);
      const two = (value) => String(value).padStart(2, "0");
      if (whole < 60) return `${whole} s`;
      if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
      if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
      return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
    }

    const source = new EventSource("/v1/events");
    source.addEventListener("open", () => { feed("live", "live"); changed(); });
    source.addEventListener("decision", changed);
    source.addEventListener("reconciliation", changed);
    source.addEventListener("error", () => { feed("lost", "reconnecting, as of"); setTimeout(changed, 1000); });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) changed(); });
    setInterval(countDown, 250);
    addEventListener("pagehide", () => source.close());
  }
})();
