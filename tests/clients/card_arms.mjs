// The arms of cards in JavaScript, from the words of models/rollout/shares.py alone: node card_arms.mjs card_arms.json
// It prints how many cards agree, and ends with status 1 if any does not.
import { readFileSync } from "node:fs";

const MASK = (1n << 64n) - 1n;
const CIRCLE = 1n << 64n;
const IV = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const SIGMA = [
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
  [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
  [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
  [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
  [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
  [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
  [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
  [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
  [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
  [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

const rotated = (value, bits) => ((value >> bits) | (value << (64n - bits))) & MASK;

// BLAKE2b with a key (RFC 7693), digests of `size` bytes.
function blake2b(message, key, size) {
  const padded = Buffer.alloc(128);
  key.copy(padded);
  const data = key.length ? Buffer.concat([padded, message]) : message;
  const h = [...IV];
  h[0] ^= 0x01010000n ^ (BigInt(key.length) << 8n) ^ BigInt(size);
  const blocks = Math.max(1, Math.ceil(data.length / 128));
  for (let block = 0; block < blocks; block++) {
    const bytes = Buffer.alloc(128);
    data.copy(bytes, 0, block * 128);
    const m = Array.from({ length: 16 }, (_, place) => bytes.readBigUInt64LE(8 * place));
    const isLast = block === blocks - 1;
    const v = [...h, ...IV];
    v[12] ^= BigInt(isLast ? data.length : (block + 1) * 128);
    if (isLast) v[14] ^= MASK;
    const mix = (a, b, c, d, x, y) => {
      v[a] = (v[a] + v[b] + x) & MASK;
      v[d] = rotated(v[d] ^ v[a], 32n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = rotated(v[b] ^ v[c], 24n);
      v[a] = (v[a] + v[b] + y) & MASK;
      v[d] = rotated(v[d] ^ v[a], 16n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = rotated(v[b] ^ v[c], 63n);
    };
    for (let round = 0; round < 12; round++) {
      const s = SIGMA[round % 10];
      for (let place = 0; place < 4; place++)
        mix(place, place + 4, place + 8, place + 12, m[s[2 * place]], m[s[2 * place + 1]]);
      for (let place = 0; place < 4; place++)
        mix(place, ((place + 1) % 4) + 4, ((place + 2) % 4) + 8, ((place + 3) % 4) + 12, m[s[8 + 2 * place]], m[s[9 + 2 * place]]);
    }
    for (let place = 0; place < 8; place++) h[place] ^= v[place] ^ v[place + 8];
  }
  const digest = Buffer.alloc(64);
  h.forEach((word, place) => digest.writeBigUInt64LE(word, 8 * place));
  return digest.subarray(0, size);
}

// The candidate's arm is the first `share` of the circle.
const armOf = (position, share) => (position < (BigInt(share) * CIRCLE) / 10_000n ? 1 : 0);

const vectors = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const salt = Buffer.from(vectors.salt, "hex");
let agreed = 0;
for (const { card_key, position, arms } of vectors.cards) {
  const own = blake2b(Buffer.from(card_key, "utf-8"), salt, 8).readBigUInt64BE();
  const isSame = own === BigInt(`0x${position}`) && vectors.shares.every((share, place) => armOf(own, share) === arms[place]);
  if (isSame) agreed++;
  else console.error(`${card_key}: another position or arm`);
}
console.log(`${agreed} of ${vectors.cards.length} cards agree`);
process.exit(agreed === vectors.cards.length ? 0 : 1);
