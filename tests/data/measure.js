// Looks at a page in a frame, from outside of it, and writes what it found into <pre id="findings"> as JSON.
// The page has no script of its own, and must have none: whatever ran in it set `pwned` here.
function measure(frame, sabotage) {
  const page = frame.contentDocument, root = page.documentElement, found = { problems: [] };
  const problem = (what, element) => found.problems.push(what + ": " + (element ? element.outerHTML.slice(0, 300) : ""));
  page.querySelectorAll("details").forEach((d) => { d.open = true; });
  if (sabotage === "overlap") {
    const [a, b] = page.querySelectorAll("svg.plot text.tick");
    for (const name of ["x", "y", "text-anchor"]) b.setAttribute(name, a.getAttribute(name));
  } else if (sabotage === "cut") {
    page.querySelector("svg.plot text.caption").textContent += "x".repeat(90);
  } else if (sabotage === "unmarked") {
    page.querySelector(".legend li .mark").remove();
  } else if (sabotage === "wide") {
    page.querySelector("svg.plot").style.width = frame.clientWidth + 50 + "px";
  }
  const width = frame.clientWidth;
  if (root.scrollWidth > width) problem("the page is wider than its window, " + root.scrollWidth + " of " + width);
  const inside = (a, b, room) =>
    a.left >= b.left - room && a.right <= b.right + room && a.top >= b.top - room && a.bottom <= b.bottom + room;
  for (const svg of page.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    if (!(box.width > 0 && box.height > 0)) problem("a picture without a size", svg);
    // The table of ratios is scrolled where it is wider than the page.
    if (!svg.closest(".wide") && (box.left < 0 || box.right > width)) problem("a picture beyond the page", svg);
    const texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim() !== "");
    const boxes = texts.map((t) => t.getBoundingClientRect());
    texts.forEach((text, n) => {
      if (!inside(boxes[n], box, 0.6)) problem("a text is cut off", text);
      for (let m = 0; m < n; m++) {
        const a = boxes[n], b = boxes[m];
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        // Lines of text may touch by their line height.
        if (across > 0.5 && down > 2.5) problem("texts overlap, “" + texts[m].textContent + "” and", text);
      }
    });
    for (const mark of svg.querySelectorAll("g.point .mark, g.failed .cross")) {
      if (!inside(mark.getBoundingClientRect(), box, 1)) problem("a mark is cut off", mark);
    }
  }
  found.entries = 0;
  for (const entry of page.querySelectorAll(".legend li:not(.none)")) {
    found.entries += 1;
    const mark = entry.querySelector("svg.swatch .mark"), key = entry.querySelector("svg.swatch .key");
    const box = mark && mark.getBoundingClientRect();
    if (!box || !(box.width > 2 && box.height > 2)) { problem("an entry of a legend without a mark", entry); continue; }
    const colour = [...key.classList].find((c) => /^k\d+$/.test(c));
    const figure = entry.closest("figure");
    if (!figure.querySelector(`g.point.${colour}, g.failed.${colour}`)) problem("an entry of nothing", entry);
    const drawn = getComputedStyle(mark).fill, paper = getComputedStyle(page.body).backgroundColor;
    if (drawn === paper || drawn === "none" || drawn === "rgba(0, 0, 0, 0)") problem("a mark that is not seen", entry);
  }
  const count = (what) => page.querySelectorAll(what).length;
  found.points = count(".plots g.point");
  found.failed = count(".plots g.failed");
  found.plots = count("svg.plot");
  found.hover = [...page.querySelectorAll(".plots g.point, .plots g.failed")]
    .filter((g) => g.firstElementChild && g.firstElementChild.tagName === "title" && g.textContent.trim() !== "").length;
  found.unlabelled = [...page.querySelectorAll("svg.plot")]
    .filter((s) => s.getAttribute("role") !== "img" || !s.getAttribute("aria-label")).length;
  found.names = [...new Set([...page.querySelectorAll("*")].map((e) => e.tagName.toLowerCase()))].sort();
  found.attributes = [...new Set([...page.querySelectorAll("*")].flatMap((e) => e.getAttributeNames()))].sort();
  found.paper = getComputedStyle(page.body).backgroundColor;
  found.text = page.body.innerText;
  found.title = page.title;
  found.pwned = window.pwned === true;
  const text = JSON.stringify(found).replace(/[&<>\u007f-\uffff]/g, (c) =>
    "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  document.getElementById("findings").textContent = text;
}
