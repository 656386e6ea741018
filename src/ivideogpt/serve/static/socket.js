// The connection: one websocket that reconnects to its session.

const KEY = "ivideogpt.session";
const DECODER = new TextDecoder();
// Closed on purpose: a reconnection would be closed again.
const FINAL = {
  4401: "This page needs its token. Open the address that ivideogpt serve printed.",
  4403: "The server does not accept this address.",
  4408: "Closed after a long pause.",
  4409: "This session was opened in another window.",
};

function parseFrame(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(DECODER.decode(new Uint8Array(buffer, 4, length)));
  return { ...header, pixels: new Uint8Array(buffer, 4 + length) };
}

export class Link {
  /** handlers: hello, state, error (each a message), frame (its header and pixels), status({state, text, seconds}). */
  constructor(handlers) {
    this.handlers = handlers;
    this.request = 0;
    this.failures = 0;
    this.ready = false;
    this.wanted = false; // not before the first connection, nor after one that was closed on purpose
    addEventListener("online", () => this.wanted && !this.ready && this.connect());
  }

  connect() {
    clearTimeout(this.timer);
    this.wanted = true;
    this.ready = false;
    this.socket?.close();
    const session = sessionStorage.getItem(KEY);
    const url = new URL("/ws", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    if (session) url.searchParams.set("session", session);
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    // Ignore events of a replaced socket.
    socket.onmessage = (event) => socket === this.socket && this.receive(event.data, session);
    socket.onclose = (event) => socket === this.socket && this.lost(event.code);
    this.socket = socket;
    this.handlers.status({ state: "connecting" });
  }

  /** Sends a message and returns its request number, or null where there is no connection. */
  send(message) {
    if (!this.ready) return null;
    this.request += 1;
    this.socket.send(JSON.stringify({ ...message, request: this.request }));
    return this.request;
  }

  receive(data, asked) {
    if (data instanceof ArrayBuffer) return this.handlers.frame(parseFrame(data));
    const message = JSON.parse(data);
    if (message.fatal) this.reason = message.message;
    if (message.type === "hello") {
      this.ready = true;
      this.failures = 0;
      sessionStorage.setItem(KEY, message.session);
      this.session = message.session;
      this.handlers.status({ state: "open" });
      return this.handlers.hello(message, Boolean(asked));
    }
    return this.handlers[message.type]?.(message);
  }

  lost(code) {
    this.ready = false;
    this.socket = null;
    this.wanted = !FINAL[code];
    if (FINAL[code]) return this.handlers.status({ state: "closed", text: FINAL[code] });
    const text = this.reason ? `Connection closed: ${this.reason}.` : "Connection lost.";
    this.reason = null;
    this.failures += 1;
    const seconds = code === 4429 ? 10 : Math.min(15, 0.5 * 2 ** (this.failures - 1)) * (0.8 + 0.4 * Math.random());
    this.timer = setTimeout(() => this.connect(), 1000 * seconds);
    return this.handlers.status({ state: "lost", text, seconds });
  }
}
