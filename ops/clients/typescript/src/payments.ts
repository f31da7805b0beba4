// A payment, its check, and its body.

import { isCardNumber } from "./card-numbers.js";
import { WrongRequest } from "./errors.js";

export type Value = string | number | boolean;

/**
 * An attempt to pay, to be scored. The names are those of the endpoint.
 *
 * `payment_id` is unique for each attempt, and the idempotency key of its retries. `card_id` is a token that stands for
 * the card, never its number. `amount_minor` is in minor units of `currency`. `event_time_ms` is in milliseconds since
 * 1970 UTC. `fields` holds the fields that the service's project declares.
 */
export interface Payment {
  readonly payment_id: string;
  readonly event_time_ms: number;
  readonly card_id: string;
  readonly merchant_id: string;
  readonly amount_minor: number;
  readonly currency: string;
  readonly device_id?: string | undefined;
  readonly ip?: string | undefined;
  readonly mcc?: string | undefined;
  readonly country?: string | undefined;
  readonly channel?: string | undefined;
  readonly utc_offset_minutes?: number | undefined;
  readonly fields?: Readonly<Record<string, Value>> | undefined;
}

// In the order in which wrong ones are named.
const NAMES = [
  "payment_id",
  "event_time_ms",
  "card_id",
  "merchant_id",
  "amount_minor",
  "currency",
  "device_id",
  "ip",
  "mcc",
  "country",
  "channel",
  "utc_offset_minutes",
] as const;
const KNOWN: ReadonlySet<string> = new Set(NAMES);
const HALF_A_CHARACTER = /\p{Surrogate}/u;

/** Returns the payment as JSON. Throws WrongRequest: an id is missing, a card number, a name twice. */
export function bodyOf(payment: Payment): string {
  const values: Record<string, Value> = {};
  for (const name of NAMES) {
    const value = payment[name];
    if (value !== undefined && value !== null) values[name] = value;
  }
  for (const name of ["payment_id", "card_id"]) {
    if (!values[name]) throw new WrongRequest("is missing or empty", name);
  }
  for (const [name, value] of Object.entries(payment.fields ?? {})) {
    if (KNOWN.has(name)) throw new WrongRequest("is not a field that a project declares", name);
    values[name] = value;
  }
  for (const [name, value] of Object.entries(values)) {
    if (typeof value === "string") {
      if (isCardNumber(name, value)) {
        throw new WrongRequest("looks like a real card number; wanted a token that stands for it", name);
      }
      if (HALF_A_CHARACTER.test(value)) throw new WrongRequest("is not valid Unicode text", name);
    } else if (typeof value === "number" ? !Number.isFinite(value) : typeof value !== "boolean") {
      throw new WrongRequest("holds a value that is no text, number, true or false", name);
    }
  }
  return JSON.stringify(values);
}
