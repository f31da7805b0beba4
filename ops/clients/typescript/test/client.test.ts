// What a client does while its process is short of time.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { performance } from "node:perf_hooks";
import { test } from "node:test";

import { Client } from "../src/index.js";

test("a connection that was made while the loop stood still counts as made", async (context) => {
  const server = createServer((_, answer) => answer.end('{"payment_id": "p-1", "action": "approve"}'));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => {
    server.close();
    server.closeAllConnections();
  });
  const calls: unknown[] = [];
  const client = new Client(
    {
      urls: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      deadline_ms: 60_000,
      connect_timeout_ms: 50,
    },
    { onCall: (_operation, outcome, _seconds, attempts) => calls.push([outcome, attempts]) },
  );
  context.after(() => client.close());
  const decision = client.score({
    payment_id: "p-1",
    event_time_ms: Date.now(),
    card_id: "card-1",
    merchant_id: "merchant-1",
    amount_minor: 100,
    currency: "EUR",
  });
  // The kernel makes the connection meanwhile. When the loop goes on, the time for connecting has passed.
  for (const untilMs = performance.now() + 200; performance.now() < untilMs;);
  assert.equal((await decision).stand_in, false);
  assert.deepEqual(calls, [["answered", 1]]);
});
