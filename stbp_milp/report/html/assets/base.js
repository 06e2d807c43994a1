// What all parts of the page share: the data, unpacking, numbers as people read them, elements.

const page = JSON.parse(document.getElementById("data").textContent);
const rows = page.rows;
const byId = (id) => document.getElementById(id);

/** Bytes of an element that holds zlib data in base64. */
async function unpack(id) {
  const letters = atob(byId(id).textContent);
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const unpackText = async (id) => new TextDecoder().decode(await unpack(id));

/** The address of a script that lies packed in the page. */
async function scriptAddress(id) {
  return URL.createObjectURL(new Blob([await unpack(id)], { type: "text/javascript" }));
}

let detailsAsked;
/** What is known of every instance beyond its row. */
const details = () => (detailsAsked ??= unpackText("details").then(JSON.parse));

const escaped = (text) =>
  String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);

/** An element with attributes and children; text becomes text, never markup. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

const badge = (word) => make("span", { class: `badge ${word}` }, word);

/** Four digits, a true minus sign; null is `none`. */
function number(value, none = "–") {
  if (value == null) return none;
  const size = Math.abs(value);
  const text = size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));
  return text.replaceAll("-", "−");
}

function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.0001) return "< 0.1 ms";
  if (seconds < 0.9995) return `${+(1000 * seconds).toPrecision(seconds < 0.0095 ? 2 : 3)} ms`;
  if (seconds < 99.5) return `${+seconds.toPrecision(3)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600).toLocaleString("en")} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function size(bytes) {
  if (bytes == null) return "–";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 999.5) return `${+bytes.toPrecision(3)} ${unit}`;
    bytes /= 1000;
  }
  return `${+bytes.toPrecision(3)} TB`;
}

const count = (value) => value.toLocaleString("en");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

/** Says what went wrong at the top of the page. */
function complain(problem) {
  console.error(problem);
  byId("problem").textContent = `A part of this page did not work: ${problem?.message ?? problem}. A current browser may help.`;
  byId("problem").hidden = false;
}
