// The routing header, and the order in which a card's payments try several hosts.

import { createHash, createHmac } from "node:crypto";

export const ROUTE_DIGITS = 32;

/** Returns the routing header's value: 32 hexadecimal digits. */
export function routeOf(routeKey: Uint8Array, cardId: string): string {
  return createHmac("sha256", routeKey).update(cardId, "utf8").digest("hex").slice(0, ROUTE_DIGITS);
}

/** Returns the places of the hosts in `urls`, the one to ask first at the front (rendezvous hashing). */
export function hostOrder(key: string, urls: readonly string[]): number[] {
  if (urls.length === 1) return [0];
  const weighted = urls.map((url, place) => {
    const weight = createHash("sha256").update(`${key}\n${url}`, "utf8").digest("hex").slice(0, 16);
    return { place, order: weight + url };
  });
  weighted.sort((one, other) => (one.order < other.order ? 1 : -1));
  return weighted.map(({ place }) => place);
}
