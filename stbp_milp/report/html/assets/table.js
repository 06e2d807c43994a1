// The instances as a table of virtual rows, and what is shown of them.

const filter = { words: new Set(), turns: new Set(), model: "", set: "", transition: null };
const TURNS = { contradiction: "contradiction", verdict: "verdict changed", slower: "slower", faster: "faster", new: "only here" };
const slowest = Math.max(...rows.map((row) => row.seconds), 0.01);

/** A cell that shows `display` and is sorted by `value`; what is unknown comes last in rising order. */
const column = (title, value, display, more = {}) => ({
  title,
  data: null,
  render: (row, type) => (type === "display" ? display(row) : type === "filter" ? "" : (value(row) ?? Infinity)),
  type: "num",
  ...more,
});
const textColumn = (title, name) => ({
  title,
  data: name,
  type: "string",
  render: (text, type) => (type === "display" ? `<span title="${escaped(text)}">${escaped(text || "–")}</span>` : text),
});

function columns() {
  const play = '<span class="play" title="has a viewer">▶</span>';
  const open = (row) =>
    `<button type="button" class="link" data-open="${row.id}" title="${escaped(row.name)}">${escaped(row.name)}</button>`;
  const has = (name) => rows.some((row) => row[name]);
  const shown = [
    { title: "Instance", data: null, type: "string", render: (row, type) => (type === "display" ? open(row) : row.name) },
    {
      title: "Verdict",
      data: null,
      type: "num",
      className: "word",
      render: (row, type) => {
        if (type === "display") return `<span class="badge ${row.word}">${row.word}</span>${row.viewer === 1 ? play : ""}`;
        return type === "filter" ? row.word : page.words.indexOf(row.word);
      },
    },
    column("Time", (row) => row.seconds, (row) => duration(row.seconds), { className: "time", createdCell: drawBar }),
    column("Proved margin", (row) => row.lower ?? -Infinity, (row) => number(row.lower, "−∞")),
    column("Seen margin", (row) => row.upper, (row) => number(row.upper, "∞")),
  ];
  if (page.other) {
    shown.splice(2, 0, { ...textColumn("Before", "was"), render: (word, type) => (type === "display" && word ? `<span class="badge ${word}">${word}</span>` : word || "–") });
    shown.splice(4, 0, column("Time ratio", (row) => row.ratio, (row) => (row.ratio == null ? "–" : `${number(+row.ratio.toPrecision(3))} ×`)));
  }
  if (has("memory")) shown.push(column("Memory", (row) => row.memory, (row) => size(row.memory)));
  shown.push(textColumn("Decided by", "by"));
  for (const [title, name] of [["Network", "model"], ["Set", "set"], ["eps", "eps"], ["Clip", "clip"]]) {
    if (has(name)) shown.push(textColumn(title, name));
  }
  return shown;
}

/** A thin bar under the time, long as its logarithm. */
function drawBar(cell, _, row) {
  const share = Math.max(0, Math.log10(row.seconds / 0.001) / Math.log10(Math.max(slowest, 0.01) / 0.001));
  cell.style.backgroundImage = `linear-gradient(var(--${row.word}), var(--${row.word}))`;
  cell.style.backgroundSize = `${Math.round(72 * Math.min(share, 1))}% 2px`;
}

const wanted = (row) =>
  (!filter.words.size || filter.words.has(row.word)) &&
  (!filter.turns.size || filter.turns.has(row.change)) &&
  (!filter.model || row.model === filter.model) &&
  (!filter.set || row.set === filter.set) &&
  (!filter.transition || (row.was === filter.transition[0] && row.word === filter.transition[1]));

async function makeTable() {
  const { default: DataTable } = await import(await scriptAddress("table-script"));
  const table = new DataTable("#table", {
    data: rows,
    columns: columns(),
    order: [],
    deferRender: true,
    scrollX: true,
    scrollY: Math.min(rows.length * 34 + 36, Math.max(340, 0.66 * innerHeight)),
    scrollCollapse: true,
    scroller: { rowHeight: 34, displayBuffer: 6 },
    autoWidth: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    language: { zeroRecords: "No instance is like that. “Show all” takes every filter away.", emptyTable: "No instances." },
  });
  table.search.fixed("page", (_, row) => wanted(row));
  table.on("draw", () => showCount(table));
  document.querySelector("#table tbody").addEventListener("click", (event) => {
    const row = table.row(event.target.closest("tr")).data();
    if (row && !event.target.closest("button")) openInstance(row.id);
  });
  fillFilters(table);
  table.draw();
  return table;
}

function showCount(table) {
  const left = table.rows({ search: "applied" }).count();
  byId("shown").textContent = left === rows.length ? `${count(left)} shown` : `${count(left)} of ${count(rows.length)} shown`;
  byId("reset").hidden = left === rows.length && !table.search();
}

/** A button that keeps `value` in `chosen` while it is pressed. */
function chip(table, chosen, value, label, found) {
  const button = make("button", { type: "button", "aria-pressed": "false", "data-value": value }, label, make("small", {}, count(found)));
  button.addEventListener("click", () => {
    if (!chosen.delete(value)) chosen.add(value);
    button.setAttribute("aria-pressed", String(chosen.has(value)));
    table.draw();
  });
  return button;
}

function fillFilters(table) {
  const found = (name, value) => rows.filter((row) => row[name] === value).length;
  for (const word of page.words) {
    if (found("word", word)) byId("words").append(chip(table, filter.words, word, badge(word), found("word", word)));
  }
  for (const [turn, label] of Object.entries(TURNS)) {
    if (found("change", turn)) byId("turns").append(chip(table, filter.turns, turn, label, found("change", turn)));
  }
  for (const name of ["model", "set"]) {
    const values = [...new Set(rows.map((row) => row[name]))].filter(Boolean).sort();
    byId(`${name}-label`).hidden = values.length < 2;
    byId(name).append(make("option", { value: "" }, "all"), ...values.map((value) => make("option", { value }, value)));
    byId(name).addEventListener("change", (event) => {
      filter[name] = event.target.value;
      table.draw();
    });
  }
  byId("find").addEventListener("input", (event) => table.search(event.target.value).draw());
  byId("reset").addEventListener("click", () => showAll(table));
}

function showAll(table, transition = null) {
  Object.assign(filter, { words: clear(filter.words), turns: clear(filter.turns), model: "", set: "", transition });
  for (const button of document.querySelectorAll(".chips button")) button.setAttribute("aria-pressed", "false");
  for (const id of ["find", "model", "set"]) byId(id).value = "";
  table.search("").draw();
  if (transition) byId("instances").scrollIntoView();
}

function clear(chosen) {
  chosen.clear();
  return chosen;
}
