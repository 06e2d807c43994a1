// One instance in full: what was asked, what came out, the viewer, where the time went.

const detail = byId("detail");
let opened = null;
let playing = null;
let listed = () => rows;

const term = (name, value) => (value == null || value === "" ? [] : [make("dt", {}, name), make("dd", {}, value)]);
const listedPairs = (entries) => make("dl", { class: "pairs" }, entries.flat());

async function openInstance(id) {
  const known = (await details())[id];
  opened = id;
  playing?.stop();
  playing = null;
  const row = rows[id];
  const body = make("div", { class: "body" });
  detail.replaceChildren(bar(row), body);
  if (!detail.open) detail.showModal();
  history.replaceState(null, "", `#instance-${id}`);
  body.append(outcome(row, known));
  if (row.word === "falsified" && known.attacked?.stage !== "clean") await showClip(row, known, body);
  if (opened !== id) return;
  body.append(
    make("div", { class: "sides" }, question(row, known), effort(row, known)),
    ...scores(row, known),
    ...output(known),
    origin(known),
  );
  body.scrollTop = 0;
}

function bar(row) {
  const order = listed().map((each) => each.id);
  const place = order.indexOf(row.id);
  const step = (label, text, next) =>
    make("button", { type: "button", "aria-label": label, title: label, disabled: next == null, onclick: () => openInstance(next) }, text);
  return make(
    "div",
    { class: "bar" },
    make("h2", { id: "detail-title" }, row.name),
    badge(row.word),
    make("span", { class: "step" }, step("Previous instance", "←", order[place - 1]), step("Next instance", "→", place < 0 ? null : order[place + 1])),
    make("button", { type: "button", autofocus: true, onclick: () => detail.close() }, "Close"),
  );
}

function outcome(row, known) {
  const margin = `margin between ${number(row.lower, "−∞")} and ${number(row.upper, "∞")}`;
  const said = {
    verified: "The property holds on every clip of the set.",
    falsified: known.links.clip || known.attacked?.stage !== "clean" ? "A clip of the set breaks the property." : "The clean clip itself breaks the property.",
  }[row.word];
  const before = page.other && row.was ? ` In the other run it was ${row.was}, in ${duration(row.before)}.` : "";
  const expected = known.expected && known.expected !== row.word ? ` Expected was ${known.expected}.` : "";
  const sentence = said ?? `${known.reason ?? "No verdict"}.`.replace(/\.\.$/, ".");
  return make("p", { class: "reason" }, `${sentence[0].toUpperCase()}${sentence.slice(1)} Decided in ${duration(row.seconds)}, ${margin}.${before}${expected}`.replace("Decided in", row.by ? `Decided by ${row.by} in` : "Ended after"));
}

async function showClip(row, known, body) {
  if (row.viewer === 1) {
    try {
      const clip = await readClip(row.id);
      if (opened !== row.id) return;
      playing = makeViewer(clip, known.clean?.says ?? "", known.attacked?.says ?? "");
      body.append(playing.element);
    } catch (problem) {
      console.error(problem);
      body.append(make("p", { class: "notice warn" }, "This browser cannot unpack the clip; a current one can."));
    }
    return;
  }
  const text = row.viewer === 2
    ? "The clip is not in this page, to keep it small; a larger --clips takes it in."
    : "There is no clip of it in the run's folder.";
  body.append(make("p", { class: "empty" }, text, " ", ...links(known)));
}

const links = (known) =>
  Object.entries(known.links)
    .filter(([kind]) => kind !== "record")
    .flatMap(([kind, address]) => [make("a", { href: address }, kind), " "]);

function question(row, known) {
  const asked = known.question;
  return make("div", {}, make("h3", {}, "Question"), listedPairs([
    term("network", asked.model), term("clip", asked.clip), term("shape", asked.shape && `${asked.shape} (channels, frames, height, width)`),
    term("set", asked.set), term("eps", asked.epsilon), term("domain", asked.domain), term("property", asked.property),
    term("expected", known.expected),
  ]));
}

