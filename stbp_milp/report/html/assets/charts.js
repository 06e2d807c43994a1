// Charts of the instances that the filter leaves, drawn by plotly when they come into view.

let plotly;
/** plotly, unpacked and started once. */
const plotlyReady = () =>
  (plotly ??= scriptAddress("plot-script").then(
    (address) =>
      new Promise((resolve, reject) => {
        const script = make("script", { src: address });
        script.onload = () => resolve(window.Plotly);
        script.onerror = () => reject(new Error("plotly could not be started"));
        document.head.append(script);
      }),
  ));

// The buttons are named one by one: plotly's own choice holds one that sends the chart to a server.
const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
const FLOOR = 0.001; // seconds: what a logarithmic axis starts at

function layout(more) {
  const { xaxis, yaxis, yaxis2, ...rest } = more;
  const axis = (own) => ({ gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true, ...own, title: { font: { size: 12.5 }, ...own?.title } });
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: colour("sans"), size: 12.5, color: colour("muted") },
    margin: { l: 54, r: 12, t: 26, b: 44 },
    hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("ink") },
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("muted"), font: { color: colour("ink"), family: colour("sans") } },
    showlegend: false,
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { color: colour("ink") } },
    xaxis: axis(xaxis),
    yaxis: axis(yaxis),
    ...(yaxis2 && { yaxis2: axis(yaxis2) }),
    ...rest,
  };
}

/** An axis of seconds, logarithmic, labelled as people say them. */
function timeAxis(title, values) {
  const [low, high] = [Math.log10(Math.max(FLOOR, Math.min(...values))), Math.log10(Math.max(FLOOR * 2, ...values))];
  const ticks = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++) ticks.push(10 ** power);
  const text = ticks.map((value) => (value < 1 ? `${+(1000 * value).toPrecision(1)} ms` : `${value.toLocaleString("en")} s`));
  return { title: { text: title }, type: "log", range: [low - 0.1, high + 0.1], tickvals: ticks, ticktext: text };
}

const escapedForPlotly = (text) => escaped(text.length > 70 ? `${text.slice(0, 69)}…` : text);

function cactus(chosen) {
  const line = (label, times, look) => {
    const sorted = times.map((time) => Math.max(time, FLOOR)).sort((a, b) => a - b);
    return {
      name: label,
      x: sorted.map((_, i) => i + 1),
      y: sorted,
      mode: sorted.length > 60 ? "lines" : "lines+markers",
      marker: { size: 6, symbol: look.symbol ?? "circle" },
      line: { width: 2.2, shape: "hv", color: colour(look.colour), dash: look.dash ?? "solid" },
      hovertemplate: `%{x:,} within %{customdata} each<extra>${label}</extra>`,
      customdata: sorted.map(duration),
    };
  };
  const of = (...words) => chosen.filter((row) => words.includes(row.word)).map((row) => row.seconds);
  const lines = [
    line("decided", of("verified", "falsified"), { colour: "ink" }),
    line("verified", of("verified"), { colour: "verified" }),
    line("falsified", of("falsified"), { colour: "falsified", symbol: "square", dash: "6px,3px" }),
  ];
  if (page.other) {
    const before = chosen.filter((row) => ["verified", "falsified"].includes(row.was)).map((row) => row.before);
    lines.push(line("decided before", before, { colour: "muted", dash: "2px,3px" }));
  }
  const drawn = lines.filter((each) => each.x.length);
  if (!drawn.length) return null;
  const most = Math.max(...drawn.map((each) => each.x.length));
  return {
    data: drawn,
    layout: layout({
      xaxis: { title: { text: "instances decided" }, range: [0, most * 1.03], tickformat: ",d", ...(most < 12 && { dtick: 1 }) },
      yaxis: timeAxis("time of an instance", drawn.flatMap((each) => each.y)),
      margin: { l: 54, r: 12, t: 26, b: 84 },
      showlegend: true,
    }),
  };
}

/** A scale that is linear around 0 and logarithmic far away, with its ticks. */
function symmetricScale(values) {
  const sizes = values.map(Math.abs).filter((value) => value > 0).sort((a, b) => a - b);
  const middle = sizes[Math.floor(sizes.length / 2)] ?? 1;
  const unit = 10 ** Math.floor(Math.log10(middle)) / 10;
  const scale = (value) => Math.asinh(value / unit);
  const ticks = [0];
  for (let value = unit * 10; value <= 10 * (sizes.at(-1) ?? unit); value *= 10) ticks.push(value, -value);
  return { scale, ticks };
}

const FEW = 150; // bars that stand apart; every gap costs a path, so that more of them share one outline

/** Bars at `places` between the numbers `from` and `to`, as the corners of outlines; `of` says whose corner it is. */
function bars(places, from, to, apart) {
  const edges = (ends, half) => places.map((x, i) => [[x - half, ends[i], i], [x, ends[i], i], [x + half, ends[i], i]]);
  if (apart) {
    const [lower, upper] = [edges(from, 0.36), edges(to, 0.36)];
    return places.flatMap((_, i) => [...upper[i], ...[...lower[i]].reverse(), upper[i][0], [null, null, i]]);
  }
  return [...edges(to, 0.5).flat(), ...edges(from, 0.5).flat().reverse()];
}

