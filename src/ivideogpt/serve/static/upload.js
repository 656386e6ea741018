// Upload of files; several pictures are sent as one zip.

const PICTURE = /\.(png|jpe?g)$/i;
const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Little-endian fields: fields(2, 20, 4, size) is a uint16 and a uint32. */
function fields(...sizesAndValues) {
  const bytes = [];
  for (let i = 0; i < sizesAndValues.length; i += 2) {
    for (let b = 0; b < sizesAndValues[i]; b += 1) bytes.push((sizesAndValues[i + 1] >>> (8 * b)) & 255);
  }
  return Uint8Array.from(bytes);
}

/** A zip of stored (uncompressed) entries: PNG and JPEG would not get smaller. */
export function zip(entries) {
  const body = [];
  const directory = [];
  let offset = 0;
  let directorySize = 0;
  for (const { name, bytes } of entries) {
    const label = new TextEncoder().encode(name);
    // version 2.0, no flags, stored, no time, 1 January 1980
    const sizes = [4, bytes.length, 4, bytes.length, 2, label.length, 2, 0];
    const common = fields(2, 20, 2, 0, 2, 0, 2, 0, 2, 33, 4, crc32(bytes), ...sizes);
    body.push(fields(4, 0x04034b50), common, label, bytes);
    directory.push(fields(4, 0x02014b50, 2, 20), common, fields(2, 0, 2, 0, 2, 0, 4, 0, 4, offset), label);
    offset += 30 + label.length + bytes.length;
    directorySize += 46 + label.length;
  }
  const count = entries.length;
  const end = fields(4, 0x06054b50, 2, 0, 2, 0, 2, count, 2, count, 4, directorySize, 4, offset, 2, 0);
  return new Blob([...body, ...directory, end], { type: "application/zip" });
}

async function pack(files, needed) {
  if (!files.every((file) => PICTURE.test(file.name))) {
    if (files.length > 1) throw new Error("Add one recording at a time, or pictures only.");
    return { name: files[0].name, body: files[0] };
  }
  if (files.length < needed) {
    throw new Error(`The model starts from ${needed} frames: pick ${needed} pictures or more at once.`);
  }
  const sorted = [...files].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const entries = await Promise.all(sorted.map(async (file, i) => ({
    // The server sorts by name, and "10.png" would come before "9.png".
    name: `${String(i).padStart(5, "0")}.${file.name.split(".").pop().toLowerCase()}`,
    bytes: new Uint8Array(await file.arrayBuffer()),
  })));
  return { name: `${sorted[0].name.replace(PICTURE, "")}.zip`, body: zip(entries) };
}

/** Returns the server's answer, or throws an Error with its sentence. */
export async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new Error(answer?.error ?? `The server answered with status ${response.status}.`);
}

/** Uploads files as one new episode. */
export async function upload(files, { needed, limit }) {
  const { name, body } = await pack(files, needed);
  const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;
  if (body.size > limit) throw new Error(`${name} has ${megabytes(body.size)}; the server takes ${megabytes(limit)}.`);
  const response = await ask(`/api/episodes?name=${encodeURIComponent(name)}`, { method: "POST", body });
  return response.json();
}
