"use strict";
/* Draws the panels of the report when they come into view, and shows the settings that the filter and the chips leave. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tags = [...document.querySelectorAll(".tag")];
  const chips = [...document.querySelectorAll(".chip")];
  const off = new Set(); /* settings switched off by their chip */
  const plots = [...document.querySelectorAll(".plot")];
  const stale = new Set(plots); /* not drawn as things are now */
  const near = new Set(); /* in view, or almost */
  const filter = document.getElementById("filter");
  const spread = document.getElementById("spread");
  const logarithmic = document.getElementById("logarithmic");
  const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";
  const AXIS = { automargin: true, showline: true, zeroline: false, ticks: "outside", ticklen: 4, exponentformat: "power" };
  const CONFIG = { displaylogo: false, displayModeBar: "hover", responsive: true,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  /* Between powers of ten plotly leaves the unit out: 200k for 200kB. */
  const BYTES = Object.fromEntries(["", "k", "M", "G", "T"].flatMap((power) => [1, 10, 100].flatMap((ten) =>
    [1, 2, 3, 4, 5, 6, 7, 8, 9].map((digit) => [`${digit * ten}${power}`, `${digit * ten}${power}B`]))));
  const NIGHT = [[0, "#15181b"], [0.25, "#16344a"], [0.6, "#2f7fb8"], [1, "#cfe8fa"]]; /* shades on a dark page */
  const PLACE = `fedjax8:${location.pathname}`;
  const SWITCHED = ["metric-bytes", "front"]; /* whose axis of bytes may be logarithmic */

  /* What a browser may refuse to pages from disk: a choice that outlives the page, or its next loading. */
  function remembered(store, value) {
    try {
      if (value !== undefined) window[store].setItem(PLACE, JSON.stringify(value));
      return JSON.parse(window[store].getItem(PLACE)) || {};
    } catch { return {}; }
  }

  /* The page's colors as they are now; CSS decides which of two each is. */
  function colors() {
    const probe = document.createElement("span");
    document.body.append(probe);
    const found = {};
    for (const name of ["paper", "ink", "rule", "grid"]) {
      probe.style.color = `var(--${name})`;
      found[name] = getComputedStyle(probe).color;
    }
    probe.remove();
    const [red, green, blue] = found.paper.match(/[\d.]+/g).map(Number);
    return { ...found, dark: red + green + blue < 384 };
  }

  /* A figure with what would be black on a dark page in its ink. */
  function fit(figure, now) {
    if (!now.dark) return figure;
    const seen = JSON.parse(JSON.stringify(figure).replace(/"#333(333)?"/g, JSON.stringify(now.ink)));
    for (const trace of seen.data) if (trace.colorscale) trace.colorscale = NIGHT;
    return seen;
  }

  async function load() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  /* Settings shown: those with all words of the filter and none of its -words, and not switched off. */
  function shown() {
    const words = filter.value.toLowerCase().split(/\s+/).filter((word) => word && word !== "-");
    const has = (text) => words.every((w) => (w[0] === "-" ? !text.includes(w.slice(1)) : text.includes(w)));
    return data.search.map((text) => has(text));
  }

  const visible = (trace, there) => trace.meta === undefined || there[trace.meta];

  /* The band of a line, mean - spread to mean + spread; nothing for a single seed. */
  function band(line) {
    const xs = [], high = [], low = [];
    const steps = line.line.shape === "vh";
    line.x.forEach((x, k) => {
      const [s] = line.customdata[k];
      if (s === null) return;
      if (steps && xs.length) { xs.push(xs[xs.length - 1]); high.push(line.y[k] + s); low.push(line.y[k] - s); }
      xs.push(x); high.push(line.y[k] + s); low.push(line.y[k] - s);
    });
    if (!xs.length) return null;
    return { type: "scatter", mode: "lines", x: [...xs, ...xs.slice().reverse()], y: [...high, ...low.reverse()],
      fill: "toself", fillcolor: line.line.color, opacity: 0.15, line: { width: 0 }, hoverinfo: "skip", meta: line.meta,
      band: true };
  }

  /* Pareto front: walking from few bytes to many, those that are better than all before. */
  function front(traces, there) {
    const points = traces.filter((t) => t.meta !== undefined && there[t.meta]);
    const score = (p) => (data.lower ? -p.y[0] : p.y[0]);
    points.sort((a, b) => a.x[0] - b.x[0] || score(b) - score(a));
    let best = -Infinity;
    return new Set(points.filter((p) => {
      const better = score(p) > best;
      best = Math.max(best, score(p));
      return better;
    }));
  }

  function traces(name, figure, there) {
    const lines = figure.data;
    if (name === "front") {
      const kept = front(lines, there);
      const order = [...kept];
      return lines.map((t) => t.meta === undefined
        ? { ...t, x: order.map((p) => p.x[0]), y: order.map((p) => p.y[0]) }
        : { ...t, visible: there[t.meta], marker: { ...t.marker, symbol: kept.has(t) ? "circle" : "circle-open" } });
    }
    const bands = spread.checked ? lines.filter((t) => t.customdata && t.mode && t.mode.startsWith("lines")).map(band) : [];
    return [...bands.filter(Boolean), ...lines].map((t) => ({ ...t, visible: visible(t, there) }));
  }

  /* Labels of a logarithmic axis: powers of ten if values spread wide, else 1, 2, 5, 10; plotly's choice if hardly. */
  function steps(figure, way) {
    const guides = figure.layout.shapes || [];
    const values = [...figure.data.flatMap((t) => t[way]), ...guides.map((g) => g[`${way}0`])].filter((value) => value > 0);
    const ratio = Math.max(...values) / Math.min(...values);
    return ratio >= 1000 ? 1 : ratio >= 5 ? "D2" : undefined;
  }

  function layout(name, figure, now) {
    const given = figure.layout;
    const lines = { gridcolor: now.grid, linecolor: now.rule, tickcolor: now.rule };
    const own = { ...AXIS, ...lines, ...given.xaxis };
    const font = { family: FONT, size: 12.5, color: now.ink };
    if (SWITCHED.includes(name)) own.type = logarithmic.checked ? "log" : "linear";
    const up = { ...AXIS, ...lines, ...given.yaxis };
    if (own.type === "log") own.dtick = steps(figure, "x");
    if (own.ticksuffix === "B") own.labelalias = BYTES;
    if (up.type === "log") up.dtick = steps(figure, "y");
    return { ...given, xaxis: { ...own, title: { standoff: 8, ...own.title } }, yaxis: up, showlegend: Boolean(given.showlegend),
      hovermode: "closest", margin: { l: 62, r: 16, t: 24, b: 52 }, paper_bgcolor: now.paper, plot_bgcolor: now.paper,
      font, autosize: true, hoverlabel: { bgcolor: now.paper, bordercolor: now.rule, font, align: "left" } };
  }

  function draw(plot) {
    const figures = data.panels[plot.dataset.panel];
    const choice = plot.parentElement.querySelector("select");
    const now = colors();
    const figure = fit(figures[choice ? choice.value : Object.keys(figures)[0]], now);
    const name = plot.dataset.panel;
    const options = { ...CONFIG, toImageButtonOptions: { format: "svg", filename: `fedjax8-${name}` } };
    const fact = plot.parentElement.querySelector(".fact");
    if (fact) fact.textContent = figure.layout.meta || "";
    stale.delete(plot);
    return Plotly.react(plot, traces(name, figure, current), layout(name, figure, now), options);
  }

  const drawStale = (among) => Promise.all([...among].filter((plot) => stale.has(plot)).map(draw));

  let current = [];
  function update() {
    const found = shown();
    current = found.map((there, i) => there && !off.has(i));
    const count = current.filter(Boolean).length;
    document.getElementById("shown").textContent = `${count} of ${current.length} setting${current.length > 1 ? "s" : ""} shown`;
    document.querySelectorAll("[data-setting]").forEach((element) => {
      const i = Number(element.dataset.setting);
      if (element.classList.contains("chip")) element.hidden = !found[i];
      else element.hidden = !current[i];
    });
    chips.forEach((chip, i) => chip.setAttribute("aria-pressed", String(!off.has(i))));
    tags.forEach((tag) => tag.setAttribute("aria-pressed", String(words().includes(tagged(tag)))));
    remembered("sessionStorage", { filter: filter.value, off: [...off], spread: spread.checked, log: logarithmic.checked });
    plots.forEach((plot) => stale.add(plot));
    return drawStale(near);
  }

  /* While the pointer is on a chip, the other settings step back. */
  function emphasize(index) {
    for (const plot of near) {
      if (!plot.data) continue;
      const usual = (t) => (t.band ? 0.15 : 1);
      const opacity = plot.data.map((t) => (index === null || t.meta === undefined || t.meta === index ? usual(t) : usual(t) * 0.12));
      Plotly.restyle(plot, { opacity });
    }
  }

  /* Draws what was chosen in one panel in all panels that offer it: labels and sizes of the same split. */
  function choose(value) {
    for (const plot of plots) {
      const choice = plot.parentElement.querySelector("select");
      if (!choice || ![...choice.options].some((option) => option.value === value)) continue;
      choice.value = value;
      draw(plot);
    }
  }

  /* A tag as a word of the filter. */
  const tagged = (tag) => `tag=${tag.dataset.tag.toLowerCase().split(/\s+/).join("-")}`;
  const words = () => filter.value.toLowerCase().split(/\s+/).filter(Boolean);

  /* The table of the settings shown as text. */
  function table(kind) {
    const { head, lines, foot } = data.tables[kind];
    return head + lines.filter((_, i) => current[i]).join("") + foot;
  }

  function save(kind) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table(kind)], { type: "text/plain;charset=utf-8" }));
    link.download = `comparison.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function show(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    plots.forEach((plot) => stale.add(plot));
  }

  /* What needs no plots: filter, tags, tables, theme. */
  function listenToTools() {
    const night = matchMedia("(prefers-color-scheme: dark)");
    const redraw = () => window.fedjax8 && drawStale(near);
    night.addEventListener("change", () => { show(); redraw(); });
    document.getElementById("theme").addEventListener("click", () => {
      const theme = colors().dark ? "light" : "dark";
      remembered("localStorage", { theme });
      show(theme);
      redraw();
    });
    document.querySelectorAll("[data-table]").forEach((button) => {
      button.addEventListener("click", () => save(button.dataset.table));
    });
    tags.forEach((tag) => tag.addEventListener("click", () => {
      const kept = words().filter((word) => word !== tagged(tag));
      filter.value = (kept.length === words().length ? [...kept, tagged(tag)] : kept).join(" ");
      update();
    }));
  }

  function listen() {
    let pending;
    filter.addEventListener("input", () => { clearTimeout(pending); pending = setTimeout(update, 120); });
    spread.addEventListener("change", update);
    logarithmic.addEventListener("change", update);
    chips.forEach((chip, i) => {
      let waiting;
      chip.addEventListener("click", () => { off.has(i) ? off.delete(i) : off.add(i); update(); });
      chip.addEventListener("mouseenter", () => { waiting = setTimeout(() => current[i] && emphasize(i), 150); });
      chip.addEventListener("mouseleave", () => { clearTimeout(waiting); emphasize(null); });
    });
    for (const plot of plots) {
      const choice = plot.parentElement.querySelector("select");
      if (choice) choice.addEventListener("change", () => choose(choice.value));
    }
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries) entry.isIntersecting ? near.add(entry.target) : near.delete(entry.target);
      drawStale(near);
    }, { rootMargin: "400px" });
    plots.forEach((plot) => watch.observe(plot));
    const drawAll = () => drawStale(plots);
    window.addEventListener("beforeprint", drawAll);
    window.fedjax8 = { draw, drawAll, update, table };
  }

  logarithmic.checked = SWITCHED.some((name) => data.panels[name] && data.panels[name][""].layout.xaxis.type === "log");
  show(remembered("localStorage").theme);
  const before = document.querySelector("meta[http-equiv=refresh]") ? remembered("sessionStorage") : {};
  if (before.off) { /* the page of a run at work loaded itself anew */
    filter.value = before.filter;
    spread.checked = before.spread;
    logarithmic.checked = before.log;
    before.off.forEach((i) => off.add(i));
  }
  listenToTools();
  update();
  load().then(listen).catch((error) => {
    document.querySelectorAll(".plot").forEach((plot) => {
      plot.style.height = "auto";
      plot.innerHTML = '<p class="absent">This browser cannot unpack the plots; a current one can. The tables are complete.</p>';
    });
    console.error(error);
  });
})();
