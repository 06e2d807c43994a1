// Plays a counterexample: clean, attacked and difference, frame by frame, with the attacker's region outlined.

const NEGATIVE = [33, 102, 172];
const POSITIVE = [178, 24, 43];
const NEUTRAL = [244, 244, 244];

/** The clip of an instance, as clips.py packed it. */
async function readClip(id) {
  const bytes = await unpack(`clip-${id}`);
  const end = bytes.indexOf(10);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  const [channels, frames, height, width] = header.shape;
  const length = channels * frames * height * width;
  const part = (i) => bytes.subarray(end + 1 + i * length, end + 1 + (i + 1) * length);
  const clean = part(0);
  const attacked = part(1).map((change, i) => clean[i] + change);
  const change = new Int8Array(part(2));
  const bits = bytes.subarray(end + 1 + 3 * length);
  const covered = (voxel) => (bits[voxel >> 3] >> (7 - (voxel & 7))) & 1;
  return { header, channels, frames, height, width, clean, attacked, change, covered };
}

/** Colours of a frame's pixel out of levels 0 to 255. */
const shade = (clip, levels) => (voxel) => {
  const plane = clip.frames * clip.height * clip.width;
  return clip.channels === 3
    ? [levels[voxel], levels[plane + voxel], levels[2 * plane + voxel]]
    : [levels[voxel], levels[voxel], levels[voxel]];
};

/** The change: around grey in colour clips, else from blue over white to red. */
const shadeChange = (clip) => (voxel) => {
  const plane = clip.frames * clip.height * clip.width;
  if (clip.channels === 3) return [0, 1, 2].map((c) => 127.5 + clip.change[c * plane + voxel]);
  const amount = clip.change[voxel] / 127;
  const far = amount > 0 ? POSITIVE : NEGATIVE;
  return NEUTRAL.map((level, i) => level + Math.abs(amount) * (far[i] - level));
};

function paint(canvas, clip, frame, shading) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(clip.width, clip.height);
  const first = frame * clip.height * clip.width;
  for (let pixel = 0; pixel < clip.height * clip.width; pixel++) {
    const [red, green, blue] = shading(first + pixel);
    image.data.set([red, green, blue, 255], 4 * pixel);
  }
  context.putImageData(image, 0, 0);
}

/** The border of a frame's covered pixels, as a path. */
function outline(clip, frame) {
  const first = frame * clip.height * clip.width;
  const at = (i, j) => i >= 0 && j >= 0 && i < clip.height && j < clip.width && clip.covered(first + i * clip.width + j);
  let path = "";
  for (let i = 0; i < clip.height; i++) {
    for (let j = 0; j < clip.width; j++) {
      if (!at(i, j)) continue;
      if (!at(i - 1, j)) path += `M${j} ${i}h1`;
      if (!at(i + 1, j)) path += `M${j} ${i + 1}h1`;
      if (!at(i, j - 1)) path += `M${j} ${i}v1`;
      if (!at(i, j + 1)) path += `M${j + 1} ${i}v1`;
    }
  }
  return path;
}

