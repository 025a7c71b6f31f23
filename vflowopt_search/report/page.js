"use strict";
const root = document.documentElement;
const touch = matchMedia("(hover: none)").matches;
const dark = matchMedia("(prefers-color-scheme: dark)");
const all = (selector) => [...document.querySelectorAll(selector)];

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

// Names of columns that have no room are left out evenly; hovering says them all.
function thinned(axis, width) {
  if (!axis.ticktext) return axis;
  const letters = Math.max(...axis.ticktext.map((text) => String(text).length));
  const step = Math.ceil(axis.tickvals.length * (9 + 7 * letters) / Math.max(width, 1));
  const some = (values) => values.filter((_, place) => place % step === 0);
  return { ...axis, tickvals: some(axis.tickvals), ticktext: some(axis.ticktext) };
}

function themed(layout, width) {
  const ink = colour("--ink"), line = colour("--line"), card = colour("--card");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, fixedrange: touch };
  const narrow = root.clientWidth < 640;
  return {
    ...layout,
    width,
    dragmode: touch ? false : "zoom",  // on a phone a finger scrolls the page
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { ...layout.font, color: ink, size: narrow ? 11 : layout.font.size },
    hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink } },
    annotations: layout.annotations?.map((each) => ({ ...each, bgcolor: card })),
    xaxis: { ...thinned(layout.xaxis, width - 90), ...axis },
    yaxis: { ...layout.yaxis, ...axis },
  };
}

// Of what is shown, draw what is not drawn yet or was drawn at another width.
function draw() {
  for (const div of all(".plot")) {
    const width = div.clientWidth;
    if (!window.Plotly || !width || div.dataset.width === String(width)) continue;
    const figure = JSON.parse(document.getElementById(div.id + "-data").textContent);
    Plotly.react(div, figure.data, themed(figure.layout, width), { displayModeBar: false });
    div.dataset.width = width;
  }
}

// The colours have changed: what is hidden now is drawn again when it is shown.
function redraw() {
  for (const div of all(".plot")) delete div.dataset.width;
  draw();
}

// What was chosen lives in the address (#tab or #tab/run), so that it can be passed on.
function show(tab, run) {
  const pick = document.getElementById("run");
  if (pick) {
    pick.value = run;
    pick.parentElement.hidden = tab === "compare";
  }
  for (const button of all("nav button")) {
    const runs = [run, "all"].map((each) => `panel-${button.dataset.tab}-${each}`);
    button.setAttribute("aria-controls", runs.filter((id) => document.getElementById(id)).join(" "));
    button.setAttribute("aria-selected", button.dataset.tab === tab);
    button.tabIndex = button.dataset.tab === tab ? 0 : -1;
  }
  for (const panel of all(".panel")) {
    const here = panel.dataset.tab === tab && ["all", run].includes(panel.dataset.run);
    panel.classList.toggle("shown", here);
  }
  draw();
}

function chosen() {
  const tabs = all("nav button").map((button) => button.dataset.tab);
  const runs = all("#run option").map((option) => option.value);
  const [tab, run] = location.hash.slice(1).split("/");
  return [tabs.includes(tab) ? tab : tabs[0], runs.includes(run) ? run : "0"];
}

function go(tab, run) {
  history.replaceState(null, "", "#" + tab + (run === "0" ? "" : "/" + run));
  show(tab, run);
}

function setTheme(name) {
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  for (const button of all(".theme button")) {
    button.setAttribute("aria-pressed", button.dataset.choose === name);
  }
  try { localStorage.setItem("vflowopt-theme", name); } catch { /* a page from a file may not */ }
  redraw();
}

function storedTheme() {
  try { return localStorage.getItem("vflowopt-theme") || "auto"; } catch { return "auto"; }
}

async function unpack() {
  const packed = Uint8Array.from(
    atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

root.classList.add("js");
for (const button of all("nav button")) {
  button.addEventListener("click", () => go(button.dataset.tab, chosen()[1]));
  button.addEventListener("keydown", (event) => {
    const buttons = all("nav button"), last = buttons.length - 1, here = buttons.indexOf(button);
    const there = { ArrowRight: here < last ? here + 1 : 0, ArrowLeft: here > 0 ? here - 1 : last,
      Home: 0, End: last }[event.key];
    if (there === undefined) return;
    event.preventDefault();  // Home and End would scroll
    const next = buttons[there];
    next.focus();
    next.click();
  });
}
for (const button of all(".theme button")) {
  button.addEventListener("click", () => setTheme(button.dataset.choose));
}
document.getElementById("run")?.addEventListener("change", (event) => {
  go(chosen()[0], event.target.value);
});
window.addEventListener("beforeprint", () => {
  root.classList.add("printing");
  redraw();
});
window.addEventListener("afterprint", () => {
  root.classList.remove("printing");
  redraw();
});
window.addEventListener("hashchange", () => show(...chosen()));
dark.addEventListener("change", redraw);
new ResizeObserver(() => requestAnimationFrame(draw)).observe(document.querySelector("main"));
setTheme(storedTheme());
show(...chosen());
unpack().then(draw, () => {
  for (const div of all(".plot")) div.textContent = "This browser is too old to draw the figures.";
}).finally(() => { root.dataset.ready = "yes"; });
