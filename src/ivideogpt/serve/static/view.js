// Drawing: pictures, the difference picture, the sparkline and the curve.

const SVG = "http://www.w3.org/2000/svg";
const DIFFERENCE_TOP = 128; // of 255; larger differences look the same
// Black to white through orange with growing brightness: readable for colour-blind people.
const STOPS = [[0, 0, 0], [87, 16, 40], [196, 64, 20], [250, 160, 60], [255, 250, 225]];

export function drawPixels(canvas, { pixels, width, height }) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const image = new ImageData(width, height);
  for (let from = 0, to = 0; from < pixels.length; from += 3, to += 4) {
    image.data[to] = pixels[from];
    image.data[to + 1] = pixels[from + 1];
    image.data[to + 2] = pixels[from + 2];
    image.data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function heat(share) {
  const at = Math.min(1, share) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(at));
  return STOPS[low].map((value, i) => value + (at - low) * (STOPS[low + 1][i] - value));
}

/** Difference of two frames at each pixel, mean over the colours, as a heat map. */
export function drawDifference(canvas, one, other) {
  if (one.pixels.length !== other.pixels.length) return clear(canvas);
  const pixels = new Uint8Array(one.pixels.length);
  for (let i = 0; i < pixels.length; i += 3) {
    let sum = 0;
    for (let c = i; c < i + 3; c += 1) sum += Math.abs(one.pixels[c] - other.pixels[c]);
    pixels.set(heat(sum / 3 / DIFFERENCE_TOP), i);
  }
  return drawPixels(canvas, { ...one, pixels });
}

export function drawLegend(canvas) {
  const width = canvas.width;
  const pixels = Uint8Array.from({ length: width }, (_, x) => x).reduce(
    (row, x) => (row.set(heat(x / (width - 1)), 3 * x), row), new Uint8Array(3 * width));
  drawPixels(canvas, { pixels, width, height: 1 });
}

export function clear(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

function add(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/** A polyline for each run of points without a gap; a lone point becomes a dot. */
function addLine(svg, points, kind) {
  let run = [];
  const close = () => {
    const points = run.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
    if (run.length > 1) add(svg, "polyline", { class: `line ${kind}`, points });
    if (run.length === 1) add(svg, "circle", { class: `dot ${kind}`, cx: run[0][0], cy: run[0][1], r: 2 });
    run = [];
  };
  for (const point of points) point ? run.push(point) : close();
  close();
}

function fresh(svg) {
  svg.replaceChildren();
  const { width, height } = svg.getBoundingClientRect();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return { width, height };
}

/** values: entropies, oldest first; levels: limits of the expected error. */
export function drawSpark(svg, values, levels, length) {
  const { width, height } = fresh(svg);
  if (!width) return;
  const top = Math.max(0.5, ...levels.map((level) => level * 1.4), ...values);
  const y = (value) => height - 2 - (value / top) * (height - 4);
  for (const level of levels) add(svg, "line", { class: "level", x1: 0, x2: width, y1: y(level), y2: y(level) });
  const x = (i) => width - 4 - ((values.length - 1 - i) / (length - 1)) * (width - 8);
  addLine(svg, values.map((value, i) => (value === null ? null : [x(i), y(value)])), "a");
  if (!Number.isFinite(values.at(-1))) return;
  add(svg, "circle", { class: "dot a", cx: x(values.length - 1), cy: y(values.at(-1)), r: 2.5 });
}

function tickStep(span, wanted) {
  const rough = span / wanted;
  const unit = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((k) => k * unit).find((step) => step >= rough);
}

/** series: list of Map(step -> PSNR); last: the last true step; at: the marked step, which may be hovered. */
export function drawCurve(svg, series, last, at, hovering) {
  const { width, height } = fresh(svg);
  if (!width) return null;
  const values = series.flatMap((one) => [...one.values()]);
  const box = { left: 30, right: width - 10, top: 20, bottom: height - 22 };
  const low = values.length ? Math.floor(Math.min(...values) / 5 - 0.2) * 5 : 10;
  const high = values.length ? Math.ceil(Math.max(...values) / 5 + 0.2) * 5 : 40;
  const span = Math.max(2, last);
  const x = (step) => box.left + ((step - 1) / (span - 1)) * (box.right - box.left);
  const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
  const every = tickStep(high - low, 5);
  for (let value = low; value <= high; value += every) {
    add(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) });
    add(svg, "text", { class: "tick end", x: box.left - 6, y: y(value) + 4 }, value);
  }
  const stride = Math.max(1, tickStep(span, Math.max(2, Math.floor(width / 60))));
  for (let step = stride; step <= span; step += stride) {
    add(svg, "text", { class: "tick middle", x: x(step), y: height - 6 }, step);
  }
  add(svg, "text", { class: "tick", x: 2, y: 9 }, "dB");
  add(svg, "text", { class: "tick", x: box.left, y: height - 6 }, "step");
  if (at >= 1 && at <= span) {
    const line = { x1: x(at), x2: x(at), y1: box.top, y2: box.bottom };
    add(svg, "line", { class: hovering ? "now hover" : "now", ...line });
  }
  series.forEach((one, i) => {
    const kind = "ab"[i];
    const points = Array.from({ length: span }, (_, k) => (one.has(k + 1) ? [x(k + 1), y(one.get(k + 1))] : null));
    addLine(svg, points, kind);
    if (one.has(at)) add(svg, "circle", { class: `dot ${kind}`, cx: x(at), cy: y(one.get(at)), r: 3.5 });
  });
  const stepAt = (px) => 1 + ((px - box.left) / (box.right - box.left)) * (span - 1);
  return (px) => Math.round(Math.min(span, Math.max(1, stepAt(px))));
}

/** The largest scale at which one picture px is a whole number of screen px; where that would waste much, any scale. */
export function sharpScale(space, size) {
  const dpr = devicePixelRatio || 1;
  const most = space / size;
  const sharp = Math.floor(most * dpr) / dpr;
  return sharp >= 0.8 * most ? sharp : most;
}
