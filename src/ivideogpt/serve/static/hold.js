// Input for an arm: held letters, and the sticks and buttons of a gamepad.

/** The two letters of each number of the action, to its lower and its upper end. */
export const PAIRS = ["ad", "wx", "qz", "tg", "yh", "uj", "ol"].map((pair) => [...pair]);
/** Buttons of the standard gamepad. */
export const GAMEPAD = { play: 0, back: 1, step: 2, replay: 3 };
const DEAD = 0.15; // sticks never rest at exactly 0
const POLL = 50; // ms

/** Value of a number without input: 0 if that is in its range, else its present value. */
const hasRest = (low, high) => low < 0 && high > 0;

export class HeldKeys {
  /** on: started(), ended(), set(index, value). */
  constructor(on) {
    this.on = on;
    this.down = new Map(); // key or "stick" -> undo()
    this.last = [];
  }

  /** describe(): the actions, or null while there is nothing to drive. */
  bind(describe) {
    addEventListener("keydown", (event) => {
      const focus = document.activeElement;
      if (event.ctrlKey || event.altKey || event.metaKey || focus?.type === "number") return;
      if (document.querySelector("dialog[open]")) return;
      const key = event.key.toLowerCase();
      const index = PAIRS.findIndex((pair) => pair.includes(key));
      const actions = index < 0 ? null : describe();
      if (!actions || index >= actions.dim) return;
      event.preventDefault();
      if (event.repeat && this.down.has(key)) return;
      const { low, high } = actions;
      this.on.set(index, PAIRS[index].indexOf(key) ? high[index] : low[index]);
      this.begin(key, () => hasRest(low[index], high[index]) && this.on.set(index, 0));
    });
    addEventListener("keyup", (event) => this.end(event.key.toLowerCase()));
    addEventListener("blur", () => [...this.down.keys()].forEach((key) => this.end(key)));
  }

  /** shares: -1 to 1 for each stick or pair of buttons; those that moved or came to rest are set. */
  stick(shares, { dim, low, high }) {
    const wanted = assigned(shares, dim);
    wanted.forEach((share, i) => {
      if (share === (this.last[i] ?? 0)) return;
      const middle = hasRest(low[i], high[i]) ? 0 : (low[i] + high[i]) / 2;
      this.on.set(i, share < 0 ? middle - share * (low[i] - middle) : middle + share * (high[i] - middle));
    });
    this.last = wanted;
    this.run("stick", wanted.some((share) => share !== 0));
  }

  run(name, moving) {
    if (moving) this.begin(name, () => {});
    else this.end(name);
  }

  begin(name, undo) {
    const first = this.down.size === 0;
    if (!this.down.has(name)) this.down.set(name, undo);
    if (first) this.on.started();
  }

  end(name) {
    const undo = this.down.get(name);
    if (!undo) return;
    this.down.delete(name);
    undo();
    if (this.down.size === 0) this.on.ended();
  }
}

/** The sticks in the order of the numbers; the last of four or more, the gripper of most arms, has the triggers. */
function assigned(shares, dim) {
  const { length } = shares;
  const sticks = shares.slice(0, length - 1);
  return Array.from({ length: dim }, (_, i) => (dim >= 4 && i === dim - 1 ? shares[length - 1] : sticks[i] ?? 0));
}

/** on: shares(numbers) again and again while a gamepad is there, pressed(button) once for each press. */
export function pollGamepad(on, allowed) {
  let before = [];
  const value = (pad, index) => pad.buttons[index]?.value ?? 0;
  const dead = (share) => (Math.abs(share ?? 0) < DEAD ? 0 : share);
  setInterval(() => {
    const pad = [...(navigator.getGamepads?.() ?? [])].find((one) => one?.connected);
    if (!pad || !allowed() || document.hidden) return;
    const [x = 0, y = 0, right = 0, up = 0] = pad.axes;
    const bumpers = value(pad, 5) - value(pad, 4);
    const cross = value(pad, 12) - value(pad, 13);
    on.shares([x, -y, -up, right, bumpers, cross, value(pad, 7) - value(pad, 6)].map(dead));
    const down = pad.buttons.map((button) => button.pressed);
    down.forEach((pressed, index) => pressed && !before[index] && on.pressed(index));
    before = down;
  }, POLL);
}
