// The driver: what tests and benchmarks talk to. The specification says what it reads and prints.

import { Agent, request as httpRequest } from "node:http";
import { performance } from "node:perf_hooks";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import type { Decision } from "./answers.js";
import { Client } from "./client.js";
import { WrongRequest, WrongSettings } from "./errors.js";
import { bodyOf, type Payment } from "./payments.js";
import type { Hooks, Settings } from "./settings.js";
import { StandInPolicy } from "./stand-in.js";

const LATE_MS = 5;

interface GivenSettings extends Omit<Settings, "policy" | "route_key" | "token"> {
  readonly urls: readonly string[];
  readonly token?: string;
  readonly route_key_hex?: string;
  readonly policy?: unknown;
  readonly events?: readonly string[];
}

interface Load {
  readonly rate: number;
  readonly seconds: number;
  readonly id: string;
  readonly cards: number;
}

interface Line {
  readonly settings?: GivenSettings;
  readonly score?: Payment;
  readonly deadline_ms?: number;
  readonly traceparent?: string;
  readonly shadow?: Payment;
  readonly own?: string;
  readonly load?: Load;
  readonly bare?: Load;
  readonly close?: true;
}

type Ask = (payment: Payment) => Promise<Pick<Decision, "stand_in" | "reasons"> | null>;

let isLoading = false;

function say(line: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

function tell(event: string, line: Record<string, unknown>): void {
  if (!isLoading) say({ event, ...line });
}

function hooksOf(events: readonly string[]): Hooks {
  return {
    onReconciled: (standIn, decision, end) =>
      tell("reconciled", { payment_id: standIn.payment_id, end, action: decision?.action ?? null }),
    onShadow: (own, decision, cause) => {
      const [paymentId, action] = own as [string, string];
      tell("shadow", { payment_id: paymentId, own: action, action: decision?.action ?? null, cause });
    },
    ...(events.includes("call") && {
      onCall: (operation: string, outcome: string, _seconds: number, attempts: number) =>
        tell("call", { operation, outcome, attempts }),
    }),
  };
}

function settingsOf(given: GivenSettings): Settings {
  const { route_key_hex, policy, events: _events, ...rest } = given;
  return {
    ...rest,
    ...(route_key_hex !== undefined && { route_key: Buffer.from(route_key_hex, "hex") }),
    ...(policy !== undefined && { policy: StandInPolicy.of(policy) }),
  };
}

function paymentOf(load: Load, number: number): Payment {
  return {
    payment_id: `${load.id}-${number}`,
    event_time_ms: Date.now(),
    card_id: `card-${String(number % load.cards).padStart(6, "0")}`,
    merchant_id: `merchant-${String(number % 100).padStart(4, "0")}`,
    amount_minor: 1000 + (number % 5000),
    currency: "EUR",
  };
}

async function runLoad(load: Load, deadlineMs: number, ask: Ask): Promise<Record<string, unknown>> {
  const tookMs: number[] = [];
  const standIns: Record<string, number> = {};
  const counts = { answered: 0, failed: 0, late_calls: 0 };
  const cpu = process.cpuUsage();
  const one = async (number: number, dueMs: number): Promise<void> => {
    const payment = paymentOf(load, number);
    const beganMs = performance.now();
    if (beganMs - dueMs > LATE_MS) counts.late_calls += 1;
    const decision = await ask(payment).catch(() => null);
    tookMs.push(performance.now() - beganMs);
    const cause = decision?.stand_in === true ? (decision.reasons[0] ?? "").replace("stand_in:", "") : "";
    if (decision === null) counts.failed += 1;
    else if (cause) standIns[cause] = (standIns[cause] ?? 0) + 1;
    else counts.answered += 1;
  };
  const beginMs = performance.now();
  const calls = Math.floor(load.rate * load.seconds);
  const underWay: Array<Promise<void>> = [];
  for (let number = 0; number < calls; number += 1) {
    const dueMs = beginMs + (1000 * number) / load.rate;
    const waitMs = dueMs - performance.now();
    if (waitMs > 0) await sleep(waitMs);
    underWay.push(one(number, dueMs));
  }
  await Promise.all(underWay);
  const { user, system } = process.cpuUsage(cpu);
  tookMs.sort((first, second) => first - second);
  const at = (share: number): number => tookMs[Math.min(Math.floor(share * calls), calls - 1)] ?? 0;
  return {
    calls,
    ...counts,
    stand_ins: standIns,
    cpu_us: (user + system) / Math.max(calls, 1),
    p50_ms: at(0.5),
    p99_ms: at(0.99),
    over_p99_9_ms: at(0.999) - deadlineMs,
    over_max_ms: at(1) - deadlineMs,
  };
}

/** Returns a call through node's own HTTP client. */
function bareAsk(url: string, token: string | undefined): Ask {
  const agent = new Agent({ keepAlive: true, maxSockets: 64 });
  const headers = { "content-type": "application/json", ...(token && { authorization: `Bearer ${token}` }) };
  return (payment) =>
    new Promise((resolve, reject) => {
      const asked = httpRequest(`${url}/v1/score`, { method: "POST", agent, headers }, (answer) => {
        const parts: Buffer[] = [];
        answer.on("data", (part: Buffer) => parts.push(part));
        answer.on("error", reject);
        answer.on("end", () => {
          JSON.parse(Buffer.concat(parts).toString());
          resolve(answer.statusCode === 200 ? { stand_in: false, reasons: [] } : null);
        });
      });
      asked.on("error", reject);
      asked.end(bodyOf(payment));
    });
}

let client: Client | undefined;
let deadlineMs = 40;
let given: GivenSettings | undefined;

async function answer(line: Line): Promise<void> {
  if (line.settings !== undefined) {
    client?.close();
    client = undefined;
    try {
      given = line.settings;
      deadlineMs = given.deadline_ms ?? 40;
      client = new Client(settingsOf(given), hooksOf(given.events ?? []));
      say({ ready: "typescript" });
    } catch (error) {
      if (!(error instanceof WrongSettings)) throw error;
      say({ wrong_settings: error.where });
    }
    return;
  }
  if (client === undefined) throw new Error("settings come first");
  const asked = client;
  if (line.score !== undefined) {
    try {
      say({
        decision: await asked.score(line.score, { deadline_ms: line.deadline_ms, traceparent: line.traceparent }),
      });
    } catch (error) {
      if (!(error instanceof WrongRequest)) throw error;
      say({ wrong_request: { code: error.code, field: error.field, message: error.detail } });
    }
  } else if (line.shadow !== undefined) {
    say({ own: asked.shadow(line.shadow, [line.shadow.payment_id, line.own])[1] });
  } else if (line.load !== undefined || line.bare !== undefined) {
    isLoading = true;
    const report =
      line.load !== undefined
        ? await runLoad(line.load, deadlineMs, (payment) => asked.score(payment))
        : await runLoad(line.bare as Load, deadlineMs, bareAsk(given?.urls[0] ?? "", given?.token));
    isLoading = false;
    say({ load: report });
  } else if (line.close) {
    asked.close();
    say({ closed: true });
    process.exit(0);
  }
}

for await (const text of createInterface({ input: process.stdin })) await answer(JSON.parse(text) as Line);
process.exit(0);
