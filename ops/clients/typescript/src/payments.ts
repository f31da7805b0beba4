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
// From 2000 on and before 2100: no count of seconds or microseconds of these years is one of milliseconds of them.
const TIME_MS_MIN = 946_684_800_000;
const TIME_MS_END = 4_102_444_800_000;
export const AMOUNT_MAX = 100_000_000_000;
const CURRENCY = /^[A-Z]{3}$/;
const HALF_A_CHARACTER = /\p{Surrogate}/u;

/**
 * Returns the payment as JSON.
 *
 * Throws WrongRequest: an id is missing, a wrong time, amount or currency, a card number, a name twice.
 */
export function bodyOf(payment: Payment): string {
  const values: Record<string, Value> = {};
  for (const name of NAMES) {
    const value = payment[name];
    if (value !== undefined && value !== null) values[name] = value;
  }
  for (const name of ["payment_id", "card_id"]) {
    if (!values[name]) throw new WrongRequest("is missing or empty", name);
  }
  if (!isWhole(payment.event_time_ms, TIME_MS_MIN, TIME_MS_END - 1)) {
    throw new WrongRequest("wanted milliseconds since 1970 UTC, from 2000 to 2099", "event_time_ms");
  }
  if (!isWhole(payment.amount_minor, 0, AMOUNT_MAX)) {
    throw new WrongRequest(`wanted a whole number of minor units from 0 to ${AMOUNT_MAX}`, "amount_minor");
  }
  if (typeof payment.currency !== "string" || !CURRENCY.test(payment.currency)) {
    throw new WrongRequest("wanted three capital letters, A to Z (ISO 4217)", "currency");
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

function isWhole(value: number, least: number, most: number): boolean {
  return Number.isInteger(value) && least <= value && value <= most;
}