function effort(row, known) {
  const stages = Object.entries(known.stages ?? {});
  const longest = Math.max(...stages.map(([, seconds]) => seconds), 1e-9);
  const bars = stages.flatMap(([stage, seconds]) => [make("span", {}, stage), make("i", { style: `width: ${(100 * seconds) / longest}%` }), make("span", { class: "n" }, duration(seconds))]);
  const limits = known.limits ?? {};
  const work = Object.entries(known.counts ?? {}).map(([name, value]) => `${count(value)} ${name}`).join(", ");
  return make("div", {}, make("h3", {}, "Effort"), bars.length ? make("div", { class: "stages" }, bars) : null, listedPairs([
    term("work", work),
    term("closed", known.certificate && Object.entries(known.certificate.closed).filter(([, pieces]) => pieces).map(([stage, pieces]) => `${count(pieces)} by ${stage}`).join(", ")),
    term("rounding", known.certificate && `subtracted from the proved ${number(known.certificate.lower)}`),
    term("memory", row.memory != null ? size(row.memory) : null),
    term("limits", [limits.timeout && duration(limits.timeout), limits.memory_bytes && size(limits.memory_bytes)].filter(Boolean).join(", ")),
    term("ended by", known.ended_by && known.ended_by !== "itself" ? known.ended_by : null),
    term("attempt", known.attempt > 1 ? known.attempt : null),
  ]));
}

/** The first scores, clean and attacked, the largest clean ones and the attacked winner. */
function scores(row, known) {
  const clean = known.clean?.outputs;
  const attacked = known.attacked?.outputs;
  if (!clean?.length) return [];
  const classes = (known.property ?? "").startsWith("class");
  const best = (values) => (values ? values.indexOf(Math.max(...values)) : -1);
  let order = [...clean.keys()];
  if (classes) order.sort((a, b) => Math.max(clean[b], attacked?.[b] ?? -Infinity) - Math.max(clean[a], attacked?.[a] ?? -Infinity));
  const left = order.length - 8;
  order = order.slice(0, 8);
  const cell = (values, i) => make("td", { class: classes && best(values) === i ? "first" : "" }, number(values[i]));
  return [
    make("h3", {}, classes ? "Scores" : "Outputs"),
    make("div", { class: "scroll" }, make("table", { class: "scores" },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, classes ? "class" : "output"), make("th", { scope: "col" }, "clean"), attacked ? make("th", { scope: "col" }, "attacked") : null)),
      make("tbody", {}, order.map((i) => make("tr", {}, make("th", { scope: "row" }, String(i)), cell(clean, i), attacked ? cell(attacked, i) : null))))),
    ...(left > 0 ? [make("p", { class: "muted" }, `and ${count(left)} more`)] : []),
  ];
}

const output = (known) => (known.output ? [make("h3", {}, "Its last output"), make("pre", {}, known.output)] : []);

function origin(known) {
  const configuration = Object.entries(known.configuration ?? {}).map(([name, value]) => `${name} ${value}`).join(", ");
  const files = links(known);
  return make("div", {}, make("h3", {}, "Origin"), listedPairs([
    term("began", known.began), term("node", known.node), term("configuration", configuration),
    term("model file", known.listed?.model), term("specification", known.listed?.specification),
    term("command", known.command ? make("code", {}, known.command) : null), term("record", known.links.record ? make("a", { href: known.links.record }, known.file) : known.file),
    files.length ? [make("dt", {}, "clips"), make("dd", {}, files)] : [],
  ]));
}

detail.addEventListener("close", () => {
  playing?.stop();
  playing = null;
  opened = null;
  history.replaceState(null, "", location.pathname + location.search);
});
detail.addEventListener("click", (event) => {
  if (event.target === detail) detail.close();
});
