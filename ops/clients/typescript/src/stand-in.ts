// Decides about a payment when the service does not: limits by amount, merchant category and card (rules 23 and 24).

import { ACTIONS, isAction, type Action, type Cause, type Decision } from "./answers.js";
import { WrongSettings } from "./errors.js";
import { AMOUNT_MAX, type Payment } from "./payments.js";

const LIMITS_MAX = 64;
const WINDOW_S_MAX = 86_400;
const COUNT_MAX = 100;
/** Payments kept for a card. With so many within the longest window, every limit by card holds. */
export const PAYMENTS_OF_CARD_MAX = 128;

const NAME = /^[a-z0-9_-]{1,40}$/;
const CURRENCY = /^(?:[A-Z]{3}|\*)$/;
const MCC = /^([0-9]{4})(?:-([0-9]{4}))?$/;
const POLICY_KEYS = ["name", "otherwise", "limits"];
const CONDITIONS = ["amount_over", "mcc_in", "card_count_over", "card_sum_over"];
const LIMIT_KEYS = ["name", "action", ...CONDITIONS, "window_s"];

type Amounts = ReadonlyMap<string, number>;
type Found = Readonly<Record<string, unknown>>;

interface Limit {
  readonly name: string;
  readonly action: Action;
  readonly amountOver: Amounts | null;
  readonly mccIn: ReadonlyArray<readonly [string, string]> | null;
  readonly mccMayBeMissing: boolean;
  readonly cardCountOver: number | null;
  readonly cardSumOver: Amounts | null;
  readonly windowMs: number;
}

/** What decides in the service's place. */
export class StandInPolicy {
  readonly windowMs: number;

  private constructor(
    readonly name: string,
    readonly otherwise: Action,
    readonly limits: readonly Limit[],
  ) {
    this.windowMs = Math.max(0, ...limits.map((limit) => limit.windowMs));
  }

  /** Sends every payment to review. */
  static readonly reviewAll = new StandInPolicy("review-all", "review", []);

  /** Returns the policy of a JSON text. Throws WrongSettings with the path of what is wrong. */
  static parse(text: string): StandInPolicy {
    let found: unknown;
    try {
      found = JSON.parse(text);
    } catch {
      throw new WrongSettings("", "the policy is not JSON");
    }
    return StandInPolicy.of(found);
  }

  /** Returns the policy of an object as JSON has it. Throws WrongSettings with the path of what is wrong. */
  static of(found: unknown): StandInPolicy {
    const policy = objectOf(found, "");
    requireKnown(policy, POLICY_KEYS, "");
    const name = nameOf(policy, "");
    const otherwise = policy["otherwise"];
    if (!isAction(otherwise)) throw new WrongSettings("otherwise", `wanted one of ${ACTIONS.join(", ")}`);
    const limits = "limits" in policy ? policy["limits"] : [];
    if (!Array.isArray(limits) || limits.length > LIMITS_MAX) {
      throw new WrongSettings("limits", `wanted a list of at most ${LIMITS_MAX}`);
    }
    const parsed = limits.map((limit: unknown, place) => limitOf(limit, `limits[${place}]`));
    parsed.forEach((limit, place) => {
      if (parsed.findIndex((other) => other.name === limit.name) < place) {
        throw new WrongSettings(`limits[${place}].name`, "wanted a name that no other limit has");
      }
    });
    return new StandInPolicy(name, otherwise, parsed);
  }
}

interface Counted {
  readonly atMs: number;
  readonly paymentId: string;
  readonly amount: number;
  readonly currency: string;
}

/** Decides by a policy, and counts by card. */
export class StandIn {
  // In the order of each card's newest payment.
  private readonly cards = new Map<string, Counted[]>();

  /** `cardsMax`: beyond it, the card that was counted longest ago is forgotten. */
  constructor(
    private readonly policy: StandInPolicy,
    private readonly cardsMax: number,
  ) {}

  /** Returns the decision. `nowMs` is of a clock that never goes back. */
  decide(payment: Payment, cause: Cause, nowMs: number): Decision {
    const { policy } = this;
    const earlier = policy.windowMs > 0 ? this.earlier(payment, nowMs) : [];
    const holding = policy.limits.filter((limit) => holds(limit, payment, earlier, nowMs));
    const strictest = Math.max(...holding.map((limit) => ACTIONS.indexOf(limit.action)));
    const action = ACTIONS[strictest] ?? policy.otherwise;
    const reasons = [`stand_in:${cause}`];
    for (const limit of holding) if (limit.action === action) reasons.push(`limit:${limit.name}`);
    if (action !== "decline" && policy.windowMs > 0) this.note(payment, nowMs);
    return {
      payment_id: payment.payment_id,
      action,
      decision_id: "",
      score: null,
      reasons,
      model_version: "",
      flags: ["stand_in"],
      profile_age_ms: null,
      stand_in: true,
    };
  }

  private earlier(payment: Payment, nowMs: number): Counted[] {
    const kept = this.cards.get(payment.card_id);
    if (kept === undefined) return [];
    const first = kept.findIndex((one) => nowMs - one.atMs < this.policy.windowMs);
    kept.splice(0, first < 0 ? kept.length : first);
    // The same payment, asked again, counts once.
    return kept.filter((one) => one.paymentId !== payment.payment_id);
  }

