"""Accessibility checks as one JavaScript function. It runs in the page and returns a list of problems.

It checks names of controls and images, order of headings, one main landmark, table headers with a scope, unique ids,
text contrast (WCAG AA: 4.5 to 1, 3 to 1 for large text), size of touch targets, and no horizontal scrolling.
"""

PROBLEMS_OF_PAGE = """() => {
  const found = [];
  const visible = (element) => element.getClientRects().length > 0;
  const all = (selector) => [...document.querySelectorAll(selector)].filter(visible);
  const describe = (element) => element.outerHTML.slice(0, 120);

  const accessibleName = (element) => {
    const labelledby = element.getAttribute("aria-labelledby");
    const label = element.labels && element.labels.length ? element.labels[0].textContent : "";
    const by = labelledby ? document.getElementById(labelledby)?.textContent : "";
    return (element.getAttribute("aria-label") || by || label || element.textContent || "").trim();
  };
  for (const element of all("a, button, input:not([type=hidden]), svg[role=img], section, nav, [role=region]")) {
    if (!accessibleName(element)) found.push(`no name: ${describe(element)}`);
  }

  if (document.documentElement.lang !== "en") found.push("no language");
  if (!document.title) found.push("no title");
  if (all("main").length !== 1) found.push("not one main");
  if (all("header").length !== 1) found.push("no header");
  if (all("h1").length !== 1) found.push(`${all("h1").length} headings of level 1`);
  let level = 0;
  for (const heading of all("h1, h2, h3, h4")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) found.push(`heading skips a level: ${describe(heading)}`);
    level = own;
  }

  for (const table of all("table")) {
    const heads = [...table.querySelectorAll("thead th")];
    if (!heads.length || heads.some((head) => head.scope !== "col" || !head.textContent.trim())) {
      found.push(`table without headers: ${describe(table)}`);
    }
    for (const row of table.querySelectorAll("tbody tr")) {
      if (row.children.length !== heads.length) found.push(`cells without a header: ${describe(row)}`);
      if (row.querySelectorAll("th[scope=row]").length !== 1) found.push(`row without a header: ${describe(row)}`);
    }
  }

  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of ids.filter((one, index) => ids.indexOf(one) !== index)) found.push(`id used twice: ${id}`);
  for (const element of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
    for (const name of ["aria-labelledby", "aria-describedby"]) {
      const id = element.getAttribute(name);
      if (id && !document.getElementById(id)) found.push(`${name} leads nowhere: ${id}`);
    }
  }

  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([red, green, blue]) => {
    const part = (value) => { const c = value / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(red) + 0.7152 * part(green) + 0.0722 * part(blue);
  };
  const background = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = channels(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  for (const element of all("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("svg, .unseen, .skip, pre")) continue;
    const style = getComputedStyle(element);
    const [one, two] = [luminance(channels(style.color)), luminance(background(element))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    const size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    if (ratio < needed) found.push(`contrast ${ratio.toFixed(2)} of ${describe(element)}`);
  }

  if (innerWidth < 640) {
    for (const element of all("button, .button")) {
      if (element.getBoundingClientRect().height < 24) found.push(`too small to touch: ${describe(element)}`);
    }
  }
  if (document.documentElement.scrollWidth > innerWidth) {
    found.push(`the page is ${document.documentElement.scrollWidth} wide on a screen of ${innerWidth}`);
  }
  return found;
}"""
