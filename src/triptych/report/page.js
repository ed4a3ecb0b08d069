"use strict";
// The page reads its data once and builds everything with textContent, so no name can become markup.
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = id => document.getElementById(id);
  const MOST = 40;       // rows drawn in a plot
  const SHOWN = 12;      // rows whose pictures stand side by side
  let unit = "groups", words = [], sortBy = null, hidden = new Set(), visible = [];

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") node.className = value || "";
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter(c => c !== null && c !== undefined).map(c => c instanceof Node ? c : String(c)));
    return node;
  }

  // Columns: {name, number, cell(row) -> {text, value, title, class, small}}.
  function columns() {
    const found = data.settings.map((s, n) => ({
      name: s.label, title: [s.key, ...s.same].join(", "), setting: true,
      cell: row => ({ text: row.settings[n], value: numeric(row.settings[n]) }),
    }));
    if (!found.length) found.push({ name: "row", title: "", cell: row => ({ text: row.label, value: row.label }) });
    if (unit === "singles") {
      found.push({ name: "run", cell: row => ({ text: data.runs[row.runs[0]].name, value: data.runs[row.runs[0]].name }) });
      found.push({ name: "seed", cell: row => ({ text: data.runs[row.runs[0]].seed, value: numeric(data.runs[row.runs[0]].seed) }) });
    } else {
      found.push({ name: "seeds", number: true, title: "number of runs that differ by their seed only",
        cell: row => ({ text: row.runs.length, value: row.runs.length }) });
    }
    found.push({ name: "status", cell: row => ({ text: row.status, value: row.status, status: true,
      small: row.evaluated ? "" : "no evaluation" }) });
    data.columns.forEach((column, n) => found.push({
      name: column.metric + (column.mark ? ` [${column.mark}]` : ""), metric: true, number: true,
      sub: [column.sampler, column.calls && column.sampler !== data.own ? `${column.calls} calls` : ""].filter(Boolean).join(", "),
      title: `${column.title}: ${column.protocol}`,
      better: column.direction,
      cell: row => row.cells[n] || null,
    }));
    data.training.forEach((name, n) => found.push({
      name, number: true, cell: row => row.training[n] === null ? null : { text: shown(row.training[n]), value: row.training[n] },
    }));
    return found.filter(c => !data.empty.includes(c.name));
  }

  const numeric = text => text !== "" && text !== null && isFinite(text) ? Number(text) : text;
  const shown = v => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(Number(v.toPrecision(3)));

  function matches(row, cols) {
    return words.every(word => {
      const asked = word.match(/^([^=<>]+)(=|<=|>=|<|>)(.*)$/);
      if (asked) {
        const [, name, op, wanted] = asked;
        const asking = cols.filter(c => c.name.toLowerCase().startsWith(name.toLowerCase()));
        if (asking.length) return asking.some(c => test(c.cell(row), op, wanted.toLowerCase()));
      }
      return row.text.includes(word.toLowerCase());
    });
  }

  function test(cell, op, wanted) {
    if (!cell) return false;
    if (op === "=") return String(cell.text).toLowerCase() === wanted || String(cell.value).toLowerCase() === wanted
      || String(cell.text).toLowerCase().split(/[\s,]+/).includes(wanted);
    const a = Number(cell.value), b = Number(wanted);
    return op === "<" ? a < b : op === ">" ? a > b : op === "<=" ? a <= b : a >= b;
  }

  function sorted(rows, cols) {
    if (!sortBy) return rows;
    const column = cols.find(c => c.name + (c.sub || "") === sortBy.key);
    if (!column) return rows;
    const keyed = rows.map(row => [row, (column.cell(row) || {}).value]);
    const missing = v => v === undefined || v === null || v === "" || v === "—";
    keyed.sort(([, a], [, b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return sortBy.up ? order : -order;
    });
    return keyed.map(([row]) => row);
  }

  function table() {
    const cols = columns(), used = cols.filter(c => !hidden.has(c.name + (c.sub || "")));
    const rows = data[unit];
    visible = sorted(rows.filter(row => matches(row, cols)), cols);
    const head = make("tr");
    for (const column of used) {
      const key = column.name + (column.sub || "");
      const now = sortBy && sortBy.key === key ? (sortBy.up ? "ascending" : "descending") : "none";
      const arrow = now === "ascending" ? " ▲" : now === "descending" ? " ▼" : "";
      const first = column.better > 0 ? false : true;  // the first click puts the best, or the smallest, on top
      head.append(make("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": now, title: column.title || null }, make("button", {
        type: "button", onclick: () => { sortBy = { key, up: now === "none" ? first : !sortBy.up }; refresh(); $("rows").querySelectorAll("thead button")[used.indexOf(column)].focus(); },
      }, column.name + arrow, column.sub ? make("small", {}, column.sub) : null)));
    }
    const body = make("tbody");
    for (const row of visible) body.append(tableRow(row, used));
    $("rows").replaceChildren(make("thead", {}, head), body);
    const what = unit === "groups" ? "rows" : "runs";
    $("count").textContent = visible.length === rows.length ? `${rows.length} ${what}` : `${visible.length} of ${rows.length} ${what}`;
  }

  function tableRow(row, used) {
    const line = make("tr");
    used.forEach((column, position) => {
      const cell = column.cell(row);
      if (position === 0) {
        const swatch = make("span", { class: "swatch" });
        swatch.style.borderTop = `4px ${data.groups[row.group].dash} ${data.groups[row.group].colour}`;
        line.append(make("th", { scope: "row" }, swatch, make("button", { type: "button", onclick: () => details(row) }, cell ? cell.text : "—")));
      } else if (!cell) {
        line.append(make("td", { class: "missing" }, "—"));
      } else {
        const kind = [column.number ? "number" : "", cell.mark === data.best ? "best" : ""].filter(Boolean).join(" ");
        const text = cell.status ? statusText(cell.text) : cell.text;
        line.append(make("td", { class: kind || null, title: cell.title || null }, text,
          cell.mark ? make("span", { class: "mark" }, cell.mark) : null, cell.warned ? make("span", { class: "mark" }, "‡") : null,
          cell.small ? make("small", {}, cell.small) : null));
      }
    });
    return line;
  }

  function statusText(text) {
    const kind = ["failed", "lost", "interrupted", "finished"].find(k => text.includes(k));
    return make("span", { class: kind || "" }, text);
  }

  // Details of a row: its runs, one after another.
  function details(row) {
    $("details-title").textContent = row.label;
    const body = $("details-body");
    body.replaceChildren();
    for (const index of row.runs) body.append(described(data.runs[index], index));
    $("details").showModal();
  }

  function described(run, index) {
    const list = make("dl");
    const add = (name, value) => list.append(make("dt", {}, name), make("dd", {}, value));
    add("status", statusText(run.status));
    for (const note of run.notes) add("note", note);
    for (const [name, value] of Object.entries(run.environment)) add(name, value);
    for (const [name, address] of Object.entries(run.links)) {
      const safe = /^(https?:\/\/|\.\.?\/)/.test(address);
      add(name, safe ? make("a", { href: address, rel: "noopener noreferrer" }, run.shown_links[name]) : address);
    }
    return make("div", {}, make("h3", {}, `${run.name} · seed ${run.seed}`), make("pre", {}, run.command), list,
      make("button", { type: "button", onclick: () => { $("details").close(); $("left").value = index; diff(); location.hash = "diff"; } }, "Compare its config"));
  }

  // Plots.
  const drawn = new Map();
  const PAPER = 490;  // pixels of a plot's width, two beside each other
  let observer = null, printing = false;

  function chosenRows() {
    const groups = [], runs = new Set();
    for (const row of visible) {
      if (!groups.includes(row.group)) { if (groups.length === MOST) break; groups.push(row.group); }
      row.runs.forEach(r => runs.add(r));
    }
    return { groups: new Set(groups), runs, all: new Set(visible.map(row => row.group)).size };
  }

  function figures() {
    for (const figure of data.figures) {
      const choose = make("select", { "aria-label": `${figure.title}: which` }, ...figure.choices.map((c, n) => make("option", { value: n }, c.label)));
      const axis = figure.id === "curves" ? make("select", { "aria-label": "x-axis" },
        make("option", { value: "images" }, "against images seen"), make("option", { value: "minutes" }, "against minutes of training")) : null;
      const plot = make("div", { class: "plot", id: `plot-${figure.id}`, role: "img", "aria-label": figure.title });
      const numbers = make("details", {}, make("summary", {}, "Numbers"), make("div", { class: "scroll" }));
      const caption = make("figcaption");
      const again = () => drawOne(figure, Number(choose.value), axis && axis.value, plot, caption, numbers);
      choose.addEventListener("change", again);
      if (axis) axis.addEventListener("change", again);
      numbers.addEventListener("toggle", again);
      $("figures").append(make("figure", {}, make("h3", {}, figure.title),
        figure.choices.length ? make("div", { class: "controls" }, choose, axis) : null,
        figure.choices.length ? plot : make("p", { class: "help" }, "No run has logged anything to draw here."), caption, numbers));
      if (figure.choices.length) drawn.set(plot, { again, seen: false });
      else numbers.remove();
    }
  }

  function drawOne(figure, choice, axis, plot, caption, numbers) {
    const picked = figure.choices[choice], rows = chosenRows();
    let traces = picked.data.filter(t => t.meta.group === undefined
      || (rows.groups.has(t.meta.group) && (t.meta.run === undefined || rows.runs.has(t.meta.run))));
    traces = traces.map(t => ({ ...t }));
    const shownGroups = new Set();
    for (const trace of traces) {
      if (axis === "minutes") trace.x = trace.minutes;
      if (trace.meta.front !== undefined) Object.assign(trace, front(traces, trace.meta.front));
      if (trace.legendgroup !== undefined) {  // the first line of a row that is left keeps its place in the legend
        trace.showlegend = !shownGroups.has(trace.legendgroup);
        shownGroups.add(trace.legendgroup);
      }
    }
    const layout = structuredClone(picked.layout);
    if (axis === "minutes") layout.xaxis.title.text = "minutes of training";
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--text"), line = style.getPropertyValue("--line");
    for (const name of ["xaxis", "yaxis"]) layout[name] = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...layout[name] };
    if (layout.yaxis.type === "log") layout.yaxis.exponentformat = "power";  // 10^-5, not 10µ
    if (layout.yaxis.autorange === "reversed") plot.style.height = `${Math.max(180, 70 + 26 * traces.length)}px`;
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12 }, hovermode: "closest",
      margin: { l: 60, r: figure.id === "likelihood" ? 60 : 12, t: 14, b: 48 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } },
    });
    if (figure.id === "likelihood") layout.showlegend = false;
    if (printing) layout.width = PAPER;
    Plotly.react(plot, traces, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
    const cut = rows.all > MOST ? ` Drawn: the first ${MOST} of ${rows.all} rows of the table; sort or filter it to see others.` : "";
    caption.textContent = picked.caption + cut;
    const list = numbers.querySelector("div");
    list.replaceChildren();
    if (numbers.open) list.append(listed(traces, layout));
  }

  function listed(traces, layout) {
    const head = make("tr", {}, ...["line", layout.xaxis.title?.text || "x", layout.yaxis.title?.text || "y", "± std"].map(h => make("th", {}, h)));
    const body = make("tbody");
    let count = 0;
    for (const trace of traces) for (let k = 0; !trace.meta.key && k < trace.x.length && count < 2000; k++, count++)
      body.append(make("tr", {}, make("td", {}, plain(trace.name)), make("td", {}, plain(trace.x[k])), make("td", {}, plain(trace.y[k])),
        make("td", {}, trace.error_y ? trace.error_y.array[k] : "")));
    return make("table", {}, make("thead", {}, head), body);
  }

  const plain = text => String(text).replaceAll("&lt;", "<").replaceAll("&amp;", "&");

  function front(traces, better) {
    const points = traces.filter(t => t.meta.group !== undefined).flatMap(t => t.x.map((x, k) => [x, t.y[k]]));
    points.sort((a, b) => a[0] - b[0] || better * (b[1] - a[1]));
    const kept = [];
    for (const [x, y] of points) if (!kept.length || better * y > better * kept[kept.length - 1][1]) kept.push([x, y]);
    return { x: kept.map(p => p[0]), y: kept.map(p => p[1]) };
  }

  function draw() {
    observer = new IntersectionObserver(entries => {
      for (const entry of entries) {
        const state = drawn.get(entry.target);
        if (entry.isIntersecting && !state.seen) { state.seen = true; state.again(); }
      }
    }, { rootMargin: "300px" });
    for (const plot of drawn.keys()) observer.observe(plot);
    let theme = "";
    window.addEventListener("beforeprint", () => {  // on white, and every plot
      theme = document.documentElement.dataset.theme || "";
      document.documentElement.dataset.theme = "light";
      printing = true;
      for (const state of drawn.values()) { state.seen = true; state.again(); }
    });
    window.addEventListener("afterprint", () => {
      printing = false;
      if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
      redraw();
    });
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  }

  function redraw() {
    for (const state of drawn.values()) if (state.seen) state.again();
  }

  // Samples.
  const moments = [...new Set(Object.values(data.pictures).flatMap(p => p.grid.map(m => m.seen)))].sort((a, b) => a - b);

  function pictures() {
    const kind = document.querySelector("input[name=kind]:checked").value;
    const now = moments[Number($("moment").value)];
    $("moment-text").textContent = moments.length ? `${now.toLocaleString("en")} images` : "";
    const place = $("pictures");
    place.className = kind;
    place.replaceChildren();
    const groups = [...new Set(visible.map(row => row.group))].filter(g => data.groups[g].runs.some(r => data.pictures[r]));
    for (const g of groups.slice(0, SHOWN)) {
      const index = data.groups[g].runs.find(r => data.pictures[r]);
      const upTo = data.pictures[index][kind].filter(m => m.seen <= now);
      if (!upTo.length) continue;
      const moment = upTo[upTo.length - 1], run = data.runs[index];
      const alt = `${kind === "grid" ? "Samples" : "Denoising"} of ${data.groups[g].label} after ${moment.seen} images`;
      place.append(make("figure", {}, make("img", { src: moment.uri, alt }),
        make("figcaption", {}, make("b", {}, data.groups[g].label), `${moment.seen.toLocaleString("en")} images, ${run.how}`)));
    }
    const cut = groups.length > SHOWN ? ` Side by side: the first ${SHOWN} of ${groups.length} rows of the table that have pictures.` : "";
    $("samples-help").textContent = data.pictures_note + cut + (moments.length
      ? " The same seed starts from the same noise in every run. Denoising: a row a sample, from noise on the left to the sample on the right." : "");
  }

  // Config diff.
  function diff() {
    const [left, right] = [$("left"), $("right")].map(s => data.runs[Number(s.value)]);
    const body = make("tbody");
    let count = 0;
    data.keys.forEach((key, k) => {
      if (left.config[k] === right.config[k]) return;
      if (data.naming[k] && !$("everything").checked) return;
      count++;
      const told = run => run.config[k] === undefined || run.config[k] < 0 ? "—" : data.values[run.config[k]];
      body.append(make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, told(left)), make("td", {}, told(right))));
    });
    $("diff-count").textContent = count ? `${count} settings differ` : "no setting differs";
    $("diff-rows").replaceChildren(make("thead", {}, make("tr", {}, ...["setting", left.name, right.name].map(h => make("th", { scope: "col" }, h)))), body);
  }

  function static_() {
    $("title").textContent = data.title;
    $("summary").textContent = data.summary;
    $("plots-help").textContent = `Plots follow the table's filter and order, at most ${MOST} rows. Click a name in a legend to hide it, twice to see it alone.`;
    $("legend").append(make("p", {}, "± is the standard deviation over training seeds. ", data.test),
      ...data.warnings.map(w => make("p", {}, `‡ ${w}.`)),
      ...data.marks.map(m => make("p", {}, m)));
    const constant = Object.entries(data.constant);
    $("constant-title").textContent = `${constant.length} settings that do not differ`;
    $("constant").append(...constant.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
    $("protocol-list").append(...Object.entries(data.protocols).flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
    const odd = data.runs.map((r, i) => [r, i]).filter(([r]) => r.notes.length || r.status !== "finished");
    $("odd").append(odd.length ? make("dl", {}, ...odd.flatMap(([r]) => [make("dt", {}, r.name), make("dd", {}, statusText(r.status), r.notes.length ? `: ${r.notes.join("; ")}` : "")]))
      : make("p", { class: "help" }, "Every run has finished and has been evaluated."));
    for (const id of ["left", "right"]) {
      $(id).append(...data.runs.map((r, i) => make("option", { value: i }, `${data.groups[r.group].label} · ${r.name}`)));
      $(id).addEventListener("change", diff);
    }
    $("left").value = data.groups[0].runs[0];
    $("right").value = (data.groups[1] || data.groups[0]).runs.slice(-1)[0];
    $("everything").addEventListener("change", diff);
    for (const kind of document.querySelectorAll("input[name=kind]")) kind.addEventListener("change", pictures);
    $("moment").max = Math.max(0, moments.length - 1);
    $("moment").value = moments.length - 1;
    $("moment").addEventListener("input", pictures);
    for (const choice of document.querySelectorAll("input[name=unit]")) choice.addEventListener("change", () => { unit = choice.value; menu(); refresh(); });
    let wait = null;
    $("filter").addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(() => { words = $("filter").value.split(/\s+/).filter(Boolean); refresh(); }, 120); });
    $("theme").addEventListener("click", () => {
      const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      document.documentElement.dataset.theme = dark ? "light" : "dark";
      redraw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  function menu() {
    $("columns").replaceChildren(...columns().map(column => {
      const key = column.name + (column.sub || "");
      const box = make("input", { type: "checkbox", checked: !hidden.has(key), onchange: () => { box.checked ? hidden.delete(key) : hidden.add(key); table(); } });
      return make("label", {}, box, ` ${column.name} ${column.sub || ""}`);
    }));
  }

  function refresh() { table(); pictures(); redraw(); }

  function texts() {  // what a word of the filter is looked for in
    for (const kind of ["groups", "singles"]) for (const row of data[kind])
      row.text = [row.label, ...row.settings, row.status, row.evaluated ? "" : "no evaluation", ...row.runs.map(r => data.runs[r].name + " " + data.runs[r].notes.join(" "))].join(" ").toLowerCase();
  }

  texts();
  static_();
  menu();
  table();
  figures();
  pictures();
  diff();
  document.documentElement.dataset.table = String(Math.round(performance.now()));
  return { draw, data, front };
})();
