// The client's copy of the frames, so that frames are shown again without a request.

const BUDGET = 256 * 2 ** 20; // bytes of pixels kept; older ones are requested again when they are shown
const CHUNK = 64; // the most frames one message may ask for

/** The frames of one world by step; 0 is the last context frame, negative steps come before it. */
export class Track {
  constructor(steps = 0, frames = new Map(), since = 0) {
    this.steps = steps;
    this.frames = frames;
    this.since = since; // answers to earlier requests are of a past that was taken back
    this.asked = null; // the last action asked for, where its frame may not be here yet
  }

  copy() {
    return new Track(this.steps, new Map(this.frames), this.since);
  }

  cut(steps, since = this.since) {
    if (since !== this.since) this.asked = null;
    this.steps = steps;
    this.since = since;
    for (const step of this.frames.keys()) if (step > steps) this.frames.delete(step);
  }

  put(frame) {
    this.frames.delete(frame.step); // to the end: the order of a Map is the order in which pixels are dropped
    this.frames.set(frame.step, frame);
  }
}

/** Requests missing frames, one message at a time, newest first. */
export class Filler {
  constructor(send) {
    this.send = send;
    this.pending = null;
    this.refused = new Set();
  }

  reset() {
    this.pending = null;
    this.refused.clear();
  }

  /** wants: list of {type, world, frames, first, last, shown}. */
  fill(wants) {
    if (this.pending) return;
    for (const want of wants) {
      const name = `${want.type} ${want.world}`;
      const run = this.refused.has(name) ? null : missing(want);
      if (!run) continue;
      const world = want.type === "show" ? { world: want.world } : {};
      const request = this.send({ type: want.type, ...world, ...run });
      if (request !== null) this.pending = { request, name, left: run.count, count: run.count };
      return;
    }
  }

  /** Counts a frame; true when the last requested one has arrived. */
  got(frame) {
    if (frame.request !== this.pending?.request) return false;
    this.pending.left -= 1;
    if (this.pending.left) return false;
    this.pending = null;
    return true;
  }

  /** A later message was answered, so missing frames will not arrive. True if a request was open. */
  passed(request) {
    if (!this.pending || !(request > this.pending.request)) return false;
    const { name, left, count } = this.pending;
    if (left === count) this.refused.add(name);
    this.pending = null;
    return true;
  }

  /** True if the error answers one of our requests, which is then not repeated. */
  failed(request) {
    if (!this.pending || request !== this.pending.request) return false;
    this.refused.add(this.pending.name);
    this.pending = null;
    return true;
  }
}

function missing({ frames, first, last, shown }) {
  const lacks = (step) => {
    const frame = frames.get(step);
    return !frame || (!frame.pixels && Math.abs(step - shown) < 16);
  };
  let end = last;
  while (end >= first && !lacks(end)) end -= 1;
  if (end < first) return null;
  let start = end;
  while (start > first && end - start + 1 < CHUNK && lacks(start - 1)) start -= 1;
  return { first: start, count: end - start + 1 };
}

/** Drops the oldest pixels while all together exceed the budget; headers are kept. */
export function trim(maps) {
  const all = maps.flatMap((frames) => [...frames.values()]).filter((frame) => frame.pixels);
  let total = all.reduce((sum, frame) => sum + frame.pixels.length, 0);
  for (const frame of all) {
    if (total <= BUDGET) return;
    if (frame.step <= 0) continue;
    total -= frame.pixels.length;
    frame.pixels = null;
  }
}
