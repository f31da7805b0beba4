// A decision, and what a status and a body of the service mean (rule 22).

import { WrongRequest } from "./errors.js";

export const ACTIONS = ["approve", "review", "decline"] as const;
export type Action = (typeof ACTIONS)[number];

/** Why a decision stands in for the service's. */
export type Cause =
  "late" | "busy" | "unreachable" | "broken" | "overloaded" | "unavailable" | "unauthorized" | "failed" | "closed";

/**
 * What was decided about a payment. If `stand_in` is true, this process decided, because the service did not: `score` is
 * null, `decision_id` and `model_version` are empty, and `reasons` begins with `stand_in:CAUSE`.
 */
export interface Decision {
  readonly payment_id: string;
  readonly action: Action;
  readonly decision_id: string;
  readonly score: number | null;
  readonly reasons: readonly string[];
  readonly model_version: string;
  readonly flags: readonly string[];
  readonly profile_age_ms: number | null;
  readonly stand_in: boolean;
}

const CAUSE_OF: ReadonlyMap<number, Cause> = new Map([
  [401, "unauthorized"],
  [403, "unauthorized"],
  [429, "overloaded"],
  [503, "unavailable"],
  [504, "late"],
]);
const WRONG_REQUEST: ReadonlySet<number> = new Set([400, 409, 413, 415]);
const MESSAGE_MAX = 300;
const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Returns the decision, or the cause why there is none. Throws WrongRequest if the service refuses the payment. */
export function readAnswer(paymentId: string, status: number, body: Uint8Array): Decision | Cause {
  if (status === 200) return decisionOf(paymentId, body) ?? "failed";
  if (WRONG_REQUEST.has(status)) throw refusalOf(status, body);
  return CAUSE_OF.get(status) ?? "failed";
}

function decisionOf(paymentId: string, body: Uint8Array): Decision | undefined {
  const found = objectOf(body);
  const { action, score = 0, decision_id = "", model_version = "", reasons = [], flags = [] } = found;
  const age = found["profile_age_ms"] ?? null;
  if (
    found["payment_id"] !== paymentId ||
    !isAction(action) ||
    !(typeof score === "number" && score >= 0 && score <= 1) ||
    !(age === null || (typeof age === "number" && Number.isSafeInteger(age))) ||
    typeof decision_id !== "string" ||
    typeof model_version !== "string" ||
    !areTexts(reasons) ||
    !areTexts(flags)
  ) {
    return undefined;
  }
  return {
    payment_id: paymentId,
    action,
    decision_id,
    score,
    reasons,
    model_version,
    flags,
    profile_age_ms: age,
    stand_in: false,
  };
}

function refusalOf(status: number, body: Uint8Array): WrongRequest {
  const error = objectOf(body)["error"];
  const { code, field, message } = isObject(error) ? error : {};
  return new WrongRequest(
    typeof message === "string" && message ? message.slice(0, MESSAGE_MAX) : `was refused with status ${status}`,
    typeof field === "string" ? field.slice(0, MESSAGE_MAX) : "",
    typeof code === "string" && code ? code.slice(0, MESSAGE_MAX) : "refused",
    status,
  );
}

function objectOf(body: Uint8Array): Record<string, unknown> {
  try {
    const found: unknown = JSON.parse(UTF8.decode(body));
    return isObject(found) ? found : {};
  } catch {
    return {};
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function isAction(value: unknown): value is Action {
  return ACTIONS.some((action) => action === value);
}

function areTexts(values: unknown): values is string[] {
  return Array.isArray(values) && values.every((value) => typeof value === "string");
}
