// Input: pointers on the picture, sliders, keys, dropped files, the theme.

const $ = (id) => document.getElementById(id);

/** Holding and dragging on a picture. on: start(world), target(world, [x, y] in 0..1), end(). */
export function bindPointer(picture, world, on) {
  let held = null;
  const place = (event) => {
    const box = picture.querySelector("canvas").getBoundingClientRect();
    const share = (value, low, size) => Math.min(1, Math.max(0, (value - low) / size));
    on.target(world, [share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)]);
  };
  const end = (event) => {
    if (event.pointerId !== held) return;
    held = null;
    on.end();
  };
  picture.classList.add("pointer");
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || held !== null) return;
    held = event.pointerId;
    picture.setPointerCapture(held);
    place(event);
    on.start(world);
  });
  picture.addEventListener("pointermove", (event) => event.pointerId === held && place(event));
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) picture.addEventListener(name, end);
}

/**
 * One slider for each action: set(index, value) as it moves, choose(index) as it gets the focus. keys: the pair of
 * letters that moves each. Returns show(values, selected).
 */
export function buildSliders(parent, { names, low, high, units }, { keys, choose, set }) {
  const sliders = names.map((name, i) => {
    const id = `action-${i}`;
    const field = Object.assign(document.createElement("div"), { className: "field" });
    const label = Object.assign(document.createElement("label"), { htmlFor: id, textContent: name });
    const range = Object.assign(document.createElement("span"), {
      className: "muted small", textContent: `${number(low[i])} to ${number(high[i])} ${units[i] ?? ""}`,
    });
    label.append(" ", range);
    for (const letter of keys[i] ?? []) {
      label.append(" ", Object.assign(document.createElement("kbd"), { textContent: letter.toUpperCase() }));
    }
    const output = Object.assign(document.createElement("output"), { htmlFor: id });
    const input = Object.assign(document.createElement("input"), {
      id, type: "range", min: low[i], max: high[i], step: (high[i] - low[i]) / 200,
    });
    input.addEventListener("input", () => set(i, Number(input.value)));
    input.addEventListener("focus", () => choose(i));
    field.append(label, output, input);
    parent.append(field);
    return { field, input, output };
  });
  return (values, selected) => sliders.forEach(({ field, input, output }, i) => {
    if (document.activeElement !== input) input.value = values[i];
    output.textContent = `${number(values[i])} ${units[i] ?? ""}`;
    field.classList.toggle("selected", i === selected);
  });
}

/** A number as short text. */
export function number(value) {
  return Number(Number(value).toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 6 });
}

const ONCE = [" ", "c", "e", "f", "k"]; // however long they are held

/** keys: from key to function(event), while allowed(); a key that the focused control uses itself is left to it. */
export function bindKeys(keys, allowed) {
  addEventListener("keydown", (event) => {
    if (!allowed() && event.key !== "?") return;
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || $("help").open) return;
    const focus = document.activeElement;
    const kind = focus?.tagName === "INPUT" ? focus.type : focus?.tagName.toLowerCase();
    if (["number", "text", "textarea"].includes(kind)) return;
    if (event.key.startsWith("Arrow") && ["range", "radio"].includes(kind)) return;
    // A selected radio button does not need Space.
    const pressed = ["button", "a", "checkbox", "file", "summary"].includes(kind);
    if (event.key === " " && (pressed || (kind === "radio" && !focus.checked))) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!keys[key]) return;
    event.preventDefault();
    if (!event.repeat || !ONCE.includes(key)) keys[key](event);
  });
}

/** Files dropped anywhere on the page. */
export function bindDrop(take) {
  let depth = 0; // dragenter and dragleave come for every element on the way
  const show = (change) => {
    depth = Math.max(0, depth + change);
    $("dropping").hidden = depth === 0;
  };
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => carries(event) && show(1));
  addEventListener("dragleave", (event) => carries(event) && show(-1));
  addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    show(-depth);
    take([...event.dataTransfer.files]);
  });
}

export function bindTheme() {
  const root = document.documentElement;
  const button = $("theme");
  const label = () => {
    button.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${button.textContent.toLowerCase()} theme`);
  };
  button.addEventListener("click", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    // Choosing the system's theme means following the system again.
    if (next === system) localStorage.removeItem("ivideogpt.theme");
    else localStorage.setItem("ivideogpt.theme", next);
    root.dataset.theme = next;
  });
  new MutationObserver(label).observe(root, { attributeFilter: ["data-theme"] });
  label();
}

/** Pictures drawn smooth instead of in sharp squares; changed() once they are. */
export function bindSmooth(changed) {
  const box = $("smooth");
  const show = () => {
    document.documentElement.toggleAttribute("data-smooth", box.checked);
    changed();
  };
  box.checked = localStorage.getItem("ivideogpt.smooth") === "1";
  box.addEventListener("change", () => {
    localStorage.setItem("ivideogpt.smooth", box.checked ? "1" : "0");
    show();
  });
  show();
}

export function bindHelp() {
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("help-close").addEventListener("click", () => $("help").close());
  // A click outside the box is a click on the dialog element.
  $("help").addEventListener("click", (event) => event.target === $("help") && $("help").close());
}
