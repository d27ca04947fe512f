// Permalink: what was asked as the fragment of an address, which is sent to nobody.

const LINK = "#ask=";
const ASKED_BYTES = 200_000;

// { prompt, start, settings, model, picture: { example } or { webp: base64 } }
async function linkTo(asked) {
  const bytes = await piped(new TextEncoder().encode(JSON.stringify(asked)), new CompressionStream("deflate"));
  const letters = toBase64(bytes).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  return location.origin + location.pathname + LINK + letters;
}

// What a fragment asks. Throws if it is damaged, or larger than ours are.
async function askedBy(fragment) {
  const letters = fragment.slice(LINK.length).replaceAll("-", "+").replaceAll("_", "/");
  const bytes = await piped(fromBase64(letters), new DecompressionStream("deflate"), ASKED_BYTES);
  return JSON.parse(new TextDecoder().decode(bytes));
}

async function piped(bytes, stream, limit = Infinity) {
  const parts = [];
  let size = 0;
  for (const reader = new Blob([bytes]).stream().pipeThrough(stream).getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    size += value.length;
    if (size > limit) throw new RangeError("There is more in it than can be.");
    parts.push(value);
  }
}

const toBase64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const fromBase64 = (letters) => Uint8Array.from(atob(letters), (c) => c.charCodeAt(0));
