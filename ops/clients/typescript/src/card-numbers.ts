// Tells a card's number from a token, by the rules of the service (rule 4 of the specification).

// The first four digits (from, to) and the lengths (from, to) of card networks' numbers.
const NETWORKS: ReadonlyArray<readonly [number, number, number, number]> = [
  [2200, 2204, 16, 19],
  [2221, 2720, 16, 16],
  [3000, 3059, 14, 19],
  [3095, 3095, 14, 19],
  [3400, 3499, 15, 15],
  [3528, 3589, 16, 19],
  [3600, 3699, 14, 19],
  [3700, 3799, 15, 15],
  [3800, 3999, 14, 19],
  [4000, 4999, 13, 19],
  [5000, 5099, 13, 19],
  [5100, 5599, 16, 16],
  [5600, 5899, 13, 19],
  [6000, 6999, 13, 19],
  [8171, 8171, 16, 19],
];

const BEGINS_LIKE_DIGITS = /^[0-9 -]/;
const DIGITS = /^[0-9]{13,19}$/;

/** Returns whether a text of this field is refused as a card number. */
export function isCardNumber(field: string, text: string): boolean {
  // Nearly every token begins with a letter, or is too short.
  if (text.length < 13 || !BEGINS_LIKE_DIGITS.test(text)) return false;
  const digits = text.replaceAll(/[ -]/g, "");
  if (!DIGITS.test(digits) || !passesLuhn(digits)) return false;
  if (field === "card_id") return true;
  const begin = Number(digits.slice(0, 4));
  return NETWORKS.some(
    ([first, last, least, most]) => first <= begin && begin <= last && least <= digits.length && digits.length <= most,
  );
}

function passesLuhn(digits: string): boolean {
  let sum = 0;
  for (let place = 0; place < digits.length; place += 1) {
    const value = digits.charCodeAt(digits.length - 1 - place) - 48;
    sum += place % 2 === 0 ? value : value > 4 ? 2 * value - 9 : 2 * value;
  }
  return sum % 10 === 0;
}