function vector(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** One of the three pictures: a canvas of the clip's size, and the outline over it. */
function screen(clip, title, told, shading) {
  const canvas = make("canvas", { width: clip.width, height: clip.height });
  const lines = ["halo", "line"].map((name) => vector("path", { class: name }));
  const over = vector("svg", { viewBox: `0 0 ${clip.width} ${clip.height}`, preserveAspectRatio: "none" });
  over.append(...lines);
  const box = make("div", { class: "screen", style: `aspect-ratio: ${clip.width} / ${clip.height}` }, canvas, over);
  const figure = make("figure", { class: "panel" }, make("figcaption", {}, make("b", {}, title), told), box);
  const draw = (frame, path) => {
    paint(canvas, clip, frame, shading);
    for (const line of lines) line.setAttribute("d", path);
  };
  return { figure, box, draw };
}

/** How the difference is shown, in words. */
function amplified(clip) {
  const [low, high] = clip.header.domain;
  const largest = clip.header.largest;
  const range = (high - low) / (clip.channels === 3 ? 2 : 1);
  const factor = range / largest;
  const gain = largest > 0 ? `${factor < 1 ? "scaled by" : "amplified"} ${number(+factor.toPrecision(3))}×, ` : "";
  return `${gain}${clip.channels === 3 ? "around grey" : "red up, blue down"}`;
}

/** What a pixel was and became. */
function pixelText(clip, frame, i, j) {
  const [low, high] = clip.header.domain;
  const plane = clip.frames * clip.height * clip.width;
  const voxel = (frame * clip.height + i) * clip.width + j;
  const channels = [...Array(clip.channels).keys()].map((c) => {
    const was = low + ((high - low) * clip.clean[c * plane + voxel]) / 255;
    const change = (clip.header.largest * clip.change[c * plane + voxel]) / 127;
    return `${number(+was.toPrecision(3))} ${change < 0 ? "−" : "+"} ${number(+Math.abs(change).toPrecision(2))}`;
  });
  const place = clip.header.step > 1 ? `${clip.header.step} × ${clip.header.step} pixels from ` : "";
  return `${place}row ${i * clip.header.step}, column ${j * clip.header.step}: about ${channels.join(" | ")}`;
}

/** A viewer of the clip; `stop` ends its playing. */
function makeViewer(clip, cleanSays, attackedSays) {
  const turned = cleanSays.split(",")[0] !== attackedSays.split(",")[0];
  const screens = [
    screen(clip, "Clean", cleanSays, shade(clip, clip.clean)),
    screen(clip, "Attacked", make("span", { class: turned ? "turned-word" : "" }, attackedSays), shade(clip, clip.attacked)),
    screen(clip, "Difference", amplified(clip), shadeChange(clip)),
  ];
  const hit = new Set(clip.header.frames);
  const state = { frame: clip.header.frames[0] ?? 0, timer: 0 };
  const slider = make("input", { type: "range", min: 0, max: clip.frames - 1, step: 1, "aria-label": "Frame" });
  const ticks = [...Array(clip.frames).keys()].map((t) => make("i", { class: hit.has(t) ? "hit" : "" }));
  const told = make("output", {});
  const pixel = make("p", { class: "pixel" });
  const play = make("button", { type: "button" }, "Play");
  const pace = make("select", { "aria-label": "Frames per second" }, [1, 2, 5, 10, 25].map((rate) => make("option", { value: rate, selected: rate === 5 }, `${rate} per second`)));
  const outlined = make("input", { type: "checkbox", checked: true });
  const onlyHit = make("input", { type: "checkbox" });
  const onward = () => {
    const frames = [...Array(clip.frames).keys()].map((step) => (state.frame + 1 + step) % clip.frames);
    return onlyHit.checked && hit.size ? frames.find((t) => hit.has(t)) : frames[0];
  };

  function show(frame) {
    state.frame = frame;
    const path = outlined.checked ? outline(clip, state.frame) : "";
    for (const each of screens) each.draw(state.frame, path);
    slider.value = state.frame;
    told.textContent = `frame ${state.frame} (${state.frame + 1} of ${clip.frames})${hit.has(state.frame) ? ", attacked" : ""}`;
    slider.setAttribute("aria-valuetext", told.textContent);
    ticks.forEach((tick, t) => tick.classList.toggle("now", t === state.frame));
  }
  function stop() {
    clearInterval(state.timer);
    state.timer = 0;
    play.textContent = "Play";
  }
  function start() {
    stop();
    state.timer = setInterval(() => show(onward()), 1000 / Number(pace.value));
    play.textContent = "Pause";
  }
  play.addEventListener("click", () => (state.timer ? stop() : start()));
  pace.addEventListener("change", () => state.timer && start());
  outlined.addEventListener("change", () => show(state.frame));
  slider.addEventListener("input", () => {
    stop();
    show(Number(slider.value));
  });
  for (const { box } of screens) {
    box.addEventListener("pointermove", (event) => {
      const area = box.getBoundingClientRect();
      const i = Math.min(clip.height - 1, Math.max(0, Math.floor(((event.clientY - area.top) / area.height) * clip.height)));
      const j = Math.min(clip.width - 1, Math.max(0, Math.floor(((event.clientX - area.left) / area.width) * clip.width)));
      pixel.textContent = pixelText(clip, state.frame, i, j);
    });
    box.addEventListener("pointerleave", () => (pixel.textContent = ""));
  }
  const element = make(
    "div",
    { class: "viewer" },
    make("div", { class: "panels" }, screens.map((each) => each.figure)),
    make("div", { class: "controls" }, play, make("div", { class: "track" }, slider, make("div", { class: "ticks", "aria-hidden": "true" }, ticks)), told, pace, make("label", {}, outlined, " outline"), hit.size && hit.size < clip.frames ? make("label", {}, onlyHit, " attacked frames only") : null),
    pixel,
    make("p", { class: "muted" }, viewerNote(clip)),
  );
  show(state.frame);
  if (clip.frames > 1 && !stillness.matches) start();
  return { element, stop };
}

function viewerNote(clip) {
  const { header } = clip;
  const notes = [`${count(header.changed)} pixels changed over all frames, by at most ${number(header.largest)}.`];
  if (!header.exact) notes.push("The set is not known here: the outline is around what changed.");
  if (header.step > 1) notes.push(`Shown at 1/${header.step} of its size.`);
  if (header.full[0] !== clip.channels) notes.push(`Shown is the first of ${header.full[0]} channels.`);
  return notes.join(" ");
}