  private note(payment: Payment, nowMs: number): void {
    let kept = this.cards.get(payment.card_id);
    if (kept === undefined) {
      kept = [];
      const [oldest] = this.cards.keys();
      if (this.cards.size >= this.cardsMax && oldest !== undefined) this.cards.delete(oldest);
    } else {
      this.cards.delete(payment.card_id);
    }
    this.cards.set(payment.card_id, kept);
    if (kept.some((one) => one.paymentId === payment.payment_id)) return;
    kept.push({ atMs: nowMs, paymentId: payment.payment_id, amount: payment.amount_minor, currency: payment.currency });
    if (kept.length > PAYMENTS_OF_CARD_MAX) kept.shift();
  }
}

function holds(limit: Limit, payment: Payment, earlier: readonly Counted[], nowMs: number): boolean {
  if (limit.amountOver !== null && !isOver(payment.amount_minor, payment.currency, limit.amountOver)) return false;
  if (limit.mccIn !== null) {
    const { mcc } = payment;
    const isIn = mcc ? limit.mccIn.some(([low, high]) => low <= mcc && mcc <= high) : limit.mccMayBeMissing;
    if (!isIn) return false;
  }
  if (limit.windowMs === 0 || earlier.length >= PAYMENTS_OF_CARD_MAX) return true;
  const within = earlier.filter((one) => nowMs - one.atMs < limit.windowMs);
  if (limit.cardCountOver !== null && within.length + 1 <= limit.cardCountOver) return false;
  if (limit.cardSumOver === null) return true;
  let total = payment.amount_minor;
  for (const one of within) if (one.currency === payment.currency) total += one.amount;
  return isOver(total, payment.currency, limit.cardSumOver);
}

/** Whether an amount is over its currency's limit, or that of "*". A currency without one is over. */
function isOver(amount: number, currency: string, largest: Amounts): boolean {
  const most = largest.get(currency) ?? largest.get("*");
  return most === undefined || amount > most;
}

function limitOf(given: unknown, at: string): Limit {
  const found = objectOf(given, at);
  requireKnown(found, LIMIT_KEYS, at);
  const name = nameOf(found, at);
  const action = found["action"];
  if (action !== "review" && action !== "decline") {
    throw new WrongSettings(`${at}.action`, "wanted one of review, decline");
  }
  if (!CONDITIONS.some((condition) => condition in found)) {
    throw new WrongSettings(at, `wanted a condition: one of ${CONDITIONS.join(", ")}`);
  }
  const mccs = "mcc_in" in found ? mccsOf(found["mcc_in"], `${at}.mcc_in`) : null;
  const isByCard = "card_count_over" in found || "card_sum_over" in found;
  if (isByCard !== "window_s" in found) {
    throw new WrongSettings(`${at}.window_s`, "wanted with card_count_over or card_sum_over, and only there");
  }
  const amounts = (key: string): Amounts | null => (key in found ? amountsOf(found[key], `${at}.${key}`) : null);
  return {
    name,
    action,
    amountOver: amounts("amount_over"),
    mccIn: mccs === null ? null : mccs.filter((pair) => pair !== null),
    mccMayBeMissing: mccs !== null && mccs.includes(null),
    cardCountOver:
      "card_count_over" in found ? whole(found["card_count_over"], `${at}.card_count_over`, 0, COUNT_MAX) : null,
    cardSumOver: amounts("card_sum_over"),
    windowMs: isByCard ? 1000 * whole(found["window_s"], `${at}.window_s`, 1, WINDOW_S_MAX) : 0,
  };
}

function objectOf(found: unknown, at: string): Found {
  if (typeof found !== "object" || found === null || Array.isArray(found)) {
    throw new WrongSettings(at, "wanted an object");
  }
  return found as Found;
}

function requireKnown(found: Found, names: readonly string[], at: string): void {
  for (const name of Object.keys(found)) {
    if (!names.includes(name)) throw new WrongSettings(path(at, name), `is unknown; wanted one of ${names.join(", ")}`);
  }
}

function path(at: string, name: string): string {
  return at ? `${at}.${name}` : name;
}

function nameOf(found: Found, at: string): string {
  const name = found["name"];
  if (typeof name !== "string" || !NAME.test(name)) {
    throw new WrongSettings(path(at, "name"), "wanted 1 to 40 of a to z, 0 to 9, _ and -");
  }
  return name;
}

function whole(value: unknown, at: string, least: number, most: number): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most) {
    throw new WrongSettings(at, `wanted a whole number from ${least} to ${most}`);
  }
  return value;
}

function amountsOf(given: unknown, at: string): Amounts {
  const found = typeof given === "object" && given !== null && !Array.isArray(given) ? Object.entries(given) : [];
  if (found.length === 0) throw new WrongSettings(at, 'wanted amounts by currency, such as {"EUR": 20000}');
  const amounts = new Map<string, number>();
  for (const [currency, amount] of found) {
    if (!CURRENCY.test(currency)) throw new WrongSettings(`${at}.${currency}`, 'wanted three capital letters, or "*"');
    amounts.set(currency, whole(amount, `${at}.${currency}`, 0, AMOUNT_MAX));
  }
  return amounts;
}

/** Returns ranges of codes, both ends included, and null for a payment without a code. */
function mccsOf(found: unknown, at: string): Array<readonly [string, string] | null> {
  if (!Array.isArray(found) || found.length === 0) {
    throw new WrongSettings(at, 'wanted a list such as ["7995", "7800-7802", "missing"]');
  }
  return found.map((text: unknown, place) => {
    if (text === "missing") return null;
    const match = typeof text === "string" ? MCC.exec(text) : null;
    const low = match?.[1];
    const high = match?.[2] ?? low;
    if (low === undefined || high === undefined || high < low) {
      throw new WrongSettings(`${at}[${place}]`, 'wanted four digits, a range of them, or "missing"');
    }
    return [low, high] as const;
  });
}
