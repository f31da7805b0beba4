// The shared vectors: `node --test dist/test/vectors.test.js [FOLDER]`, with the folder from the environment otherwise.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";

import { isAction, readAnswer, type Cause } from "../src/answers.js";
import { CallPlan, causeOf, deadlineHeader, type Met } from "../src/attempts.js";
import { isCardNumber } from "../src/card-numbers.js";
import { WrongRequest, WrongSettings } from "../src/errors.js";
import { bodyOf, type Payment, type Value } from "../src/payments.js";
import { nextDueMs } from "../src/reconciling.js";
import { headersOf } from "../src/requests.js";
import { hostOrder, routeOf } from "../src/routing.js";
import { StandIn, StandInPolicy } from "../src/stand-in.js";

interface Vectors<In> {
  readonly cases: ReadonlyArray<{ readonly name: string; readonly in: In; readonly want: unknown }>;
}

const FOLDER = process.env["PAYWARDEN_VECTORS"] ?? join(import.meta.dirname, "../../../vectors");

function vectors<In>(file: string, found: (given: In) => unknown): void {
  const { cases } = JSON.parse(readFileSync(join(FOLDER, `${file}.json`), "utf8")) as Vectors<In>;
  for (const { name, in: given, want } of cases) {
    test(`${file}: ${name}`, () => assert.deepEqual(found(given), want));
  }
}

vectors("card_numbers", (given: { field: string; text: string }) => isCardNumber(given.field, given.text));

vectors("routes", (given: { key_hex: string; card_id: string }) =>
  routeOf(Buffer.from(given.key_hex, "hex"), given.card_id),
);

vectors("deadlines", (leftMs: number) => deadlineHeader(leftMs));

vectors("hosts", (given: { key: string; urls: string[] }) => hostOrder(given.key, given.urls));

interface GivenRequest {
  readonly payment: Payment;
  readonly fields?: Record<string, Value>;
  readonly token?: string;
  readonly route_key_hex?: string;
  readonly traceparent?: string;
  readonly left_ms?: number;
}

vectors("requests", (given: GivenRequest) => {
  let body: string;
  try {
    body = bodyOf({ ...given.payment, fields: given.fields });
  } catch (error) {
    assert(error instanceof WrongRequest);
    return { wrong_field: error.field };
  }
  const key = given.route_key_hex;
  const route = key === undefined ? undefined : routeOf(Buffer.from(key, "hex"), given.payment.card_id);
  const headers = headersOf(deadlineHeader(given.left_ms ?? 40), {
    token: given.token,
    route,
    traceparent: given.traceparent,
  });
  return { body: JSON.parse(body) as unknown, headers: Object.fromEntries(headers) };
});

vectors("answers", (given: { payment_id: string; status: number; body: string }) => {
  try {
    const found = readAnswer(given.payment_id, given.status, Buffer.from(given.body));
    return typeof found === "string" ? { cause: found } : { decision: found };
  } catch (error) {
    assert(error instanceof WrongRequest);
    return { wrong_request: { code: error.code, field: error.field, message: error.detail } };
  }
});

interface GivenAttempts {
  readonly order: number[];
  readonly avoided: number[];
  readonly pinned: number | null;
  readonly events: ReadonlyArray<{ readonly met: Met | number; readonly left_ms: number }>;
}

vectors("attempts", (given: GivenAttempts) => {
  const plan = new CallPlan(given.order, given.avoided, given.pinned);
  const attempts: Array<{ host: number; pause_ms: number }> = [];
  let pauseMs: number | null = 0;
  let met: Met | number = "late";
  for (const event of given.events) {
    assert(pauseMs !== null, "an event after the last attempt");
    attempts.push({ host: plan.host, pause_ms: pauseMs });
    met = event.met;
    if (met !== "refused") plan.sent();
    pauseMs = plan.retryPauseMs(met, event.left_ms);
  }
  assert.equal(pauseMs, null);
  const ends = { attempts, sent_to: plan.sentTo };
  if (typeof met === "string") return { ...ends, cause: causeOf(met) };
  try {
    const found = readAnswer("p", met, Buffer.from('{"payment_id": "p", "action": "approve"}'));
    return typeof found === "string" ? { ...ends, cause: found } : { ...ends, answered: true };
  } catch {
    return { ...ends, refused: true };
  }
});

vectors("policies", (given: unknown) => {
  try {
    StandInPolicy.of(given);
    return { wrong_at: null };
  } catch (error) {
    assert(error instanceof WrongSettings);
    return { wrong_at: error.where };
  }
});

interface GivenStandIns {
  readonly policy: unknown;
  readonly cards_max?: number;
  readonly steps: ReadonlyArray<{ readonly now_ms: number; readonly cause: Cause; readonly payment: Payment }>;
}

vectors("stand_ins", (given: GivenStandIns) => {
  const standIn = new StandIn(StandInPolicy.of(given.policy), given.cards_max ?? 100_000);
  return given.steps.map((step) => {
    const { action, reasons } = standIn.decide(step.payment, step.cause, step.now_ms);
    assert(isAction(action));
    return { action, reasons };
  });
});

vectors("reconciliation", (given: { asked: number; since_ms: number }) => nextDueMs(given.asked, given.since_ms));