/** Times above, intervals of margins below, an outline a verdict. */
function timeAndBounds(chosen) {
  if (!chosen.length) return null;
  const rank = (row) => page.words.indexOf(row.word);
  const sorted = [...chosen].sort((a, b) => rank(a) - rank(b) || a.seconds - b.seconds);
  const known = sorted.flatMap((row) => [row.lower, row.upper]).filter((value) => value != null);
  const { scale, ticks } = symmetricScale(known);
  const ends = [Math.min(0, ...known), Math.max(0, ...known)].map(scale);
  const room = 0.08 * (ends[1] - ends[0]) || 1;
  const [bottom, top] = [ends[0] - room, ends[1] + room];
  const times = timeAxis("time", sorted.map((row) => row.seconds));
  const base = 10 ** times.range[0];
  const apart = sorted.length <= FEW;
  const traces = [];
  for (const word of page.words) {
    const places = sorted.flatMap((row, i) => (row.word === word ? [i + 1] : []));
    if (!places.length) continue;
    const of = places.map((place) => sorted[place - 1]);
    const told = of.map((row) => `${escapedForPlotly(row.name)}<br>${word} in ${duration(row.seconds)}<br>margin ${number(row.lower, "−∞")} to ${number(row.upper, "∞")}`);
    const trace = (corners, more) => ({
      name: word,
      x: corners.map(([x]) => x),
      y: corners.map(([, y]) => y),
      text: corners.map(([, , i]) => told[i]),
      customdata: corners.map(([, , i]) => of[i].id),
      mode: "lines",
      fill: "toself",
      fillcolor: colour(word),
      hoveron: "points",
      line: { width: 0, simplify: false },
      hovertemplate: "%{text}<extra></extra>",
      ...more,
    });
    traces.push(
      trace(bars(places, of.map(() => base), of.map((row) => Math.max(row.seconds, base)), apart), {}),
      trace(bars(places, of.map((row) => (row.lower == null ? bottom : scale(row.lower))), of.map((row) => (row.upper == null ? top : scale(row.upper))), apart), { yaxis: "y2" }),
    );
  }
  return {
    data: traces,
    layout: layout({
      hovermode: "x", // a bar is meant wherever in its height the pointer is
      xaxis: { title: { text: "instances, by verdict, fastest first" }, tickformat: ",d", anchor: "y2", range: [0.3, sorted.length + 0.7], ...(sorted.length < 12 && { dtick: 1 }) },
      yaxis: { ...times, domain: [0.57, 1] },
      yaxis2: { title: { text: "margin" }, domain: [0, 0.5], range: [bottom, top], tickvals: ticks.map(scale), ticktext: ticks.map((value) => number(value)), zeroline: true, zerolinecolor: colour("ink"), zerolinewidth: 1 },
    }),
  };
}

function pairs(chosen) {
  const both = chosen.filter((row) => row.before != null);
  if (!both.length) return null;
  const values = both.flatMap((row) => [row.seconds, row.before]).map((value) => Math.max(value, FLOOR));
  const axis = timeAxis("", values);
  const ends = axis.range.map((power) => 10 ** power);
  const symbols = { verified: "circle", falsified: "square", unknown: "diamond", timeout: "x", memout: "triangle-up", error: "cross" };
  const traces = page.words.map((word) => {
    const of = both.filter((row) => row.word === word);
    return {
      name: word,
      x: of.map((row) => Math.max(row.before, FLOOR)),
      y: of.map((row) => Math.max(row.seconds, FLOOR)),
      text: of.map((row) => `${escapedForPlotly(row.name)}<br>${row.was} in ${duration(row.before)}, now ${word} in ${duration(row.seconds)}`),
      customdata: of.map((row) => row.id),
      mode: "markers",
      marker: { color: colour(word), symbol: symbols[word], size: of.length > 500 ? 4 : 7, opacity: of.length > 500 ? 0.5 : 0.85 },
      hovertemplate: "%{text}<extra></extra>",
    };
  });
  const diagonal = { x: ends, y: ends, mode: "lines", line: { color: colour("muted"), width: 1 }, hoverinfo: "skip" };
  return {
    data: [diagonal, ...traces.filter((trace) => trace.x.length)],
    layout: layout({ xaxis: { ...axis, title: { text: "time in the other run" } }, yaxis: { ...axis, title: { text: "time here" } } }),
  };
}

const CHARTS = { "chart-cactus": cactus, "chart-instances": timeAndBounds, "chart-pairs": pairs };
const inView = new Set();
const drawnFor = new Map();
let shownRows = rows;

/** Draw a chart anew, if it is in view and not up to date. */
async function drawChart(id) {
  const theme = document.documentElement.dataset.theme;
  const state = drawnFor.get(id);
  if (!inView.has(id) || (state && state.rows === shownRows && state.theme === theme)) return;
  drawnFor.set(id, { rows: shownRows, theme });
  const place = byId(id);
  const drawing = CHARTS[id](shownRows);
  const Plotly = await plotlyReady();
  if (!drawing) {
    Plotly.purge(place);
    place.replaceChildren(make("div", { class: "empty" }, "Nothing to draw: none of the instances shown is decided."));
    return;
  }
  if (place.querySelector(":scope > .empty")) place.replaceChildren();
  await Plotly.react(place, drawing.data, drawing.layout, CONFIG);
  performance.mark(id);
  if (!place.dataset.ready) {
    place.dataset.ready = "yes";
    place.on("plotly_click", (event) => {
      const id = event.points[0]?.customdata;
      if (Number.isInteger(id)) openInstance(id);
    });
  }
}

function drawCharts() {
  const every = shownRows.length === rows.length;
  byId("charts-of").textContent = every ? "" : `Of the ${count(shownRows.length)} instances that the filter below leaves.`;
  for (const id of inView) drawChart(id).catch(complain);
}

function watchCharts() {
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) inView.add(target.id);
        else inView.delete(target.id);
      }
      drawCharts();
    },
    { rootMargin: "300px" },
  );
  for (const id of Object.keys(CHARTS)) if (byId(id)) watcher.observe(byId(id));
}
